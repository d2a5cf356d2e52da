"""Small tells large: what studies on few devices say of a plan on many, with its interval.

    ln t = ln t(c) + r(x),   interval = t exp(± z std)            `tuner.learned`

The constants c are the machine's, so they hold for any number of devices; what they leave, r, is kept only as
near to the trials as it is known to hold, and beyond them the interval widens by what the formulas may miss.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from objectives.calibration import TimedStep
from objectives.metrics import Job
from objectives.uncertainty import COVERAGE, Z_SCORE
from search_spaces.errors import check
from search_spaces.plan import Plan
from tuner.learned import LearnedModel, Priced
from tuner.view import StudyView
from tuner.warm import FEWEST, evidence_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """A step as trials foretell it: seconds, their interval, and those of the calibrated formulas alone.

    `trust` is how near the plan is to what ran: 1 where the trials tell what the formulas miss, 0 where the
    formulas stand alone.
    """

    step_s: float
    low_s: float
    high_s: float
    calibrated_s: float
    trust: float
    n_runs: int
    most_devices: int
    coverage: float = COVERAGE


def foretold(
    views: Sequence[StudyView], job: Job, plan: Plan, *, most_devices: int | None = None
) -> Foretold:
    """What the measured trials of studies, whole and by proxy, say of a plan of a job on their machine.

    Raises
    ------
    InvalidSpec
        Studies of another machine, or too few trials on at most so many devices.
    """
    steps = [
        step
        for step in evidence_of(views, job.cluster).steps(job.cluster)
        if most_devices is None or step.plan.world_size <= most_devices
    ]
    limit = "" if most_devices is None else f" on at most {most_devices} devices"
    check(len(steps) >= FEWEST, f"the studies must have {FEWEST} measured trials{limit}", len(steps))
    return of_steps(steps, job, plan)


def of_steps(steps: Sequence[TimedStep], job: Job, plan: Plan) -> Foretold:
    """What measured steps say of a plan."""
    asked = Priced.of([TimedStep(job=job, plan=plan, step_s=1.0)])
    found = LearnedModel.from_steps(steps).forecast(asked)
    middle, reach = float(found.log_s[0]), Z_SCORE * float(found.std[0])
    return Foretold(
        step_s=float(np.exp(middle)),
        low_s=float(np.exp(middle - reach)),
        high_s=float(np.exp(middle + reach)),
        calibrated_s=float(np.exp(found.calibrated_log_s[0])),
        trust=float(found.trust[0]),
        n_runs=len(steps),
        most_devices=max(step.plan.world_size for step in steps),
    )
