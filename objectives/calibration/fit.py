"""A cluster's physical constants from measured steps: known values as prior, measurements as evidence.

    ln t_i = ln t(c) of plan i + noise           ln c ~ N(ln c_0, ln(1 + spread))

    c_0     the cluster's constant as it is known: preset, data sheet, assumption, with its spread
    fitted  the most probable c (`objectives.calibration.robust_fit`); efficiencies stay at most 1
    shrink  the share of the fitted change that is kept: chosen on steps held back, 0 is the preset

Only constants of the machine are fitted.  What a trainer adds (`search_spaces.habits`) and what holds
everywhere (`objectives.cost.nature`) stay: a cluster file is for every trainer.  Memory is not fitted.
Steps that something held up (`objectives.calibration.holdups`) say nothing of constants and are set apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from objectives.calibration.holdups import HoldUps, exposure_of, find_hold_ups
from objectives.calibration.parameters import Parameters, TimedStep, times, with_constants
from objectives.calibration.robust_fit import Fitted, fit, is_better
from objectives.uncertainty import FORMULA_SPREAD, cluster_constants
from search_spaces.cluster import ClusterSpec, Constant, Origin
from search_spaces.errors import check
from search_spaces.plan import Bools, Floats, Ints

FEWEST_STEPS = 3
MOST_FOLDS = 10
SEPARATIONS = 2  # of steps that were held up from the others, each with a fit to the others
SHRINKS = (0.25, 0.5, 0.75, 1.0)
FELT = 1e-3  # a constant whose spread moves no prediction by more is not felt by the steps
UNDETERMINED = 0.9  # a spread that the steps leave this large, over what it was, is not determined
CORRELATED = 0.7
# Half of the standard deviation of jobs' median errors on benchmarks/data (0.05; jobs of four runs or more,
# the same in sources that benchmarks/learning.py does not draw from): with all of it, what a machine's jobs
# have in common is taken for errors of their own.
JOB_SPREAD = 0.025
OUTLIER_SIGMAS, SMALLEST_SIGMA = 3.0, 0.03
DIGITS = 4  # of a written constant


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedConstant:
    """A constant before and after; `kept_spread` is the spread left over that of before, on the log scale."""

    name: str
    preset: Constant
    fitted: Constant
    kept_spread: float

    @property
    def is_determined(self) -> bool:
        """Whether the steps said more of it than was known."""
        return self.kept_spread <= UNDETERMINED

    @property
    def factor(self) -> float:
        """What the constant is multiplied with."""
        return self.fitted.value / self.preset.value


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldBack:
    """Errors of steps that had no part in the fit that priced them, as fractions, with preset and fit.

    Every step is held back once; steps of one job together where there are jobs enough.  The mean is that of
    |ln(predicted / measured)|, as a fraction: one step a thousand times off must not decide it.
    """

    n_folds: int
    preset_median_error: float
    preset_mean_error: float
    fitted_median_error: float
    fitted_mean_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What measured steps say of a cluster's constants.

    `unfelt` are constants that move no prediction of these steps, `correlated` pairs that the steps hardly
    tell apart, `residuals` ln(measured / predicted) of each step with the constants kept, `outliers`
    positions of steps beyond three of the others' standard deviations, `scatter` the standard deviation of
    the steps around the formulas.  `shrink` 0 means that no part of the fit helped on steps held back.
    `hold_ups` are waits that some steps share and no constant explains, `held_up` the positions of these
    steps: the constants are fitted to the others, and `held_back` is about the others.
    """

    constants: tuple[CalibratedConstant, ...]
    unfelt: tuple[str, ...]
    correlated: tuple[tuple[str, str, float], ...]
    residuals: tuple[float, ...]
    outliers: tuple[int, ...]
    scatter: float
    shrink: float
    held_back: HeldBack
    hold_ups: HoldUps | None = None
    held_up: tuple[int, ...] = ()

    @property
    def helped(self) -> bool:
        """Whether steps held back are predicted better than with the preset."""
        return self.shrink > 0

    @property
    def undetermined(self) -> list[str]:
        """Constants of which the steps say little or nothing."""
        return [each.name for each in self.constants if not each.is_determined] + list(self.unfelt)


