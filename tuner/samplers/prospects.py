"""How likely a plan without an outcome beats the best measured one, over all candidates together.

    gain(w) = max over candidates x that run and fit  min over the front f  max over quantities q
              ( y_q(f) - y_q(x, w) )                                y = log seconds, log bytes
    P       = share of worlds w with gain(w) > -log(1 - better_by)

Worlds are drawn jointly: what the trials leave open of a speed moves all plans that use it, so a thousand
candidates are not a thousand chances.  With one metric the front is the best measured trial, at its reading:
what is its own, and no neighbour shares, was measured.  (Taken at its smoothed mean, P came out three times
too high late in a study.)  Only the `SHORTLIST` candidates likeliest to be better by themselves are drawn.
"""

import numpy as np
from scipy.special import log_ndtr

from search_spaces.plan import Floats, Ints
from tuner.samplers.goals import quantities
from tuner.samplers.posterior import Posterior
from tuner.worth import BETTER_BY, Worth

SHORTLIST = 256
N_DRAWS = 1024
MOST_ON_FRONT = 64


def worth_of_more(
    posterior: Posterior, metrics: tuple[str, ...], *, better_by: float = BETTER_BY, seed: int = 0
) -> Worth | None:
    """What more trials would be worth; None while no plan has been measured."""
    sought = quantities(metrics)
    readings = posterior.sought(posterior.readings, posterior.measured)
    front = readings[best_measured(posterior, sought)][:, sought]
    if not len(front):
        return None
    rows = likeliest(posterior, front, sought, better_by)
    probability = gain = 0.0
    if len(rows):
        rng = np.random.default_rng([seed, len(posterior.history.lessons)])
        gains = drawn_gains(posterior, front, rows, sought, rng)
        probability = float((gains > threshold(better_by)).mean())
        gain = float((1.0 - np.exp(-np.maximum(gains, 0.0))).mean())
    return Worth(
        better_by=better_by,
        probability=probability,
        expected_gain=gain,
        n_trials=len(posterior.history.lessons),
        n_untried=int(posterior.without_outcome.sum()),
    )


def threshold(better_by: float) -> float:
    """Difference of logarithms that saves this share."""
    return float(-np.log1p(-better_by))


def best_measured(posterior: Posterior, sought: list[int]) -> Ints:
    """Which of the measured has the best reading; with several quantities, which are on their front."""
    readings = posterior.sought(posterior.readings, posterior.measured)[:, sought]
    if len(sought) == 1:
        return np.array([np.argmin(readings[:, 0])] if len(readings) else [], dtype=np.int64)
    beaten = [
        bool(((readings <= each).all(axis=1) & (readings < each).any(axis=1)).any()) for each in readings
    ]
    return np.flatnonzero(~np.array(beaten, dtype=np.bool_))[:MOST_ON_FRONT]


def likeliest(posterior: Posterior, front: Floats, sought: list[int], better_by: float) -> Ints:
    """The rows without an outcome that are likeliest to be better than the front, each by itself."""
    mean = posterior.sought(posterior.every.mean)[:, sought]
    gain = np.full(len(mean), np.inf)
    for each in front:
        gain = np.minimum(gain, (each - mean).max(axis=1))
    spread = np.linalg.norm(posterior.every.std[:, sought], axis=1)
    score = log_ndtr((gain - threshold(better_by)) / np.maximum(spread, 1e-12)) + posterior.log_feasible
    rows = np.flatnonzero(posterior.without_outcome)
    if len(rows) <= SHORTLIST:
        return rows
    return np.sort(rows[np.argpartition(score[rows], -SHORTLIST)[-SHORTLIST:]])


def drawn_gains(
    posterior: Posterior, front: Floats, rows: Ints, sought: list[int], rng: np.random.Generator
) -> Floats:
    """By how much, in logs, the best feasible row beats the front in each world; -inf: none is feasible."""
    drawn = posterior.draws(rows, N_DRAWS, rng)
    ours = posterior.sought(drawn.values, rows)[:, :, sought]
    gain = np.full(ours.shape[:2], np.inf)
    for each in front:
        gain = np.minimum(gain, (each - ours).max(axis=2))
    gain[~drawn.is_feasible] = -np.inf
    answer: Floats = gain.max(axis=1)
    return answer
