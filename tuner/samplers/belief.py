"""The two surrogates of a study, time and memory, over the whole candidate table at once."""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.plan import Bools, Floats, Ints
from tuner.surrogate import LogRatioSurrogate, correlation

# Bytes follow from shapes more surely than seconds from speeds: assumed, a third of the time's prior spreads.
TIME_SPREADS: dict[str, Any] = {}
MEMORY_SPREADS: dict[str, Any] = dict(
    offset_std=0.15,
    share_stds=(0.05, 0.1, 0.3),
    residual_stds=(0.01, 0.03, 0.1),
    noise_stds=(0.005, 0.02, 0.05),
)


More = Callable[[int], Floats]
"""Features of a code that is no candidate's row: of a proxy (`tuner.samplers.proxied`)."""


def no_more(code: int) -> Floats:
    """Only candidates have features."""
    raise IndexError(code)


class Neighbourhoods:
    """Correlation of every candidate to the tried ones; each tried row is computed once, when needed."""

    def __init__(self, knobs: Floats, more: More = no_more) -> None:
        self._knobs, self._more = knobs.astype(np.float32), more
        self._slots: dict[int, int] = {}
        self._matrix: NDArray[np.float32] = np.empty((16, len(knobs)), dtype=np.float32)
        self._lock = Lock()

    def weighted(self, rows: Ints, weights: Floats) -> Floats:
        """Σ_j weights_j r(x, x_j) at every candidate x; shape (n_candidates,)."""
        slots, matrix = self._filled(rows)
        sums = np.zeros(len(matrix), dtype=np.float32)
        np.add.at(sums, slots, weights.astype(np.float32))
        answer: Floats = (sums @ matrix).astype(np.float64)
        return answer

    def between(self, some: Ints, rows: Ints) -> Floats:
        """Correlation of some candidates to tried rows; shape (n_some, n_rows)."""
        slots, matrix = self._filled(rows)
        answer: Floats = matrix[slots[:, None], some].T.astype(np.float64)
        return answer

    def _filled(self, rows: Ints) -> tuple[Ints, NDArray[np.float32]]:
        with self._lock:
            for row in rows.tolist():
                if row not in self._slots:
                    self._add(row)
            slots = np.array([self._slots[row] for row in rows.tolist()], dtype=np.int64)
            return slots, self._matrix[: len(self._slots)]

    def _add(self, row: int) -> None:
        slot = len(self._slots)
        if slot == len(self._matrix):
            self._matrix = np.concatenate([self._matrix, np.empty_like(self._matrix)])
        n, width = self._knobs.shape
        own = self._knobs[[row]] if row < n else self._more(row)[None, -width:].astype(np.float32)
        self._matrix[slot] = correlation(self._knobs, own)[:, 0]
        self._slots[row] = slot


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Belief:
    """A fitted surrogate over the table, and the rows it stands on (those under way included)."""

    model: LogRatioSurrogate
    rows: Ints
    shares: Floats
    near: Neighbourhoods

    def mean(self) -> Floats:
        """Expected log(measured / predicted) of every candidate; shape (n_candidates,)."""
        model = self.model
        local = self.near.weighted(self.rows, model.residual_std_**2 * model.alpha_)
        mean: Floats = model.offset_ + self.shares @ model.beta_ + local
        return mean

    def std(self, some: Ints) -> Floats:
        """Its exact spread at some candidates; shape (n_some,)."""
        return self.model.std_at(self.shares[some], self.near.between(some, self.rows))

    def outer_std(self, some: Ints) -> Floats:
        """Its quick spread, as if no tried plan were near; shape (n_some,)."""
        return self.model.outer_std_at(self.shares[some])


class Believer:
    """Fits one surrogate to a study's lessons; fits again only when they changed."""

    def __init__(
        self,
        features: Floats,
        *,
        n_shares: int,
        near: Neighbourhoods,
        spreads: dict[str, Any],
        more: More = no_more,
    ) -> None:
        self._features, self._n_shares, self._more = features, n_shares, more
        self._shares = np.ascontiguousarray(features[:, :n_shares])
        self._near, self._spreads = near, spreads
        self._last: tuple[bytes, LogRatioSurrogate] | None = None

    def believe(self, rows: Ints, y: Floats, *, censored: Bools | None = None, pending: Ints) -> Belief:
        """The posterior after the lessons, rows under way taken to come out as expected."""
        bounds = np.zeros(len(y), dtype=np.bool_) if censored is None else censored
        key = rows.tobytes() + y.tobytes() + bounds.tobytes()
        last = self._last
        if last is None or last[0] != key:
            model = LogRatioSurrogate(n_shares=self._n_shares, **self._spreads)
            last = (key, model.fit(self._at(rows), y, censored=bounds))
            self._last = last
        return Belief(
            model=last[1].believing(self._at(pending)),
            rows=np.concatenate([rows, pending]),
            shares=self._shares,
            near=self._near,
        )

    def _at(self, codes: Ints) -> Floats:
        n = len(self._features)
        if (codes < n).all():
            return self._features[codes]
        return np.array([self._features[code] if code < n else self._more(code) for code in codes.tolist()])
