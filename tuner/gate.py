"""How far from its data a learned correction may be trusted: it is asked of the data, value by value.

    correction at x = mean(x) Π_a (1 - (1 - k_a) n_a(x))

    n_a   how new x is on axis a: steps to the nearest value that was tried, at most 1
    k_a   share of the correction that predicts best what is held back, a whole value of axis a at a time
          (every row with tp = 8, every row on 64 devices); 0 where it makes any of them worse, or where the
          rows have too few values of the axis to tell

Values at an end of an axis and values between others are judged apart: the first kind is extrapolated to.
What is left out costs nothing to predict: with A = (K + noise)^-1 and rows B, y_B - A_BB^-1 (A y)_B.

Source: Rasmussen and Williams (2006), section 5.4.2, for one row; Ginsbourger and Schaerer (2021),
arXiv:2101.03108, for blocks of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from objectives.calibration import is_better
from search_spaces.plan import Floats, Ints

SHARES_TRIED = (0.0, 0.25, 0.5, 0.75, 1.0)
FEWEST_VALUES = 3  # both ends and something between: with two values each is held back from one alone
MOST_VALUES = 12  # of an axis; more are held back in as many runs of neighbours
WORSE_COSTS = 10.0  # an error made larger counts so many times one made smaller: assumed
QUANTILE, NORMAL_QUANTILE = 0.8, 1.2816


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """`share` of the correction that is kept at a new value, and by what the stated spread grows."""

    share: float = 0.0
    widening: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Axis:
    """The values of one axis that were tried, ascending, and the trust beyond and between them."""

    values: Floats
    beyond: Trust = field(default_factory=Trust)
    between: Trust = field(default_factory=Trust)

    def at(self, x: Floats) -> tuple[Floats, Floats]:
        """Share kept and widening at each value; shapes (n,)."""
        place = np.clip(np.searchsorted(self.values, x), 1, max(len(self.values) - 1, 1))
        low, high = self.values[place - 1], self.values[np.minimum(place, len(self.values) - 1)]
        new = np.minimum(np.minimum(np.abs(x - low), np.abs(x - high)), 1.0)
        inside = (x > self.values[0]) & (x < self.values[-1])
        share = np.where(inside, self.between.share, self.beyond.share)
        widening = np.where(inside, self.between.widening, self.beyond.widening)
        return 1.0 - (1.0 - share) * new, 1.0 + (widening - 1.0) * new


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldBack:
    """What a posterior says of its own rows from the others; `precision` (n, n), `weighted` (n,) is A y."""

    precision: Floats
    weighted: Floats

    def without(self, rows: Ints) -> tuple[Floats, Floats]:
        """Error of the mean and its spread at these rows, predicted from the others; shapes (n_rows,)."""
        block = np.linalg.inv(self.precision[np.ix_(rows, rows)])
        error: Floats = block @ self.weighted[rows]
        return error, np.sqrt(np.maximum(np.diagonal(block), 1e-12))


def gate_of(x: Floats, targets: Floats, held: HeldBack) -> tuple[Axis, ...]:
    """The trust on every axis (column of x), from the rows themselves.

    Parameters
    ----------
    x : shape (n, n_axes)
    targets : shape (n,), what the posterior was told
    """
    return tuple(_axis(column, targets, held) for column in x.T)


def passed(axes: Sequence[Axis], x: Floats) -> tuple[Floats, Floats]:
    """Share of the correction that is kept, and the widening of its spread, at each row; shapes (n,)."""
    share, widening = np.ones(len(x)), np.ones(len(x))
    for axis, column in zip(axes, x.T, strict=True):
        kept, wider = axis.at(column)
        share, widening = share * kept, np.maximum(widening, wider)
    return share, widening


def _axis(column: Floats, targets: Floats, held: HeldBack) -> Axis:
    values, codes = np.unique(np.round(column, 9), return_inverse=True)
    if len(values) < FEWEST_VALUES:
        return Axis(values=values)
    groups = [np.flatnonzero(codes == code) for code in range(len(values))]
    if len(values) > MOST_VALUES:
        runs = np.array_split(np.arange(len(values)), MOST_VALUES)
        groups = [np.concatenate([groups[i] for i in run]) for run in runs]
    ends, inner = [groups[0], groups[-1]], groups[1:-1]
    return Axis(values=values, beyond=_trust(ends, targets, held), between=_trust(inner, targets, held))


def _trust(groups: Sequence[Ints], targets: Floats, held: HeldBack) -> Trust:
    found = [(targets[rows], *held.without(rows)) for rows in groups]
    shares = {share: np.mean([_cost(*each, share) for each in found]) for share in SHARES_TRIED}
    best = min(SHARES_TRIED, key=lambda share: shares[share])
    before = np.concatenate([y for y, _, _ in found])
    if not is_better(np.concatenate([_left(y, error, best) for y, error, _ in found]), before):
        best = 0.0  # what may be chance is not carried over
    surprise = [np.abs(_left(y, error, best)) / spread for y, error, spread in found]
    usual = float(np.quantile(np.concatenate(surprise), QUANTILE)) / NORMAL_QUANTILE
    return Trust(share=best, widening=max(usual, 1.0))


def _left(y: Floats, error: Floats, share: float) -> Floats:
    """What a share of the correction (y - error) leaves."""
    left: Floats = y - share * (y - error)
    return left


def _cost(y: Floats, error: Floats, spread: Floats, share: float) -> float:
    """Median error of a group with a share of the correction, more where it is worse than without."""
    del spread
    without, now = (float(np.median(np.abs(_left(y, error, each)))) for each in (0.0, share))
    return now + (WORSE_COSTS - 1.0) * max(now - without, 0.0)
