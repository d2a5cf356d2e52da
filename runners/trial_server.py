"""A process that forks one child per trial and leaves nothing of it behind.

It is started once, imports once, and is single-threaded, so that forking it is safe and costs milliseconds.
Over its pipe come a runner and then requests; for each it answers the child's process id, then the outcome:

    client                               server                                child
    (plan, attempt, limit)        ->     fork, new session             ->      runner.run([plan])
                                  <-     pid
                                         wait: outcome | death | limit <-      outcome
                                  <-     outcome                               its whole group is killed
"""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import IO, NoReturn

import psutil

from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Outcome, tail
from runners.protocol import Runner, RunnerRecipe, RunnerSource, WarmRunner, runner_of
from search_spaces.errors import MeshtuneError
from search_spaces.plan import Plan, Plans

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_REAP_S = 5.0
_MOST_LOG_BYTES = 64 * 1024
REQUESTED_S = "MESHTUNE_REQUESTED_S"  # tells a trial when it was asked for, on the clock of `time.monotonic`
SCRATCH = "MESHTUNE_SCRATCH"  # names the folder for all that trials of a server write; the client removes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One trial: a plan, the tries it lost to machines before, its limit (None: none), and its variables.

    `job` takes the place of the runner's own, for a proxy; `sent_s` is when it was asked for.
    """

    plan: Plan
    job: Job | None = None
    attempt: int = 0
    time_limit_s: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    sent_s: float = field(default_factory=time.monotonic)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies: none escapes `kill_descendants`."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL as soon as the parent is gone."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def kill_descendants(pid: int, *, patience_s: float = _REAP_S) -> None:
    """Kill and reap everything below a process, again until nothing is left that was born meanwhile."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        try:
            below = psutil.Process(pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return
        if not below:
            return
        for process in below:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(below, timeout=0.2)


def serve(link: Connection) -> None:
    """Answer requests until the client is gone."""
    adopt_orphans()
    runner = _build(link)
    while True:
        try:
            request = link.recv()
        except (EOFError, OSError):
            return
        link.send(_try(runner, request, link))


def _build(link: Connection) -> Runner:
    try:
        source: RunnerSource = link.recv()
        runner = source.build() if isinstance(source, RunnerRecipe) else source
        if isinstance(runner, WarmRunner):
            runner.warm_up()
    except MeshtuneError as error:
        link.send(error)
        sys.exit(2)
    link.send(None)
    return runner


def _try(runner: Runner, request: Request, link: Connection) -> Outcome:
    outcomes, answer = Pipe(duplex=False)
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(dir=os.environ.get(SCRATCH)) as folder:
        pid = os.fork()
        if pid == 0:
            link.close()
            outcomes.close()
            tempfile.tempdir = folder
            _run_child(runner, request, answer, log)
        answer.close()
        try:
            link.send(pid)
            return _await(request, outcomes, link) or _obituary(runner, pid, log)
        except TimeoutError:
            message = f"the trial did not end within {request.time_limit_s:g} s"
            return Failed(cause=Cause.TIMEOUT, message=message, origin=runner.origin, log_tail=_end_of(log))
        finally:
            outcomes.close()
            _kill_group(pid)
            kill_descendants(os.getpid())


def _run_child(runner: Runner, request: Request, answer: Connection, log: IO[bytes]) -> NoReturn:
    """The trial: its own session, its output in the log, its end without any clean-up that could hang."""
    status = 1
    try:
        os.setsid()
        die_with_parent()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        os.environ.update(request.environment)
        os.environ[REQUESTED_S] = repr(request.sent_s)
        asked = runner_of(runner, request.job)
        (outcome,) = asked.run(Plans.of([request.plan]), attempt=request.attempt)
        answer.send(outcome)
        status = 0
    except BaseException:  # noqa: BLE001 - a process border: whatever happened goes to the log
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _await(request: Request, outcomes: Connection, link: Connection) -> Outcome | None:
    """The child's outcome, or None when it died without one."""
    ready = wait([outcomes, link], timeout=request.time_limit_s)
    if not ready:
        raise TimeoutError
    if outcomes not in ready:
        sys.exit(0)  # The client is gone: `finally` above kills the trial.
    try:
        outcome: Outcome = outcomes.recv()
    except EOFError:
        return None
    return outcome


def _obituary(runner: Runner, pid: int, log: IO[bytes]) -> Failed:
    """A child that died without an outcome: which signal or status, and its last words."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        message = "the trial was killed by SIGKILL, as the kernel does when the machine's memory runs out"
    elif code < 0:
        message = f"the trial was killed by {signal.Signals(-code).name}"
    else:
        message = f"the trial ended with exit status {code}"
    return Failed(cause=Cause.CRASH, message=message, origin=runner.origin, log_tail=_end_of(log))


def _end_of(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - _MOST_LOG_BYTES))
    return tail(log.read().decode(errors="replace"))


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # before the child's setsid there is no group yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def main() -> None:
    """Entry point: the number of the inherited pipe is the only argument."""
    try:
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the client is gone
            serve(Connection(int(sys.argv[1])))
    finally:
        if folder := os.environ.get(SCRATCH):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
