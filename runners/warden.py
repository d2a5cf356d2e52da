"""Runs one command and leaves nothing of it behind; a program of its own, standard library only.

    python -I -S warden.py STATUS_FD PARENT_PID GRACE_S COMMAND...

It adopts every process that the command starts, however deep and in whatever session.  When the command ends,
what it left is killed.  When the warden is told to stop (SIGTERM, or its parent's death) all get SIGTERM and,
after the grace, SIGKILL.  Into STATUS_FD it writes `status N` (negative: the signal) or `missing REASON`.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_POLL_S = 0.05
_LAST_S = 5.0  # after SIGKILL a process is gone at once, unless the kernel itself waits for a disk


def main() -> None:
    """Entry point."""
    status_fd, parent, grace_s, command = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_STOPS, signal.SIGCHLD})
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return  # it died before its death could be announced
    try:
        child = subprocess.Popen(
            command,
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),  # noqa: PLW1509 - one thread
        )
    except OSError as error:
        os.write(status_fd, f"missing {error.strerror}: {error.filename}".encode())
        return
    status = _watch(child.pid, grace_s)
    _kill_all()
    os.write(status_fd, f"status {status}".encode())


def _watch(pid: int, grace_s: float) -> int:
    """Wait for the command; its status, also when it had to be stopped."""
    while True:
        if signal.sigwait({*_STOPS, signal.SIGCHLD}) in _STOPS:
            return _stop(pid, grace_s)
        status = _reaped(pid)
        if status is not None:
            return status


def _stop(pid: int, grace_s: float) -> int:
    """Ask everything to end, then make it."""
    status, deadline = None, time.monotonic() + grace_s
    _signal(signal.SIGTERM, _descendants())
    while time.monotonic() < deadline:
        status = _reaped(pid) if status is None else status
        if not _descendants():
            break
        time.sleep(_POLL_S)
    killed = _kill_all(pid)
    if status is None:
        status = killed
    return -signal.SIGKILL if status is None else status


def _kill_all(pid: int = 0) -> int | None:
    """Kill and reap everything below, again until nothing is left that was born meanwhile."""
    status, deadline = None, time.monotonic() + _LAST_S
    while (below := _descendants()) and time.monotonic() < deadline:
        _signal(signal.SIGKILL, below)
        time.sleep(_POLL_S / 5)
        found = _reaped(pid)
        status = found if found is not None else status
    return status


def _reaped(pid: int) -> int | None:
    """Collect all that ended; the status of the one asked for, if it is among them."""
    status = None
    while True:
        try:
            ended, raw = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if ended == 0:
            return status
        if ended == pid:
            status = os.waitstatus_to_exitcode(raw)


def _descendants() -> list[int]:
    """Ids of all processes below this one that are no zombies, children first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir() if Path("/proc/self").exists() else ():
        if entry.name.isdigit() and (parent := _living_parent(entry)):
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _living_parent(entry: Path) -> int | None:
    try:
        # The name in parentheses may hold anything, parentheses too.
        state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(parent)


def _signal(number: int, pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
