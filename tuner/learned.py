"""The cost model after measured steps of many jobs: constants calibrated, what is left learned.

    ln t = ln t(c) + r(x)             c: `objectives.calibration`;  r: `tuner.residual`, gated
    std² = std_r² + (1 - trust) std_c²

std_c is what the calibrated model says of itself: the spread left of its constants, and that of the formulas.
Where the residual is trusted its own spread holds, which was learned from outcomes and includes the former.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from objectives.calibration import Calibration, Linearised, TimedStep, calibrate, log_step_s
from objectives.cost.result import Estimate
from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.uncertainty import formula_spread
from search_spaces.plan import Floats, Ints, Plans
from tuner.features import TIME_PARTS, job_features, knob_features, time_shares
from tuner.residual import GatedResidual


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Priced:
    """Steps with all that learning asks of them: slopes of their seconds, features, the formulas' spread."""

    linear: Linearised
    features: Floats
    spread: Floats

    @classmethod
    def of(cls, steps: Sequence[TimedStep]) -> "Priced":
        """Price every step once, and once more for each constant of its machine."""
        features: list[Floats] = [np.zeros(0)] * len(steps)
        spread = np.zeros(len(steps))
        places: dict[int, list[int]] = {}
        for i, step in enumerate(steps):
            places.setdefault(id(step.job), []).append(i)
        for rows in places.values():
            job, plans = steps[rows[0]].job, Plans.of(steps[i].plan for i in rows)
            found = estimate(job, plans)
            spread[rows] = formula_spread(found)
            for i, row in zip(rows, priced_features(job, plans, found), strict=True):
                features[i] = row
        return cls(linear=Linearised.around(steps), features=np.array(features), spread=spread)

    def take(self, rows: Ints) -> "Priced":
        """Some of the steps."""
        return Priced(
            linear=self.linear.of_rows(rows), features=self.features[rows], spread=self.spread[rows]
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecast:
    """Natural logarithm of step seconds as expected, its spread, and what the calibrated model alone says.

    `trust` is the share of the residual that was kept; every field has shape (n,).
    """

    log_s: Floats
    std: Floats
    calibrated_log_s: Floats
    trust: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearnedModel:
    """A calibration and what it leaves."""

    calibration: Calibration
    residual: GatedResidual

    @classmethod
    def from_steps(cls, steps: Sequence[TimedStep]) -> "LearnedModel":
        """Learn from measured steps."""
        return cls.of(Priced.of(steps), is_exact=True)

    @classmethod
    def of(cls, priced: Priced, *, is_exact: bool = False) -> "LearnedModel":
        """Learn from measured steps that are priced already; the constants by their slopes unless exactly.

        Raises
        ------
        InvalidSpec
            Fewer steps than a calibration needs.
        """
        calibration = calibrate(priced.linear.steps, parameters=None if is_exact else priced.linear)
        left = priced.linear.measured - _calibrated(calibration, priced)
        residual = GatedResidual(n_shares=len(TIME_PARTS)).fit(priced.features, left)
        return cls(calibration=calibration, residual=residual)

    def forecast(self, priced: Priced) -> Forecast:
        """What to expect of steps; their measured seconds are not looked at."""
        calibrated = _calibrated(self.calibration, priced)
        mean, std = self.residual.predict(priced.features, return_std=True)
        trust = self.residual.trust(priced.features)
        left = {each.name: each.kept_spread for each in self.calibration.constants}
        kept = np.array([left.get(name, 1.0) for name in priced.linear.names])
        own = priced.spread**2 + priced.linear.slopes**2 @ kept**2
        return Forecast(
            log_s=calibrated + mean,
            std=np.sqrt(std**2 + (1.0 - trust) * own),
            calibrated_log_s=calibrated,
            trust=trust,
        )


def priced_features(job: Job, plans: Plans, priced: Estimate) -> Floats:
    """What the residual sees of plans of one job: shares of the step, knobs, the job.

    Returns
    -------
    shape (n_plans, n_features)
    """
    known = np.tile(job_features(job), (len(plans), 1))
    return np.hstack([time_shares(priced.time), knob_features(plans), known])


def _calibrated(calibration: Calibration, priced: Priced) -> Floats:
    """Logarithm of step seconds by the formulas with the fitted constants; shape (n,)."""
    return log_step_s(priced.linear.steps, {each.name: each.factor for each in calibration.constants})
