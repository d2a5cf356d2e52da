"""Trials spread over Ray: an embedded one of our own, or a cluster at an address.

    study  <- pipe ->  host (`on_ray_host`, the only process that imports Ray)
                         <- Ray ->  one placement group a trial, at most one warm actor a slot
                                      <- pipe ->  trial server, forks one child a trial

Ray starts with the first plan.  An embedded Ray takes a random token, no dashboard, no usage report, as many
logical CPUs as the slots ask for and 100 MB of object store.  It ends with the host, the host with the study.
"""

import contextlib
import os
import secrets
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from objectives.metrics import Job
from objectives.outcome import Outcome, OutcomeOrigin
from runners.in_process import lost_outcome
from runners.on_ray_folder import list_processes, make_folder, remove_folder
from runners.on_ray_words import Done, HostOptions, Lost, Ready, Reservation, Submit
from runners.protocol import MAX_LOST_RETRIES, RunnerSource, is_lost, run_all
from runners.trial_process import GRACE_S, Child
from search_spaces.errors import MeshtuneError, RunnerError, check
from search_spaces.plan import Plan, Plans

if TYPE_CHECKING:
    from pathlib import Path

_START_EMBEDDED_S, _STOP_S = 120.0, 15.0
_MAX_RESTARTS = 3


