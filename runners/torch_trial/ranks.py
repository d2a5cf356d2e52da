"""The processes of a trial's ranks: forked, watched, and gone afterwards whatever happened.

A rank tells over its pipe where it is (`At`), in the end what it found (`Done`) or why it could not
(`Broken`), and leaves by `os._exit`, because torch's process groups can hang while an interpreter shuts down.
Its output goes to a file in the trial's folder.
"""

import contextlib
import errno
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NoReturn

from objectives.outcome import tail
from runners.trial_server import die_with_parent

_LAST_WORDS_S = 0.5  # after a first death, for the others to tell theirs
_MOST_LOG_BYTES = 64 * 1024
_RESERVE_BYTES = 4 * 1024 * 1024  # let go of by a rank that breaks, so that it can say why
NO_MEMORY_STATUS = errno.ENOMEM  # of a rank that had no memory left to say even that


@dataclass(frozen=True, slots=True, kw_only=True)
class At:
    """Where a rank is."""

    place: str
    step: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a rank found."""

    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """Why a rank ended: the kind of trouble, in one line."""

    kind: str
    message: str


Tell = Callable[[At], None]
Body = Callable[[int, Tell], Any]
Explain = Callable[[BaseException], Broken]


@dataclass(slots=True)
class Rank:
    """A rank's process as its parent sees it."""

    number: int
    pid: int
    link: Connection
    log: Path
    at: At = field(default_factory=lambda: At(place="start"))
    heard_s: float = field(default_factory=time.monotonic)
    done: Done | None = None
    broken: Broken | None = None
    status: int | None = None

    @property
    def is_over(self) -> bool:
        """Whether its process has ended."""
        return self.status is not None

    @property
    def last_lines(self) -> str:
        """The end of what it wrote."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _MOST_LOG_BYTES))
            return tail(file.read().decode(errors="replace"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What came of all ranks: every one done, or the first to break (`culprit`), or one that hangs."""

    ranks: Sequence[Rank]
    culprit: Rank | None = None
    hangs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Where a forked rank tells and writes, the links of others, and memory to let go of when it breaks."""

    link: Connection
    log: Path
    others: Sequence[Connection]
    reserve: bytearray = field(default_factory=lambda: bytearray(_RESERVE_BYTES))


def run_ranks(n_ranks: int, body: Body, *, explain: Explain, folder: Path, silence_s: float) -> Fate:
    """Run `body(rank, tell)` in a forked process each until all are done, one breaks or is silent too long.

    The calling process must have no threads.  No process is left behind.
    """
    ranks: list[Rank] = []
    try:
        for number in range(n_ranks):
            ranks.append(_fork(number, ranks, body, explain, folder, silence_s))
        return _watch(ranks, silence_s)
    finally:
        for rank in ranks:
            _end(rank)


def _fork(
    number: int, before: Sequence[Rank], body: Body, explain: Explain, folder: Path, silence_s: float
) -> Rank:
    theirs, ours = Pipe(duplex=False)
    log = folder / f"rank-{number}.log"
    log.touch()
    # The reserve is taken before the fork: the rank may have no memory from its first moment on.
    desk = Desk(link=ours, log=log, others=[theirs, *(rank.link for rank in before)])
    pid = os.fork()
    if pid == 0:
        _be_rank(number, body, explain, desk, silence_s)
    ours.close()
    return Rank(number=number, pid=pid, link=theirs, log=log)


def _be_rank(number: int, body: Body, explain: Explain, desk: Desk, silence_s: float) -> NoReturn:
    """Nothing here may be raised past the `try`: the caller would clean up as if it were the trial."""
    status = 1
    try:
        die_with_parent()
        for each in desk.others:
            each.close()
        descriptor = os.open(desk.log, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)

        def tell(at: At) -> None:
            # Shortly before the parent loses patience: where does this rank hang?  Telling it takes a thread,
            # for which a rank that is short of memory may have no room; that alone is no failure.
            with contextlib.suppress(RuntimeError):
                faulthandler.dump_traceback_later(0.9 * silence_s, file=descriptor)
            desk.link.send(at)

        tell(At(place="start"))
        desk.link.send(Done(value=body(number, tell)))
        status = 0
    except BaseException as error:  # noqa: BLE001 - a process border: whatever happened is told and logged
        desk.reserve.clear()
        if not _says_why(error, desk.link, explain):
            status = NO_MEMORY_STATUS
    finally:
        os._exit(status)


def _says_why(error: BaseException, link: Connection, explain: Explain) -> bool:
    """Over the link and into the log; whether there was memory for either."""
    told = _could(lambda: link.send(explain(error)))
    return _could(lambda: traceback.print_exception(error)) or told


def _could(say: Callable[[], None]) -> bool:
    """Whether there was memory to say it; a broken link or a full disk is another matter."""
    try:
        say()
    except MemoryError:
        return False
    except OSError as error:
        return error.errno != errno.ENOMEM
    return True


def _watch(ranks: Sequence[Rank], silence_s: float) -> Fate:
    while True:
        broken = _broken(ranks)
        if broken:
            _hear_last_words(ranks)
            return Fate(ranks=ranks, culprit=min(_broken(ranks), key=_blame))
        waiting = [rank for rank in ranks if not rank.is_over]
        if not waiting:
            return Fate(ranks=ranks)
        behind = min(waiting, key=lambda rank: rank.heard_s)
        left_s = behind.heard_s + silence_s - time.monotonic()
        if left_s <= 0:
            behind = min(waiting, key=lambda rank: (rank.at.step, rank.heard_s))
            return Fate(ranks=ranks, culprit=behind, hangs=True)
        _listen(ranks, left_s)


def _broken(ranks: Sequence[Rank]) -> list[Rank]:
    return [rank for rank in ranks if rank.is_over and rank.done is None]


def _blame(rank: Rank) -> tuple[int, float]:
    """A rank that was killed, or ran out of memory, explains the errors of those that spoke with it."""
    kinds = ("out of memory", "nan loss", "disk", "error", "collective")
    if rank.broken is None:
        return -1, rank.heard_s
    return kinds.index(rank.broken.kind), rank.heard_s


def _hear_last_words(ranks: Sequence[Rank]) -> None:
    end_s = time.monotonic() + _LAST_WORDS_S
    while any(not rank.is_over for rank in ranks) and (left_s := end_s - time.monotonic()) > 0:
        _listen(ranks, left_s)


def _listen(ranks: Sequence[Rank], timeout_s: float) -> None:
    open_ranks = {rank.link: rank for rank in ranks if not rank.is_over}
    for link in wait(list(open_ranks), timeout=timeout_s):
        rank = open_ranks[link]  # type: ignore[index]
        try:
            _take(rank, rank.link.recv())
        except (EOFError, OSError):
            _, status = os.waitpid(rank.pid, 0)
            rank.status = os.waitstatus_to_exitcode(status)


def _take(rank: Rank, message: object) -> None:
    rank.heard_s = time.monotonic()
    match message:
        case At():
            rank.at = message
        case Done():
            rank.done = message
        case Broken():
            rank.broken = message


def _end(rank: Rank) -> None:
    if not rank.is_over:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(rank.pid, 0)
    rank.link.close()
