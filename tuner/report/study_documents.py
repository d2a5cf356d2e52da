"""Studies as JSON documents."""

from typing import Any

from objectives.outcome import Measured, Outcome
from search_spaces.plan import Plan
from tuner.report.documents import document, job_document, ledger_document, plan_document
from tuner.study import StudyResult
from tuner.view import StudyView, TrialRecord
from tuner.worth import worth_document


def study_document(view: StudyView) -> dict[str, Any]:
    """What `show --json` and `report --json` print."""
    return document("study", _study_body(view))


def tune_document(result: StudyResult) -> dict[str, Any]:
    """What `tune --json` and `resume --json` print: the study, why it stopped, the ledger of its space."""
    body = {
        "stop": result.stop.name.lower(),
        "plans": ledger_document(result.ledger),
        **_study_body(result.view),
    }
    return document("tune", body)


def studies_document(views: list[StudyView]) -> dict[str, Any]:
    """What `studies --json` prints."""
    return document("studies", {"studies": [_study_head(view) for view in views]})


def _study_head(view: StudyView) -> dict[str, Any]:
    return {
        "name": view.name,
        "job": job_document(view.inputs.job),
        "objective": list(view.inputs.objective),
        "runner": view.inputs.runner.kind,
        "sampler": view.inputs.sampler,
        "budget_trials": view.budget_trials,
        "counts": {str(state): n for state, n in view.counts.items()},
        "waiting": view.waiting,
        "best": _trial(view.best) if view.best else None,
        "worth": worth_document(view.worth),
    }


def _study_body(view: StudyView) -> dict[str, Any]:
    return {
        **_study_head(view),
        "pareto_front": [trial.number for trial in view.pareto_front],
        "trials": [_trial(trial) for trial in view.trials],
        "created_with": dict(view.versions),
    }


def _trial(trial: TrialRecord) -> dict[str, Any]:
    predicted = trial.predicted
    return {
        "number": trial.number,
        "state": str(trial.state),
        "plan": _plan(trial.plan),
        "predicted": {
            "step_time_s": predicted.step_s,
            "peak_memory_bytes": predicted.peak_memory_bytes,
            "origin": predicted.origin,
        }
        if predicted
        else None,
        "outcome": _outcome(trial.outcome),
        "values": dict(trial.values),
        "attempt": trial.attempt,
        "duration_s": trial.duration_s,
        "fidelity": str(trial.fidelity),
        "proxy": _proxy(trial),
        "device_s": trial.device_s,
    }


def _proxy(trial: TrialRecord) -> dict[str, Any] | None:
    """What ran in the plan's place, and in what it is smaller: name to [its own, the plan's]."""
    if not trial.proxy:
        return None
    return {"plan": plan_document(Plan.parse(trial.proxy["plan"])), "differs": dict(trial.proxy["differs"])}


def _plan(plan: Plan | None) -> dict[str, Any] | None:
    return plan_document(plan) if plan else None


def _outcome(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    if isinstance(outcome, Measured):
        return {
            "origin": str(outcome.origin),
            "step_time_s": outcome.step_s,
            "step_spread_s": outcome.step_spread_s,
            "peak_memory_bytes": outcome.peak_memory_bytes,
        }
    return {
        "origin": str(outcome.origin),
        "cause": str(outcome.cause),
        "message": outcome.message,
        "short_bytes": outcome.short_bytes,
        "log_tail": outcome.log_tail,
    }
