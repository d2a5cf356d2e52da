"""Where studies are kept: a SQLite file (the default), a journal file, or PostgreSQL by URL.

    meshtune.db | sqlite:///meshtune.db      one file, several drivers on one machine
    runs.journal | runs.log | journal:///runs.log    one file, also on a network file system
    postgresql://user@host/base              many machines

Opening checks before it writes: a file that is no study file is refused and left as it was.
"""

import json
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy.exc import SQLAlchemyError

from search_spaces.errors import InvalidSpec, StorageError

DEFAULT_STORAGE = "sqlite:///meshtune.db"
BUSY_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 10
# A driver killed while it holds the journal's lock leaves the lock behind; nobody holds it longer than this.
LOCK_GRACE_S = 10
OPEN_ATTEMPTS = 5
JOURNAL_SUFFIXES = (".log", ".journal")
TROUBLE = (SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError, sqlite3.Error)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoragePlace:
    """A storage's kind (sqlite, journal, postgresql) and where it is: an absolute path, or a URL."""

    kind: str
    where: str

    @property
    def shown(self) -> str:
        """The place as messages print it: never with the password."""
        return hide_password(self.where)


def storage_place(url_or_path: str | Path) -> StoragePlace:
    """Read a storage's URL or path.

    Raises
    ------
    InvalidSpec
        A URL of another kind, or no place at all.
    """
    text = str(url_or_path).strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        kind = "journal" if text.endswith(JOURNAL_SUFFIXES) else "sqlite"
        return StoragePlace(kind=kind, where=_absolute(text))
    if scheme in ("sqlite", "journal"):
        return StoragePlace(kind=scheme, where=_absolute(rest.removeprefix("/")))
    if scheme.partition("+")[0] in ("postgresql", "postgres"):
        return StoragePlace(kind="postgresql", where=re.sub("^postgres(?=[:+])", "postgresql", text))
    must = "a storage must be a file, sqlite:///FILE, journal:///FILE or postgresql://USER@HOST/BASE"
    raise InvalidSpec(must, repr(hide_password(text)))


def hide_password(url: str) -> str:
    """The URL with its password, if any, as stars; the password may hold an @ of its own."""
    url = re.sub(r"(://[^:/?#]*):.*@", r"\1:***@", url)
    return re.sub(r"(?i)\b(password=)[^&\s]*", r"\1***", url)


def open_storage(url_or_path: str | Path, *, create: bool = True) -> BaseStorage:
    """The storage, ready for use by several drivers at once.

    Raises
    ------
    StorageError
        It cannot be reached, read or written, or it holds something else; a file is then left as it was.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    place = storage_place(url_or_path)
    with storage_trouble(place.shown):
        if place.kind == "postgresql":
            return optuna.storages.get_storage(_open_postgresql(place))
        path = _checked_path(Path(place.where), create=create)
        if place.kind == "journal":
            return _open_journal(path)
        _check_sqlite(path)
        return optuna.storages.get_storage(_open_sqlite(path))


def list_studies(storage: BaseStorage) -> list[str]:
    """Names of all studies in the storage, sorted."""
    with storage_trouble("the storage"):
        return sorted(study.study_name for study in storage.get_all_studies())


@contextmanager
def storage_trouble(shown: str) -> Iterator[None]:
    """Turn what databases and file systems raise into one sentence."""
    try:
        yield
    except TROUBLE as error:
        cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
        reason = hide_password(str(getattr(cause, "orig", None) or cause or error).strip().split("\n")[0])
        raise StorageError(
            f"the storage {shown} must be reachable and writable",
            reason,
            hint="the study itself is kept; try again",
        ) from None


def _absolute(text: str) -> str:
    if not text or text.startswith((":memory:", "?")):
        raise InvalidSpec(
            "a storage must name a file", repr(text), hint="a study in memory could not be resumed"
        )
    return str(Path(text).expanduser().absolute())


def _checked_path(path: Path, *, create: bool) -> Path:
    if path.is_dir():
        raise StorageError(f"the storage {path} must be a file", "a folder")
    if not path.parent.is_dir():
        raise StorageError(f"the storage {path} must lie in a folder that exists", str(path.parent))
    if not path.exists():
        if not create:
            raise StorageError(
                f"the storage {path} must exist", "no such file", hint="name it with --storage"
            )
        if not os.access(path.parent, os.W_OK):
            raise StorageError(f"the storage {path} must be writable", "a folder that is not")
    elif not os.access(path, os.R_OK | os.W_OK):
        raise StorageError(f"the storage {path} must be readable and writable", "a file that is not")
    return path


@dataclass(slots=True)
class _Door:
    """Whether transactions take the write lock first; Optuna's set-up of the tables would wait for itself."""

    closed: bool = False

    def __reduce__(self) -> str:
        raise TypeError("a SQLite storage stays in its process; open it again where it is needed")


