"""Seconds of collectives over the tiers of a cluster: the hierarchical alpha-beta model.

    n     devices of the group                     S    total_bytes: the whole gathered buffer
    M_j   members of the group in one domain of    α_j  latency of one hop in tier j
          tier j; of the outermost tier: n         β_j  bytes/s that a device sends into tier j
    M_-1  1: a device is a domain of its own

Every collective is a line in the bytes: a latency, and a slope that the slowest tier sets.  What leaves a
domain of tier j-1 goes through tier j over the links of the M_{j-1} members inside, all at once: ranks that
fill a node use all of its network cards.  In a mesh a device reaches each peer over one link only, so that

    β_j = efficiency_j · min(bandwidth_j, pair_bandwidth_j · (M_j − M_{j-1}))

Assumes that groups lie aligned in the domains, that all sibling groups communicate at once
(`bandwidth_bytes_per_s` is already each one's share), and that tiers work at the same time, as pipelined
rings and trees do.  A message of zero bytes is not sent and costs nothing, and neither does a group of one.

Source: Thakur et al. (2005), doi:10.1177/1094342005051521: ring all-gather, recursive halving, pairwise
exchange; nccl-tests, doc/PERFORMANCE.md: bus bandwidth, (n−1)/n for gathers and 2 (n−1)/n for all-reduce;
NCCL, src/graph/tuning.cc: hops counted by tier, the better of ring and tree.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from search_spaces.cluster import ClusterSpec, TierSpec
from search_spaces.plan import Floats, Ints

# NCCL takes 8 % off a tree's bandwidth: src/graph/tuning.cc, busBw of NCCL_ALGO_TREE.
TREE_BANDWIDTH_SHARE = 0.92
SentShare = Callable[[Floats], Floats]  # domains that a group fills -> share of the bytes that are sent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    """Seconds as a line in the bytes; both parts have shape (n_plans,).

    One geometry serves many message sizes: build the line once, ask it for several.
    """

    latency_s: Floats
    s_per_byte: Floats

    def seconds(self, n_bytes: Floats) -> Floats:
        """Seconds of messages of these sizes; nothing sent is no time."""
        seconds: Floats = self.latency_s * (n_bytes > 0) + n_bytes * self.s_per_byte
        return seconds


def group_members(n: Ints, stride: Ints, tiers: Sequence[TierSpec]) -> Floats:
    """Members of a group inside one domain of each tier, for members that are `stride` devices apart.

        M_j = clip(size_j // stride, 1, n)

    Returns
    -------
    shape (n_tiers, n_plans)
    """
    whole = np.asarray(n, dtype=np.float64)
    rows = [whole if tier.size is None else np.clip(tier.size // stride, 1, whole) for tier in tiers]
    return np.stack(rows)


def ring_line(cluster: ClusterSpec, n: Ints, members: Floats) -> Line:
    """A ring once around: n − 1 hops, each member passing on all but its own part.

        t = (n − 1) max_j α_j  +  max_j S (n − 1)/n / (β_j M_{j-1})

    The steps are in lock-step: in each of them some part crosses the slowest tier, and all wait for it.
    Published runs with tensor parallelism over two and four nodes take 0.8 and 1.8 ms a collective of 17 MB
    (benchmarks/data): the steps times one network hop, not the crossings of nodes times it.
    """
    latency_s, slowest = _zeros(n), _zeros(n)
    for tier, inner, outer in _spans(cluster, members):
        np.maximum(latency_s, (outer > inner) * tier.latency_s.value * (n - 1), out=latency_s)
        np.maximum(slowest, _exit_s_per_byte(tier, inner, outer), out=slowest)
    return Line(latency_s=latency_s, s_per_byte=slowest * ((n - 1) / n))


def tree_line(cluster: ClusterSpec, n: Ints, members: Floats) -> Line:
    """An all-reduce up and down a double binary tree: few hops, less bandwidth than a ring.

    t = 2 Σ_j α_j log2(M_j / M_{j-1})  +  max_j 2 S / (0.92 β_j M_{j-1})
    """
    latency_s, slowest = _zeros(n), _zeros(n)
    for tier, inner, outer in _spans(cluster, members):
        latency_s += 2 * tier.latency_s.value * np.log2(outer / inner)
        np.maximum(slowest, _exit_s_per_byte(tier, inner, outer), out=slowest)
    return Line(latency_s=latency_s, s_per_byte=slowest * (2 / TREE_BANDWIDTH_SHARE))


def all_to_all_line(
    cluster: ClusterSpec, n: Ints, members: Floats, sent_share: SentShare | None = None
) -> Line:
    """Pairwise exchange: one message to every member, through the device's own link of each tier.

        t = Σ_j α_j (M_j − M_{j-1})  +  max_j s (n − M_{j-1})/n / β_j

    Assumes that traffic for outer tiers loads the inner ones too, as forwarding over NVLink does.
    `sent_share` is the share of s that leaves where what is bound for one domain of tier j-1 is sent there
    once; it depends on how many such domains the group fills.

    Source
    ------
    Thakur et al. (2005), all-to-all of long messages; forwarding without deduplication in DeepSeek-V3 (2024),
    arXiv:2412.19437, section 3.2.2.
    """
    latency_s, slowest = _zeros(n), _zeros(n)
    for tier, inner, outer in _spans(cluster, members):
        latency_s += tier.latency_s.value * (outer - inner)
        seconds = _exit_s_per_byte(tier, inner, outer) * inner * ((n - inner) / n)
        if sent_share is not None:
            seconds = seconds * sent_share(n / inner)
        np.maximum(slowest, seconds, out=slowest)
    return Line(latency_s=latency_s, s_per_byte=slowest)


def afterwards_line(
    cluster: ClusterSpec, n: Ints, members: Floats, n_inside: int, sent_share: SentShare
) -> Line:
    """A pairwise exchange that sends a token once to a node, and then its copies inside the node.

        t = t_between (1 − R) + t_inside R        R the share of copies that need not travel between nodes

    `n_inside` tiers, from the innermost, lie inside a node.  Bytes bound for other devices of the same node
    travel with the copies.

    Source
    ------
    X-MoE (2025), arXiv:2508.13337, redundancy-bypassing dispatch: two stages, one after the other.
    """
    inside, between = _zeros(n), _zeros(n)
    latency_s = _zeros(n)
    node = members[n_inside - 1] if n_inside else np.ones_like(members[0])
    share = sent_share(n / node)
    for i, (tier, inner, outer) in enumerate(_spans(cluster, members)):
        latency_s += tier.latency_s.value * (outer - inner)
        part = _exit_s_per_byte(tier, inner, outer) * inner
        if i < n_inside:
            stay = (1 - share) * (node - inner) / node + share * (node - inner) / n
            np.maximum(inside, part * np.where(n > node, stay, (n - inner) / n), out=inside)
        else:
            np.maximum(between, part * ((n - inner) / n) * share, out=between)
    return Line(latency_s=latency_s, s_per_byte=between + inside)


def hierarchical_line(
    cluster: ClusterSpec, n: Ints, members: Floats, n_inside: int, sent_share: SentShare | None = None
) -> Line:
    """An exchange with one message to each node, handed on inside it: few messages, a second trip.

        t = max(t_inside, t_between + t_redistribute)        N = n / M nodes, M members in each

        between         α of N − 1 messages, s (n − M)/n bytes over a device's own card
        redistribute    α of M − 1 messages, the same bytes inside the node

    The exchange inside a node runs beside both and takes no longer than the redistribution, which moves at
    least as many bytes: it alone counts in a group of one node.  `n_inside` tiers lie inside a node.

    Source
    ------
    Piper (2026), arXiv:2605.05049, its topology-aware all-to-all (HALO).
    """
    inside, between = _zeros(n), _zeros(n)
    latency_s = _zeros(n)
    node = members[n_inside - 1] if n_inside else np.ones_like(members[0])
    abroad = np.where(n > node, (n - node) / n, 1.0)
    for i, (tier, inner, outer) in enumerate(_spans(cluster, members)):
        part = _exit_s_per_byte(tier, inner, outer) * inner
        share = 1.0 if sent_share is None else sent_share(n / inner)
        if i < n_inside:
            latency_s += tier.latency_s.value * (outer - inner)
            np.maximum(inside, part * ((node - inner) / node) * abroad * share, out=inside)
        else:
            latency_s += tier.latency_s.value * (outer - inner) / node
            np.maximum(between, part * ((n - inner) / n) * share, out=between)
    return Line(latency_s=latency_s, s_per_byte=between + inside)


def send_line(cluster: ClusterSpec, tier_index: Ints) -> Line:
    """One device to one other, both inside the tier of that index: one link's bandwidth, one hop."""
    tiers = cluster.tiers
    pair = [min(t.pair_bandwidth_bytes_per_s, t.bandwidth_bytes_per_s) * t.efficiency.value for t in tiers]
    latency_s = np.array([tier.latency_s.value for tier in tiers])
    return Line(latency_s=latency_s[tier_index], s_per_byte=(1 / np.array(pair))[tier_index])


def all_gather_s(cluster: ClusterSpec, n: Ints, members: Floats, total_bytes: Floats) -> Floats:
    """Seconds until every member holds the whole buffer of `total_bytes`: one ring.

    Returns
    -------
    shape (n_plans,), seconds
    """
    return ring_line(cluster, n, members).seconds(total_bytes)


def reduce_scatter_s(cluster: ClusterSpec, n: Ints, members: Floats, total_bytes: Floats) -> Floats:
    """Seconds until every member holds its part of the sum: an all-gather in reverse, additions free.

    Returns
    -------
    shape (n_plans,), seconds
    """
    return all_gather_s(cluster, n, members, total_bytes)


def all_reduce_s(cluster: ClusterSpec, n: Ints, members: Floats, total_bytes: Floats) -> Floats:
    """Seconds until every member holds the sum: two rings or one tree, whichever is faster, as NCCL picks.

    Returns
    -------
    shape (n_plans,), seconds
    """
    ring_s = 2 * ring_line(cluster, n, members).seconds(total_bytes)
    fastest_s: Floats = np.minimum(ring_s, tree_line(cluster, n, members).seconds(total_bytes))
    return fastest_s


def all_to_all_s(cluster: ClusterSpec, n: Ints, members: Floats, sent_bytes: Floats) -> Floats:
    """Seconds of an exchange in which every member sends `sent_bytes` in all, 1/n to each, itself included.

    Returns
    -------
    shape (n_plans,), seconds
    """
    return all_to_all_line(cluster, n, members).seconds(sent_bytes)


def send_s(cluster: ClusterSpec, tier_index: Ints, n_bytes: Floats) -> Floats:
    """Seconds of one message between two devices of one tier.

    Returns
    -------
    shape (n_plans,), seconds
    """
    return send_line(cluster, tier_index).seconds(n_bytes)


def _spans(cluster: ClusterSpec, members: Floats) -> Iterator[tuple[TierSpec, Floats, Floats]]:
    """Each tier with the members in a domain inside it and in one of its own."""
    inner = np.ones_like(members[0], dtype=np.float64)
    for tier, outer in zip(cluster.tiers, members, strict=True):
        yield tier, inner, outer
        inner = outer


def _exit_s_per_byte(tier: TierSpec, inner: Floats, outer: Floats) -> Floats:
    """Seconds for one byte to leave a domain of `inner` members into a tier with `outer`; 0 if none do."""
    link = tier.bandwidth_bytes_per_s
    if tier.pair_bandwidth_bytes_per_s < link:
        links = np.minimum(link, tier.pair_bandwidth_bytes_per_s * np.maximum(outer - inner, 1))
        seconds: Floats = (outer > inner) / (links * tier.efficiency.value * inner)
    else:
        seconds = (outer > inner) / (link * tier.efficiency.value * inner)
    return seconds


def _zeros(n: Ints) -> Floats:
    return np.zeros(n.shape)
