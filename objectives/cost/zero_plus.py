"""ZeRO++: what ZeRO-3 moves in fewer bits, or from nearby: bytes, seconds, and the kernels that convert.

    M    bytes of the 16-bit weights that a group shares       n    members of the group
    Z    hpz, members that hold them a second time              N    members in one node

                        plain    quantized_weights    hpz = Z             quantized_gradients
    forward gather      M        M / 2 (8 bits)       -                   -
    backward gather     M        M / 2                M inside Z only     -
    reduction           M        -                    -                   M / 4 (4 bits)

A second shard takes 2 phi / Z bytes of each device.  Reduced in 4 bits, gradients travel twice: an all-to-all
inside the node, a sum in 16 bits, and an all-to-all of what is left, 1 / N, between nodes: hence M / 4 leaves
a node, and not N M / 4 as in one hop.

Source: Wang et al. (2023), arXiv:2306.10209, table 1 and sections 3.2 to 3.4; DeepSpeed,
runtime/zero/partition_parameters.py (8-bit gathers in both passes), runtime/comm/coalesced_collectives.py
(all_to_all_quant_reduce).
"""

from dataclasses import dataclass

import numpy as np

from objectives.cost import mesh
from objectives.cost.collectives import all_gather_s, all_to_all_s, reduce_scatter_s
from objectives.cost.kernels import memory_bound_s
from objectives.cost.stages import RankParameters
from objectives.metrics import Job
from search_spaces.plan import Floats, Ints, Plans

WIDE_BYTES = 2.0
INT8_BYTES = 1.0
INT4_BYTES = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharingGroup:
    """Devices that share parameters: entries on each before they are split, members, and their stride."""

    entries: Floats
    n: Ints
    stride: Ints


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SharingTimes:
    """Seconds of one reduction, of the gather before a forward pass, and of that before a backward pass."""

    reduce_s: Floats
    gather_s: Floats
    gather_again_s: Floats


def is_asked(plans: Plans) -> bool:
    """Whether any of the plans uses any of it."""
    return bool(plans.quantized_weights.any() or plans.quantized_gradients.any() or (plans.hpz > 1).any())


def sharing_groups(plans: Plans, parameters: RankParameters) -> tuple[SharingGroup, SharingGroup]:
    """Those of dense parameters (dp x cp) and of routed experts (their own replicas)."""
    return (
        SharingGroup(entries=parameters.dense, n=plans.dp * plans.cp, stride=plans.tp),
        SharingGroup(entries=parameters.expert, n=plans.edp, stride=plans.etp * plans.ep),
    )


def second_shard_bytes(job: Job, plans: Plans, entries: Floats) -> Floats:
    """Bytes of the weights that a device holds a second time: 2 phi / Z; none with hpz = 1."""
    weight_bytes = job.workload.training_state.weight_bytes
    return np.where(plans.hpz > 1, entries * weight_bytes / plans.hpz, 0.0)


def sharing_times(job: Job, plans: Plans, group: SharingGroup) -> SharingTimes:
    """Seconds that a group's messages take; kernels that convert are in `conversions_s`.

    The two all-to-alls of quantized gradients follow each other, as DeepSpeed runs them.
    """
    cluster, n = job.cluster, group.n
    members = mesh.strided_members(cluster, plans, group.stride, n)
    weights = group.entries * _weight_bytes(job, plans)
    near = np.where(plans.hpz > 1, np.minimum(plans.hpz, n), n)
    again = all_gather_s(cluster, near, mesh.strided_members(cluster, plans, group.stride, near), weights)
    plain_s = reduce_scatter_s(
        cluster, n, members, group.entries * job.workload.training_state.gradient_bytes
    )
    return SharingTimes(
        reduce_s=np.where(plans.quantized_gradients, _in_two_hops_s(job, plans, group), plain_s),
        gather_s=all_gather_s(cluster, n, members, weights),
        gather_again_s=again,
    )


