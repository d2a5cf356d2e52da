"""An executor's wrapper for runners that may run different plans as the same thing: each thing runs once."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from objectives.metrics import Job
from objectives.outcome import Outcome
from runners.protocol import EffectiveRunner, Executor, is_lost, runner_of
from search_spaces.plan import Plan

Arrivals = list[tuple[int, Outcome]]


class OnceEach:
    """Answers a plan at once whose effective configuration has an outcome, also one of an earlier call.

    One that is likely the same as a plan under way waits for its outcome; whether it is the same, that says.
    What a machine lost is never taken over.
    """

    def __init__(self, executor: Executor, runner: EffectiveRunner, *, known: Iterable[Outcome] = ()) -> None:
        self._executor, self._runner = executor, runner
        self._known: dict[str, Outcome] = {}
        self._machines: list[Mapping[str, Any]] = []
        self._ready: Arrivals = []
        self._first: dict[str, int] = {}  # likely key: the ticket under way
        self._held: dict[int, list[tuple[int, Plan, Job | None]]] = defaultdict(list)
        for outcome in known:
            self._remember(outcome)

    @property
    def n_slots(self) -> int:
        """Plans that run at the same time."""
        return self._executor.n_slots

    def submit(self, ticket: int, plan: Plan, job: Job | None = None) -> None:
        """Answer from what is known, wait for the same plan under way, or start this one."""
        runner = self._runner if job is None else cast("EffectiveRunner", runner_of(self._runner, job))
        keys = [runner.effective_key(plan, machine) for machine in self._machines]
        outcome = next((self._known[key] for key in keys if key in self._known), None)
        if outcome is not None:
            self._ready.append((ticket, _taken_over(outcome)))
            return
        likely = next((key for key in keys if key), None) or runner.effective_key(plan)
        if likely in self._first:
            self._held[self._first[likely]].append((ticket, plan, job))
            return
        if likely is not None:
            self._first[likely] = ticket
        self._executor.submit(ticket, plan, *(() if job is None else (job,)))

    def wait(self, timeout_s: float) -> Arrivals:
        """Outcomes that arrived, at once if there are any, else after at most `timeout_s` (maybe none)."""
        arrived = [] if self._ready else self._executor.wait(timeout_s)
        for ticket, outcome in arrived:
            self._remember(outcome)
            self._first = {key: first for key, first in self._first.items() if first != ticket}
            for waiting in self._held.pop(ticket, []):
                self.submit(*waiting)
        ready, self._ready = self._ready, []
        return [*arrived, *ready]

    def close(self) -> None:
        """Stop everything."""
        self._executor.close()

    def _remember(self, outcome: Outcome) -> None:
        key, machine = outcome.effective.get("key"), outcome.effective.get("machine")
        if key is None or machine is None or is_lost(outcome):
            return
        self._known.setdefault(key, outcome)
        if machine not in self._machines:
            self._machines.append(machine)


def _taken_over(outcome: Outcome) -> Outcome:
    """The same outcome, which says that nothing ran for it."""
    return replace(outcome, effective={**outcome.effective, "taken_over": True})
