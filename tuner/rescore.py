"""The best plans once more, by the engine: those so close that its opinion could change their order.

    plan i is close to the best plan 1    ln t_i - ln t_1 <= z sqrt(s_i^2 + s_1^2)
    s^2 = sum over parts that the engine times anew (bubble, messages, gradients and weights) of
          ( phi_part t_part / t )^2

phi is the error of the closed form of a part, `objectives.uncertainty.PART_SPREADS`; computation and what
passes hold of communication are the same in both opinions, so their errors change no order.  The list ends
early where its plans would take longer than `BUDGET_S`, counted by passes, so that the same plans are
simulated on every machine.
"""

import time
from dataclasses import replace

import numpy as np

from objectives.cost.result import Estimate
from objectives.metrics import Job
from objectives.ranking import Candidates, Ranking, SecondOpinion
from objectives.simulator.agreement import AGREES_TO, assumptions
from objectives.simulator.engine import load
from objectives.simulator.step import StepSimulator
from objectives.uncertainty import PART_SPREADS, Z_SCORE
from search_spaces.errors import InvalidSpec
from search_spaces.plan import SPLIT_BACKWARD, Bools, Floats, Plan

TIMED_ANEW = ("bubble_s", "pp_comm_s", "dp_comm_s")
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
    is_close = close_to_best(candidates.estimate)
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


def close_to_best(estimate: Estimate) -> Bools:
    """Plans whose order against the best one could change where the engine times parts anew; (n_plans,)."""
    step_s = estimate.step_s
    variance = np.zeros_like(step_s)
    for part in TIMED_ANEW:
        variance += (PART_SPREADS[part] * getattr(estimate.time, part) / step_s) ** 2
    best = int(np.argmin(step_s))
    gap: Floats = np.log(step_s / step_s[best])
    return np.asarray(gap <= Z_SCORE * np.sqrt(variance + variance[best]))


def within_budget(
    job: Job, candidates: Candidates, among: Bools, budget_s: float, plan_s: float = PLAN_S
) -> list[int]:
    """The first of these rows that take no longer than the budget together; at least one."""
    rows = np.flatnonzero(among)
    plans = candidates.plans.take(rows)
    n_microbatches = job.workload.global_batch // (plans.micro_batch * plans.dp)
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