class RayExecutor:
    """Tries plans side by side on Ray (an `Executor`).

    `address` joins a cluster: HOST:PORT from one of its nodes, ray://HOST:PORT from outside, with the token
    in RAY_AUTH_TOKEN; it must answer within `answer_within_s`.  Without an address Ray is embedded.
    `reservation` is what each trial occupies.
    """

    def __init__(  # noqa: PLR0913 - the limits of a machine, each with its default
        self,
        source: RunnerSource,
        *,
        n_slots: int = 2,
        address: str | None = None,
        time_limit_s: float | None = None,
        max_lost_retries: int = MAX_LOST_RETRIES,
        reservation: Reservation | None = None,
        grace_s: float = GRACE_S,
        answer_within_s: float = 20.0,
    ) -> None:
        check(n_slots >= 1, "an executor needs at least one slot", n_slots)
        self.n_slots = n_slots
        self._source, self._address, self._reservation = source, address, reservation or Reservation()
        self._time_limit_s, self._grace_s, self._max_lost_retries = time_limit_s, grace_s, max_lost_retries
        self._answer_within_s = answer_within_s
        self._host: Child | None = None
        self._folder: Path | None = None
        self._n_restarts = 0
        self._queue: deque[Submit] = deque()
        self._running: dict[int, Submit] = {}
        self._arrived: list[tuple[int, Outcome]] = []

    @property
    def host_pid(self) -> int | None:
        """Id of the process that speaks to Ray, once it runs."""
        return self._host.process.pid if self._host else None

    def submit(self, ticket: int, plan: Plan, job: Job | None = None) -> None:
        """Start a plan, or queue it behind those that run.  The first one starts Ray.

        `job` takes the place of the runner's own.

        Raises
        ------
        RunnerError
            Ray cannot be started, or nothing answers at the address.
        """
        self._queue.append(Submit(ticket=ticket, plan=plan, attempt=0, job=job))
        self._feed()

    def wait(self, timeout_s: float) -> list[tuple[int, Outcome]]:
        """Outcomes that arrived, at once if there are any, else after at most `timeout_s` (maybe none).

        Raises
        ------
        RunnerError
            Ray died more often than it may, or a worker can run nothing at all.
        """
        deadline = time.monotonic() + timeout_s
        while not self._arrived and (left_s := deadline - time.monotonic()) > 0:
            if not self._running:
                time.sleep(left_s)
                break
            self._listen(left_s)
        while self._running and self._has_news():
            self._listen(0)
        arrived, self._arrived = self._arrived, []
        return arrived

    def close(self) -> None:
        """End Ray and every trial; may be called twice."""
        self._queue.clear()
        self._running.clear()
        self._stop(patience_s=_STOP_S)

    def _feed(self) -> None:
        while self._queue and len(self._running) < self.n_slots:
            self._send(self._queue.popleft())

    def _send(self, trial: Submit) -> None:
        self._running[trial.ticket] = trial
        host = self._host or self._start()
        with contextlib.suppress(OSError):  # a dead host is noticed, and its trials sent again, by `_listen`
            host.link.send(trial)

    def _has_news(self) -> bool:
        try:
            return self._host is not None and self._host.link.poll(0)
        except OSError:
            return True

    def _listen(self, timeout_s: float) -> None:
        host = self._host
        assert host is not None
        try:
            message = host.link.recv() if host.link.poll(timeout_s) else None
        except (EOFError, OSError):
            self._recover(host.last_words)
            return
        if message is not None:
            self._hear(message)
            self._feed()

    def _hear(self, message: Done | Lost | MeshtuneError) -> None:
        match message:
            case Done(ticket=ticket, outcome=outcome):
                trial = self._running.pop(ticket)
                if is_lost(outcome):
                    self._retry(trial, outcome)
                else:
                    self._arrived.append((ticket, outcome))
                    self._n_restarts = 0
            case Lost(ticket=ticket, message=words):
                trial = self._running.pop(ticket)
                self._retry(trial, lost_outcome(words, self._source.origin, n_attempts=trial.attempt + 1))
            case error:
                self.close()
                raise error

    def _retry(self, trial: Submit, lost: Outcome) -> None:
        if trial.attempt >= self._max_lost_retries:
            self._arrived.append((trial.ticket, lost))
        else:
            self._send(replace(trial, attempt=trial.attempt + 1))

    def _recover(self, last_words: str) -> None:
        """The host is gone, and Ray with it: start both again, and try again what ran."""
        self._stop(patience_s=0)
        self._n_restarts += 1
        if self._n_restarts > _MAX_RESTARTS:
            self.close()
            raise RunnerError(
                "Ray must stay alive during a study", f"{self._n_restarts} deaths in a row", hint=last_words
            )
        running, self._running = self._running, {}
        for trial in running.values():
            words = "Ray died during the trial"
            self._retry(trial, lost_outcome(words, self._source.origin, n_attempts=trial.attempt + 1))

    def _start(self) -> Child:
        """A host, and Ray in or behind it; `RunnerError` in bounded time where that cannot be."""
        self._folder = make_folder()
        host = self._host = Child(
            "runners.on_ray_host", environment=_environment(self._address, self._folder)
        )
        options = HostOptions(
            source=self._source,
            address=self._address,
            n_slots=self.n_slots,
            reservation=self._reservation,
            time_limit_s=self._time_limit_s,
            grace_s=self._grace_s,
            temp_dir=str(self._folder),
        )
        limit_s = self._answer_within_s if self._address else _START_EMBEDDED_S
        where = f"at {self._address}" if self._address else "on this machine"
        late = RunnerError(f"Ray must answer {where} within {limit_s:g} s", "no answer")
        try:
            host.link.send(options)
            answer = host.link.recv() if host.link.poll(limit_s) else late
        except (EOFError, OSError):
            answer = RunnerError(f"Ray must start {where}", host.last_words.strip() or "its process died")
        if isinstance(answer, MeshtuneError):
            self._running.clear()
            self._stop(patience_s=0)
            raise answer
        assert isinstance(answer, Ready)
        if self._address is None:
            list_processes(self._folder, host.process.pid)
        return host

    def _stop(self, *, patience_s: float) -> None:
        host, self._host = self._host, None
        if host is not None:
            host.close(patience_s=patience_s)
        if self._folder is not None:
            remove_folder(self._folder)
            self._folder = None


class OnRay:
    """A runner whose plans are tried on Ray, side by side: wraps any runner or recipe."""

    def __init__(self, source: RunnerSource, **options: Any) -> None:
        self._source, self._options = source, options

    @property
    def origin(self) -> OutcomeOrigin:
        """That of the runner inside."""
        return self._source.origin

    def run(self, plans: Plans, *, attempt: int = 0) -> Sequence[Outcome]:
        """Try all plans on a Ray of their own, which ends with them; lost ones are retried inside."""
        del attempt
        with contextlib.closing(RayExecutor(self._source, **self._options)) as executor:
            return run_all(executor, plans)


def _environment(address: str | None, folder: "Path") -> dict[str, str]:
    """What Ray reads before it starts: nobody without the token can make an embedded one run code.

    What trials write lies in an embedded Ray's own folder, which goes even if all who wrote there are killed.
    """
    quiet = {"RAY_USAGE_STATS_ENABLED": "0"}
    if address is None:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        return {**quiet, **token, "TMPDIR": str(folder)}
    return {"RAY_AUTH_MODE": "token", **quiet} if "RAY_AUTH_TOKEN" in os.environ else quiet
