"""The surrogate under every choice of its spreads, weighed by how well each explains the trials.

    w_i ∝ p(y | spreads_i) p(spreads_i)

A sampler needs the likeliest spreads; a probability stated to a person must also count that they may be
others: with a handful of trials several explain them about as well.

Source: Rasmussen and Williams (2006), sections 5.2 and 5.4.1.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

from search_spaces.plan import Floats
from tuner.surrogate import LogRatioSurrogate

MOST_TRIALS = (
    32  # beyond, the likeliest spreads stand for all: the fits would cost more than the answer is worth
)
LEAST_WEIGHT = 0.02


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alternative:
    """A surrogate and its weight; weights sum to 1."""

    model: LogRatioSurrogate
    weight: float


def alternatives(model: LogRatioSurrogate, X: Floats, y: Floats) -> list[Alternative]:
    """The surrogates of all spreads that explain the trials, or the given one alone."""
    if not 0 < len(y) <= MOST_TRIALS:
        return [Alternative(model=model, weight=1.0)]
    grids = (model.share_stds, model.residual_stds, model.noise_stds)
    middle = np.array([values[len(values) // 2] for values in grids])
    fits = [_with_spreads(model, spreads).fit(X, y) for spreads in product(*grids)]
    prior = [-0.5 * (np.log(np.array(spreads) / middle) ** 2).sum() for spreads in product(*grids)]
    logs = np.array([_log_evidence(each) for each in fits]) + np.array(prior)
    weights = np.exp(logs - logs.max())
    weights = np.where(weights >= LEAST_WEIGHT * weights.sum(), weights, 0.0)
    weights /= weights.sum()
    pairs = zip(fits, weights.tolist(), strict=True)
    return [Alternative(model=each, weight=weight) for each, weight in pairs if weight]


def _with_spreads(model: LogRatioSurrogate, spreads: tuple[float, float, float]) -> LogRatioSurrogate:
    share, residual, noise = spreads
    given = dict(share_stds=(share,), residual_stds=(residual,), noise_stds=(noise,))
    return LogRatioSurrogate(**{**model.get_params(), **given})


def _log_evidence(model: LogRatioSurrogate) -> float:
    """Log density of the readings, odd ones at the weight they were left with."""
    return float(-0.5 * model.targets_ @ model.alpha_ - np.log(np.diagonal(model.cholesky_)).sum())
