"""A study's explanation as one JSON document."""

from dataclasses import asdict
from typing import Any

import numpy as np

from search_spaces.cluster import Constant
from search_spaces.plan import Plan
from tuner.insight.content import Insight, Rival, Step, Turn
from tuner.report.documents import document, plan_document
from tuner.worth import worth_document


def insight_document(insight: Insight) -> dict[str, Any]:
    """What `explain --json` prints; changes are shares of what is sought, their spreads of its logarithm."""
    return document("explain", insight_body(insight))


def insight_body(insight: Insight) -> dict[str, Any]:
    """Its keys, as the report has them too."""
    return {
        "name": insight.name,
        "objective": list(insight.objective),
        "quantity": insight.quantity,
        "measured": insight.n_measured,
        "failed": insight.n_failed,
        "missing": insight.missing or None,
        "best": None if insight.best is None else {"trial": insight.best_trial, "plan": _plan(insight.best)},
        "worth": worth_document(insight.worth),
        "importance": [
            {"evaluator": each.evaluator, "shares": dict(each.shares), "skipped": each.skipped or None}
            for each in insight.importance
        ],
        "shap": {
            "mean_absolute": dict(insight.shap),
            "of_best": dict(insight.shap_best),
            "method": "exact" if insight.shap_is_exact else "sampled",
        },
        "corrections": {
            name: [asdict(each) for each in found] for name, found in insight.corrections.items()
        },
        "known_constants": {name: _constant(each) for name, each in insight.known_constants.items()},
        "one_step": [_step(each) for each in insight.steps],
        "rivals": [_rival(each) for each in insight.rivals],
        "turning_constants": [_turn(each) for each in insight.turns],
    }


def _plan(plan: Plan | None) -> dict[str, Any] | None:
    return None if plan is None else plan_document(plan)


def _share(log_change: float | None) -> float | None:
    return None if log_change is None else float(np.expm1(log_change))


def _constant(constant: Constant) -> dict[str, Any]:
    return {
        "value": constant.value,
        "origin": str(constant.origin),
        "spread": constant.spread,
        "source": constant.source,
    }


def _step(step: Step) -> dict[str, Any]:
    return {
        "knob": step.knob,
        "value": step.value,
        "moved": list(step.moved),
        "plan": _plan(step.plan),
        "change": _share(step.change),
        "spread": step.spread,
        "fits": step.fits,
        "trial": step.trial,
        "not_legal": step.why_not or None,
    }


def _rival(rival: Rival) -> dict[str, Any]:
    return {
        "plan": _plan(rival.plan),
        "trial": rival.trial,
        "overtakes": rival.overtakes,
        "change": _share(rival.change),
        "spread": rival.spread,
        "fits": rival.fits,
    }


def _turn(turn: Turn) -> dict[str, Any]:
    return {
        "constant": turn.name,
        **_constant(turn.constant),
        "factor": turn.factor,
        "within_spread": turn.is_within_spread,
        "plan": _plan(turn.plan),
    }
