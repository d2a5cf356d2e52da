"""A stored study explained: what matters, what the model had wrong, what would change the answer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from objectives.metrics import metric_named
from objectives.uncertainty import constants
from search_spaces.cluster import Origin
from search_spaces.errors import MeshtuneError
from search_spaces.fidelity import Fidelity
from tuner.features import MEMORY_PARTS, TIME_PARTS, knob_columns
from tuner.insight.beliefs import stored_posterior
from tuner.insight.content import Correction, Insight
from tuner.insight.rivals import nearest_rivals, turning_constants
from tuner.insight.shapley import MOST_EXACT, contributions
from tuner.insight.steps import one_step
from tuner.report.content import Importance
from tuner.report.importance import knob_importance
from tuner.samplers.belief import Belief
from tuner.samplers.goals import quantities
from tuner.samplers.posterior import Posterior
from tuner.samplers.prospects import worth_of_more
from tuner.view import State, StudyView, TrialRecord, load_study
from tuner.worth import BETTER_BY

PARTS = (TIME_PARTS, MEMORY_PARTS)
NAMES = ("time", "memory")
MOST_EXPLAINED = 32  # trials whose Shapley values are averaged


def explain(name: str, storage: str | Path) -> Insight:
    """What a stored study has learned and what would change its answer; prices its space once more.

    With several metrics the first one says what is best.

    Raises
    ------
    StorageError, UnknownName, InvalidSpec
        As `load_study` does.
    """
    return explain_view(load_study(name, storage), storage)


def explain_view(view: StudyView, storage: str | Path) -> Insight:
    """The same of a study that is loaded already."""
    inputs = view.inputs
    # Joules are seconds times known watts: what moved the seconds moved them.
    quantity = quantities(inputs.objective[:1])[0] % 2
    bare: dict[str, Any] = dict(
        name=view.name,
        objective=inputs.objective,
        quantity=NAMES[quantity],
        n_measured=len(view.measured),
        n_failed=view.counts[State.FAILED],
        worth=view.worth,
        known_constants={
            name: each
            for name, each in constants(inputs.job).items()
            if each.origin in (Origin.MEASURED, Origin.FITTED)
        },
        n_constants=len(constants(inputs.job)),
    )
    best = view.best
    if best is None or best.plan is None:
        return Insight(**bare, missing="no plan has been measured yet")
    bare |= dict(best=best.plan, best_trial=best.number, importance=_importance(view))
    try:
        posterior = stored_posterior(view.name, storage)
    except MeshtuneError as error:  # a recording that is gone, a space that no longer prices
        return Insight(**bare, missing=f"the candidates cannot be priced again: {error.must}; {error.given}")
    row = _row(posterior, best)
    if row is None:
        return Insight(**bare, missing="the best measured plan is no candidate any more")
    return Insight(**bare | _learned(view, posterior, best, row, quantity))


def _learned(
    view: StudyView, posterior: Posterior, best: TrialRecord, row: int, quantity: int
) -> dict[str, Any]:
    inputs, trials = view.inputs, _trials(view)
    assert best.plan is not None
    average, of_best = _shap(posterior, row, quantity)
    better_by = view.worth.better_by if view.worth else BETTER_BY
    return dict(
        worth=worth_of_more(posterior, inputs.objective, better_by=better_by, seed=inputs.seed),
        shap=average,
        shap_best=of_best,
        shap_is_exact=_n_varied(posterior) <= MOST_EXACT,
        corrections={name: corrections(posterior.beliefs[i], PARTS[i], row) for i, name in enumerate(NAMES)},
        steps=one_step(
            inputs.job, inputs.space, posterior, best.plan, metric=inputs.objective[0], trials=trials
        ),
        rivals=nearest_rivals(posterior, row, quantity=quantity, trials=trials, seed=inputs.seed),
        turns=turning_constants(inputs.job, posterior, row, quantity),
    )


def corrections(belief: Belief, parts: tuple[str, ...], row: int) -> tuple[Correction, ...]:
    """By which factor each part of the prediction is off, the farthest in spreads first.

    Shares add up to 1, so log(measured / predicted) ≈ Σ_k (offset + beta_k) share_k: the factor of part k is
    exp(offset + beta_k).
    """
    model = belief.model
    covariance, prior = model.term_covariance(), model.offset_std**2 + model.share_std_**2
    present = [k for k in range(len(parts)) if belief.shares[:, k].max(initial=0.0) > 0]
    found = []
    for k in present:
        variance = covariance[0, 0] + covariance[k + 1, k + 1] + 2.0 * covariance[0, k + 1]
        found.append(
            Correction(
                part=parts[k],
                factor=float(np.exp(model.offset_ + model.beta_[k])),
                spread=float(np.sqrt(max(variance, 0.0))),
                settled=float(np.clip(1.0 - variance / prior, 0.0, 1.0)),
                share=float(belief.shares[row, k]),
            )
        )
    return tuple(sorted(found, key=lambda each: -abs(np.log(each.factor)) / max(each.spread, 1e-9)))


def _shap(posterior: Posterior, row: int, quantity: int) -> tuple[dict[str, float], dict[str, float]]:
    """Mean absolute Shapley value over the measured trials, and the best plan's own, largest first."""
    belief = posterior.beliefs[quantity]
    features = (posterior.table.time_features, posterior.table.memory_features)[quantity]
    rows = posterior.measured[:: -(-len(posterior.measured) // MOST_EXPLAINED)].tolist()
    background = features[posterior.measured]

    def of(each: int) -> dict[str, float]:
        return contributions(
            belief.model, features[each], background, shares=PARTS[quantity], knobs=knob_columns()
        )

    several = [of(each) for each in rows]
    names = {name for each in several for name in each}
    average = {name: sum(abs(each.get(name, 0.0)) for each in several) / len(rows) for name in names}
    return _largest_first(average), _largest_first(of(row))


def _n_varied(posterior: Posterior) -> int:
    """Knobs that differ among the measured plans: the most players that any game of theirs has."""
    knobs = posterior.table.knobs[posterior.measured]
    varied = (knobs != knobs[0]).any(axis=0)
    return sum(bool(varied[columns].any()) for columns in knob_columns().values())


def _largest_first(values: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(values.items(), key=lambda each: (-abs(each[1]), each[0])))


def _importance(view: StudyView) -> tuple[Importance, ...]:
    metric = metric_named(view.inputs.objective[0])
    known = [(trial.plan, trial.values[metric.name]) for trial in view.measured if trial.plan is not None]
    return knob_importance([plan for plan, _ in known], [value for _, value in known], metric.goal)


def _trials(view: StudyView) -> dict[str, int]:
    tried = [trial for trial in view.finished if trial.fidelity is Fidelity.FULL]
    return {trial.plan.key: trial.number for trial in tried if trial.plan is not None}


def _row(posterior: Posterior, best: TrialRecord) -> int | None:
    keys = {key: row for row, key in enumerate(posterior.table.candidates.plans.keys())}
    row = keys.get(best.plan.key) if best.plan else None
    return row if row in posterior.measured.tolist() else None
