"""What the trials of a study say to a driver: which are done, which wait for another try, who may go on.

Every function is pure: from a snapshot of the trials to an answer.  The trials are the only state; nothing is
written down that could disagree with them, so a crash at any point leaves a study that reads well.

    RUNNING                     chosen by a sampler, admitted, or being tried; always under a lease
    COMPLETE                    measured                                            counts for the budget
    PRUNED                      the plan failed by its own fault                    counts for the budget
    FAIL, ended=duplicate       withdrawn: a lower-numbered trial has the plan
    FAIL, ended=withdrawn       withdrawn: the budget is full, or others were too slow; the plan waits
    FAIL, ended=machine         the machine failed; the plan waits, at most twice
    FAIL, ended=reaped          its driver died; the plan waits
    FAIL, ended=released        its driver stopped (Ctrl-C); the plan waits

**Why no plan is tried twice and no plan is lost.**  The storage numbers a trial in the operation that
creates it, so whoever has number n can see all lower ones.  A trial *declares* its plan (one attribute,
`plan`) when all its params are written.  The rule of admission is Lamport's bakery: trial n waits until every
lower-numbered running trial has declared; it may run if no lower-numbered living one (RUNNING, COMPLETE,
PRUNED) has its plan, and if fewer are living below it than the budget has trials.  Of two trials with one
plan the higher one always sees the lower one, so both never run.  Of the trials that count in the end, the
highest-numbered one saw all the others living when it was admitted: there are never more than the budget.
Crashes:

    before the plan is declared     nothing was chosen for good; the trial is reaped, and nobody waits for it
    declared, admitted or running   reaped; its plan has no living trial, so `waiting_plans` lists it
    outcome written, not yet told   whoever reaps it tells it in its place (`Book.settle`), finished
    told                            the state change was the last write
    between reaping and the retry   waiting plans are read off the trials, so any driver makes the retry
    two drivers make one retry      both are trials with one plan; admission keeps the lower-numbered one

Only RUNNING -> FAIL makes a trial dead, never somebody's opinion of its lease, so admission is never undone.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from optuna.trial import FrozenTrial, TrialState

from search_spaces.fidelity import Fidelity, fidelity_of
from tuner.leases import lease_of

MAX_REQUEUES = 2
# A plan that was running each time its driver died may be what kills drivers.
MAX_REAPS = 10
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)


class Ended(StrEnum):
    """Why a trial was told FAIL: never for a fault of its plan."""

    DUPLICATE = "duplicate"
    WITHDRAWN = "withdrawn"
    MACHINE = "machine"
    REAPED = "reaped"
    RELEASED = "released"


class Verdict(StrEnum):
    """What admission says to a trial that has declared its plan."""

    ADMITTED = "admitted"
    WAIT = "wait"
    DUPLICATE = "duplicate"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingPlan:
    """A plan to be tried again: like which trial, and for the how-manieth time."""

    template: FrozenTrial
    attempt: int


def run_of(trial: FrozenTrial) -> tuple[str, Fidelity] | None:
    """What a trial has declared to run: a plan, and how much of its job; None before."""
    plan = plan_of(trial)
    return None if plan is None else (plan, fidelity_of(trial.user_attrs))


def plan_of(trial: FrozenTrial) -> str | None:
    """Key of the plan a trial has declared; None before, and for trials that are not ours."""
    plan = trial.user_attrs.get("plan")
    return plan if isinstance(plan, str) else None


def is_ours(trial: FrozenTrial) -> bool:
    """Whether a driver of ours made the trial."""
    return lease_of(trial.user_attrs) is not None


def is_living(trial: FrozenTrial) -> bool:
    """Whether the trial has, or may still get, an outcome of its plan."""
    return is_ours(trial) and (trial.state is TrialState.RUNNING or trial.state in COUNTED)


def n_counted(trials: Iterable[FrozenTrial]) -> int:
    """Finished trials: measured, or failed by the plan's fault."""
    return sum(is_ours(trial) and trial.state in COUNTED for trial in trials)


def n_running(trials: Iterable[FrozenTrial]) -> int:
    """Trials in flight, over all drivers."""
    return sum(is_ours(trial) and trial.state is TrialState.RUNNING for trial in trials)


def expired(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Running trials whose driver is gone or silent."""
    running = ((trial, lease_of(trial.user_attrs)) for trial in trials if trial.state is TrialState.RUNNING)
    return [trial for trial, lease in running if lease is not None and lease.is_over]


def admission(
    trials: Sequence[FrozenTrial],
    number: int,
    plan: str,
    *,
    budget: int,
    fidelity: Fidelity = Fidelity.FULL,
) -> Verdict:
    """The bakery rule for the trial of that number."""
    lower = [trial for trial in trials if trial.number < number and is_living(trial)]
    if any(run_of(trial) == (plan, fidelity) for trial in lower):
        return Verdict.DUPLICATE
    if any(trial.state is TrialState.RUNNING and plan_of(trial) is None for trial in lower):
        return Verdict.WAIT
    return Verdict.FULL if len(lower) >= budget else Verdict.ADMITTED


def waiting_plans(trials: Sequence[FrozenTrial]) -> list[WaitingPlan]:
    """Plans without a living trial of their fidelity that deserve another one, the oldest first."""
    living = {run_of(trial) for trial in trials if is_living(trial)}
    ended = [(run_of(trial), trial.user_attrs.get("ended"), trial) for trial in trials if _is_dead(trial)]
    machine_faults = Counter(plan for plan, end, _ in ended if end == Ended.MACHINE)
    reaps = Counter(plan for plan, end, _ in ended if end == Ended.REAPED)
    tries = Counter(plan for plan, end, _ in ended if end in (Ended.MACHINE, Ended.REAPED, Ended.RELEASED))
    first = {plan: trial for plan, _, trial in reversed(ended) if plan is not None and plan not in living}
    return [
        WaitingPlan(template=trial, attempt=tries[plan] + 1)
        for plan, trial in sorted(first.items(), key=lambda item: item[1].number)
        if machine_faults[plan] <= MAX_REQUEUES and reaps[plan] <= MAX_REAPS
    ]


def _is_dead(trial: FrozenTrial) -> bool:
    return is_ours(trial) and trial.state is TrialState.FAIL
