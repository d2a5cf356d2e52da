"""The cost model after measured steps of many jobs: constants calibrated, what is left learned.

    ln t = ln t(c) + r(x)             c: `objectives.calibration`;  r: `tuner.residual`, gated
    std² = std_r² + (1 - trust) std_c²
    ln t = ln( t(c) exp(r) + w m )    with chance P, where runs were held up: `objectives.calibration.holdups`

std_c is what the calibrated model says of itself: the spread left of its constants, and that of the formulas.
Where the residual is trusted its own spread holds, which was learned from outcomes and includes the former.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from objectives.calibration import (
    Calibration,
    Linearised,
    TimedStep,
    calibrate,
    exposure_of,
    log_step_s,
)
from objectives.cost.result import Estimate
from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.uncertainty import formula_spread
from search_spaces.plan import Bools, Floats, Ints, Plans
from tuner.features import TIME_PARTS, job_features, knob_features, time_shares
from tuner.residual import GatedResidual

MOST_SIGMAS, HALVINGS = 8.0, 50  # where a quantile is sought, and how finely


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
    """Natural logarithm of step seconds as expected: of a regular run, and of one that something holds up.

    Each kind has a mean and a spread, normal; `chance` is that of being held up.  `calibrated_log_s` is what
    the calibrated constants alone say, `trust` the share of the residual that was kept.  Every field has
    shape (n,).
    """

    regular_log_s: Floats
    std: Floats
    held_up_log_s: Floats
    held_up_std: Floats
    chance: Floats
    calibrated_log_s: Floats
    trust: Floats

    @property
    def log_s(self) -> Floats:
        """The middle of the likelier kind, shape (n,): what lies between two kinds is the least likely."""
        return np.where(self.chance > 0.5, self.held_up_log_s, self.regular_log_s)

    def quantile(self, share: float) -> Floats:
        """What lies above that share of what may come; shape (n,)."""
        away = MOST_SIGMAS * np.maximum(self.std, self.held_up_std)
        low = np.minimum(self.regular_log_s, self.held_up_log_s) - away
        high = np.maximum(self.regular_log_s, self.held_up_log_s) + away
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            below = (1 - self.chance) * ndtr((middle - self.regular_log_s) / self.std)
            below += self.chance * ndtr((middle - self.held_up_log_s) / self.held_up_std)
            low, high = np.where(below < share, middle, low), np.where(below < share, high, middle)
        return (low + high) / 2

    def covers(self, log_s: Floats, share: float) -> Bools:
        """Where outcomes lie inside the interval that holds that share; shape (n,)."""
        tail = (1 - share) / 2
        inside: Bools = (self.quantile(tail) <= log_s) & (log_s <= self.quantile(1 - tail))
        return inside


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
        regular = np.setdiff1d(np.arange(len(priced.features)), calibration.held_up)
        left = (priced.linear.measured - _calibrated(calibration, priced))[regular]
        residual = GatedResidual(n_shares=len(TIME_PARTS)).fit(priced.features[regular], left)
        return cls(calibration=calibration, residual=residual)

    def forecast(self, priced: Priced) -> Forecast:
        """What to expect of steps; their measured seconds are not looked at."""
        calibrated = _calibrated(self.calibration, priced)
        mean, std = self.residual.predict(priced.features, return_std=True)
        trust = self.residual.trust(priced.features)
        left = {each.name: each.kept_spread for each in self.calibration.constants}
        kept = np.array([left.get(name, 1.0) for name in priced.linear.names])
        own = priced.spread**2 + priced.linear.slopes**2 @ kept**2
        regular, std = calibrated + mean, np.sqrt(std**2 + (1.0 - trust) * own)
        held_up, chance = self._held_up(priced, regular)
        hold_ups = self.calibration.hold_ups
        return Forecast(
            regular_log_s=regular,
            std=std,
            held_up_log_s=held_up,
            held_up_std=np.hypot(std, hold_ups.spread) if hold_ups else std,
            chance=chance,
            calibrated_log_s=calibrated,
            trust=trust,
        )

    def _held_up(self, priced: Priced, log_s: Floats) -> tuple[Floats, Floats]:
        """Log seconds of runs that are held up and the chance of it; shapes (n,)."""
        hold_ups = self.calibration.hold_ups
        if hold_ups is None:
            return log_s, np.zeros(len(log_s))
        exposed = exposure_of(priced.linear.steps)
        return hold_ups.held_up_log_s(log_s, exposed), hold_ups.chance(exposed)


def priced_features(job: Job, plans: Plans, priced: Estimate) -> Floats:
    """What the residual sees of plans of one job: shares of the step, knobs, the job.

    Returns
    -------
    shape (n_plans, n_features)
    """
    return np.hstack([time_shares(priced.time), knob_features(plans), job_features(job, plans)])


def _calibrated(calibration: Calibration, priced: Priced) -> Floats:
    """Logarithm of step seconds by the formulas with the fitted constants; shape (n,)."""
    return log_step_s(priced.linear.steps, {each.name: each.factor for each in calibration.constants})
