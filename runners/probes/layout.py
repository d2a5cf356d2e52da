"""Which ranks form the groups that measure a tier.

A group is `n` ranks that lie `stride` apart.  Groups that enter a tier with one member for each domain inside
it use that tier alone, so its line can be fitted by itself; all sibling groups communicate at once, as the
formulas assume.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from search_spaces.cluster import ClusterSpec, TierSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Groups of one form; `is_pure` where they use one tier alone, `is_largest` where none is larger."""

    tier: str
    n: int
    stride: int
    is_pure: bool = True
    is_largest: bool = False

    def what(self) -> dict[str, str | int]:
        """As parameters of a case."""
        return {"tier": self.tier, "n": self.n, "stride": self.stride}


def groups_of(cluster: ClusterSpec, n_ranks: int) -> list[Group]:
    """Groups of 2, 4, 8 ... members in every tier that so many ranks reach, and each tier's whole domain."""
    return [group for tier, inner, outer in spans(cluster, n_ranks) for group in _of_tier(tier, inner, outer)]


def spans(cluster: ClusterSpec, n_ranks: int) -> Iterator[tuple[TierSpec, int, int]]:
    """Each tier that so many ranks reach, with the ranks in a domain inside it and in one of its own."""
    inner = 1
    for tier in cluster.tiers:
        outer = min(tier.size or n_ranks, n_ranks)
        if outer // inner > 1:
            yield tier, inner, outer
        inner = max(inner, outer)


def out_of_reach(cluster: ClusterSpec, n_ranks: int) -> list[str]:
    """Tiers that so few ranks do not reach."""
    reached = [tier.name for tier, _, _ in spans(cluster, n_ranks)]
    return [tier.name for tier in cluster.tiers if tier.name not in reached]


def _of_tier(tier: TierSpec, inner: int, outer: int) -> Iterator[Group]:
    most = outer // inner
    sizes = sorted({most, *(2**i for i in range(1, most.bit_length()))})
    for n in sizes:
        yield Group(tier=tier.name, n=n, stride=inner, is_largest=n == most)
    if inner > 1:
        yield Group(tier=tier.name, n=outer, stride=1, is_pure=False, is_largest=True)


def members(n: int, stride: int, n_ranks: int) -> list[list[int]]:
    """Ranks of every group of that form; ranks that fill no whole group are in none."""
    block = n * stride
    return [
        [start + offset + i * stride for i in range(n)]
        for start in range(0, n_ranks - block + 1, block)
        for offset in range(stride)
    ]


def group_of(rank: int, groups: Sequence[Sequence[int]]) -> int | None:
    """The place of a rank's group, or None where it is in none."""
    return next((i for i, group in enumerate(groups) if rank in group), None)
