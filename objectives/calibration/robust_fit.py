"""The most probable constants behind measured values, when some of the values are wrong.

    minimise over x <= cap:   2 sum_i rho(r_i / phi) + |x|^2          r_i = y_i - f_i(x)
                                                                      rho(z) = sqrt(1 + z^2) - 1

    x    constants as deviations from what is known, in units of how well that is: the prior is N(0, 1)
    phi  scatter of the measurements around the formulas, estimated with the fit
    w    1 / sqrt(1 + (r / phi)^2): what a measurement counts; far ones pull with a bounded force (soft L1)

Measurements of one kind share an error: f_i(x) + sum_k s_ik b_k with b ~ N(0, 1), found along with x.  So a
hundred measurements of one kind do not move x as a hundred of different kinds would.

Gauss-Newton: f is linearised, the weighted bounded least squares solved, the step halved until the sum falls.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve_triangular
from scipy.optimize import lsq_linear

from search_spaces.plan import Floats, Ints

Function = Callable[[Floats], Floats]

DIFFERENCE = 0.2  # step of a derivative, in units of the prior: wide enough to smooth the formulas' corners
MOST_STEPS, MOST_HALVINGS, MOST_REWEIGHTS = 4, 3, 8
ENOUGH = 0.03  # a step this small, in units of the prior, ends the fit
UNMOVED = 1e-4  # a derivative this small is none
# Mean of z^2 / (1 + z^2) for a standard normal z, which makes the scatter below that of normal noise.
NORMAL_SHARE = 0.3443
CERTAIN = 2.0  # standard errors by which a fit must be better: with 1, draws of 40 rows were fitted to noise
LARGEST_ERROR = 0.3  # a measurement further off says nothing of which fit is better for the others: assumed
KNOWN_ROWS = 2.0  # what the scatter known beforehand counts, in rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fitted:
    """A fit and the formulas' linearisation around it.

    `x` (n,) and `cap` (n,) are in units of the prior, `f` (m,) the formulas at `x`, `jacobian` (m, n) their
    derivatives where the last step began, `scatter` is phi.  The first `n_shared` of x are shared errors.
    """

    x: Floats
    f: Floats
    jacobian: Floats
    y: Floats
    cap: Floats
    scatter: float
    n_shared: int = 0

    @property
    def residuals(self) -> Floats:
        """Measured less predicted, shape (m,)."""
        return self.y - self.f

    @property
    def covariance(self) -> Floats:
        """Of the constants given the data (Laplace): (J' W J + 1)^-1, with a diagonal of at most 1."""
        weights = _weights(self.residuals, self.scatter) / self.scatter**2
        precision = self.jacobian.T @ (self.jacobian * weights[:, None])
        inverse = np.linalg.inv(precision + np.eye(len(self.x)))
        return np.asarray(inverse, dtype=np.float64)

    @property
    def constants(self) -> Floats:
        """X without the shared errors."""
        return self.x[self.n_shared :]

    @property
    def slopes(self) -> Floats:
        """Derivatives by the constants."""
        return self.jacobian[:, self.n_shared :]

    @property
    def constants_covariance(self) -> Floats:
        """Of the constants given the data, the shared errors integrated out."""
        return self.covariance[self.n_shared :, self.n_shared :]

    def without(self, rows: Ints) -> Floats:
        """The constants that the other rows give, by the linearisation, shape (n_constants,)."""
        f, y = np.delete(self.f, rows), np.delete(self.y, rows)
        others = replace(self, f=f, y=y, jacobian=np.delete(self.jacobian, rows, axis=0))
        return _solve(others)[self.n_shared :]


class _WithShared:
    """The formulas plus shared errors, which stand first in the vector; the formulas' last answer is kept."""

    def __init__(self, f: Function, shared: Floats) -> None:
        self.f, self.shared = f, shared
        self.last: tuple[bytes, Floats] | None = None

    def __call__(self, both: Floats) -> Floats:
        errors, x = np.split(both, [self.shared.shape[1]])
        if self.last is None or self.last[0] != x.tobytes():
            self.last = x.tobytes(), self.f(x)
        answer: Floats = self.last[1] + self.shared @ errors
        return answer


def fit(f: Function, y: Floats, cap: Floats, *, scatter: float, shared: Floats | None = None) -> Fitted:
    """The most probable x, where `scatter` is what is known of phi beforehand.

    `shared` (m, k) is what each of k errors with a standard normal prior adds to each measurement.

    Source
    ------
    Triggs et al. (2000), Bundle adjustment, section 4.3 (robust Gauss-Newton); Huber (1981), Robust
    statistics, chapter 5 (the M-estimate of a scale).
    """
    shared = np.zeros((len(y), 0)) if shared is None else shared
    f, cap = _WithShared(f, shared), np.concatenate([np.full(shared.shape[1], np.inf), cap])
    x = np.zeros(len(cap))
    first = np.ones((len(y), len(x)))
    now = Fitted(x=x, f=f(x), jacobian=first, y=y, cap=cap, scatter=scatter, n_shared=shared.shape[1])
    for _ in range(MOST_STEPS):
        now = replace(now, jacobian=_jacobian(f, now))
        now = replace(now, scatter=_scatter(now, scatter))
        moved = _moved(f, now)
        step = float(np.max(np.abs(moved.x - now.x), initial=0.0))
        now = moved
        if step < ENOUGH:
            break
    return replace(now, scatter=_scatter(now, scatter))


def _moved(f: Function, now: Fitted) -> Fitted:
    """One step, halved until it helps; no step where none helps."""
    target, before = _solve(now), _loss(now)
    for halving in range(MOST_HALVINGS + 1):
        x = now.x + (target - now.x) / 2**halving
        there = replace(now, x=x, f=f(x))
        if _loss(there) <= before:
            return there
    return now


def _solve(now: Fitted) -> Floats:
    """The best x of the linearised formulas, by reweighted least squares."""
    x = now.x
    offset = now.residuals + now.jacobian @ now.x
    for _ in range(MOST_REWEIGHTS):
        weighted = now.jacobian.T * (_weights(offset - now.jacobian @ x, now.scatter) / now.scatter**2)
        curvature, pull = weighted @ now.jacobian + np.eye(len(x)), weighted @ offset
        x = np.asarray(np.linalg.solve(curvature, pull), dtype=np.float64)
        if np.any(x > now.cap):
            x = _bounded(curvature, pull, now)
    return np.minimum(x, now.cap)


def _bounded(curvature: Floats, pull: Floats, now: Fitted) -> Floats:
    """The best x of x' curvature x / 2 - pull' x below its cap; shared errors, which have none, follow."""
    k = now.n_shared
    gain = np.linalg.solve(curvature[:k, :k], curvature[:k, k:])
    free = np.linalg.solve(curvature[:k, :k], pull[:k])
    root = np.linalg.cholesky(curvature[k:, k:] - curvature[k:, :k] @ gain)
    goal = solve_triangular(root, pull[k:] - curvature[k:, :k] @ free, lower=True)
    bounds = (-np.inf, now.cap[k:] + np.finfo(float).eps)
    constants = np.asarray(lsq_linear(root.T, goal, bounds=bounds).x)
    return np.concatenate([free - gain @ constants, constants])


def _loss(now: Fitted) -> float:
    rho = np.sqrt(1 + (now.residuals / now.scatter) ** 2) - 1
    return float(2 * np.sum(rho) + now.x @ now.x)


def _weights(residuals: Floats, scatter: float) -> Floats:
    weights: Floats = 1 / np.sqrt(1 + (residuals / scatter) ** 2)
    return weights


def _scatter(now: Fitted, known: float) -> float:
    """Scatter of the measurements: what is known of it, and what the fit leaves per degree of freedom.

    phi^2 = ( k phi_0^2 + sum (w r)^2 / c ) / ( k + m - spent )

    One wrong row adds phi^2 / c at most.  `spent` are the degrees of freedom that the constants use up.
    """
    weights = _weights(now.residuals, now.scatter)
    spread = now.jacobian @ now.covariance * now.jacobian
    spent = float(np.sum(spread * weights[:, None]) / now.scatter**2)
    left = max(len(now.y) - spent, 0.0)
    squares = float(np.sum((weights * now.residuals) ** 2)) / NORMAL_SHARE
    return float(np.sqrt((KNOWN_ROWS * known**2 + squares) / (KNOWN_ROWS + left)))


def _jacobian(f: Function, now: Fitted) -> Floats:
    """Derivatives by differences, downwards where the bound forbids upwards; shape (m, n).

    A constant that moved nothing before is taken to move nothing now.
    """
    jacobian = np.zeros((len(now.y), len(now.x)))
    for i in np.flatnonzero(np.max(np.abs(now.jacobian), axis=0) > UNMOVED):
        step = DIFFERENCE if now.x[i] + DIFFERENCE <= now.cap[i] else -DIFFERENCE
        there = now.x.copy()
        there[i] += step
        jacobian[:, i] = (f(there) - now.f) / step
    return jacobian


def is_better(now: Floats, before: Floats) -> bool:
    """Whether errors, shape (m,), are smaller in the mean by more than twice that mean's standard error."""
    gained = np.minimum(np.abs(before), LARGEST_ERROR) - np.minimum(np.abs(now), LARGEST_ERROR)
    return bool(np.mean(gained) > CERTAIN * np.std(gained) / np.sqrt(len(gained)))
