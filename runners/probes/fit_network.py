"""A tier's latency and bandwidth from its collectives: robust least squares on logarithms of seconds.

    t_i = a_i α + b_i / β        a_i hops, b_i bytes: the cost model's own formula of that collective

An all-reduce takes whichever of ring and tree is faster with the constants found so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from runners.probes.predictions import lines_of, one_tier, unit_tier
from runners.probes.record import MAD_TO_SIGMA, Result
from search_spaces.cluster import TierSpec
from search_spaces.plan import Floats

ROUNDS = 60
HUBER = 1.345  # 95 % as efficient as least squares where errors are normal; Huber (1981)
LEAST_SPREAD = 0.01
PULL = 1e-3  # towards what is known before: only where the probes say nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFit:
    """A latency and a bandwidth that programs reach; None where no probe depends on it.

    `fastest_bytes_per_s` is the bandwidth of the fastest collective.
    """

    latency_s: float | None
    latency_spread: float
    bandwidth_bytes_per_s: float | None
    bandwidth_spread: float
    fastest_bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Points:
    """Coefficients of every probe, shape (2 lines, n_probes), and the logarithm of its seconds."""

    hops: Floats
    n_bytes: Floats
    log_s: Floats

    def picked(self, log_x: Floats) -> tuple[Floats, Floats]:
        """Seconds of latency and of bandwidth on each probe's faster line."""
        latency_s, bytes_s = self.hops * np.exp(log_x[0]), self.n_bytes * np.exp(log_x[1])
        line = np.argmin(latency_s + bytes_s, axis=0)
        at = np.arange(len(line))
        return latency_s[line, at], bytes_s[line, at]


def fit_tier(tier: TierSpec, results: Sequence[Result]) -> TierFit:
    """Constants of a tier from collectives of groups that use it alone."""
    points = _points(tier, results)
    known = np.log([tier.latency_s.value, 1 / (tier.bandwidth_bytes_per_s * tier.efficiency.value)])
    log_x = _solve(points, known)
    latency_s, bytes_s = points.picked(log_x)
    share = latency_s / (latency_s + bytes_s)
    residuals = points.log_s - np.log(latency_s + bytes_s)
    of_bytes = np.exp(points.log_s) - latency_s
    reached = (bytes_s / np.maximum(of_bytes, 1e-12))[(share < 0.5) & (of_bytes > 0)]
    bandwidth = float(np.exp(-log_x[1]))
    return TierFit(
        latency_s=float(np.exp(log_x[0])) if np.any(share > 0.5) else None,
        latency_spread=_spread(residuals[share > 0.5]),
        bandwidth_bytes_per_s=bandwidth if np.any(share < 0.5) else None,
        bandwidth_spread=_spread(residuals[share < 0.5]),
        fastest_bytes_per_s=bandwidth * max(1.0, float(np.max(reached, initial=1.0))),
    )


def _points(tier: TierSpec, results: Sequence[Result]) -> _Points:
    """Lines of each probe over a tier of ones; where there is one line only, it stands twice."""
    rows = []
    only = one_tier(replace(unit_tier(tier), size=None))
    for each in results:
        alone = replace(each, what={**each.what, "stride": 1})
        lines = lines_of(only, alone)
        n_bytes = float(each.number("bytes"))
        pairs = [
            (times * float(line.latency_s[0]), times * float(line.s_per_byte[0]) * n_bytes)
            for times, line in lines
        ]
        rows.append((pairs[0], pairs[-1]))
    table = np.array(rows)
    return _Points(
        hops=table[:, :, 0].T, n_bytes=table[:, :, 1].T, log_s=np.log([each.median() for each in results])
    )


def _solve(points: _Points, known: Floats) -> Floats:
    """Gauss-Newton steps in the logarithms, residuals beyond Huber's bound weighted down."""
    log_x = _start(points)
    for _ in range(ROUNDS):
        latency_s, bytes_s = points.picked(log_x)
        total = latency_s + bytes_s
        residuals = points.log_s - np.log(total)
        slopes = np.stack([latency_s, bytes_s]) / total
        weights = np.minimum(1, HUBER * _sigma(residuals) / np.maximum(np.abs(residuals), 1e-12))
        matrix = (slopes * weights) @ slopes.T + PULL * np.eye(2)
        change = np.linalg.solve(matrix, (slopes * weights) @ residuals + PULL * (known - log_x))
        log_x = log_x + np.clip(change, -1.0, 1.0)
    return log_x


def _start(points: _Points) -> Floats:
    """Each constant as if it alone explained the probes that it explains best."""
    s = np.exp(points.log_s)
    return np.log([np.median(s / points.hops[0]) / 10, np.quantile(s / points.n_bytes[0], 0.1)])


def _sigma(residuals: Floats) -> float:
    return max(LEAST_SPREAD, float(MAD_TO_SIGMA * np.median(np.abs(residuals))))


def _spread(residuals: Floats) -> float:
    return float(np.expm1(_sigma(residuals))) if len(residuals) else 0.0
