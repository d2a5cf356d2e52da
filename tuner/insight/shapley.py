"""What each knob and each part of the step adds to the surrogate's correction of one plan: Shapley values.

    φ_i = Σ over S without i  |S|! (n - |S| - 1)! / n!  ( v(S + i) - v(S) )

v(S) is the mean correction where the members of S are the plan's and the others those of the background
plans, one after another.  The offset is the same for all and drops out; the shares enter linearly, so theirs
is beta_k (share_k - mean share_k) in closed form; only g is a game.  With up to `MOST_EXACT` knobs that
differ it is summed over all coalitions, with more averaged over `N_ORDERS` orders and their reverses.

Source: Lundberg and Lee (2017), arXiv:1705.07874, equation 4; linear part: Corollary 1.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from search_spaces.plan import Bools, Floats
from tuner.surrogate import LENGTH, LogRatioSurrogate

MOST_EXACT, N_ORDERS = 10, 64
MOST_BACKGROUND = 32
Game = Callable[[Bools], Floats]  # from coalitions, shape (n_coalitions, n), to their values


def contributions(
    model: LogRatioSurrogate,
    x: Floats,
    background: Floats,
    *,
    shares: tuple[str, ...],
    knobs: Mapping[str, list[int]],
) -> dict[str, float]:
    """Shapley value of every share and knob that differs, for one plan's mean; they add up to the difference.

    Parameters
    ----------
    x : shape (n_features,)
    background : shape (n_background, n_features)
    """
    background = background[:: -(-len(background) // MOST_BACKGROUND)]
    n = len(shares)
    linear = model.beta_ * (x[:n] - background[:, :n].mean(axis=0))
    moved = (background[:, n:] != x[n:]).any(axis=0)
    players = [name for name, columns in knobs.items() if moved[columns].any()]
    groups = [knobs[name] for name in players]
    values = shapley(local_game(model, x[n:], background[:, n:], groups), len(players))
    found = dict(zip(shares, linear.tolist(), strict=True)) | dict(zip(players, values.tolist(), strict=True))
    return {name: value for name, value in found.items() if value}


def local_game(model: LogRatioSurrogate, x: Floats, background: Floats, groups: list[list[int]]) -> Game:
    """The mean of g over the background, of coalitions of knobs that are the plan's.

    Squared distances to the trials add up over knobs, so a coalition costs one sum and no new features.
    """
    ours = np.array([((x[c] - model.knobs_[:, c]) ** 2).sum(axis=1) for c in groups])
    theirs = np.array([[((b[c] - model.knobs_[:, c]) ** 2).sum(axis=1) for c in groups] for b in background])

    def value(coalitions: Bools) -> Floats:
        members = coalitions.astype(np.float64)
        total = np.zeros(len(members))
        for each in theirs:
            a = np.sqrt(members @ ours + (1.0 - members) @ each) * (math.sqrt(3.0) / LENGTH)
            total += ((1.0 + a) * np.exp(-a)) @ model.alpha_
        return model.residual_std_**2 * total / len(theirs)

    return value


def shapley(game: Game, n: int) -> Floats:
    """Shapley values of n players; shape (n,)."""
    if not n:
        return np.zeros(0)
    return _exact(game, n) if n <= MOST_EXACT else _sampled(game, n, np.random.default_rng(0))


def _exact(game: Game, n: int) -> Floats:
    codes = np.arange(2**n)
    members = (codes[:, None] >> np.arange(n)) & 1 == 1
    values, sizes = game(members), members.sum(axis=1)
    weights = np.array([math.factorial(k) * math.factorial(n - k - 1) for k in range(n)]) / math.factorial(n)
    without = [codes[~members[:, i]] for i in range(n)]
    return np.array(
        [
            (weights[sizes[some]] * (values[some | (1 << i)] - values[some])).sum()
            for i, some in enumerate(without)
        ]
    )


def _sampled(game: Game, n: int, rng: np.random.Generator) -> Floats:
    total = np.zeros(n)
    for _ in range(N_ORDERS):
        order = rng.permutation(n)
        for each in (order, order[::-1]):
            members = np.zeros((n + 1, n), dtype=np.bool_)
            for place, player in enumerate(each):
                members[place + 1 :, player] = True
            total[each] += np.diff(game(members))
    return total / (2 * N_ORDERS)
