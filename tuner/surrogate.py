"""What the cost model gets wrong: log(measured / predicted), learned from a handful of trials.

    y(x) = offset + Σ_k beta_k share_k(x) + g(x) + noise           y = log(measured / predicted)

    offset   everything is faster or slower by one factor
    beta_k   part k of the prediction is off by a factor; share_k is its share of the total
    g        what no part explains: a Gaussian process on the knobs, correlation r(x, x')

All of it is one Gaussian process, K = H P H' + sd_g² R + noise² W⁻¹ with H = [1, shares], so mean and
spread are exact; far from the data g returns to 0 and the shares, a simplex, cannot run away: what remains
is the model and an offset.

Source: Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, sections 2.2, 2.7 and 5.4.
"""

import math
from itertools import product
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, solve_triangular
from scipy.special import log_ndtr
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from search_spaces.plan import Bools, Floats
from tuner.gate import HeldBack

LENGTH = 3.0  # knob steps over which g forgets; on 40 hidden clusters 2 and 3 raced alike, 5 was slower
STUDENT_FREEDOM = 4.0  # tails of the noise; 4 is the customary robust choice (Lange et al. 1989, JASA 84)
ROBUST_ROUNDS = 4
MOST_FOR_SELECTION = 64  # rows on which the three spreads are chosen: more cost time and move them little

FloatT = TypeVar("FloatT", np.float32, np.float64)


