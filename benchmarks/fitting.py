"""Constants fitted to rows: robust, with priors, every source weighing as the root of its rows.

    minimise  sum over rows i of w_i rho((ln t_i - ln measured_i) / s)  +  sum over constants c of u_c^2

    rho(r) = 2 (sqrt(1 + r^2) - 1)   soft L1     s = 0.1     w_i = 1 / sqrt(rows of the source)
    value = centre exp(width u)      a rate or a count
    value = centre + width u         a share between 0 and 1, or what is believed to be nothing

A constant moves its owner's rows only, so a column of the Jacobian prices those.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from benchmarks.rows import Key, Rows
from search_spaces.plan import Floats

ERROR_SCALE = 0.1
STEP = 0.05  # of a prior's width, for the finite differences
SHARES = ("efficiency", "overlap", "exponent", "share")
LEAST_SHARE, TINY = 0.02, 1e-12
OfPosition = Callable[[Floats], Floats]


@dataclass(frozen=True, slots=True)
class Prior:
    """What is believed of a constant before any row: around `centre`, by factors or, to `most`, by steps."""

    centre: float
    width: float
    most: float | None = None

    def value(self, u: float) -> float:
        """The constant u standard deviations from its centre."""
        if self.most is not None:
            return float(np.clip(self.centre + self.width * u, 0.0, self.most))
        return float(self.centre * np.exp(self.width * u))

    def position(self, value: float) -> float:
        """Where a value lies, in standard deviations."""
        if self.most is not None:
            return (value - self.centre) / self.width
        low, high = self.bounds
        return float(np.clip(np.log(max(value, TINY) / self.centre) / self.width, low, high))

    @property
    def bounds(self) -> tuple[float, float]:
        """The positions a fit may take; no efficiency is nothing."""
        if self.most is None:
            return -5.0, 5.0
        least = 0.0 if self.centre < LEAST_SHARE or self.most > 1 else LEAST_SHARE
        return (least - self.centre) / self.width - 1e-6, (self.most - self.centre) / self.width + 1e-6


def prior(place: str, centre: float, width: float, present: float = 0.0) -> Prior:
    """A prior of a place; `width` is relative.

    A share moves by steps and stays at most 1; what is believed to be nothing moves by steps of the present
    value's size.
    """
    if place.endswith(SHARES):
        return Prior(centre, max(width * centre, 0.05), 1.0)
    if centre == 0:
        return Prior(0.0, present or 1.0, 10 * (present or 1.0))
    return Prior(centre, width)


@dataclass(frozen=True, slots=True)
class Fit:
    """Fitted values, and each one's standard deviation in those of its prior."""

    values: dict[Key, float]
    spread: dict[Key, float]


def fit(
    rows: Rows,
    priors: Mapping[Key, Prior],
    *,
    start: Mapping[Key, float] | None = None,
    most_steps: int = 8,
    with_spread: bool = True,
) -> Fit:
    """Maximum a posteriori of those constants; the others stay what they are.

    Without `with_spread` the one Jacobian more that spreads take is saved, and `spread` is empty.
    """
    keys = [key for key in priors if len(rows.owned_by(key))]
    touched = {key: rows.owned_by(key) for key in keys}
    weights, n = rows.source_weights(), len(rows)
    goal = np.log(rows.measured_s)

    def values(u: Floats) -> dict[Key, float]:
        return {key: priors[key].value(x) for key, x in zip(keys, u, strict=True)}

    def residuals(u: Floats) -> Floats:
        errors = (np.log(rows.step_s(values(u))) - goal) / ERROR_SCALE
        return np.concatenate([errors, u])

    def jacobian(u: Floats) -> Floats:
        here, columns = values(u), np.zeros((n + len(keys), len(keys)))
        start_s = rows.step_s(here)
        for k, key in enumerate(keys):
            step = STEP if u[k] + STEP <= priors[key].bounds[1] else -STEP
            moved = here | {key: priors[key].value(u[k] + step)}
            moved_s = rows.step_s(moved, only=key, start_s=start_s)
            at = touched[key]
            columns[at, k] = np.log(moved_s[at] / start_s[at]) / (step * ERROR_SCALE)
            columns[n + k, k] = 1.0
        return columns

    def loss(squares: Floats) -> Floats:
        """Soft L1 with its weight for rows, plain squares for priors: rho and two derivatives."""
        root = np.sqrt(1 + squares[:n])
        rho = np.ones((3, len(squares)))
        rho[0], rho[2] = squares, 0.0
        rho[0, :n], rho[1, :n] = 2 * weights * (root - 1), weights / root
        rho[2, :n] = -weights / (2 * root**3)
        return rho

    low, high = (np.array(side) for side in zip(*(priors[key].bounds for key in keys), strict=True))
    first = np.array([priors[key].position(start[key]) if start and key in start else 0.0 for key in keys])
    found = least_squares(
        residuals,
        np.clip(first, low + 1e-9, high - 1e-9),
        jac=jacobian,
        bounds=(low, high),
        loss=loss,
        max_nfev=most_steps,
        x_scale=1.0,
    )
    spread = _spread(found.x, jacobian, residuals, weights) if with_spread else np.zeros(0)
    return Fit(values(found.x), {key: float(x) for key, x in zip(keys, spread, strict=False)})


def _spread(u: Floats, jacobian: OfPosition, residuals: OfPosition, weights: Floats) -> Floats:
    """Standard deviations from the curvature at the optimum, rows weighed as in the fit."""
    columns, n = jacobian(u), len(weights)
    slope = np.concatenate([weights / np.sqrt(1 + residuals(u)[:n] ** 2), np.ones(len(u))])
    curvature = columns.T @ (slope[:, None] * columns)
    deviations: Floats = np.sqrt(np.diag(np.linalg.inv(curvature)))
    return deviations
