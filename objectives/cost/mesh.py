"""Which devices form a group, and how many of them share a node, a rack, a switch.

    rank order tp-cp-dp-pp    strides: tp 1, cp t, dp t c, pp t c D
    rank order tp-cp-pp-dp    strides: tp 1, cp t, pp t c, dp t c p

Experts live on the same devices as etp x ep x edp, laid over the tp x cp x dp positions in that order.
Every function returns the members of a group inside one domain of each tier, shape (n_tiers, n_plans).
"""

from collections.abc import Callable

import numpy as np

from search_spaces.cluster import ClusterSpec
from search_spaces.plan import Floats, Ints, Plans, RankOrder, code


def _per_tier(cluster: ClusterSpec, n: Ints, inside: Callable[[int], Ints]) -> Floats:
    rows = [n if tier.size is None else np.clip(inside(tier.size), 1, n) for tier in cluster.tiers]
    return np.stack([np.broadcast_to(row, n.shape) for row in rows]).astype(np.float64)


def pipeline_is_inside(plans: Plans) -> Ints:
    """Where pipeline stages are nearer than data-parallel replicas, pp; elsewhere 1."""
    return np.where(plans.rank_order == code(RankOrder.TP_CP_PP_DP), plans.pp, 1)


def tp_members(cluster: ClusterSpec, plans: Plans) -> Floats:
    """Members of a tensor-parallel group per tier."""
    return _per_tier(cluster, plans.tp, lambda size: np.broadcast_to(size, plans.tp.shape))


def cp_members(cluster: ClusterSpec, plans: Plans) -> Floats:
    """Members of a context-parallel group per tier."""
    return _per_tier(cluster, plans.cp, lambda size: size // plans.tp)


def dp_members(cluster: ClusterSpec, plans: Plans) -> Floats:
    """Members of the group that shares dense gradients, dp x cp, per tier."""
    n = plans.dp * plans.cp
    return _per_tier(cluster, n, lambda size: _group(plans, plans.tp, n, size))


def strided_members(cluster: ClusterSpec, plans: Plans, stride: Ints, n: Ints) -> Floats:
    """Members of a group of n at a stride over the tp x cp x dp positions, per tier."""
    return _per_tier(cluster, n, lambda size: _group(plans, stride, n, size))


def strided_inside(plans: Plans, stride: Ints, n: Ints, size: int) -> Ints:
    """Members of such a group in a domain of `size` devices; shape (n_plans,)."""
    members: Ints = np.clip(_group(plans, stride, n, size), 1, n)
    return members


def _group(plans: Plans, stride: Ints, n: Ints, size: int) -> Ints:
    """Members of a group of n at a stride over the tp x cp x dp positions, in a domain of `size` devices.

    Positions are neighbours unless pipeline stages lie between the replicas; then tp x cp of them are.
    """
    near, between = plans.tp * plans.cp, pipeline_is_inside(plans)
    local = np.clip(np.minimum(size, near) // stride, 1, n)
    far = local * np.clip(size // (np.maximum(stride, near) * between), 1, -(-n // local))
    members: Ints = np.where(between == 1, size // stride, far)
    return members


def ep_members(cluster: ClusterSpec, plans: Plans) -> Floats:
    """Members of an expert-parallel group per tier."""
    return _per_tier(cluster, plans.ep, lambda size: _group(plans, plans.etp, plans.ep, size))


def etp_members(cluster: ClusterSpec, plans: Plans) -> Floats:
    """Members of an expert-tensor-parallel group per tier."""
    one = np.ones_like(plans.etp)
    return _per_tier(cluster, plans.etp, lambda size: _group(plans, one, plans.etp, size))


def edp_members(cluster: ClusterSpec, plans: Plans) -> Floats:
    """Members of the group that shares one expert's gradients, per tier."""
    return _per_tier(cluster, plans.edp, lambda size: _group(plans, plans.etp * plans.ep, plans.edp, size))


def n_node_tiers(cluster: ClusterSpec) -> int:
    """How many of the tiers, from the innermost, lie within a node."""
    return sum(t.size is not None and t.size <= cluster.devices_per_node for t in cluster.tiers)


def pp_tier(cluster: ClusterSpec, plans: Plans) -> Ints:
    """Index of the innermost tier that holds a whole pipeline; its slowest hop is on that tier."""
    stride = plans.tp * plans.cp * np.where(pipeline_is_inside(plans) > 1, 1, plans.dp)
    reach = stride * plans.pp
    tier = np.zeros(len(plans), dtype=np.int64)
    for spec in cluster.tiers[:-1]:
        assert spec.size is not None
        tier += reach > spec.size
    return tier
