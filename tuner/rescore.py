"""The best plans once more, by the engine: those so close that its opinion could change their order.

    plan i is close to the best plan 1    ln t_i - ln t_1 <= z sqrt(s_i^2 + s_1^2)
    s = e (p - 1) / m T / t               T  seconds of all passes of a stage   e  of the schedule, below

What differs between the two opinions is the pipeline, so s is counted in bubbles of 1F1B; computation, and
what passes hold of communication, are the same in both.  The list ends early where its plans would take
longer than `BUDGET_S`, counted by passes, so that the same plans are simulated on every machine.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from objectives.cost.tokens import microbatches
from objectives.metrics import Job
from objectives.ranking import Candidates, Ranking, SecondOpinion
from objectives.simulator.agreement import AGREES_TO, assumptions
from objectives.simulator.engine import load
from objectives.simulator.step import StepSimulator
from objectives.uncertainty import Z_SCORE
from search_spaces.errors import InvalidSpec
from search_spaces.plan import SPLIT_BACKWARD, Bools, Floats, Ints, Plan, Schedule

# Measured: root mean square of (simulated - closed form) / (bubble of 1F1B), by benchmarks/agreement.py.
FORM_ERRORS: Mapping[Schedule, float] = MappingProxyType({
    Schedule.GPIPE: 0.04, Schedule.ONE_F_ONE_B: 0.05, Schedule.INTERLEAVED: 0.06, Schedule.ZB_H1: 0.11,
    Schedule.ZB_H2: 0.13, Schedule.ZB_V: 0.16, Schedule.V_HALF: 0.08, Schedule.V_MIN: 0.82,
    Schedule.DUALPIPE: 0.09, Schedule.DUALPIPE_V: 0.19, Schedule.MESSAGE_DRIVEN: 0.08,
})  # fmt: skip
PASS_PARTS = ("compute_s", "recompute_s", "tp_comm_s", "cp_comm_s", "ep_comm_s", "launch_s")
BUDGET_S = 2.0
# Measured on one core of a small cloud machine: what a plan takes, its reasons included, and each pass.
PLAN_S, PASS_S = 0.04, 4e-6
MOST_CLOSE = 200  # candidates to keep for a second look: more never fit into the budget


def rescored(job: Job, ranking: Ranking, *, budget_s: float = BUDGET_S) -> Ranking:
    """The ranking with close candidates simulated: these first, by their simulated step, then the others.

    Assumes a ranking by step time, or by a metric that follows from it.
    """
    began = time.perf_counter()
    load()
    loaded = time.perf_counter()
    candidates = ranking.candidates
    is_close = close_to_best(job, candidates)
    rows = within_budget(job, candidates, is_close, budget_s)
    plans = [candidates.plans.row(row) for row in rows]
    step_s = np.array([simulated_s(job, plan) for plan in plans])
    closed_s = candidates.estimate.step_s[rows]
    order = np.argsort(np.where(np.isnan(step_s), closed_s, step_s), kind="stable")
    reasons = [_reasons(job, plans[at], step_s[at] / closed_s[at] - 1) for at in order]
    others = np.setdiff1d(np.arange(len(candidates)), rows)
    n_others = len(others)
    second = SecondOpinion(
        step_s=np.concatenate([step_s[order], np.full(n_others, np.nan)]),
        reasons=(*reasons, *((),) * n_others),
        n_close=int(is_close.sum()),
        n_simulated=len(rows),
        budget_s=budget_s,
        load_s=loaded - began,
        seconds=time.perf_counter() - loaded,
    )
    ranked = candidates.take(np.concatenate([np.array(rows, np.int64)[order], others]))
    return replace(ranking, candidates=ranked, second=second)


def close_to_best(job: Job, candidates: Candidates) -> Bools:
    """Candidates that the engine could put first; (n_candidates,)."""
    step_s, time_of = candidates.estimate.step_s, candidates.estimate.time
    plans, m = candidates.plans, _n_microbatches(job, candidates)
    error = np.array([FORM_ERRORS[schedule] for schedule in Schedule])[plans.schedule]
    passes_s = sum((getattr(time_of, part) for part in PASS_PARTS), np.zeros(len(plans)))
    spread = error * (plans.pp - 1) / m * passes_s / step_s
    best = int(np.argmin(step_s))
    gap: Floats = np.log(step_s / step_s[best])
    return np.asarray(gap <= Z_SCORE * np.hypot(spread, spread[best]))


def _n_microbatches(job: Job, candidates: Candidates) -> Ints:
    plans = candidates.plans
    return np.asarray(microbatches(job, plans))


def within_budget(
    job: Job, candidates: Candidates, among: Bools, budget_s: float, plan_s: float = PLAN_S
) -> list[int]:
    """The first of these rows that take no longer than the budget together; at least one."""
    rows = np.flatnonzero(among)
    plans, n_microbatches = candidates.plans.take(rows), _n_microbatches(job, candidates)[rows]
    kinds = np.where(plans.is_any_schedule(SPLIT_BACKWARD), 3, 2)
    seconds = plan_s + PASS_S * plans.pp * plans.vpp * n_microbatches * kinds
    return [int(row) for row in rows[: max(1, int((np.cumsum(seconds) <= budget_s).sum()))]]


def simulated_s(job: Job, plan: Plan) -> float:
    """Step seconds by the engine; not a number where it cannot run the plan's schedule."""
    try:
        return StepSimulator(job, plan).seconds(0)
    except InvalidSpec:
        return float("nan")


def _reasons(job: Job, plan: Plan, difference: float) -> tuple[str, ...]:
    """Why the two opinions differ, if they do."""
    return tuple(assumptions(job, plan)) if abs(difference) > AGREES_TO else ()
