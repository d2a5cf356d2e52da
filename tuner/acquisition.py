"""How much a trial of each plan promises: log expected improvement and probabilities, on columns.

Everything is minimised in log units: an improvement of 0.1 is about a tenth, of a fast job as of a slow one.

Two or more objectives are scalarised at random, one draw a trial (ParEGO), rather than scored by expected
hypervolume improvement: the cost is that of one objective for any number of them, a batch of parallel
trials spreads over the front by itself, and no reference point has to be invented.
Whether expected hypervolume would find a better front has not been measured here.
"""

import numpy as np
from scipy.special import erfcx, log_ndtr, ndtri

from search_spaces.plan import Floats

AUGMENTATION = 0.05  # weight of the sum beside the maximum (Knowles 2006, section III.A)
N_DRAWS = 64
FARTHEST = -1e5  # below, 1 + z Φ/φ is all rounding and its limit 1/z² is used


def log_h(z: Floats) -> Floats:
    """log(φ(z) + z Φ(z)), exact far into the tail where the plain form is 0.

        log h = -z²/2 - log √(2π) + log(1 + z √(π/2) erfcx(-z/√2))      z < 0
        log h → -z²/2 - log √(2π) - 2 log|z|                             z → -∞

    Source
    ------
    Ament et al. (2023), arXiv:2310.20708, section 4.1.
    """
    z = np.asarray(z, dtype=np.float64)
    near = np.clip(z, FARTHEST, 0.0)
    tail = -0.5 * np.minimum(z, 0.0) ** 2 - 0.5 * np.log(2.0 * np.pi)
    inner = np.log1p(near * np.sqrt(np.pi / 2.0) * erfcx(-near / np.sqrt(2.0)))
    outer = -2.0 * np.log(np.maximum(-z, 1.0))
    above = np.maximum(z, 0.0)
    right = np.log(np.exp(-0.5 * above**2) / np.sqrt(2.0 * np.pi) + above * np.exp(log_ndtr(above)))
    answer: Floats = np.where(z > 0, right, tail + np.where(z > FARTHEST, inner, outer))
    return answer


def log_expected_improvement(mean: Floats, std: Floats, best: float) -> Floats:
    """Log E[max(best - y, 0)] of y ~ N(mean, std²); shape (n,).

        log EI = log std + log h((best - mean) / std)

    Source
    ------
    Jones, Schonlau and Welch (1998), J. Global Optimization 13, equation 15; in logs: Ament et al. (2023).
    """
    return np.log(std) + log_h((best - mean) / std)


def log_probability_below(mean: Floats, std: Floats, limit: Floats | float) -> Floats:
    """Log P(y <= limit) of y ~ N(mean, std²); shape (n,)."""
    answer: Floats = log_ndtr((limit - mean) / std)
    return answer


def simplex_weights(n_objectives: int, rng: np.random.Generator) -> Floats:
    """Weights drawn evenly from the simplex; shape (n_objectives,)."""
    return rng.dirichlet(np.ones(n_objectives))


def chebyshev(values: Floats, weights: Floats, *, ideal: Floats, extent: Floats) -> Floats:
    """Augmented Chebyshev distance to the ideal point, objectives last; shape (..., n_objectives) to (...).

        s = max_j w_j u_j + 0.05 Σ_j w_j u_j,   u = (values - ideal) / extent

    Source
    ------
    Knowles (2006), ParEGO, IEEE Trans. Evolutionary Computation 10(1), equation 2.
    """
    factors = weights / extent
    scaled = [(values[..., j] - ideal[j]) * factors[j] for j in range(len(weights))]
    answer: Floats = np.maximum.reduce(scaled) + AUGMENTATION * np.add.reduce(scaled)
    return answer


def normal_draws(n_columns: int, rng: np.random.Generator) -> Floats:
    """Standard normal points, one stratum of probability a draw and column; shape (N_DRAWS, n_columns)."""
    strata = np.column_stack([rng.permutation(N_DRAWS) for _ in range(n_columns)])
    answer: Floats = ndtri((strata + 0.5) / N_DRAWS)
    return answer


def log_sampled_improvement(draws: Floats, best: float) -> Floats:
    """Log E[max(best - y, 0)] from draws of y, where y is no longer normal; shape (n_draws, n) to (n,).

    Rows of which no draw improves are ordered, below every row that improves, by how near their best draw
    came.
    """
    gain = np.maximum(best - draws, 0.0).mean(axis=0)
    short = np.minimum(best - draws.min(axis=0), 0.0)
    answer: Floats = np.where(gain > 0, np.log(np.maximum(gain, 1e-12)), np.log(1e-12) + short)
    return answer
