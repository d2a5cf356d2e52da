"""What differs from run to run: kernels that jitter, devices and links that lag, experts with uneven load.

Everything is drawn from one seed; the same seed gives the same step on every machine.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from objectives.cost.migration import balanced, zipf_shares
from search_spaces.errors import check
from search_spaces.plan import Floats
from search_spaces.units import MILLION

_MOST_JITTER = 10  # a pass in six would take over e^10 = 22,000 times as long: beyond, seconds overflow


class ExpertLoad(StrEnum):
    """How tokens choose among experts: as the workload says, evenly, by Zipf's law, or by a histogram."""

    AS_GIVEN = "as-given"
    UNIFORM = "uniform"
    ZIPF = "zipf"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Randomness:
    """What is drawn; the defaults draw nothing.

    `jitter` is the standard deviation of the logarithm of each pass's seconds.  `slow_ranks` and `slow_links`
    map a pipeline rank, or the rank in front of a link, to how many times as long it takes.  `zipf_exponent`
    s gives the k-th most popular expert a share like k^-s; `histogram` are the experts' shares, in any unit.
    `empty_ranks_hang`: a trainer that cannot run a rank without tokens waits for ever; else such a rank
    computes no experts and waits for the slowest.  `balanced_experts`: they lie where their popularities
    balance, as after a migration, not at random.

    Raises
    ------
    InvalidSpec
        A number is negative, not finite or out of all reason, or a slow-down is below 1.

    Source: Zipf's law of expert load: Zhou et al. (2022), arXiv:2202.09368, section 1 (some experts starve,
    some overflow); slow devices: Jiang et al. (2024), arXiv:2402.15627, section 6.3.
    """

    jitter: float = 0.0
    slow_ranks: tuple[tuple[int, float], ...] = ()
    slow_links: tuple[tuple[int, float], ...] = ()
    expert_load: ExpertLoad = ExpertLoad.AS_GIVEN
    zipf_exponent: float = 1.0
    histogram: tuple[float, ...] = ()
    empty_ranks_hang: bool = False
    balanced_experts: bool = False

    def __post_init__(self) -> None:
        must = f"jitter, a spread of logarithms, must be from 0 to {_MOST_JITTER}"
        check(0 <= self.jitter <= _MOST_JITTER, must, self.jitter)
        for rank, factor in (*self.slow_ranks, *self.slow_links):
            must = "a slow rank or link takes from 1 to a million times as long"
            check(rank >= 0 and 1 <= factor <= MILLION, must, f"{rank}: {factor}")
        must = "zipf_exponent must be finite and not negative"
        check(0 <= self.zipf_exponent < float("inf"), must, self.zipf_exponent)
        shares = np.asarray(self.histogram, dtype=np.float64)
        is_histogram = bool(np.all((shares >= 0) & np.isfinite(shares))) and shares.sum() > 0
        needs = self.expert_load is ExpertLoad.HISTOGRAM
        check(is_histogram or not needs, "a histogram needs shares that are not negative, and one above zero",
              self.histogram)  # fmt: skip


def slow_factors(n: int, slow: tuple[tuple[int, float], ...], what: str) -> Floats:
    """How many times as long each of n takes; shape (n,)."""
    factors = np.ones(n)
    for index, factor in slow:
        check(index < n, f"a slow {what} must be one of the {n} there are, counted from 0", index)
        factors[index] = factor
    return factors


def jitter_factors(rng: np.random.Generator, jitter: float, n: int) -> Floats:
    """Log-normal factors with median 1; shape (n,)."""
    return rng.lognormal(0.0, jitter, n) if jitter else np.ones(n)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Loads:
    """Load of the fullest expert-parallel rank over the mean, one for every draw, and empty ranks of each."""

    hottest: Floats
    n_empty: Floats


def expert_loads(
    rng: np.random.Generator,
    randomness: Randomness,
    n_draws: int,
    *,
    n_experts: int,
    ep: int,
    n_copies: int,
) -> Loads:
    """What `n_copies` routed token copies make of the ranks, `n_draws` times.

    Each draw deals the popularities to the experts anew and then the copies to experts (multinomial); rank r
    holds experts r E / e to (r + 1) E / e - 1, and the rank with the most copies sets the pace.  Balanced
    ones lie where they are, and only the copies are dealt anew.  With
    `AS_GIVEN` every hottest load is nan: the workload's own figure holds.

    Raises
    ------
    InvalidSpec
        The histogram has another number of experts.
    """
    if randomness.expert_load is ExpertLoad.AS_GIVEN:
        return Loads(hottest=np.full(n_draws, np.nan), n_empty=np.zeros(n_draws))
    shares = _shares(randomness, n_experts)
    order = np.argsort(rng.random((n_draws, n_experts)), axis=1)
    if randomness.balanced_experts:
        order = np.broadcast_to(balanced(shares, ep).order, order.shape)
    copies = rng.multinomial(n_copies, shares[order])
    of_ranks = copies.reshape(n_draws, ep, n_experts // ep).sum(axis=2)
    return Loads(
        hottest=of_ranks.max(axis=1) * ep / max(n_copies, 1),
        n_empty=(of_ranks == 0).sum(axis=1).astype(float),
    )


def _shares(randomness: Randomness, n_experts: int) -> Floats:
    match randomness.expert_load:
        case ExpertLoad.ZIPF:
            popularity = zipf_shares(n_experts, randomness.zipf_exponent)
        case ExpertLoad.HISTOGRAM:
            popularity = np.asarray(randomness.histogram, dtype=np.float64)
            check(len(popularity) == n_experts, f"the histogram needs a share of each of {n_experts}",
                  len(popularity))  # fmt: skip
        case _:
            popularity = np.ones(n_experts)
    return np.asarray(popularity / popularity.sum())
