"""What a rule of legal plans is: a named condition over some knobs; and conditions that many rules share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from search_spaces.cluster import ClusterSpec
from search_spaces.framework import FrameworkProfile, framework_named
from search_spaces.model import ModelSpec
from search_spaces.plan import Bools, Ints, Schedule, code
from search_spaces.workload import Workload

Columns = Mapping[str, Ints]
SCALE_UP_BANDWIDTH_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What rules are asked about: the job without its plan."""

    model: ModelSpec
    cluster: ClusterSpec
    workload: Workload

    @property
    def framework(self) -> FrameworkProfile:
        """The trainer's profile."""
        return framework_named(self.workload.framework)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A named condition over some knobs; `holds(context, columns)` has shape (n_plans,).

    `of_opt_in`: it holds wherever the knobs among them that only a user turns on are off, so that a space
    without them need not ask.
    """

    name: str
    knobs: tuple[str, ...]
    holds: Callable[[Context, Columns], Bools | bool]
    of_opt_in: bool = False


def scale_up_devices(context: Context) -> int:
    """Devices of the largest domain whose links keep a fair share of the innermost tier's bandwidth.

    Tensor parallelism is tried up to twice as far: a group over two domains is slow, a wider one hopeless.
    """
    tiers = context.cluster.tiers
    fair = [
        t
        for t in tiers
        if t.bandwidth_bytes_per_s >= SCALE_UP_BANDWIDTH_SHARE * tiers[0].bandwidth_bytes_per_s
    ]
    return max(context.cluster.n_devices if tier.size is None else tier.size for tier in fair)


def rule(name: str, knobs: str, holds: Callable[[Context, Columns], Bools | bool]) -> Rule:
    """A rule of those knobs, named by the sentence that a user reads."""
    return Rule(name=name, knobs=tuple(knobs.split()), holds=holds)


def opt_in(name: str, knobs: str, holds: Callable[[Context, Columns], Bools | bool]) -> Rule:
    """A rule that holds wherever the knobs that only a user turns on are off."""
    return Rule(name=name, knobs=tuple(knobs.split()), holds=holds, of_opt_in=True)


def chosen(p: Columns, value: StrEnum, knob: str) -> Bools:
    """Where a knob has this value; shape (n_plans,)."""
    held: Bools = p[knob] == code(value)
    return held


def divides(degree: Ints, whole: int | Ints) -> Bools:
    """Where a degree divides a whole; shape (n_plans,)."""
    divides: Bools = whole % degree == 0
    return divides


def among(column: Ints, values: Sequence[StrEnum]) -> Bools:
    """Where an enum's column has one of these values; shape (n_plans,)."""
    return np.isin(column, [code(value) for value in values])


def runs(p: Columns, *schedules: Schedule) -> Bools:
    """Where the schedule is one of these; shape (n_plans,)."""
    return among(p["schedule"], schedules)


def devices_asked(context: Context, columns: Columns) -> Ints:
    """Devices of the nodes that a plan uses; 0 nodes stand for all of the cluster."""
    nodes = columns["nodes"]
    return np.where(nodes > 0, nodes * context.cluster.devices_per_node, context.cluster.n_devices)
