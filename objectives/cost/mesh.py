"""Which devices form a group, and how many of them share a node, a rack, a switch.

    rank order tp-cp-dp-pp    strides: tp 1, cp t, dp t c, pp t c D
    rank order tp-cp-pp-dp    strides: tp 1, cp t, pp t c, dp t c p

Experts live on the same devices as etp x ep x edp, laid over the tp x cp x dp positions in that order.
Every function returns the members of a group inside one domain of each tier, shape (n_tiers, n_plans).
"""

from collections.abc import Callable

import numpy as np

from search_spaces.cluster import ClusterSpec
from search_spaces.plan import Ints, Plans, RankOrder, code


def _per_tier(cluster: ClusterSpec, n: Ints, inside: Callable[[int], Ints]) -> Ints:
    rows = [n if tier.size is None else np.clip(inside(tier.size), 1, n) for tier in cluster.tiers]
    return np.stack([np.broadcast_to(row, n.shape) for row in rows])


def pipeline_is_inside(plans: Plans) -> Ints:
    """Where pipeline stages are nearer than data-parallel replicas, pp; elsewhere 1."""
    return np.where(plans.rank_order == code(RankOrder.TP_CP_PP_DP), plans.pp, 1)


def tp_members(cluster: ClusterSpec, plans: Plans) -> Ints:
    """Members of a tensor-parallel group per tier."""
    return _per_tier(cluster, plans.tp, lambda size: np.broadcast_to(size, plans.tp.shape))


def cp_members(cluster: ClusterSpec, plans: Plans) -> Ints:
    """Members of a context-parallel group per tier."""
    return _per_tier(cluster, plans.cp, lambda size: size // plans.tp)


def dp_members(cluster: ClusterSpec, plans: Plans) -> Ints:
    """Members of the group that shares dense gradients, dp x cp, per tier."""
    far = plans.tp * plans.cp * pipeline_is_inside(plans)

    def inside(size: int) -> Ints:
        near = np.clip(size // plans.tp, 1, plans.cp)
        return near * np.clip(size // far, 1, plans.dp)

    return _per_tier(cluster, plans.dp * plans.cp, inside)


def _expert_group(plans: Plans, stride: Ints, n: Ints, size: int) -> Ints:
    """Members of a group of n at a stride over the tp x cp x dp positions, inside a domain of `size` devices."""
    near = plans.tp * plans.cp
    local = np.clip(np.minimum(size, near) // stride, 1, n)
    far_stride = np.maximum(stride, near) * pipeline_is_inside(plans)
    return local * np.clip(size // far_stride, 1, -(-n // local))


def ep_members(cluster: ClusterSpec, plans: Plans) -> Ints:
    """Members of an expert-parallel group per tier."""
    return _per_tier(cluster, plans.ep, lambda size: _expert_group(plans, plans.etp, plans.ep, size))


def etp_members(cluster: ClusterSpec, plans: Plans) -> Ints:
    """Members of an expert-tensor-parallel group per tier."""
    one = np.ones_like(plans.etp)
    return _per_tier(cluster, plans.etp, lambda size: _expert_group(plans, one, plans.etp, size))


def edp_members(cluster: ClusterSpec, plans: Plans) -> Ints:
    """Members of the group that shares one expert's gradients, per tier."""
    return _per_tier(cluster, plans.edp, lambda size: _expert_group(plans, plans.etp * plans.ep, plans.edp, size))


def pp_tier(cluster: ClusterSpec, plans: Plans) -> Ints:
    """Index of the innermost tier that holds a whole pipeline; its slowest hop is on that tier."""
    stride = plans.tp * plans.cp * np.where(pipeline_is_inside(plans) > 1, 1, plans.dp)
    reach = stride * plans.pp
    tier = np.zeros(len(plans), dtype=np.int64)
    for spec in cluster.tiers[:-1]:
        assert spec.size is not None
        tier += reach > spec.size
    return tier
