"""A cluster's constants as one vector, and measured steps priced with it.

x_j = ( ln c_j - ln c_0j ) / ln(1 + spread_j)        0 is what is known, 1 a standard deviation above it
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from objectives.calibration.robust_fit import DIFFERENCE
from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.uncertainty import TIMELESS, cluster_constants
from search_spaces.cluster import ClusterSpec, Constant
from search_spaces.errors import check
from search_spaces.plan import Floats, Ints, Plan, Plans


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStep:
    """A plan of a job that was run, and the seconds one step took."""

    job: Job
    plan: Plan
    step_s: float

    def __post_init__(self) -> None:
        check(0 < self.step_s < float("inf"), "a measured step must be positive and finite", self.step_s)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parameters:
    """The constants as one vector, in units of how well they are known, and the steps they price."""

    steps: Sequence[TimedStep]
    preset: Mapping[str, Constant]

    @classmethod
    def of(cls, steps: Sequence[TimedStep]) -> "Parameters":
        """The constants of the steps' machine that may be otherwise and that a step may depend on.

        Machines that differ share one factor; the largest value bounds it.
        """
        known: dict[str, Constant] = {}
        for cluster in {id(step.job.cluster): step.job.cluster for step in steps}.values():
            for name, constant in cluster_constants(cluster).items():
                adjustable = constant.spread and constant.value and name not in TIMELESS
                if adjustable and (name not in known or constant.value > known[name].value):
                    known[name] = constant
        return cls(steps=steps, preset=known)

    @property
    def names(self) -> list[str]:
        """The constants' places, in order."""
        return list(self.preset)

    @property
    def measured(self) -> Floats:
        """Logarithm of measured seconds, shape (n_steps,)."""
        return np.log([step.step_s for step in self.steps])

    @property
    def scale(self) -> Floats:
        """How well each constant is known: a standard deviation of its logarithm, shape (n_constants,)."""
        return np.log1p([constant.spread for constant in self.preset.values()])

    @property
    def cap(self) -> Floats:
        """The most that each may be: an efficiency of 1, shape (n_constants,)."""
        most = [
            -np.log(constant.value) if name.endswith("efficiency") else np.inf
            for name, constant in self.preset.items()
        ]
        return np.array(most) / self.scale

    def log_s(self, x: Floats) -> Floats:
        """Logarithm of predicted seconds of every step, shape (n_steps,)."""
        return log_step_s(self.steps, dict(zip(self.names, np.exp(x * self.scale), strict=True)))

    def of_rows(self, rows: Ints) -> "Parameters":
        """The same constants and some of the steps."""
        return replace(self, steps=[self.steps[i] for i in rows])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Linearised(Parameters):
    """The same, priced by a linearisation around what is known: many fits to parts of the same steps.

    `start` (n_steps,) and `slopes` (n_steps, n_constants) are log seconds and their derivatives there.
    """

    start: Floats
    slopes: Floats

    @classmethod
    def around(cls, steps: Sequence[TimedStep]) -> "Linearised":
        """Every step priced once, and once more for each constant."""
        exact = Parameters.of(steps)
        zero = np.zeros(len(exact.names))
        start, columns = exact.log_s(zero), []
        for i in range(len(zero)):
            x = zero.copy()
            x[i] = DIFFERENCE if exact.cap[i] >= DIFFERENCE else -DIFFERENCE
            columns.append((exact.log_s(x) - start) / x[i])
        slopes = np.column_stack(columns) if columns else np.zeros((len(steps), 0))
        return cls(steps=steps, preset=exact.preset, start=start, slopes=slopes)

    def log_s(self, x: Floats) -> Floats:
        """Logarithm of predicted seconds of every step, shape (n_steps,)."""
        answer: Floats = self.start + self.slopes @ x
        return answer

    def of_rows(self, rows: Ints) -> "Linearised":
        """The same constants and some of the steps."""
        steps = [self.steps[i] for i in rows]
        return replace(self, steps=steps, start=self.start[rows], slopes=self.slopes[rows])


def log_step_s(steps: Sequence[TimedStep], factors: Mapping[str, float]) -> Floats:
    """Logarithm of predicted seconds, machines' constants multiplied; steps of one job are priced together.

    Returns
    -------
    shape (n_steps,)
    """
    predicted = np.empty(len(steps))
    clusters: dict[int, ClusterSpec] = {}
    for places in together([id(step.job) for step in steps]):
        job = steps[places[0]].job
        if id(job.cluster) not in clusters:
            clusters[id(job.cluster)] = _scaled(job.cluster, factors)
        there = replace(job, cluster=clusters[id(job.cluster)])
        predicted[places] = estimate(there, Plans.of(steps[i].plan for i in places)).step_s
    return np.log(predicted)


def together(keys: Sequence[int]) -> list[list[int]]:
    """Positions of equal keys, in the order in which each appears."""
    places: dict[int, list[int]] = {}
    for i, key in enumerate(keys):
        places.setdefault(key, []).append(i)
    return list(places.values())


def _scaled(cluster: ClusterSpec, factors: Mapping[str, float]) -> ClusterSpec:
    known = cluster_constants(cluster)
    changed = {
        name: replace(known[name], value=times(name, known[name], factor))
        for name, factor in factors.items()
        if name in known and factor != 1
    }
    return with_constants(cluster, changed)


def times(name: str, constant: Constant, factor: float) -> float:
    """The constant's value times a factor; an efficiency stays at most 1."""
    value = constant.value * factor
    return min(value, 1.0) if name.endswith("efficiency") else value


def with_constants(cluster: ClusterSpec, changed: Mapping[str, Constant]) -> ClusterSpec:
    """The cluster with other constants in their places."""
    fields: dict[str, dict[str, Constant]] = {}
    for name, constant in changed.items():
        owner, _, field = name.rpartition(".")
        fields.setdefault(owner, {})[field] = constant
    device = replace(cluster.device, **fields.pop("device", {}))  # type: ignore[arg-type]  # constants only
    tiers = tuple(replace(tier, **fields.pop(tier.name, {})) for tier in cluster.tiers)  # type: ignore[arg-type]
    return replace(cluster, device=device, tiers=tiers, **fields.get("", {}))  # type: ignore[arg-type]