class _Cursor(sqlite3.Cursor):
    """Takes the write lock before the first statement of every transaction, reads included.

    Optuna reads a trial's state and then writes it; SQLite's deferred transactions let two drivers read the
    same old state.  With the lock taken first, a state changes exactly once, which leases and admission rest
    on.
    """

    connection: "_Connection"

    def execute(self, sql: str, parameters: Any = (), /) -> "_Cursor":
        self._begin()
        super().execute(sql, parameters)
        return self

    def executemany(self, sql: str, parameters: Any, /) -> "_Cursor":
        self._begin()
        super().executemany(sql, parameters)
        return self

    def _begin(self) -> None:
        if self.connection.door.closed and not self.connection.in_transaction:
            super().execute("BEGIN IMMEDIATE")


class _Connection(sqlite3.Connection):
    def __init__(self, *arguments: Any, door: _Door, **keywords: Any) -> None:
        self.door = _Door()
        super().__init__(*arguments, **keywords)
        # WAL lets readers and the writer go on together.  NORMAL may lose the last transactions when the
        # power fails (not when a process is killed), whole and in order: such trials are running again, and
        # re-queued.
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
            self.execute(f"PRAGMA {pragma}")
        self.door = door

    def cursor(self, factory: Any = _Cursor) -> Any:
        return super().cursor(factory)


def _open_sqlite(path: Path) -> RDBStorage:
    door = _Door()
    arguments = {
        "timeout": BUSY_TIMEOUT_S,
        "isolation_level": None,
        "factory": partial(_Connection, door=door),
    }
    url, kwargs = f"sqlite:///{path}", {"connect_args": arguments}
    for attempt in range(OPEN_ATTEMPTS):
        with suppress(SQLAlchemyError):  # another driver makes the same tables at this moment
            return _closing(_open_rdb(url, str(path), kwargs), door)
        if not path.exists():
            break
        time.sleep(0.1 * 2**attempt)
    return _closing(_open_rdb(url, str(path), kwargs), door)


def _closing(storage: RDBStorage, door: _Door) -> RDBStorage:
    storage.scoped_session.remove()
    storage.engine.dispose()
    door.closed = True
    return storage


def _open_postgresql(place: StoragePlace) -> RDBStorage:
    engine = {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_TIMEOUT_S}}
    try:
        return _open_rdb(place.where, place.shown, engine)
    except ImportError:
        must = f"the storage {place.shown} needs a PostgreSQL driver"
        raise StorageError(must, "none installed", hint='pip install "psycopg[binary]"') from None


def _open_rdb(url: str, shown: str, engine_kwargs: dict[str, Any]) -> RDBStorage:
    try:
        return RDBStorage(url, engine_kwargs=engine_kwargs)
    except RuntimeError as error:  # Optuna's word for tables of another version
        raise StorageError(
            f"the storage {shown} must have this Optuna's tables", str(error).split("\n")[0]
        ) from None


def _check_sqlite(path: Path) -> None:
    """Refuse a file that is not SQLite, is damaged, or belongs to another program."""
    if not path.exists() or path.stat().st_size == 0:
        return
    # Only SQLite may open the file: a plain open and close would drop the locks that this process has on it
    # through other connections, and two processes would then write at once (sqlite.org/howtocorrupt.html,
    # section 2.2).
    try:
        with closing(
            sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_TIMEOUT_S)
        ) as connection:
            verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            tables = {name for (name,) in rows}
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        verdict, tables = str(error), set()
    if verdict != "ok":
        hint = "restore it from a copy, or name another file with --storage"
        raise StorageError(f"the storage {path} must be an undamaged SQLite file", verdict, hint=hint)
    # Some of the tables are enough: another driver may be making them, or was killed while it did.
    if tables and tables.isdisjoint({"studies", "version_info"}):
        given = f"a database with the tables {', '.join(sorted(tables)[:5])}"
        raise StorageError(f"the storage {path} must be a study file", given)


def _open_journal(path: Path) -> JournalStorage:
    # Optuna's lock links to this path: a relative one would dangle, and a waiting driver spin for ever.
    lock = JournalFileSymlinkLock(str(path), grace_period=LOCK_GRACE_S)
    if path.exists():
        lines = path.read_bytes().splitlines(keepends=True)
        torn = bool(lines) and not lines[-1].endswith(b"\n")
        _check_journal(path, lines[:-1] if torn else lines, torn=torn)
        if torn:
            _mend(path, lock)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _check_journal(path: Path, lines: Sequence[bytes], *, torn: bool) -> None:
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not {"op_code", "worker_id"} <= entry.keys():
            given = f"line {number}: {line[:40]!r}"
            raise StorageError(f"the storage {path} must be a journal of studies", given)
    if torn and not lines:
        raise StorageError(
            f"the storage {path} must be a journal of studies", "a file without one whole line"
        )


def _mend(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Cut a last line that a killed driver did not finish: nobody was told that it was written."""
    lock.acquire()
    try:
        whole = path.read_bytes()
        os.truncate(path, whole.rfind(b"\n") + 1)
    finally:
        lock.release()
