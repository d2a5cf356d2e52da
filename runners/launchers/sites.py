"""What a computing centre asks of a batch script, for the clusters whose own guides say so."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

SLINGSHOT = {
    "NCCL_SOCKET_IFNAME": "hsn0,hsn1,hsn2,hsn3",  # the four Slingshot cards of a node
    "FI_CXI_DEFAULT_CQ_SIZE": "131072",  # the default overflows in large collectives
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A centre's rules.

    `cores_per_device` above 0 starts one task for each device, bound to its own cores and the closest device;
    0 starts one `torchrun` a node.  `needs_account`: a job without one is refused.
    """

    source: str = ""
    cores_per_device: int = 0
    needs_account: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


GENERIC = Site()
SITES: Mapping[str, Site] = MappingProxyType(
    {
        "frontier": Site(
            source="Frontier User Guide, docs.olcf.ornl.gov: 8 GCDs a node, 56 usable cores (low-noise mode)",
            cores_per_device=7,
            needs_account=True,
            environment=SLINGSHOT,
        ),
        "lumi": Site(
            source="docs.lumi-supercomputer.eu, LUMI-G: 8 GCDs a node, 56 usable cores (low-noise mode)",
            cores_per_device=7,
            needs_account=True,
            environment=SLINGSHOT,
        ),
    }
)


def site_of(cluster_name: str) -> Site:
    """The rules of a cluster's centre; the plain ones where no guide was read."""
    return SITES.get(cluster_name, GENERIC)
