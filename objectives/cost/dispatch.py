"""How tokens reach their experts and come back: copies, padding, masks, and the exchange between devices.

    T  tokens routed on a device = b s / (c s_p)     k  top_k      E  n_experts      c  capacity factor
    h  d_model     C = c k T / E  slots of an expert, padded        e  ep     t_e  etp     t  tp

A sequence-sharded expert block (X-MoE's SSMB) is tp above 1 with sequence parallelism and etp = 1: each
tensor-parallel rank routes its 1/t of the tokens.  With etp = tp (DeepSpeed-TED) the ranks compute all of
them together.

        plain           k T copies, or c k T where the model has a capacity
        einsum          c k T slots, two products with masks over (token, expert, slot)
        padded          c k T slots, combined in fp32
        padding-free    k T copies, at most c k T

Source: X-MoE (2025), arXiv:2508.13337, table 4; masks: Lepikhin et al. (2020), arXiv:2006.16668, algorithm 1,
and DeepSpeed 0.19.8, deepspeed/moe/sharded_moe.py.
"""

import numpy as np

from objectives.cost import mesh
from objectives.cost.collectives import Line, afterwards_line, all_to_all_line, hierarchical_line
from objectives.cost.kernels import entry_bytes, gemm_s, memory_bound_s
from objectives.cost.migration import imbalance_of
from objectives.cost.moe import FP32_BYTES, MASK_BYTES, SIXTEEN_BIT_BYTES, deduplicated_share
from objectives.cost.tokens import sequence_shards, tokens_per_device
from objectives.metrics import Job
from search_spaces.framework import framework_named
from search_spaces.model import MoeSpec
from search_spaces.plan import Bools, Dispatch, ExpertTokens, Floats, Plans

# Both masks written in the forms that are kept, and read and written once more as operands of the products.
MASK_TRAFFIC_BYTES = 2 * MASK_BYTES + 2 * SIXTEEN_BIT_BYTES


def routed_tokens(job: Job, plans: Plans) -> Floats:
    """Token copies that the hottest device's experts compute: k T / s_p times etp, imbalance or capacity.

    Ranks that all send the same tokens need not gather them: k T.
    """
    gathered = sent_tokens(job, plans) * plans.etp
    if not plans.expert_tokens.any():
        return gathered
    return np.where(plans.sends_tokens(ExpertTokens.DUPLICATED), sent_tokens(job, plans), gathered)


def sent_tokens(job: Job, plans: Plans) -> Floats:
    """Token copies that a rank sends to experts: k T / s_p, or k T (duplicated) or k T / t (dropped).

    Source
    ------
    Singh et al. (2023), arXiv:2303.06318, duplicate token dropping; DeepSpeed, moe/mappings.py, drop_tokens.
    """
    shards = sequence_shards(plans)
    if plans.expert_tokens.any():
        shards = np.where(plans.sends_tokens(ExpertTokens.DROPPED), plans.tp, shards)
    return tokens_per_device(job, plans) / shards * _moe(job).top_k * _load(job, plans)


def mask_slots(job: Job, plans: Plans) -> Floats:
    """Entries of a mask over all (token, expert, slot): T E C = c k T², of the plans that have one.

    Returns
    -------
    shape (n_plans,), of one expert layer and micro-batch
    """
    moe = _moe(job)
    per_token = (moe.capacity_factor or 1.0) * moe.top_k
    slots: Floats = plans.is_dispatch(Dispatch.EINSUM) * per_token * _gated_tokens(job, plans) ** 2
    return slots


def mask_bytes(job: Job, plans: Plans) -> Floats:
    """What those masks keep for the backward pass: fp32 weights, their gate's copy and a bool, 9 T E C."""
    return MASK_BYTES * mask_slots(job, plans)


def combined_wider_bytes(job: Job) -> float:
    """Bytes by which a combined entry is wider in fp32 than in the workload's precision."""
    return FP32_BYTES - entry_bytes(job.workload.precision)


