"""Which plans run at all: learned from crashes, hangs and timeouts, whatever their reason.

    P(x runs) = 1 / (1 + exp(-w·x)),   w ~ N(m, S) a priori,   x = [1, knobs]

Logistic regression on the knobs, so that what is common to the plans that failed, and not to those that ran,
takes the blame: ten crashes of one schedule condemn the schedule, not the degrees it was tried with.

A plan works if it fits and runs.  Few crashes say whether memory was their reason, so that of a plan which
hardly fits is no more than a hint against its knobs (`blamed`):

    P(runs | crashed) = P(runs) (1 - P(fits)) / (1 - P(runs) P(fits))

Source: Bishop (2006), Pattern Recognition and Machine Learning, section 4.5.1 (the mode of the posterior);
section 9.4 (expectation-maximisation).
"""

import numpy as np
from scipy.special import expit, log_expit, logit

from search_spaces.plan import Bools, Floats

PRIOR_CHANCE = 0.95  # assumed: nearly every legal plan runs
INTERCEPT_STD, WEIGHT_STD = 1.0, 2.0  # assumed: one knob step can turn a likely plan into an unlikely one
NEWTON_STEPS = 30
BLAME_ROUNDS = 5  # more change a probability by less than 0.01


def log_chances(knobs: Floats, rows: Floats, ran: Bools | Floats) -> Floats:
    """Log P(runs) of every plan, from the knobs of those tried and whether they ran.

    Parameters
    ----------
    knobs : shape (n_plans, n_knobs)
    rows : shape (n_tried, n_knobs)
    ran : shape (n_tried,), true or false, or the probability (`blamed`)

    Returns
    -------
    shape (n_plans,)
    """
    center = knobs.mean(axis=0)
    weights, _ = _mode(np.column_stack([np.ones(len(rows)), rows - center]), ran.astype(np.float64))
    answer: Floats = log_expit(weights[0] - center @ weights[1:] + knobs @ weights[1:])
    return answer


def blamed(rows: Floats, ran: Bools, fits: Floats, *, center: Floats) -> Floats:
    """Probability that each tried plan runs where memory is no matter: 1 for those that ran.

    Parameters
    ----------
    rows : shape (n_tried, n_knobs)
    ran : shape (n_tried,)
    fits : shape (n_tried,), P(fits) as believed
    center : shape (n_knobs,), the mean over all plans

    Returns
    -------
    shape (n_tried,)
    """
    x = np.column_stack([np.ones(len(rows)), rows - center])
    expected = _expected(np.full(len(rows), PRIOR_CHANCE), ran, fits)
    for _ in range(BLAME_ROUNDS - 1):
        expected = _expected(expit(x @ _mode(x, expected)[0]), ran, fits)
    return expected


def _expected(chance: Floats, ran: Bools, fits: Floats) -> Floats:
    shared = chance * (1.0 - fits) / np.maximum(1.0 - chance * fits, 1e-12)
    answer: Floats = np.where(ran, 1.0, shared)
    return answer


def chance_draws(
    some: Floats, rows: Floats, ran: Bools | Floats, *, center: Floats, normals: Floats
) -> Floats:
    """P(runs) of some plans in worlds drawn from the posterior: plans alike are right or wrong together.

    Parameters
    ----------
    some, rows : shapes (n_some, n_knobs) and (n_tried, n_knobs)
    ran : shape (n_tried,), as in `log_chances`
    center : shape (n_knobs,), the mean over all plans, as in `log_chances`
    normals : shape (n_draws, 1 + n_knobs), standard normal

    Returns
    -------
    shape (n_draws, n_some)

    Source
    ------
    Bishop (2006), section 4.5.1 (Laplace approximation).
    """
    mode, precision = _mode(np.column_stack([np.ones(len(rows)), rows - center]), ran.astype(np.float64))
    # With precision = L L', L'^-1 z has the covariance L'^-1 L^-1.
    weights = mode + np.linalg.solve(np.linalg.cholesky(precision).T, normals.T).T
    answer: Floats = expit(weights @ np.column_stack([np.ones(len(some)), some - center]).T)
    return answer


def _mode(x: Floats, ran: Floats) -> tuple[Floats, Floats]:
    """Most probable weights, by Newton steps that are halved until they gain; and the precision there."""
    mean = np.append(logit(PRIOR_CHANCE), np.zeros(x.shape[1] - 1))
    precision = np.append(INTERCEPT_STD**-2.0, np.full(x.shape[1] - 1, WEIGHT_STD**-2.0))
    weights, loss = mean, _loss(mean, x, ran, mean, precision)
    for _ in range(NEWTON_STEPS):
        chance = expit(x @ weights)
        slope = x.T @ (chance - ran) + precision * (weights - mean)
        step = np.linalg.solve(_curvature(weights, x, precision), slope)
        moved = weights - step
        while (new := _loss(moved, x, ran, mean, precision)) > loss and np.abs(step).max() > 1e-9:
            step = step / 2.0
            moved = weights - step
        weights, loss = moved, new
        if np.abs(step).max() < 1e-6:
            break
    return weights, _curvature(weights, x, precision)


def _curvature(weights: Floats, x: Floats, precision: Floats) -> Floats:
    chance = expit(x @ weights)
    answer: Floats = (x.T * (chance * (1.0 - chance))) @ x + np.diag(precision)
    return answer


def _loss(weights: Floats, x: Floats, ran: Floats, mean: Floats, precision: Floats) -> float:
    activation = x @ weights
    fit = (ran * log_expit(activation) + (1.0 - ran) * log_expit(-activation)).sum()
    return float(0.5 * (precision * (weights - mean) ** 2).sum() - fit)
