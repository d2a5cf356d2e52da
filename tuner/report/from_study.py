"""A stored study as the content of a report."""

from objectives.metrics import Job, metric_named
from objectives.uncertainty import constants
from search_spaces.cluster import Origin
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Plan
from tuner.inputs import PARTS, StudyInputs, fingerprint, plain
from tuner.ran import what_ran
from tuner.report.content import Importance, StudyReport, TrialRow
from tuner.report.importance import knob_importance
from tuner.view import State, StudyView, TrialRecord


def study_report(view: StudyView, *, with_importance: bool = True) -> StudyReport:
    """All that a report tells of the study; knob importance takes a second, so only where it is wanted."""
    return StudyReport(
        name=view.name,
        job=view.inputs.job,
        metrics=tuple(metric_named(name) for name in view.inputs.objective),
        trials=tuple(row for trial in view.trials if (row := trial_row(view, trial)) is not None),
        importance=_importance(view) if with_importance else (),
        provenance=tuple(provenance(view).items()),
        worth=view.worth,
    )


def _importance(view: StudyView) -> tuple[Importance, ...]:
    metric = metric_named(view.inputs.objective[0])
    known = [(trial.plan, trial.values[metric.name]) for trial in view.measured if trial.plan is not None]
    return knob_importance([plan for plan, _ in known], [value for _, value in known], metric.goal)


def trial_row(view: StudyView, trial: TrialRecord) -> TrialRow | None:
    """A trial that got as far as a plan; what was withdrawn before it began is no news."""
    if trial.plan is None or trial.predicted is None or trial.state is State.WITHDRAWN:
        return None
    return TrialRow(
        number=trial.number,
        plan=trial.plan,
        state=str(trial.state),
        predicted_s=trial.predicted.step_s,
        predicted_bytes=trial.predicted.peak_memory_bytes,
        outcome=trial.outcome,
        values=tuple(trial.values.values()),
        fidelity=trial.fidelity,
        proxy_words=str(trial.proxy.get("words", "")),
        device_s=trial.device_s,
        ran=_known_run(view, trial),
    )


def _known_run(view: StudyView, trial: TrialRecord) -> tuple[Job, Plan] | None:
    """What the trial ran; None of a proxy that this Meshtune makes no longer."""
    try:
        return what_ran(view, trial)
    except InvalidSpec:
        return None


def provenance(view: StudyView) -> dict[str, str]:
    """What the study's figures rest on."""
    inputs = view.inputs
    known = constants(inputs.job)
    assumed = [name for name, constant in known.items() if constant.origin is Origin.ASSUMED]
    return {
        "model source": inputs.model.source,
        "cluster source": inputs.cluster.source,
        "device source": inputs.cluster.device.source,
        "assumed constants": f"{len(assumed)} of {len(known)}: {', '.join(assumed) or 'none'}",
        "runner": _runner(inputs),
        "sampler": f"{inputs.sampler}, seed {inputs.seed}, starting from {inputs.prior} times",
        "inputs": ", ".join(f"{part} {fingerprint(plain(getattr(inputs, part)))}" for part in PARTS),
        "created with": ", ".join(f"{name} {version}" for name, version in view.versions.items()),
    }


def _runner(inputs: StudyInputs) -> str:
    options = ", ".join(f"{name}={value}" for name, value in inputs.runner.options.items())
    return f"{inputs.runner.kind} ({options})" if options else inputs.runner.kind