def correlation(knobs: NDArray[FloatT], others: NDArray[FloatT]) -> NDArray[FloatT]:
    """How alike g is at two plans, by their distance d in knob steps (Matern, smoothness 3/2).

        r = (1 + a) exp(-a),  a = √3 d / LENGTH

    Returns
    -------
    shape (n_plans, n_others)

    Source
    ------
    Rasmussen and Williams (2006), equation 4.17.
    """
    squares = (knobs**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2.0 * (knobs @ others.T)
    a = np.sqrt(np.maximum(squares, 0.0)) * (math.sqrt(3.0) / LENGTH)
    answer: NDArray[FloatT] = (1.0 + a) * np.exp(-a)
    return answer


class LogRatioSurrogate(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Gaussian-process regressor of log(measured / predicted); robust, deterministic, honest with few rows.

    A row of X holds `n_shares` shares of the prediction's parts, then knob coordinates. The prior spreads
    are in log units (0.3: about 30 %); those of the shares, of g and of the noise are chosen from the
    `*_stds` by marginal likelihood, of at most `most_rows` rows. Odd rows lose weight as under Student's t
    noise. Rows marked `censored` are lower bounds.
    """

    def __init__(
        self,
        *,
        n_shares: int = 0,
        offset_std: float = 0.5,
        share_stds: tuple[float, ...] = (0.1, 0.3, 0.6),
        residual_stds: tuple[float, ...] = (0.03, 0.1, 0.25),
        noise_stds: tuple[float, ...] = (0.01, 0.03, 0.1),
        most_rows: int = MOST_FOR_SELECTION,
    ) -> None:
        self.n_shares = n_shares
        self.offset_std = offset_std
        self.share_stds = share_stds
        self.residual_stds = residual_stds
        self.noise_stds = noise_stds
        self.most_rows = most_rows

    def fit(self, X: Any, y: Any, *, censored: Any = None) -> Self:
        """Learn from measured log ratios; no row at all leaves the prior.

        Parameters
        ----------
        X : shape (n, n_shares + n_knobs)
        y : shape (n,), log(measured / predicted)
        censored : shape (n,), true where y is only known to be at least this much (out of memory)
        """
        if np.asarray(X).shape[:1] != (0,):
            X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        X, y = np.asarray(X, dtype=np.float64), np.asarray(y, dtype=np.float64)
        self.n_features_in_ = X.shape[1]
        bound = np.zeros(len(y), dtype=bool) if censored is None else np.asarray(censored, dtype=bool)
        self._take_rows(X)
        self._choose_spreads(np.flatnonzero(~bound), y)
        self._settle(y, bound)
        return self

    def predict(self, X: Any, *, return_std: bool = False) -> Any:
        """Mean of the log ratio, and with `return_std` the spread of a new measurement; shapes (n,)."""
        check_is_fitted(self, "alpha_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        alike = correlation(X[:, self.n_shares :], self.knobs_)
        mean = self.mean_at(X[:, : self.n_shares], alike)
        if not return_std:
            return mean
        return mean, np.hypot(self.std_at(X[:, : self.n_shares], alike), self.noise_std_)

    def mean_at(self, shares: Floats, alike: Floats) -> Floats:
        """Mean at plans with these shares and these correlations to the training plans; shape (n,)."""
        mean: Floats = self.offset_ + shares @ self.beta_ + self.residual_std_**2 * (alike @ self.alpha_)
        return mean

    def std_at(self, shares: Floats, alike: Floats) -> Floats:
        """Spread of the true log ratio (a measurement's noise not counted); shape (n,)."""
        terms = _terms(shares)
        prior = (terms**2) @ self._prior() + self.residual_std_**2
        across = (terms * self._prior()) @ self.terms_.T + self.residual_std_**2 * alike
        explained = (solve_triangular(self.cholesky_, across.T, lower=True) ** 2).sum(axis=0)
        std: Floats = np.sqrt(np.maximum(prior - explained, 1e-12))
        return std

    def joint(self, X: Floats) -> tuple[Floats, Floats]:
        """Mean and covariance of the true log ratios of plans (a measurement's noise not counted).

        Returns
        -------
        shapes (n,) and (n, n)

        Source
        ------
        Rasmussen and Williams (2006), equations 2.23 and 2.24.
        """
        terms, knobs = _terms(X[:, : self.n_shares]), X[:, self.n_shares :]
        weighted, variance = terms * self._prior(), self.residual_std_**2
        prior = weighted @ terms.T + variance * correlation(knobs, knobs)
        across = weighted @ self.terms_.T + variance * correlation(knobs, self.knobs_)
        half = solve_triangular(self.cholesky_, across.T, lower=True)
        return across @ self.alpha_, prior - half.T @ half

    def term_covariance(self) -> Floats:
        """Covariance of the offset and the shares' factors; shape (1 + n_shares, 1 + n_shares)."""
        across = solve_triangular(self.cholesky_, self.terms_ * self._prior(), lower=True)
        covariance: Floats = np.diag(self._prior()) - across.T @ across
        return covariance

    def outer_std_at(self, shares: Floats) -> Floats:
        """Spread as if no tried plan were near: quick, and hardly ever below `std_at`; shape (n,)."""
        covariance = self.term_covariance()
        variance = covariance[0, 0] + np.einsum("ij,ij->i", shares @ covariance[1:, 1:], shares)
        variance += 2.0 * (shares @ covariance[0, 1:])
        std: Floats = np.sqrt(np.maximum(variance, 0.0) + self.residual_std_**2)
        return std

    def believing(self, X: Floats) -> "LogRatioSurrogate":
        """The posterior after seeing its own mean at more plans: the mean stays, the spread shrinks.

        Source
        ------
        Ginsbourger et al. (2010), "Kriging is well-suited to parallelize optimization", section 4 (believer).
        """
        if not len(X):
            return self
        other = LogRatioSurrogate(**self.get_params())
        other.n_features_in_ = X.shape[1]
        other.share_std_, other.residual_std_ = self.share_std_, self.residual_std_
        other.noise_std_ = self.noise_std_
        mean = self.predict(X)
        other._take_rows(np.vstack([self.rows, X]))
        targets = np.concatenate([self.targets_, mean])
        other._solve(targets, np.concatenate([self.variances_, np.full(len(X), self.noise_std_**2)]))
        return other

    def held_back(self) -> HeldBack:
        """The rows as the others predict them."""
        inverse: Floats = cho_solve((self.cholesky_, True), np.eye(len(self.targets_)))
        return HeldBack(precision=inverse, weighted=self.alpha_)

    @property
    def rows(self) -> Floats:
        """Features that it was fitted to; shape (n, n_shares + n_knobs)."""
        return np.hstack([self.terms_[:, 1:], self.knobs_])

    def _take_rows(self, X: Floats) -> None:
        self.terms_, self.knobs_ = _terms(X[:, : self.n_shares]), X[:, self.n_shares :]
        self.alike_ = correlation(self.knobs_, self.knobs_)

    def _prior(self) -> Floats:
        return np.array([self.offset_std**2] + [self.share_std_**2] * self.n_shares)

    def _choose_spreads(self, rows: Any, y: Floats) -> None:
        """The spreads of highest marginal likelihood (Rasmussen and Williams, 5.8), odd rows muted."""
        rows = rows[:: -(-len(rows) // self.most_rows)] if len(rows) else rows
        grid = np.array(list(product(self.share_stds, self.residual_stds, self.noise_stds)))
        middle = [
            values[len(values) // 2] for values in (self.share_stds, self.residual_stds, self.noise_stds)
        ]
        best = np.array(middle)
        if len(rows) > 2:
            share, residual, noise = (grid**2).T[:, :, None, None]
            terms = self.terms_[rows]
            alike = self.alike_[np.ix_(rows, rows)]
            muted = np.diag(1.0 / _first_weights(y[rows]))
            kernel = (
                self.offset_std**2
                + share * (terms[:, 1:] @ terms[:, 1:].T)
                + residual * alike
                + noise * muted
            )
            score = _log_likelihood(kernel, y[rows]) - 0.5 * (np.log(grid / middle) ** 2).sum(axis=1)
            best = grid[int(np.argmax(score))]
        self.share_std_, self.residual_std_, self.noise_std_ = map(float, best)

    def _settle(self, y: Floats, censored: Bools) -> None:
        """Alternate the exact solution with the rows' weights (odd ones) and values (censored ones)."""
        base = self.noise_std_**2
        targets, variances = y.copy(), base / np.where(censored, 1.0, _first_weights(y, ~censored))
        self._solve(targets, variances)
        for _ in range(ROBUST_ROUNDS if len(y) else 0):
            mean, variance = self._left_out(variances)
            surprise = (y - mean) ** 2 / (variance + base)
            variances = base * (STUDENT_FREEDOM + surprise) / (STUDENT_FREEDOM + 1.0)
            variances = np.maximum(variances, base)
            bounded, extra = _above(y, mean, np.sqrt(variance + base))
            targets = np.where(censored, bounded, y)
            variances = np.where(censored, base + extra, variances)
            self._solve(targets, variances)

    def _left_out(self, variances: Floats) -> tuple[Floats, Floats]:
        """Mean and variance of the true log ratio at each row from the others (ibid., 5.12)."""
        inverse = np.diagonal(cho_solve((self.cholesky_, True), np.eye(len(variances))))
        return self.targets_ - self.alpha_ / inverse, np.maximum(1.0 / inverse - variances, 1e-12)

    def _solve(self, targets: Floats, variances: Floats) -> None:
        kernel = (self.terms_ * self._prior()) @ self.terms_.T + self.residual_std_**2 * self.alike_
        self.cholesky_ = np.linalg.cholesky(kernel + np.diag(variances))
        self.alpha_ = cho_solve((self.cholesky_, True), targets)
        weights = self._prior() * (self.terms_.T @ self.alpha_)
        self.offset_, self.beta_ = float(weights[0]), weights[1:]
        self.targets_, self.variances_ = targets, variances


def _terms(shares: Floats) -> Floats:
    return np.hstack([np.ones((len(shares), 1)), shares])


def _first_weights(y: Floats, among: Bools | None = None) -> Floats:
    """Weights in (0, 1] before anything is fitted: whole up to 4 deviations from the median."""
    known = y if among is None else y[among]
    if len(known) < 3:
        return np.ones(len(y))
    distance = np.abs(y - np.median(known))
    usual = max(float(np.median(distance if among is None else distance[among])) * 1.4826, 0.1)
    weights: Floats = np.minimum(1.0, (4.0 * usual / np.maximum(distance, 1e-12)) ** 2)
    return weights


def _log_likelihood(kernels: Floats, y: Floats) -> Floats:
    """Log density of y under each of many kernels; shapes (n_kernels, n, n) and (n,) to (n_kernels,)."""
    roots = np.linalg.cholesky(kernels)
    white = np.linalg.solve(roots, np.broadcast_to(y[:, None], (len(kernels), len(y), 1)))[..., 0]
    logs: Floats = -0.5 * (white**2).sum(axis=1) - np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    return logs


def _above(bound: Floats, mean: Floats, std: Floats) -> tuple[Floats, Floats]:
    """Mean and variance of a normal known to lie above a bound.

        mean + std λ,   std² (1 - λ (λ - a)),   a = (bound - mean) / std

    Source
    ------
    Tobin (1958), Econometrica 26; λ is the inverse Mills ratio.
    """
    a = (bound - mean) / std
    ratio = np.exp(-0.5 * a**2 - 0.5 * np.log(2 * np.pi) - log_ndtr(-a))
    return mean + std * ratio, std**2 * np.clip(1.0 - ratio * (ratio - a), 0.0, 1.0)