def routing_s(job: Job, plans: Plans) -> Floats:
    """Seconds of moving tokens into slots and back by products with masks: 2 of 2 c k T² h FLOPs.

    Source
    ------
    Rajbhandari et al. (2022), arXiv:2201.05596, section 5.4: the einsums' cost is S E M C_e, most of it
    multiplications by zero.
    """
    masked = plans.is_dispatch(Dispatch.EINSUM)
    if not masked.any():
        return np.zeros(len(plans))
    moe, tokens = _moe(job), _gated_tokens(job, plans)
    slots = np.maximum((moe.capacity_factor or 1.0) * moe.top_k * tokens, 1.0)
    product_s = gemm_s(job, slots, np.full(len(plans), float(job.model.d_model)), tokens)
    traffic = job.trainer.traffic.value * MASK_TRAFFIC_BYTES * slots * tokens
    return np.where(masked, 2 * product_s + memory_bound_s(job, traffic), 0.0)


def routing_operations(plans: Plans) -> Floats:
    """Operations that a way of sending adds to a layer's forward pass, counted in the programs' code.

        einsum          40: top-k gating with masks, their casts, two einsums
        padded          20: gating, encoding and decoding
        padding-free    28 + e: gating, indices, sizes exchanged and read by the host, a piece from each rank

    Source
    ------
    DeepSpeed 0.19.8, deepspeed/moe/sharded_moe.py; X-MoE, deepspeed/moe/moe_v2.py, MOEv2Layer.forward.
    """
    counted = 40.0 * plans.is_dispatch(Dispatch.EINSUM) + 20.0 * plans.is_dispatch(Dispatch.PADDED)
    free: Floats = counted + (28.0 + plans.ep) * plans.is_dispatch(Dispatch.PADDING_FREE)
    return free


def exchange_line(job: Job, plans: Plans) -> Line:
    """One all-to-all over ep: every copy alone, once into each node and device, or by way of the nodes.

    A trainer passes a token's copies on inside the node as they come (DeepEP), or once all have come (X-MoE).
    """
    cluster, moe = job.cluster, _moe(job)
    members = mesh.ep_members(cluster, plans)
    line = all_to_all_line(cluster, plans.ep, members)
    if not (plans.deduplicate_ep.any() or plans.hierarchical_ep.any()):
        return line
    inside = mesh.n_node_tiers(cluster)

    def sent_share(domains: Floats) -> Floats:
        return deduplicated_share(moe, domains)

    if plans.deduplicate_ep.any():
        if framework_named(job.workload.framework).experts.copies_afterwards:
            once = afterwards_line(cluster, plans.ep, members, inside, sent_share)
        else:
            once = all_to_all_line(cluster, plans.ep, members, sent_share)
        line = _where(plans.deduplicate_ep & ~plans.hierarchical_ep, once, line)
    if plans.hierarchical_ep.any():
        by_node = hierarchical_line(cluster, plans.ep, members, inside)
        line = _where(plans.hierarchical_ep, by_node, line)
        both = plans.hierarchical_ep & plans.deduplicate_ep
        if both.any():
            line = _where(both, hierarchical_line(cluster, plans.ep, members, inside, sent_share), line)
    return line


def regroup_s(job: Job, plans: Plans, sent_bytes: Floats) -> Floats:
    """Seconds of picking the copies that travel and laying out the others behind, for one exchange."""
    traffic_share = job.trainer.regroup_traffic
    if traffic_share is None or not plans.deduplicate_ep.any():
        return np.zeros(len(plans))
    traffic = traffic_share.value * sent_bytes
    return np.where(plans.deduplicate_ep, memory_bound_s(job, traffic), 0.0)


def _where(chosen: Bools, one: Line, other: Line) -> Line:
    return Line(
        latency_s=np.where(chosen, one.latency_s, other.latency_s),
        s_per_byte=np.where(chosen, one.s_per_byte, other.s_per_byte),
    )


def _gated_tokens(job: Job, plans: Plans) -> Floats:
    """Tokens for which a device chooses experts: T / s_p; what is dropped is dropped behind the choice."""
    return tokens_per_device(job, plans) / sequence_shards(plans)


def _load(job: Job, plans: Plans) -> Floats | float:
    """Copies that the hottest device gets over the mean without padding."""
    capacity, imbalance = _moe(job).capacity_factor, imbalance_of(job, plans)
    if capacity is None:
        return imbalance
    routed = plans.is_dispatch(Dispatch.PADDING_FREE)
    return np.where(routed, np.minimum(imbalance, capacity), capacity)


def _moe(job: Job) -> MoeSpec:
    moe = job.model.moe
    assert moe is not None
    return moe
