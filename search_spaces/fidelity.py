"""How much of a job a trial runs: all of it, or a smaller proxy of it that costs less and tells less."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from search_spaces.cluster import ClusterSpec
from search_spaces.errors import check

PROXY_LAYERS = 4  # layers of a proxy where a study names none
SHARE_OF_DEVICES = 8


class Fidelity(StrEnum):
    """A kind of trial."""

    FEW_LAYERS = "few-layers"  # the plan on all its devices, the model with few layers
    FEW_DEVICES = "few-devices"  # few devices, as many layers for each stage
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelities:
    """The kinds of trials a study may have, and how small its proxies are.

    `layers` are those of the whole proxy, raised to one for each chunk where a plan has more chunks, and to n
    for each where every n-th is redone; `devices` 0 stands for an eighth of the job's, in whole nodes.
    """

    kinds: tuple[Fidelity, ...] = (Fidelity.FULL,)
    layers: int = PROXY_LAYERS
    devices: int = 0

    def __post_init__(self) -> None:
        names = ", ".join(self.kinds)
        check(Fidelity.FULL in self.kinds, "fidelities must have full, which the answer rests on", names)
        check(len(set(self.kinds)) == len(self.kinds), "fidelities must name each kind once", names)
        check(self.layers >= 1, "a proxy's layers must be at least 1", self.layers)
        check(self.devices >= 0, "a proxy's devices must not be negative", self.devices)

    def devices_of(self, cluster: ClusterSpec) -> int:
        """Devices of a proxy on that cluster."""
        node = cluster.devices_per_node
        return self.devices or max(cluster.n_devices // SHARE_OF_DEVICES // node, 1) * node

    @property
    def proxies(self) -> tuple[Fidelity, ...]:
        """The kinds that run less than the whole job, in the order they are named."""
        return tuple(kind for kind in self.kinds if kind is not Fidelity.FULL)


def fidelity_of(attributes: Mapping[str, Any]) -> Fidelity:
    """The kind that a trial's user attributes name; trials that name none ran the whole job."""
    return Fidelity(attributes.get("fidelity", Fidelity.FULL))
