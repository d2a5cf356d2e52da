"""What a trial really ran: its plan of the study's job, or something smaller in its place."""

from objectives.metrics import Job
from runners.proxies import proxy, twin_that_ran
from search_spaces.fidelity import Fidelity
from search_spaces.plan import Plan
from tuner.view import StudyView, TrialRecord


def what_ran(view: StudyView, trial: TrialRecord) -> tuple[Job, Plan]:
    """The job and the plan of the run behind a trial's outcome.

    Raises
    ------
    InvalidSpec
        A proxy that this Meshtune makes no longer.
    """
    assert trial.plan is not None
    inputs = view.inputs
    if trial.fidelity is Fidelity.FULL:
        effective = {} if trial.outcome is None else trial.outcome.effective
        twin = twin_that_ran(inputs.job, trial.plan, effective, inputs.runner.options)
    else:
        twin = proxy(inputs.job, trial.plan, trial.fidelity, inputs.fidelities)
    return twin.job, twin.plan