def calibrate(
    steps: Sequence[TimedStep], *, source: str = "measured steps", parameters: Parameters | None = None
) -> Calibration:
    """Fit the constants of the machine that the steps ran on; never worse than before on steps held back.

    `source` names the steps in the fitted constants' origin; `parameters` price the steps otherwise than the
    formulas do (`Linearised`).

    Raises
    ------
    InvalidSpec
        Fewer than three steps.
    """
    check(len(steps) >= FEWEST_STEPS, f"a calibration needs {FEWEST_STEPS} measured steps", len(steps))
    parameters = parameters or Parameters.of(steps)
    fitted, hold_ups, held_up = _fitted(parameters)
    regular = parameters.of_rows(np.flatnonzero(~held_up))
    shrink, held_back = _shrink(regular, fitted)
    residuals = parameters.measured - parameters.log_s(shrink * fitted.constants)
    felt = np.max(np.abs(fitted.slopes), axis=0, initial=0.0) > FELT
    constants = _constants(parameters, fitted, shrink, source)
    return Calibration(
        constants=tuple(each for each, is_felt in zip(constants, felt, strict=True) if is_felt),
        unfelt=tuple(each.name for each, is_felt in zip(constants, felt, strict=True) if not is_felt),
        correlated=tuple(_correlated(parameters.names, fitted.constants_covariance)),
        residuals=tuple(map(float, residuals)),
        outliers=tuple(map(int, np.flatnonzero(_stands_out(residuals)))),
        scatter=fitted.scatter,
        shrink=shrink,
        held_back=held_back,
        hold_ups=hold_ups,
        held_up=tuple(map(int, np.flatnonzero(held_up))),
    )


def calibrated_cluster(cluster: ClusterSpec, calibration: Calibration) -> ClusterSpec:
    """The cluster with the fitted constants; one that differs from the fitted one's keeps its ratio to it."""
    known = cluster_constants(cluster)
    changed = {
        each.name: each.fitted
        if known[each.name] == each.preset
        else replace(each.fitted, value=times(each.name, known[each.name], each.factor))
        for each in calibration.constants
        if each.name in known
    }
    return with_constants(cluster, changed)


def _fitted(parameters: Parameters) -> tuple[Fitted, HoldUps | None, Bools]:
    """The fit to the steps that nothing held up, what held up the others, and which these are."""
    exposed, measured = exposure_of(parameters.steps), parameters.measured
    hold_ups, held_up = None, np.zeros(len(measured), dtype=bool)
    fitted = _fit(parameters)
    for _ in range(SEPARATIONS):
        hold_ups, now = find_hold_ups(measured, parameters.log_s(fitted.constants), exposed)
        if len(now) - now.sum() < FEWEST_STEPS or np.array_equal(now, held_up):
            break
        held_up = now
        fitted = _fit(parameters.of_rows(np.flatnonzero(~held_up)))
    return fitted, hold_ups if held_up.any() else None, held_up


def _fit(parameters: Parameters) -> Fitted:
    shared = _of_jobs(parameters.steps)
    return fit(parameters.log_s, parameters.measured, parameters.cap, scatter=FORMULA_SPREAD, shared=shared)


def _of_jobs(steps: Sequence[TimedStep]) -> Floats:
    """The error that steps of one job share, one column a job; shape (n_steps, n_jobs)."""
    codes = {key: i for i, key in enumerate(dict.fromkeys(id(step.job) for step in steps))}
    return JOB_SPREAD * np.eye(len(codes))[[codes[id(step.job)] for step in steps]]


