"""What a study seeks, in the quantities that a trial measures: log step seconds, log peak bytes, log joules.

Every metric but the peak, the longest sequence and those of energy is proportional to the step time or to
its inverse, so in logs it is the step time and a constant.  The longest sequence is memory, each plan's by
an offset of its own: the bytes that a plan would have whose longest sequence were in proportion to what it
leaves free.  A step's joules are its seconds times the plan's watts, which the cost model gives: what trials
teach of the seconds they teach of the joules, and a third column says them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from objectives.longest import BY_MEMORY, MAX_SEQ_LEN, longest_sequence
from objectives.metrics import ENERGY_METRICS, Job
from objectives.ranking import Candidates
from search_spaces.plan import Bools, Floats
from tuner.acquisition import (
    chebyshev,
    log_expected_improvement,
    log_sampled_improvement,
    normal_draws,
    simplex_weights,
)

SMALLEST_EXTENT = 0.01  # a front less than a percent wide is one point


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outlook:
    """Expected [log seconds, log bytes] and their spreads, shapes (n, 2); log P(runs), shape (n,).

    Where joules are sought they are a third column.
    """

    mean: Floats
    std: Floats
    log_runs: Floats


class Goal(Protocol):
    """Turns expectations into one number to minimise, and into the log of the improvement to expect."""

    def value(self, mean: Floats) -> Floats:
        """What is minimised, at means of shape (n, 2); shape (n,)."""
        ...

    def log_gain(self, outlook: Outlook, best: float) -> Floats:
        """Log expected improvement on `best`; shape (n,)."""
        ...

    def log_hope(self, outlook: Outlook, best: float) -> Floats:
        """A quick stand-in for `log_gain` that ranks many plans; shape (n,)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class OneGoal:
    """The step time (quantity 0), the peak memory (1) or the joules (2) alone."""

    quantity: int

    def value(self, mean: Floats) -> Floats:
        """The quantity itself."""
        answer: Floats = mean[:, self.quantity]
        return answer

    def log_gain(self, outlook: Outlook, best: float) -> Floats:
        """Closed form."""
        return log_expected_improvement(outlook.mean[:, self.quantity], outlook.std[:, self.quantity], best)

    def log_hope(self, outlook: Outlook, best: float) -> Floats:
        """The closed form is quick enough."""
        return self.log_gain(outlook, best)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrontGoal:
    """A random direction towards the front of the sought quantities (ParEGO); fields of shape (n_sought,)."""

    sought: tuple[int, ...]
    weights: Floats
    ideal: Floats
    extent: Floats
    draws: Floats

    def value(self, mean: Floats) -> Floats:
        """Augmented Chebyshev distance to the ideal point."""
        return chebyshev(mean[:, list(self.sought)], self.weights, ideal=self.ideal, extent=self.extent)

    def log_gain(self, outlook: Outlook, best: float) -> Floats:
        """By draws: a maximum of normals is not normal."""
        mean, std = outlook.mean[:, list(self.sought)], outlook.std[:, list(self.sought)]
        points = mean + std * self.draws[:, None, :]
        values = chebyshev(points, self.weights, ideal=self.ideal, extent=self.extent)
        return log_sampled_improvement(values, best)

    def log_hope(self, outlook: Outlook, best: float) -> Floats:
        """Improvement where both quantities come out one spread below what is expected."""
        return log_sampled_improvement(self.value(outlook.mean - outlook.std)[None, :], best)


def quantity(metric: str) -> int:
    """Which of time (0), memory (1) and energy (2) a metric is about."""
    return 2 if metric in ENERGY_METRICS else int(metric in BY_MEMORY)


def quantities(metrics: Sequence[str]) -> list[int]:
    """Which of time (0), memory (1) and energy (2) the metrics are about."""
    return sorted({quantity(name) for name in metrics})


def memory_offset(job: Job, candidates: Candidates, metrics: Sequence[str]) -> Floats:
    """What is added to a plan's log bytes where the longest sequence is sought: log(s limit / (s* peak)).

    Then more bytes than predicted make it shorter, and of two plans that of longer sequences is better.
    """
    if MAX_SEQ_LEN not in metrics:
        return np.zeros(len(candidates))
    peak = candidates.estimate.peak_memory_bytes
    longest = np.maximum(longest_sequence(job, candidates.plans), 1.0)
    limit = job.cluster.device.memory_bytes * job.workload.memory_share
    offset: Floats = np.log(job.workload.seq_len / longest) + np.log(limit) - np.log(peak)
    return offset


def with_joules(values: Floats, log_watts: Floats | None) -> Floats:
    """[log seconds, log bytes] with log joules as a third column, where watts are known; (..., n, 2 or 3)."""
    if log_watts is None:
        return values
    return np.concatenate([values, values[..., :1] + log_watts[:, None]], axis=-1)


def front_goal(
    mean: Floats, likely: Bools, rng: np.random.Generator, sought: Sequence[int] = (0, 1)
) -> FrontGoal:
    """A random direction, scaled by the ends of the expected front: the fastest candidate and the leanest.

    Source
    ------
    Miettinen (1999), Nonlinear Multiobjective Optimization, section 2.4: ideal point and pay-off table.
    """
    among = (mean[likely] if likely.any() else mean)[:, list(sought)]
    ends = among[np.argmin(among, axis=0)]
    ideal = ends.min(axis=0)
    extent = np.maximum(ends.max(axis=0) - ideal, SMALLEST_EXTENT)
    n = len(sought)
    weights, draws = simplex_weights(n, rng), normal_draws(n, rng)
    if 0 in sought and 2 in sought:  # joules are seconds times known watts: they err together
        draws[:, list(sought).index(2)] = draws[:, list(sought).index(0)]
    return FrontGoal(sought=tuple(sought), weights=weights, ideal=ideal, extent=extent, draws=draws)
