"""What a study seeks, in the two quantities that a trial measures: log step seconds and log peak bytes.

Every metric but the peak is proportional to the step time or to its inverse, so in logs it is the step time
and a constant: however many metrics a study has, it seeks time, memory, or the front between the two.  The
longest sequence is memory as well, each plan's by an offset of its own: the bytes that a plan would have
whose longest sequence were in proportion to what it leaves free.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from objectives.longest import BY_MEMORY, MAX_SEQ_LEN, longest_sequence
from objectives.metrics import Job
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
    """Expected [log seconds, log bytes] and their spreads, shapes (n, 2); log P(runs), shape (n,)."""

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
    """The step time (quantity 0) or the peak memory (quantity 1) alone."""

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
    """A random direction towards the front of time and memory (ParEGO); fields of shape (2,)."""

    weights: Floats
    ideal: Floats
    extent: Floats
    draws: Floats

    def value(self, mean: Floats) -> Floats:
        """Augmented Chebyshev distance to the ideal point."""
        return chebyshev(mean, self.weights, ideal=self.ideal, extent=self.extent)

    def log_gain(self, outlook: Outlook, best: float) -> Floats:
        """By draws: a maximum of normals is not normal."""
        points = outlook.mean + outlook.std * self.draws[:, None, :]
        values = chebyshev(points, self.weights, ideal=self.ideal, extent=self.extent)
        return log_sampled_improvement(values, best)

    def log_hope(self, outlook: Outlook, best: float) -> Floats:
        """Improvement where both quantities come out one spread below what is expected."""
        return log_sampled_improvement(self.value(outlook.mean - outlook.std)[None, :], best)


def quantities(metrics: Sequence[str]) -> list[int]:
    """Which of time (0) and memory (1) the metrics are about."""
    return sorted({int(name in BY_MEMORY) for name in metrics})


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


def front_goal(mean: Floats, likely: Bools, rng: np.random.Generator) -> FrontGoal:
    """A random direction, scaled by the ends of the expected front: the fastest candidate and the leanest.

    Source
    ------
    Miettinen (1999), Nonlinear Multiobjective Optimization, section 2.4: ideal point and pay-off table.
    """
    among = mean[likely] if likely.any() else mean
    ends = among[np.argmin(among, axis=0)]
    ideal = ends.min(axis=0)
    extent = np.maximum(ends.max(axis=0) - ideal, SMALLEST_EXTENT)
    return FrontGoal(weights=simplex_weights(2, rng), ideal=ideal, extent=extent, draws=normal_draws(2, rng))