def _shrink(parameters: Parameters, fitted: Fitted) -> tuple[float, HeldBack]:
    """The share of the fit that predicts steps held back best, and their errors.

    A share whose median or mean error is above the preset's is not taken, nor one whose gain may be chance.
    The fits without the held-back
    steps start from the linearisation of the whole fit; the held-back steps themselves are priced in full.

    Of 112 calibrations on ten published rows each, 12 predicted the rows never seen worse than the preset
    did (their median error, by more than a fiftieth of it); 30 would have, had all of the fit been kept.
    """
    folds = _folds(parameters.steps)
    zero = np.zeros(len(parameters.names))
    errors = {0.0: parameters.log_s(zero) - parameters.measured}
    errors |= {share: np.empty(len(folds)) for share in SHRINKS}
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        x, held = fitted.without(rows), parameters.of_rows(rows)
        for share in SHRINKS:
            errors[share][rows] = held.log_s(share * x) - held.measured
    figures = {share: _median_and_mean(error) for share, error in errors.items()}
    median, mean = figures[0.0]
    fair = [
        share
        for share, each in figures.items()
        if each[0] <= median and each[1] <= mean and (not share or is_better(errors[share], errors[0.0]))
    ]
    best = min(fair, key=lambda share: figures[share][1])
    return best, HeldBack(
        n_folds=len(np.unique(folds)),
        preset_median_error=median,
        preset_mean_error=mean,
        fitted_median_error=figures[best][0],
        fitted_mean_error=figures[best][1],
    )


def _median_and_mean(log_errors: Floats) -> tuple[float, float]:
    mean = np.expm1(np.mean(np.abs(log_errors)))
    return float(np.median(np.abs(np.expm1(log_errors)))), float(mean)


def _folds(steps: Sequence[TimedStep]) -> Ints:
    """Which steps are held back together, shape (n_steps,): a job's, or a plan's where jobs are few."""
    jobs = [id(step.job) for step in steps]
    by_job = len(set(jobs)) >= MOST_FOLDS // 2
    keys = [(job, None if by_job else step.plan) for job, step in zip(jobs, steps, strict=True)]
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] % MOST_FOLDS for key in keys])


def _constants(
    parameters: Parameters, fitted: Fitted, shrink: float, source: str
) -> list[CalibratedConstant]:
    """Every constant; the spread shrinks as far as the change is kept."""
    kept = np.sqrt(1 - shrink * (1 - np.minimum(np.diag(fitted.constants_covariance), 1)))
    factors = np.exp(shrink * fitted.constants * parameters.scale)
    found = []
    for (name, preset), factor, share in zip(parameters.preset.items(), factors, kept, strict=True):
        value = float(f"{times(name, preset, float(factor)):.{DIGITS}g}")
        new = replace(preset, value=value) if abs(factor - 1) > 10**-DIGITS else preset
        found.append(
            CalibratedConstant(
                name=name,
                preset=preset,
                fitted=_sourced(new, preset, share, source),
                kept_spread=float(share),
            )
        )
    return found


def _sourced(new: Constant, preset: Constant, kept_spread: float, source: str) -> Constant:
    """A constant with its origin: one that the steps do not determine keeps its own, and its spread."""
    before = f"{preset.value:.{DIGITS}g}"
    if kept_spread <= UNDETERMINED:
        spread = float(f"{np.expm1(kept_spread * np.log1p(preset.spread)):.{DIGITS - 1}g}")
        text = f"fitted to {source}; before that {before}, {preset.origin}"
        return replace(new, origin=Origin.FITTED, spread=spread, source=text)
    if new == preset:
        return preset
    return replace(new, source=f"{preset.source}; {before} moved along by a fit to {source}")


def _correlated(names: Sequence[str], covariance: Floats) -> list[tuple[str, str, float]]:
    """Pairs of constants that the steps cannot tell apart, strongest first."""
    deviation = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(deviation, deviation)
    pairs = [
        (names[i], names[j], float(correlation[i, j]))
        for i, j in np.argwhere(np.triu(np.abs(correlation) >= CORRELATED, k=1)).tolist()
    ]
    return sorted(pairs, key=lambda pair: -abs(pair[2]))


def _stands_out(residuals: Floats) -> Bools:
    """Which steps lie far from the others: a mask of shape (n_steps,)."""
    away = np.abs(residuals - np.median(residuals))
    sigma = max(1.4826 * float(np.median(away)), SMALLEST_SIGMA)  # the median deviation of a normal law
    stands_out: Bools = away > OUTLIER_SIGMAS * sigma
    return stands_out
