"""The engine as a cheap fidelity in front of real trials: what a study expects of its candidates.

    analytic     closed form of every candidate, in microseconds each
    simulated    the leading candidates by the engine, milliseconds each; the others' closed form corrected,
                 t = t_closed exp(g),  g learned from ln(t_simulated / t_closed) by `tuner.surrogate`
    measured     trials, in minutes each

Simulated seconds are kept in the study, so that no driver simulates a candidate again.  Every part of a
prediction is scaled alike: shares, which the samplers learn by, stay those of the closed form.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from enum import StrEnum
from typing import Any

import numpy as np

from objectives.cost.result import StepTime
from objectives.metrics import Job
from objectives.ranking import Candidates
from search_spaces.plan import Bools, Floats
from tuner.features import TIME_PARTS, knob_features, time_shares
from tuner.rescore import simulated_s, within_budget
from tuner.surrogate import LogRatioSurrogate

BUDGET_S = 12.0  # of simulation, once in a study: less than one short trial
PLAN_S = 0.012  # of a plan without its reasons, on one core of a small cloud machine
PRIOR_ATTRIBUTE = "meshtune_prior"
# The engine has no noise, and closed forms miss it by per cents: assumed.
SPREADS: Mapping[str, Any] = {
    "offset_std": 0.05, "share_stds": (0.02, 0.05, 0.2), "residual_stds": (0.002, 0.01, 0.05),
    "noise_stds": (0.0003, 0.001, 0.005),
}  # fmt: skip


class PredictedBy(StrEnum):
    """Where one prediction comes from."""

    ANALYTIC = "analytic"
    SIMULATED = "simulated"
    CORRECTED = "corrected"  # closed form, corrected by what was simulated of other plans
    LEARNED = "learned"  # closed form, calibrated and corrected by the trials of other studies


def simulated_prior(job: Job, candidates: Candidates, *, budget_s: float = BUDGET_S) -> dict[str, float]:
    """Simulated step seconds of the leading candidates by plan, as many as the budget allows."""
    rows = within_budget(job, candidates, np.ones(len(candidates), dtype=np.bool_), budget_s, PLAN_S)
    plans = [candidates.plans.row(row) for row in rows]
    found = {plan.key: simulated_s(job, plan) for plan in plans}
    return {key: step_s for key, step_s in found.items() if np.isfinite(step_s)}


def prior_document(step_s: Mapping[str, float]) -> dict[str, Any]:
    """What a study keeps of its simulations."""
    return {"origin": str(PredictedBy.SIMULATED), "step_s": dict(step_s)}


def stored_prior(attributes: Mapping[str, Any]) -> dict[str, float] | None:
    """What a study has kept of its simulations; None if it has none yet."""
    kept = attributes.get(PRIOR_ATTRIBUTE)
    return dict(kept["step_s"]) if isinstance(kept, Mapping) and "step_s" in kept else None


def predicted_again(
    job: Job, candidates: Candidates, step_s: Mapping[str, float], objective: Sequence[str]
) -> tuple[Candidates, dict[str, PredictedBy]]:
    """Candidates as the engine has them, best first, and where each prediction comes from, by plan."""
    keys = candidates.plans.keys()
    simulated = np.array([step_s.get(key, np.nan) for key in keys])
    is_simulated = np.isfinite(simulated)
    log_ratio = _log_ratios(candidates, simulated, is_simulated)
    time = candidates.estimate.time
    scaled = StepTime(
        **{part.name: getattr(time, part.name) * np.exp(log_ratio) for part in fields(StepTime)}
    )
    priced = replace(candidates.estimate, time=scaled)
    sign = np.sign(candidates.score[0]) or 1.0
    score = sign * job.values(objective[0], priced.step_s, priced.peak_memory_bytes, candidates.plans)
    by = np.where(is_simulated, PredictedBy.SIMULATED, PredictedBy.CORRECTED)
    again = Candidates(plans=candidates.plans, estimate=priced, score=score)
    return again.take(np.argsort(score, kind="stable")), dict(zip(keys, map(PredictedBy, by), strict=True))


def _log_ratios(candidates: Candidates, simulated_step_s: Floats, is_simulated: Bools) -> Floats:
    """ln(simulated / closed form): known, or as the known ones teach."""
    known = np.log(simulated_step_s[is_simulated] / candidates.estimate.step_s[is_simulated])
    if is_simulated.all() or not len(known):
        return known if len(known) else np.zeros(len(candidates))
    features = np.hstack([time_shares(candidates.estimate.time), knob_features(candidates.plans)])
    model = LogRatioSurrogate(n_shares=len(TIME_PARTS), **SPREADS).fit(features[is_simulated], known)
    answer = np.asarray(model.predict(features), dtype=np.float64)
    answer[is_simulated] = known
    return answer