def _in_two_hops_s(job: Job, plans: Plans, group: SharingGroup) -> Floats:
    cluster, inside = job.cluster, _in_node(job, plans, group)
    sent, apart = group.entries * INT4_BYTES, -(-group.n // inside)
    near = mesh.strided_members(cluster, plans, group.stride, inside)
    far = mesh.strided_members(cluster, plans, group.stride * inside, apart)
    seconds: Floats = all_to_all_s(cluster, inside, near, sent * (inside > 1))
    return seconds + all_to_all_s(cluster, apart, far, sent / inside * (apart > 1))


def _in_node(job: Job, plans: Plans, group: SharingGroup) -> Ints:
    """Members of the group in one node."""
    return mesh.strided_inside(plans, group.stride, group.n, job.cluster.devices_per_node)


def _weight_bytes(job: Job, plans: Plans) -> Floats:
    return np.where(plans.quantized_weights, INT8_BYTES, job.workload.training_state.weight_bytes)


def crossing_bytes(job: Job, plans: Plans, entries: Floats) -> Floats:
    """Bytes that leave one domain of the tier inside each tier: forward gather, backward gather, reduction.

    Of dense parameters, once each; a ring's (n - 1) / n and its like left out, as the source's table does.

    Returns
    -------
    shape (3, n_tiers, n_plans), bytes

    Source
    ------
    Wang et al. (2023), arXiv:2306.10209, table 1: 3 M to 0.75 M between nodes.
    """
    group = SharingGroup(entries=entries, n=plans.dp * plans.cp, stride=plans.tp)
    near = np.where(plans.hpz > 1, plans.hpz, group.n)
    weights, gradient_bytes = entries * _weight_bytes(job, plans), job.workload.training_state.gradient_bytes
    inside = _in_node(job, plans, group)

    def crosses(n: Ints, stride: Ints) -> tuple[Floats, Floats]:
        outer = mesh.strided_members(job.cluster, plans, stride, n)
        inner = np.concatenate([np.ones_like(outer[:1]), outer[:-1]])
        return (outer > inner).astype(np.float64), inner

    whole, _ = crosses(group.n, group.stride)
    again, _ = crosses(near, group.stride)
    first_hop, in_domain = crosses(inside, group.stride)
    second_hop, of_nodes = crosses(-(-group.n // inside), group.stride * inside)
    four_bits = entries * INT4_BYTES * (first_hop * in_domain + second_hop * of_nodes)
    reduced = np.where(plans.quantized_gradients, four_bits, whole * entries * gradient_bytes)
    return np.stack([whole * weights, again * weights, reduced])


def conversions_s(job: Job, plans: Plans, parameters: RankParameters) -> tuple[Floats, Floats]:
    """Seconds of the kernels that make and read narrow numbers in a forward and in a backward pass.

        8-bit gather        the shard read and written, the whole read and written: 3 phi (1 + 1 / n) bytes
        4-bit reduction     2.5 phi made, (0.5 + 0.5 / N) phi summed and made again, (0.5 / N + 2 / n) phi
                            read

    They move bytes through the device's memory and hide behind nothing.

    Source
    ------
    Wang et al. (2023), arXiv:2306.10209, section 4.2: fused dequantization, reduction and quantization.
    """
    forward, backward = np.zeros_like(parameters.dense), np.zeros_like(parameters.dense)
    for group in sharing_groups(plans, parameters):
        inside, near = _in_node(job, plans, group), np.where(plans.hpz > 1, plans.hpz, group.n)
        both = WIDE_BYTES + INT8_BYTES
        shared = (group.n > 1) * group.entries
        forward += plans.quantized_weights * both * shared * (1 + 1 / group.n)
        backward += plans.quantized_weights * both * shared * (1 + 1 / near)
        made = WIDE_BYTES + 2 * INT4_BYTES + 2 * INT4_BYTES / inside + WIDE_BYTES / group.n
        backward += plans.quantized_gradients * made * shared
    return memory_bound_s(job, forward), memory_bound_s(job, backward)
