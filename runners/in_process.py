"""An executor without Ray: one thread and one warm process per slot, on this machine."""

import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType

from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Outcome, OutcomeOrigin
from runners.protocol import MAX_LOST_RETRIES, RunnerSource, is_lost
from runners.trial_process import ProcessLost, TrialProcess
from search_spaces.errors import MeshtuneError, check
from search_spaces.plan import Plan

NOTHING: Mapping[str, str] = MappingProxyType({})
Lease = Callable[[], AbstractContextManager[Mapping[str, str]]]
"""What each try is lent while it runs, as the variables that say so."""
_Arrival = tuple[int, Outcome] | MeshtuneError


def no_lease() -> AbstractContextManager[Mapping[str, str]]:
    """A try that is lent nothing."""
    return nullcontext(NOTHING)


class InProcessExecutor:
    """Tries plans side by side in processes of its own; nothing starts before the first plan.

    `lease` lends each try what it runs on; `scratch` is the folder for what trials write.
    """

    def __init__(
        self,
        source: RunnerSource,
        *,
        n_slots: int = 2,
        time_limit_s: float | None = None,
        max_lost_retries: int = MAX_LOST_RETRIES,
        lease: Lease = no_lease,
        scratch: Path | None = None,
    ) -> None:
        check(n_slots >= 1, "an executor needs at least one slot", n_slots)
        self.n_slots = n_slots
        self._source, self._time_limit_s, self._max_lost_retries = source, time_limit_s, max_lost_retries
        self._lease, self._scratch = lease, scratch
        self._todo: queue.SimpleQueue[tuple[int, Plan, Job | None] | None] = queue.SimpleQueue()
        self._arrived: queue.SimpleQueue[_Arrival] = queue.SimpleQueue()
        self._slots: list[tuple[threading.Thread, TrialProcess]] = []
        self._n_submitted = 0
        self._closed = False

    def submit(self, ticket: int, plan: Plan, job: Job | None = None) -> None:
        """Start a plan, or queue it behind those that run; `job` takes the place of the runner's own."""
        assert not self._closed, "submit after close"
        self._n_submitted += 1
        if len(self._slots) < min(self.n_slots, self._n_submitted):
            process = TrialProcess(self._source, scratch=self._scratch)
            thread = threading.Thread(target=self._work, args=[process], daemon=True)
            self._slots.append((thread, process))
            thread.start()
        self._todo.put((ticket, plan, job))

    def wait(self, timeout_s: float) -> list[tuple[int, Outcome]]:
        """Outcomes that arrived, at once if there are any, else after at most `timeout_s` (maybe none)."""
        arrivals: list[tuple[int, Outcome]] = []
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                arrival = self._arrived.get(timeout=0 if arrivals else max(0, deadline - time.monotonic()))
            except queue.Empty:
                return arrivals
            if isinstance(arrival, MeshtuneError):
                raise arrival
            arrivals.append(arrival)

    def close(self) -> None:
        """End every process, trials that still run included."""
        self._closed = True
        for _ in self._slots:
            self._todo.put(None)
        for thread, process in self._slots:
            while thread.is_alive():  # it may be just starting its process
                process.kill()  # and hangs up itself: a pipe belongs to the thread that reads from it
                thread.join(0.05)
            process.close()
        self._slots.clear()

    def _work(self, process: TrialProcess) -> None:
        while (item := self._todo.get()) is not None and not self._closed:
            ticket, plan, job = item
            try:
                self._arrived.put((ticket, self._try(process, plan, job)))
            except MeshtuneError as error:
                self._arrived.put(error)

    def _try(self, process: TrialProcess, plan: Plan, job: Job | None) -> Outcome:
        def once(attempt: int) -> Outcome:
            if self._closed:
                raise ProcessLost("the executor is closed")
            with self._lease() as lent:
                limit_s = self._time_limit_s
                return process.run(plan, job=job, attempt=attempt, time_limit_s=limit_s, environment=lent)

        return retry_lost(once, self._source.origin, max_lost_retries=self._max_lost_retries)


def retry_lost(once: Callable[[int], Outcome], origin: OutcomeOrigin, *, max_lost_retries: int) -> Outcome:
    """The outcome of the first attempt that the machine survived, or the loss of the last one."""
    outcome: Outcome | None = None
    for attempt in range(max_lost_retries + 1):
        try:
            outcome = once(attempt)
        except ProcessLost as lost:
            outcome = lost_outcome(str(lost), origin, n_attempts=attempt + 1)
        if not is_lost(outcome):
            break
    assert outcome is not None
    return outcome


def lost_outcome(message: str, origin: OutcomeOrigin, *, n_attempts: int) -> Failed:
    """A plan that the machine lost so many times."""
    return Failed(cause=Cause.LOST_MACHINE, message=f"{message} ({n_attempts} attempts)", origin=origin)
