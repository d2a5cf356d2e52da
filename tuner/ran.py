"""What a trial really ran: its plan of the study's job, or a smaller proxy."""

from objectives.metrics import Job
from runners.proxies import proxy
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
    if trial.fidelity is Fidelity.FULL:
        return view.inputs.job, trial.plan
    twin = proxy(view.inputs.job, trial.plan, trial.fidelity, view.inputs.fidelities)
    return twin.job, twin.plan
