"""Collectives: exact where a closed form exists, ordered where physics orders, and rings counted by hand."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.cost import collectives
from search_spaces.cluster import ClusterSpec, TierSpec, assumed
from search_spaces.cluster_presets import load_cluster
from search_spaces.units import GB, MB, US

COLLECTIVES = [
    collectives.all_gather_s,
    collectives.reduce_scatter_s,
    collectives.all_reduce_s,
    collectives.all_to_all_s,
]
every_collective = pytest.mark.parametrize("collective", COLLECTIVES, ids=lambda function: function.__name__)

bandwidths = st.floats(1 * GB, 900 * GB)
latencies = st.floats(0, 50 * US)
message_bytes = st.floats(1, 10 * GB)
fan_outs = st.lists(st.integers(2, 6), min_size=1, max_size=3)


def tier(size, bandwidth, *, latency=0.0, efficiency=1.0, pair=None):
    return TierSpec(
        name=f"tier {size}",
        size=size,
        bandwidth_bytes_per_s=bandwidth,
        pair_bandwidth_bytes_per_s=pair or bandwidth,
        devices_per_link=1,
        latency_s=assumed(latency),
        efficiency=assumed(efficiency),
    )


load_once = cache(load_cluster)


def cluster_of(*tiers: TierSpec) -> ClusterSpec:
    return replace(load_once("dgx-h100", 1), devices_per_node=1, tiers=tiers)


@st.composite
def full_groups(draw):
    """A cluster, and the group of all its devices: n and the members inside one domain of each tier."""
    sizes = np.cumprod(draw(fan_outs)).tolist()
    ends = [*sizes[:-1], None]
    speeds = [(draw(bandwidths), draw(latencies), draw(st.floats(0.1, 1))) for _ in ends]
    tiers = [tier(end, b, latency=a, efficiency=e) for end, (b, a, e) in zip(ends, speeds, strict=True)]
    return cluster_of(*tiers), np.array([sizes[-1]]), np.array(sizes, dtype=float)[:, None]


def with_bandwidth_times(cluster, factor):
    tiers = tuple(
        replace(
            t,
            bandwidth_bytes_per_s=t.bandwidth_bytes_per_s * factor,
            pair_bandwidth_bytes_per_s=t.pair_bandwidth_bytes_per_s * factor,
        )
        for t in cluster.tiers
    )
    return replace(cluster, tiers=tiers)


def without_latency(cluster):
    return replace(cluster, tiers=tuple(replace(t, latency_s=assumed(0.0)) for t in cluster.tiers))


@every_collective
@given(full_groups(), message_bytes)
def test_a_group_of_one_costs_exactly_nothing(collective, group, n_bytes):
    cluster, _, members = group
    one = np.array([1])
    assert collective(cluster, one, np.ones_like(members), np.array([n_bytes])) == 0.0


@every_collective
@given(full_groups())
def test_zero_bytes_cost_exactly_nothing(collective, group):
    assert collective(*group, np.zeros(1)) == 0.0


@every_collective
@given(full_groups(), message_bytes)
def test_ten_times_the_bytes_over_ten_times_the_bandwidth_take_as_long(collective, group, n_bytes):
    cluster, n, members = group
    plain = without_latency(cluster)
    before = collective(plain, n, members, np.array([n_bytes]))
    after = collective(with_bandwidth_times(plain, 10), n, members, np.array([10 * n_bytes]))
    np.testing.assert_allclose(after, before, rtol=1e-12)


@every_collective
@given(full_groups(), message_bytes, st.floats(1, 100))
def test_more_bandwidth_is_never_slower(collective, group, n_bytes, factor):
    cluster, n, members = group
    sent = np.array([n_bytes])
    faster = collective(with_bandwidth_times(cluster, factor), n, members, sent)
    assert faster <= collective(cluster, n, members, sent) * (1 + 1e-12)


@every_collective
@given(full_groups(), message_bytes, st.floats(1, 100))
def test_more_bytes_are_never_faster(collective, group, n_bytes, factor):
    assert collective(*group, np.array([n_bytes * factor])) >= collective(*group, np.array([n_bytes]))


@every_collective
@given(full_groups(), message_bytes)
def test_a_group_costs_the_same_alone_as_in_a_batch(collective, group, n_bytes):
    cluster, n, members = group
    ns = np.array([1, n[0], n[0]])
    batch_members = np.hstack([np.ones_like(members), members, members])
    batch = collective(cluster, ns, batch_members, np.array([n_bytes, n_bytes, 7.0]))
    assert batch[1] == collective(cluster, n, members, np.array([n_bytes]))[0]


@given(full_groups(), message_bytes)
def test_the_ring_formula_is_the_slowest_link_of_rings_counted_byte_by_byte(group, n_bytes):
    cluster, n, members = group
    sizes = [1, *members[:, 0].astype(int).tolist()]
    counted_s = slowest_link_s(cluster, sizes, n_bytes)
    got_s = collectives.all_gather_s(without_latency(cluster), n, members, np.array([n_bytes]))
    np.testing.assert_allclose(got_s, counted_s, rtol=1e-9)


def slowest_link_s(cluster, sizes, n_bytes):
    """Busiest link's seconds: n rings share the bytes, each leaving every domain through another member."""
    n = sizes[-1]
    load = np.zeros((n, len(cluster.tiers)))
    for ring in range(n):
        order = ring_order(range(n), sizes, ring)
        for sender, receiver in zip(order, [*order[1:], order[0]], strict=True):
            exits = [j for j, inside in enumerate(sizes[:-1]) if sender // inside != receiver // inside]
            load[sender, exits] += n_bytes * (n - 1) / n / n
    speeds = [t.bandwidth_bytes_per_s * t.efficiency.value for t in cluster.tiers]
    return np.max(load / speeds)


def ring_order(devices, sizes, ring):
    """Devices domain by domain, at every level starting with another part for another ring."""
    if len(sizes) == 1:
        return list(devices)
    part = sizes[-2]
    parts = [devices[i : i + part] for i in range(0, len(devices), part)]
    start = ring // part % len(parts)
    return [d for p in parts[start:] + parts[:start] for d in ring_order(p, sizes[:-1], ring % part)]


@pytest.mark.parametrize("n", [2, 3, 8, 1000])
def test_one_tier_follows_the_textbook(n):
    # Thakur et al. (2005): ring all-gather and pairwise all-to-all take (n-1) a + (n-1)/n S b.
    cluster = cluster_of(tier(None, 50 * GB, latency=4 * US, efficiency=0.8))
    group = np.array([n]), np.array([[float(n)]]), np.array([100 * MB])
    textbook_s = (n - 1) * 4 * US + (n - 1) / n * 100 * MB / (40 * GB)
    assert collectives.all_gather_s(cluster, *group) == pytest.approx(textbook_s)
    assert collectives.all_to_all_s(cluster, *group) == pytest.approx(textbook_s)


def test_a_large_message_in_a_small_group_is_reduced_by_two_rings():
    cluster = cluster_of(tier(None, 50 * GB, latency=4 * US))
    group = np.array([4]), np.array([[4.0]]), np.array([1 * GB])
    assert collectives.all_reduce_s(cluster, *group) == 2 * collectives.all_gather_s(cluster, *group)


def test_a_small_message_in_a_large_group_is_reduced_by_a_tree():
    cluster = cluster_of(tier(None, 50 * GB, latency=4 * US))
    seconds = collectives.all_reduce_s(cluster, np.array([1024]), np.array([[1024.0]]), np.array([1.0]))
    assert seconds == pytest.approx(2 * 10 * 4 * US, rel=1e-3)  # ten levels up, ten down; one byte is free


@every_collective
@given(bandwidths, st.floats(1, 20), latencies, st.floats(1, 20), message_bytes)
def test_more_members_in_a_node_are_never_slower(collective, network, faster, latency, shorter, n_bytes):
    node = tier(8, network * faster, latency=latency / shorter)
    cluster = cluster_of(node, tier(None, network, latency=latency))
    inside = np.array([1.0, 2.0, 4.0, 8.0])
    n = np.full(4, 64)
    seconds = collective(cluster, n, np.stack([inside, n * 1.0]), np.full(4, n_bytes))
    assert np.all(np.diff(seconds) <= 1e-12 * seconds[0])


@pytest.mark.parametrize(("n", "links"), [(2, 1), (4, 3), (8, 7)])
def test_in_a_full_mesh_a_group_uses_only_the_links_between_its_members(n, links):
    # MI300X: seven links of 64 GB/s; two neighbours share one of them (stas00/ml-engineering, network).
    cluster = cluster_of(tier(None, 448 * GB, pair=64 * GB))
    seconds = collectives.all_gather_s(cluster, np.array([n]), np.array([[n * 1.0]]), np.array([1 * GB]))
    assert seconds == pytest.approx((n - 1) / n / (64 * links))


def test_two_full_h100_nodes_gather_at_nvlink_speed_and_lone_ranks_at_one_network_card():
    cluster = without_latency(load_cluster("dgx-h100", 16))
    n = np.array([16, 2])
    members = np.array([[8.0, 1.0], [16.0, 2.0]])
    seconds = collectives.all_gather_s(cluster, n, members, np.full(2, GB))
    # Eight cards of 50 GB/s at 0.85 carry 340 GB/s, just below NVLink's 450 GB/s at 0.8.
    np.testing.assert_allclose(GB * (n - 1) / n / seconds, [340 * GB, 42.5 * GB])


def test_a_point_to_point_message_takes_the_pair_bandwidth_of_its_tier():
    cluster = cluster_of(tier(8, 448 * GB, pair=64 * GB, latency=3 * US), tier(None, 50 * GB, latency=5 * US))
    seconds = collectives.send_s(cluster, np.array([0, 1, 0]), np.array([64 * MB, 50 * MB, 0.0]))
    np.testing.assert_allclose(seconds, [1003 * US, 1005 * US, 0.0])


def test_members_follow_from_the_stride():
    tiers = load_cluster("frontier", 1024).tiers  # domains of 2, 8, 32 and all
    n, stride = np.array([8, 8, 8, 1, 4]), np.array([1, 2, 16, 8, 1])
    members = collectives.group_members(n, stride, tiers)
    assert members.T.tolist() == [[2, 8, 8, 8], [1, 4, 8, 8], [1, 1, 2, 8], [1, 1, 1, 1], [2, 4, 4, 4]]


@given(st.integers(1, 4096), st.integers(1, 4096), st.sampled_from(["frontier", "gb200-nvl72", "summit"]))
def test_members_grow_outwards_from_one_to_the_whole_group(n, stride, name):
    tiers = load_once(name, 1).tiers
    members = collectives.group_members(np.array([n]), np.array([stride]), tiers)[:, 0]
    assert all(inner <= outer for inner, outer in pairwise([1, *members]))
    assert members[-1] == n


def test_an_nvl72_rack_need_not_divide_the_cluster():
    cluster = load_cluster("gb200-nvl72", 512)
    n, stride = np.array([72, 512]), np.array([1, 1])
    members = collectives.group_members(n, stride, cluster.tiers)
    seconds = collectives.all_reduce_s(cluster, n, members, np.full(2, GB))
    assert members.tolist() == [[72, 72], [72, 512]]
    assert 0 < seconds[0] < seconds[1]


def test_every_step_of_a_ring_waits_for_its_slowest_hop():
    cluster = cluster_of(tier(8, 450 * GB, latency=2 * US), tier(None, 50 * GB, latency=40 * US))
    n, members = np.array([8, 16]), np.array([[8.0, 8.0], [8.0, 16.0]])
    seconds = collectives.all_gather_s(cluster, n, members, np.array([1.0, 1.0]))
    assert seconds == pytest.approx([7 * 2 * US, 15 * 40 * US], rel=1e-3)  # one byte adds next to nothing
