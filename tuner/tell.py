"""How an outcome is told to Optuna, so that samplers learn from failures too.

    Measured                       COMPLETE, values by metric, constraint memory = (peak - limit) / limit
    Failed, out of memory          PRUNED,   constraint memory = shortfall / limit > 0
    Failed otherwise by the plan   PRUNED,   constraint runs = 1 > 0
    Measured, of a proxy           PRUNED,   no values: its seconds are not those of the plan
    Failed, unmeasured             PRUNED,   no constraint: it ran, nobody knows how fast
    Failed by the machine, or      FAIL: says nothing about the plan
    without a launcher

Why PRUNED with a violated constraint.  A failed plan has no values and none is made up for it, so it cannot
be COMPLETE.  Measured with Optuna 5.0.0: a 16 x 16 space whose objective improves towards a quarter in which
every plan fails; trials that fell into that quarter, median over the seeds (random search: 17 of 64):

    told as                    TPE, 64 trials, 8 seeds    GP, 40 trials, 3 seeds
                               1 objective  2 objectives  1 objective  2 objectives
    FAIL                       51           54            30           30
    PRUNED                     18           17            30           30
    PRUNED with constraint     18           17            30           30
    COMPLETE with constraint   18           17            8            22    (needs values: there are none)

So TPE learns as much from PRUNED as from COMPLETE, with one objective and with several; the constraint tells
it which failure was the nearer miss.  GP reads only COMPLETE trials: it cannot learn from a failure without
made-up values, so `ProjectedGP` keeps its proposals among the plans that likely run.  Meshtune's own sampler
reads the outcome itself.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from optuna.trial import TrialState

from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Measured, Outcome, outcome_from_dict
from objectives.valuing import outcome_value
from search_spaces.plan import Plan

# By how much an out-of-memory plan fell short when nobody can say: only its sign has a meaning.
UNKNOWN_SHORTFALL = 0.01


def sound(outcome: Outcome, job: Job, objective: Sequence[str], plan: Plan | None = None) -> Outcome:
    """The outcome, or a failure in its place if one of its figures is not finite."""
    if isinstance(outcome, Failed):
        return outcome if 0 <= outcome.short_bytes < math.inf else replace(outcome, short_bytes=0.0)
    values = values_of(outcome, job, objective, plan)
    if all(math.isfinite(value) for value in values):
        return outcome
    figures = ", ".join(f"{name}={value}" for name, value in zip(objective, values, strict=True))
    return Failed(cause=Cause.INVALID, message=f"a figure is not finite: {figures}", origin=outcome.origin)


def values_of(outcome: Measured, job: Job, objective: Sequence[str], plan: Plan | None = None) -> list[float]:
    """Value of each metric; those of energy, and the longest sequence, ask for the plan."""
    with np.errstate(all="ignore"):  # a value that is not finite is judged in `sound`
        return [outcome_value(job, name, plan, outcome) for name in objective]


def constraints_of(outcome: Outcome, job: Job) -> Mapping[str, float]:
    """What the outcome says about feasibility, at most 0 being feasible; memory in units of the device's."""
    limit = job.cluster.device.memory_bytes
    match outcome:
        case Measured():
            return {"memory": (outcome.peak_memory_bytes - limit) / limit}
        case Failed(cause=Cause.OUT_OF_MEMORY, short_bytes=short):
            return {"memory": short / limit if short > 0 else UNKNOWN_SHORTFALL}
        case _:
            return {"runs": 1.0} if outcome.cause.blames_plan else {}


def state_of(outcome: Outcome, *, is_full: bool = True) -> TrialState:
    """The state an outcome is told as; that of a proxy (not `is_full`) has no value to be told."""
    if isinstance(outcome, Measured):
        return TrialState.COMPLETE if is_full else TrialState.PRUNED
    return TrialState.PRUNED if outcome.cause.is_counted else TrialState.FAIL


def outcome_of(attributes: Mapping[str, Any]) -> Outcome | None:
    """The outcome among a trial's user attributes."""
    stored = attributes.get("outcome")
    return outcome_from_dict(dict(stored)) if isinstance(stored, Mapping) else None


def plan_tried(attributes: Mapping[str, Any]) -> Plan | None:
    """The plan among a trial's user attributes."""
    key = attributes.get("plan")
    return Plan.parse(key) if isinstance(key, str) else None
