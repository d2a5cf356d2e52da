"""A command under a warden: its output line by line as it comes, its limits, its log file of bounded size."""

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from objectives.outcome import tail
from runners import warden
from runners.logs.lines import Line, LineSplitter
from runners.logs.verdict import EndedBy, Ending
from runners.trial_server import kill_descendants

_POLL_S = 0.2
_CHUNK_BYTES = 64 * 1024
_TAIL_BYTES = 64 * 1024
_MOST_TAIL_LINE = 500
_WARDEN_S = 10.0  # beyond the grace, for a warden that has a whole machine to clean up


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start, where, with which variables beside ours, and how long it may take to end when told."""

    words: Sequence[str]
    folder: Path
    environment: Mapping[str, str]
    grace_s: float


class BoundedLog:
    """A log file that holds the beginning and the end of what was written, within so many bytes.

    A file that cannot be written (a full disk) ends the writing and not the trial; `trouble` says so.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self.trouble = ""
        self._most_head, self._n_bytes = max(most_bytes - _TAIL_BYTES, 0), 0
        self._n_written = 0
        self._tail = b""
        self._file: IO[bytes] | None = None
        self._try(lambda: self._open(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def tail(self) -> str:
        """The last lines."""
        lines = tail(self._tail.decode("utf-8", errors="replace")).splitlines()
        return "\n".join(line[:_MOST_TAIL_LINE] for line in lines)

    def write(self, chunk: bytes) -> None:
        """Add to it."""
        room = max(self._most_head - self._n_bytes, 0)
        self._n_bytes += len(chunk)
        self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
        if room:
            self._try(lambda: self._put(chunk[:room]))

    def close(self) -> None:
        """Add the end, if it did not fit, and close the file."""
        n_left_out = self._n_bytes - self._n_written
        if n_left_out:
            end = self._tail[-n_left_out:]
            left_out = n_left_out - len(end)
            words = f"\n[{left_out} bytes left out]\n".encode() if left_out else b""
            self._try(lambda: self._put(words + end))
        if self._file is not None:
            self._try(self._file.close)
            self._file = None

    def _open(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)

    def _put(self, chunk: bytes) -> None:
        if self._file is not None and not self.trouble:
            self._file.write(chunk)
            self._n_written += len(chunk)

    def _try(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            self.trouble = f"the log file could not be written: {(error.strerror or str(error)).lower()}"


def run_command(
    command: Command,
    log: BoundedLog,
    *,
    on_line: Callable[[Line, float], None],
    limit: Callable[[float], tuple[EndedBy, float] | None],
) -> Ending:
    """Run it to its end, or to a limit of ours; every line goes to `on_line` with the time of its arrival.

    `limit` is asked at least every so often with the time, and answers what to stop for and the limit's
    seconds.  Nothing that the command started lives when this returns.
    """
    status_fd, theirs = os.pipe()
    try:
        process = _start(command, theirs)
    except OSError as error:  # the folder is gone, or no process can be started
        os.close(status_fd)
        return Ending(by=EndedBy.NOT_STARTED, words=f"{error.strerror}: {error.filename}")
    finally:
        os.close(theirs)
    try:
        stopped = _stream(process, log, on_line, limit, patience_s=command.grace_s + _WARDEN_S)
        _bury(process)
        words = os.read(status_fd, _CHUNK_BYTES).decode(errors="replace")
    finally:
        _bury(process)
        os.close(status_fd)
    return _ending(words, stopped)


def _start(command: Command, status_fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [
            sys.executable,
            "-I",
            "-S",
            warden.__file__,
            str(status_fd),
            str(os.getpid()),
            str(command.grace_s),
            *command.words,
        ],
        cwd=command.folder,
        env={**os.environ, **command.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[status_fd],
        start_new_session=True,
    )


def _stream(
    process: subprocess.Popen[bytes],
    log: BoundedLog,
    on_line: Callable[[Line, float], None],
    limit: Callable[[float], tuple[EndedBy, float] | None],
    *,
    patience_s: float,
) -> tuple[EndedBy, float] | None:
    """Read until the process has ended and its output is read; the limit it was stopped for."""
    splitter, stopped, deadline = LineSplitter(), None, float("inf")
    with _Output(process) as output:
        while time.monotonic() < deadline:
            has_ended = process.poll() is not None
            chunk = output.read(0 if has_ended else _POLL_S)
            now_s = time.monotonic()
            for line in splitter.feed(chunk):
                on_line(line, now_s)
            log.write(chunk)
            if has_ended and not chunk:
                break
            if stopped is None and (stopped := limit(now_s)) is not None:
                process.terminate()
                deadline = now_s + patience_s
    for line in splitter.end():
        on_line(line, time.monotonic())
    return stopped


class _Output:
    """What a process writes, read without waiting longer than is said."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._fd, self._is_open = process.stdout.fileno(), True
        os.set_blocking(self._fd, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._fd, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()

    def read(self, timeout_s: float) -> bytes:
        """What is there, or nothing; a process that closed its output may still run."""
        if not self._is_open:
            time.sleep(timeout_s)
            return b""
        if not self._selector.select(timeout_s):
            return b""
        chunk = os.read(self._fd, _CHUNK_BYTES)
        self._is_open = bool(chunk)
        return chunk


def _bury(process: subprocess.Popen[bytes]) -> None:
    """Whatever happened: no warden, and nothing below it."""
    if process.poll() is None:
        kill_descendants(process.pid)
        process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _ending(words: str, stopped: tuple[EndedBy, float] | None) -> Ending:
    kind, _, rest = words.partition(" ")
    if kind == "missing":
        return Ending(by=EndedBy.NOT_STARTED, words=f"the command cannot be started: {rest.lower()}")
    status = int(rest) if kind == "status" else None
    if stopped is None:
        return Ending(status=-9 if status is None else status)
    return Ending(status=status, by=stopped[0], limit_s=stopped[1])
