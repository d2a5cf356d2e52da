"""Which knobs moved the objective, by Optuna's evaluators; two of them, since they often disagree."""

from collections.abc import Callable, Sequence
from functools import partial

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.importance import BaseImportanceEvaluator, FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

from objectives.metrics import Goal
from search_spaces.plan import KNOB_NAMES, Plan
from tuner.report.content import Importance
from tuner.report.words import number_of

FEWEST_TRIALS = 8
EVALUATORS: dict[str, Callable[[], BaseImportanceEvaluator]] = {
    "PED-ANOVA": PedAnovaImportanceEvaluator,
    "fANOVA": partial(FanovaImportanceEvaluator, seed=0),
}


def knob_importance(plans: Sequence[Plan], values: Sequence[float], goal: Goal) -> tuple[Importance, ...]:
    """Shares of every knob that was varied, by each evaluator, or why there are none."""
    knobs = [name for name in KNOB_NAMES if len({getattr(plan, name) for plan in plans}) > 1]
    reason = _reason_to_skip(knobs, values)
    if reason:
        return tuple(Importance(evaluator=name, skipped=reason) for name in EVALUATORS)
    study = _knob_study(plans, values, knobs, goal)
    return tuple(
        Importance(
            evaluator=name, shares=optuna.importance.get_param_importances(study, evaluator=evaluator())
        )
        for name, evaluator in EVALUATORS.items()
    )


def _reason_to_skip(knobs: Sequence[str], values: Sequence[float]) -> str:
    if len(values) < FEWEST_TRIALS:
        return f"{number_of(len(values), 'trial')} ran, {FEWEST_TRIALS} are needed"
    if not knobs:
        return "all trials had the same plan"
    return "all trials had the same value" if len(set(values)) == 1 else ""


def _knob_study(
    plans: Sequence[Plan],
    values: Sequence[float],
    knobs: Sequence[str],
    goal: Goal,
) -> optuna.Study:
    """The trials once more, in memory, with knobs as parameters; a stored study numbers its candidates."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize" if goal is Goal.MINIMIZE else "maximize")
    distributions: dict[str, BaseDistribution] = {
        name: CategoricalDistribution(sorted({_plain(getattr(plan, name)) for plan in plans}))
        for name in knobs
    }
    study.add_trials(
        optuna.trial.create_trial(
            params={name: _plain(getattr(plan, name)) for name in knobs},
            distributions=distributions,
            value=value,
        )
        for plan, value in zip(plans, values, strict=True)
    )
    return study


def _plain(value: int | str) -> int | str:
    """An enum as its word, a flag as 0 or 1: what sorts and what Optuna stores."""
    return str(value) if isinstance(value, str) else int(value)
