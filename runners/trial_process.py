"""The client's side of `trial_server`: one warm process that tries one plan at a time."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Pipe
from pathlib import Path
from types import MappingProxyType
from typing import IO

from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Outcome, tail
from runners.owned_folder import owned_folder
from runners.protocol import RunnerSource
from runners.trial_server import SCRATCH, Request, kill_descendants
from search_spaces.errors import MeshtuneError, RunnerError
from search_spaces.plan import Plan

GRACE_S = 10.0
_START_S = 120.0
_PREFIX = "meshtune-trials-"
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"


class ProcessLost(RunnerError):
    """The trial's process is gone, and not by the plan's fault."""


class Child:
    """A Python process of ours in a session of its own, at the other end of a pipe."""

    def __init__(self, module: str, *, environment: dict[str, str] | None = None) -> None:
        self.link, theirs = Pipe(duplex=True)
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `close`
        own_path = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._words,
            env={**os.environ, **own_path, **(environment or {})},
            start_new_session=True,
        )
        theirs.close()

    @property
    def last_words(self) -> str:
        """End of what it wrote to its standard error."""
        self._words.seek(0)
        return tail(self._words.read().decode(errors="replace"))

    def close(self, *, patience_s: float = 0.0) -> None:
        """Hang up, give it time to end by itself, then kill it with everything below it."""
        with contextlib.suppress(OSError):
            self.link.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_s)
        self.kill()
        self.process.wait()
        self._words.close()

    def kill(self) -> None:
        """End it with everything below it; the pipe stays for whoever reads from it."""
        if self.process.poll() is None:
            # Stopped, it cannot start anything new while what is below it is killed.
            self.process.send_signal(signal.SIGSTOP)
            kill_descendants(self.process.pid, patience_s=1.0)
            self.process.kill()


class TrialProcess:
    """Tries plans one after the other in a process that starts with the first one and stays warm.

    `scratch` is the folder for what trials write, made when needed; the machine's own if not given.
    """

    def __init__(self, source: RunnerSource, *, scratch: Path | None = None) -> None:
        self._source, self._scratch = source, scratch
        self._child: Child | None = None
        self._folder: str | None = None

    @property
    def pid(self) -> int | None:
        """Id of the server process, once it runs."""
        return self._child.process.pid if self._child else None

    def run(
        self,
        plan: Plan,
        *,
        job: Job | None = None,
        attempt: int = 0,
        time_limit_s: float | None = None,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> Outcome:
        """What came of the plan, tried with these variables beside those of the process.

        `job` takes the place of the runner's own.

        Raises
        ------
        ProcessLost
            The process was killed from outside; the next call starts another.
        RunnerError
            No such process can be started here.
        """
        child = self._child or self._start()
        try:
            request = Request(
                plan=plan, job=job, attempt=attempt, time_limit_s=time_limit_s, environment=dict(environment)
            )
            child.link.send(request)
            trial_pid = child.link.recv()
        except (EOFError, OSError):
            raise self._lost(child, None) from None
        return self._outcome(child, trial_pid, time_limit_s)

    def _outcome(self, child: Child, trial_pid: int, time_limit_s: float | None) -> Outcome:
        try:
            if time_limit_s is None or child.link.poll(time_limit_s + GRACE_S):
                outcome: Outcome = child.link.recv()
                return outcome
        except (EOFError, OSError):
            raise self._lost(child, trial_pid) from None
        self.close()
        message = f"the trial did not end within {time_limit_s:g} s and its process did not answer"
        return Failed(cause=Cause.TIMEOUT, message=message, origin=self._source.origin)

    def close(self) -> None:
        """End the process and whatever trial it has; may be called twice."""
        child, self._child = self._child, None
        if child:
            child.close()
        folder, self._folder = self._folder, None
        if folder:
            shutil.rmtree(folder, ignore_errors=True)

    def kill(self) -> None:
        """Kill the process and its trial from another thread: the one inside `run` finds it lost."""
        if child := self._child:
            child.kill()

    def _start(self) -> Child:
        # Trials keep their files here; killed, they cannot remove them.
        if self._scratch is not None:
            self._scratch.mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.mkdtemp(prefix=_PREFIX, dir=self._scratch)
        else:
            self._folder = str(owned_folder(_PREFIX, Path(tempfile.gettempdir())))
        environment = {"OPENBLAS_NUM_THREADS": "1", SCRATCH: self._folder}
        if _COMPILED not in os.environ:  # torch makes this folder as soon as it is loaded
            environment[_COMPILED] = os.path.join(self._folder, "compiled")
        child = self._child = Child("runners.trial_server", environment=environment)
        try:
            child.link.send(self._source)
            answer = child.link.recv() if child.link.poll(_START_S) else TimeoutError("no answer")
        except (EOFError, OSError):
            answer = TimeoutError((child.last_words.splitlines() or ["it died"])[-1])
        if answer is None:
            return child
        self.close()
        if isinstance(answer, MeshtuneError):
            raise answer
        raise RunnerError("a process for trials must start", str(answer))

    def _lost(self, child: Child, trial_pid: int | None) -> ProcessLost:
        if trial_pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(trial_pid, signal.SIGKILL)
        status = child.process.poll()
        self.close()
        return ProcessLost("the process of a trial must live as long as the trial", f"exit status {status}")
