"""One layer, one micro-batch, one device: seconds of its passes.

    T  tokens = b s / c      b  micro_batch    c  cp      t  tp      e  ep      t_e  etp
    h  d_model               a, g, d  query heads, key-value heads, head width
    f  width of an MLP       m  its matrices (2 or 3)       k  top_k      E  n_experts

A pass has three pieces: forward, backward to the input, backward to the weights; each product of the forward
pass appears once in each of the others.  Communication is counted where it is exposed.
"""

from dataclasses import dataclass

import numpy as np

from objectives.cost import mesh
from objectives.cost.collectives import all_gather_s, all_reduce_s, all_to_all_s, reduce_scatter_s
from objectives.cost.dispatch import (
    combined_wider_bytes,
    exchange_line,
    regroup_s,
    routed_tokens,
    routing_s,
    sent_tokens,
)
from objectives.cost.flops import attention_score_flops
from objectives.cost.kernels import (
    attention_s,
    cast_s,
    entry_bytes,
    gemm_s,
    grouped_gemm_s,
    memory_bound_s,
    unfused_attention_s,
)
from objectives.cost.tokens import sequence_shards, tokens_per_device
from objectives.metrics import Job
from search_spaces.model import MlpSpec
from search_spaces.plan import CpKind, Dispatch, ExpertTokens, Floats, Module, Plans
from search_spaces.workload import AttentionFlops, CudaGraphs

ATTENTION_BACKWARD_OVER_FORWARD = 2.5  # five products for two: Dao (2023), arXiv:2307.08691, section 3.1
ROUTING_BACKWARD_OVER_FORWARD = 1.5  # three products for two: the dispatch mask has no gradient


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerCost:
    """Seconds of one layer; every array has shape (n_plans,)."""

    forward_s: Floats
    backward_input_s: Floats
    backward_weight_s: Floats
    core_forward_s: Floats
    modules_forward_s: Floats
    tp_forward_s: Floats
    tp_backward_s: Floats
    cp_forward_s: Floats
    cp_backward_s: Floats
    ep_forward_s: Floats
    ep_backward_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Block:
    """Seconds of one half of a layer; `cast_s` is a mean of both passes."""

    gemm_s: Floats
    cast_s: Floats
    other_s: Floats


def layer_cost(job: Job, plans: Plans, kind: str) -> LayerCost:
    """Seconds of a dense or an expert layer."""
    attention = _attention_block(job, plans)
    mlp = _mlp_block(job, plans, job.model.mlp) if kind == "dense" else _expert_block(job, plans)
    core_s = _attention_core(job, plans)
    tp_forward, tp_backward = _tp_comm(job, plans, kind, attention.gemm_s + mlp.gemm_s)
    cp_forward, cp_backward = _cp_comm(job, plans, core_s)
    gemm, cast = attention.gemm_s + mlp.gemm_s, attention.cast_s + mlp.cast_s
    routing = routing_s(job, plans) if kind == "moe" else 0.0
    ep_forward, ep_backward = (
        _ep_comm(job, plans, gemm, core_s) if kind == "moe" else (0.0 * gemm, 0.0 * gemm)
    )
    other = attention.other_s + mlp.other_s
    redone = _half_chunks_s(job, plans, mlp)
    return LayerCost(
        forward_s=gemm + cast + core_s + other + routing,
        backward_input_s=gemm
        + cast
        + ATTENTION_BACKWARD_OVER_FORWARD * core_s
        + 2 * other
        + ROUTING_BACKWARD_OVER_FORWARD * routing
        + redone,
        backward_weight_s=gemm,
        core_forward_s=core_s,
        modules_forward_s=_modules_s(job, plans, kind, mlp, ep_forward),
        tp_forward_s=tp_forward,
        tp_backward_s=tp_backward,
        cp_forward_s=cp_forward,
        cp_backward_s=cp_backward,
        ep_forward_s=ep_forward,
        ep_backward_s=ep_backward,
    )


def _half_chunks_s(job: Job, plans: Plans, mlp: _Block) -> Floats | float:
    """Seconds of the MLP's first products, which its backward pass in half chunks does again."""
    if not plans.sequence_chunk.any():
        return 0.0
    n = job.model.mlp.n_matrices
    return (plans.sequence_chunk > 0) * mlp.gemm_s * (n - 1) / n


def _modules_s(job: Job, plans: Plans, kind: str, mlp: _Block, ep_forward: Floats) -> Floats:
    """Seconds of the modules that a plan redoes by name, in one layer.

    An MLP redoes all of itself, experts their exchange too; norms read and write T h twice; an activation
    its factors and product; latent attention's up-projections their two products.
    """
    if not plans.recompute_modules.any():
        return np.zeros(len(plans))
    tokens, traffic = tokens_per_device(job, plans), job.trainer.traffic.value
    entry, h = entry_bytes(job.workload.precision), job.model.d_model
    again = plans.redoes(Module.LAYERNORM) * memory_bound_s(
        job, traffic * entry * tokens * 4 * h / sequence_shards(plans)
    )
    whole = mlp.gemm_s + mlp.cast_s + mlp.other_s
    if kind == "dense":
        again += plans.redoes(Module.MLP) * whole
    elif job.model.moe is not None:
        width = job.model.moe.n_matrices * np.ceil(job.model.moe.expert_width / plans.etp)
        act = _expert_traffic(job) * memory_bound_s(job, entry * routed_tokens(job, plans) * width)
        again += np.where(plans.redoes(Module.MOE), whole + ep_forward, plans.redoes(Module.MOE_ACT) * act)
    if job.model.attention.latent is not None:
        again += plans.redoes(Module.MLA_UP_PROJ) * _up_projections_s(job, plans, tokens)
    return again


def _up_projections_s(job: Job, plans: Plans, tokens: Floats) -> Floats:
    """Seconds of latent attention's two products from its ranks up to the heads."""
    latent = job.model.attention.latent
    assert latent is not None
    heads = np.ceil(job.model.attention.n_heads / plans.tp)
    query = heads * (latent.qk_nope_head_dim + latent.qk_rope_head_dim)
    key_value = heads * (latent.qk_nope_head_dim + latent.v_head_dim)
    seconds = gemm_s(job, tokens, query, float(latent.q_lora_rank or job.model.d_model))
    return seconds + gemm_s(job, tokens, key_value, float(latent.kv_lora_rank))


def _attention_block(job: Job, plans: Plans) -> _Block:
    """Projections, norms, rotary embedding and residual around the attention core."""
    attention, h = job.model.attention, job.model.d_model
    tokens, shards = tokens_per_device(job, plans), sequence_shards(plans)
    heads = np.ceil(attention.n_heads / plans.tp)
    kv_heads = np.ceil(attention.n_kv_heads / plans.tp)
    value_width = heads * attention.v_head_dim
    qkv_width = heads * attention.head_dim + kv_heads * (attention.head_dim + attention.v_head_dim)
    gemm = _qkv_s(job, plans, tokens, qkv_width) + gemm_s(
        job, tokens, np.full(len(plans), float(h)), value_width
    )
    moved = entry_bytes(job.workload.precision) * tokens * (5 * h / shards + 2 * qkv_width)
    cast = cast_s(job, tokens * (h / shards + (qkv_width + value_width) / 2))
    return _Block(gemm_s=gemm, cast_s=cast, other_s=_traffic_s(job, moved))


def _traffic_s(job: Job, n_bytes: Floats) -> Floats:
    """Seconds of a trainer's memory-bound kernels from the least bytes that fused ones would move."""
    return job.trainer.traffic.value * memory_bound_s(job, n_bytes)


def _qkv_s(job: Job, plans: Plans, tokens: Floats, qkv_width: Floats) -> Floats:
    """Query, key and value projections; latent attention goes down to its ranks and up per head."""
    h = float(job.model.d_model)
    latent = job.model.attention.latent
    if latent is None:
        return gemm_s(job, tokens, qkv_width, h)
    down = np.full(
        len(plans), float((latent.q_lora_rank or 0) + latent.kv_lora_rank + latent.qk_rope_head_dim)
    )
    return gemm_s(job, tokens / sequence_shards(plans), down, h) + _up_projections_s(job, plans, tokens)


def _attention_core(job: Job, plans: Plans) -> Floats:
    """Seconds of the scores and their product with the values.

    A fused kernel does only the causal half; an unfused one does the whole square.
    """
    model, workload = job.model, job.workload
    s = workload.seq_len
    counting = AttentionFlops.CAUSAL if workload.flash_attention else AttentionFlops.FULL
    per_layer = [attention_score_flops(model, s, window, counting) for window in model.window_of_layer]
    share = plans.micro_batch / (plans.tp * plans.cp)
    flops = share * (sum(per_layer) / model.n_layers)
    rows = share * model.attention.n_heads * float(s)
    if workload.flash_attention:
        return _with_open_ring(job, plans, attention_s(job, flops), rows)
    seconds = unfused_attention_s(job, flops)
    return seconds + memory_bound_s(job, job.nature.score_traffic_bytes.value * rows * s)


def _with_open_ring(job: Job, plans: Plans, fused_s: Floats, rows: Floats) -> Floats:
    """The attention core where a trainer's ring stores the scores of each of its blocks.

    Of s / c tokens a rank computes its own block whole and half of every other: (c + 1) / 2 squares.
    """
    score_bytes = job.trainer.ring_score_bytes
    if score_bytes is None:
        return fused_s
    scores = rows * (job.workload.seq_len / plans.cp) * (plans.cp + 1) / 2
    width = job.model.attention.head_dim + job.model.attention.v_head_dim
    seconds = unfused_attention_s(job, 2.0 * scores * width)
    seconds = seconds + memory_bound_s(job, score_bytes.value * scores)
    return np.where(plans.is_cp(CpKind.RING), seconds, fused_s)


def _mlp_block(job: Job, plans: Plans, mlp: MlpSpec) -> _Block:
    """A feed-forward block every token passes: m products, its activation function, norm and residual."""
    h = float(job.model.d_model)
    tokens, shards = tokens_per_device(job, plans), sequence_shards(plans)
    width = np.ceil(mlp.width / plans.tp)
    up = gemm_s(job, tokens, (mlp.n_matrices - 1) * width, h)
    down = gemm_s(job, tokens, np.full(len(plans), h), width)
    moved = entry_bytes(job.workload.precision) * tokens * (5 * h / shards + mlp.n_matrices * width)
    cast = cast_s(job, tokens * (h / shards + mlp.n_matrices * width / 2))
    return _Block(gemm_s=up + down, cast_s=cast, other_s=_traffic_s(job, moved))


def _expert_block(job: Job, plans: Plans) -> _Block:
    """Routed experts as one grouped product each way, shared experts as a dense MLP, and the permutations."""
    h = float(job.model.d_model)
    moe = job.model.moe
    assert moe is not None
    local = moe.n_experts / plans.ep
    routed, width = routed_tokens(job, plans), np.ceil(moe.expert_width / plans.etp)
    rows = np.maximum(routed / local, 1.0)
    up = grouped_gemm_s(job, rows, (moe.n_matrices - 1) * width, h, local)
    down = grouped_gemm_s(job, rows, np.full(len(plans), h), width, local)
    moved = entry_bytes(job.workload.precision) * routed * (4 * h + moe.n_matrices * width)
    moved = moved + plans.is_dispatch(Dispatch.PADDED) * combined_wider_bytes(job) * 2 * routed * h
    shared = _shared_block(job, plans)
    return _Block(
        gemm_s=up + down + shared.gemm_s,
        cast_s=_expert_cast_s(job, routed * (h + moe.n_matrices * width / 2)) + shared.cast_s,
        other_s=_expert_traffic(job) * memory_bound_s(job, moved) + shared.other_s,
    )


def _expert_traffic(job: Job) -> float:
    """Bytes that routed experts' memory-bound kernels move over the least: 1 where they are fused."""
    return 1.0 if _experts_are_fused(job) else job.trainer.expert_traffic.value


def _expert_cast_s(job: Job, entries: Floats) -> Floats:
    """Seconds of casting what experts read; fused kernels write the narrow format to begin with."""
    return np.zeros_like(entries) if _experts_are_fused(job) else cast_s(job, entries)


def _experts_are_fused(job: Job) -> bool:
    return job.workload.cuda_graphs is CudaGraphs.STEP


def _shared_block(job: Job, plans: Plans) -> _Block:
    """What every token passes beside the routed experts: norm, router, residual, any shared experts."""
    moe = job.model.moe
    assert moe is not None
    if moe.shared_width:
        return _mlp_block(job, plans, MlpSpec(width=moe.shared_width, n_matrices=moe.n_matrices))
    tokens = tokens_per_device(job, plans) / sequence_shards(plans) * job.model.d_model
    moved = _traffic_s(job, entry_bytes(job.workload.precision) * 5 * tokens)
    return _Block(
        gemm_s=np.zeros(len(plans)),
        cast_s=np.zeros(len(plans)),
        other_s=moved,
    )


def _tp_comm(job: Job, plans: Plans, kind: str, gemm: Floats) -> tuple[Floats, Floats]:
    """Exposed seconds of tensor-parallel collectives, forward and backward.

        without sequence parallelism    2 all-reduces each way
        with it                         2 (all-gather + reduce-scatter) forward; 2 all-gathers more backward

    An expert layer without shared experts has one such pair, its attention's.  Overlapped plans hide up to
    the framework's share of it behind the products it feeds.

    Source
    ------
    Korthikanti et al. (2022), arXiv:2205.05198, section 4.2.2.
    """
    cluster, n = job.cluster, plans.tp
    members = mesh.tp_members(cluster, plans)
    message = sequence_bytes(job, plans)
    moe = job.model.moe
    pairs = 2.0 if kind == "dense" or (moe is not None and moe.shared_width) else 1.0
    reduce_s = all_reduce_s(cluster, n, members, message)
    gather_s = all_gather_s(cluster, n, members, message)
    scatter_s = reduce_scatter_s(cluster, n, members, message)
    forward = pairs * np.where(plans.sequence_parallel, gather_s + scatter_s, reduce_s)
    backward = pairs * np.where(plans.sequence_parallel, 2 * gather_s + scatter_s, reduce_s)
    hides = job.trainer.tp_overlap.value * plans.overlap_tp
    return forward - np.minimum(hides * forward, gemm), backward - np.minimum(hides * backward, 2 * gemm)


def sequence_bytes(job: Job, plans: Plans) -> Floats:
    """One tensor as wide as the model over a rank's tokens: N h entries without context parallelism.

    Megatron-LM's sequence parallelism gathers and scatters four of them in a layer's forward pass, however
    many ranks there are.
    """
    return entry_bytes(job.workload.precision) * tokens_per_device(job, plans) * job.model.d_model


def ulysses_sent_bytes(job: Job, plans: Plans) -> Floats:
    """What a rank sends of one layer's forward pass in Ulysses' all-to-alls: 4 N h / P entries.

    Queries, keys and values on their way in, outputs on their way back; fewer where keys and values have
    fewer heads, which are replicated where P is above their number.

    Source
    ------
    Jacobs et al. (2023), arXiv:2309.14509, section 3.2.
    """
    attention = job.model.attention
    heads, kv_heads = np.ceil(attention.n_heads / plans.tp), np.ceil(attention.n_kv_heads / plans.tp)
    held = heads + np.maximum(kv_heads, np.minimum(plans.cp, heads))
    width = attention.head_dim + attention.v_head_dim
    sent: Floats = entry_bytes(job.workload.precision) * tokens_per_device(job, plans) * held * width
    return sent


def _cp_comm(job: Job, plans: Plans, core_s: Floats) -> tuple[Floats, Floats]:
    """Exposed seconds of context-parallel communication, forward and backward.

        ring      every device sees all keys and values: their whole length through a ring, the
                  trainer's share of it beside the core
        gather    the same bytes before the core, nothing beside them; backward gathers again and reduces
        ulysses   all-to-alls of queries, keys, values and outputs, nothing beside them

    Keys and values are replicated where Ulysses needs more heads than there are.

    Source
    ------
    Liu et al. (2023), arXiv:2310.01889 (ring); Jacobs et al. (2023), arXiv:2309.14509, section 3.2 (Ulysses);
    Grattafiori et al. (2024), arXiv:2407.21783, section 3.3.2 (all-gather).
    """
    if int(plans.cp.max(initial=1)) == 1:
        return np.zeros(len(plans)), np.zeros(len(plans))
    cluster, attention = job.cluster, job.model.attention
    members = mesh.cp_members(cluster, plans)
    tokens = tokens_per_device(job, plans)
    kv_heads = np.ceil(attention.n_kv_heads / plans.tp)
    both_widths = attention.head_dim + attention.v_head_dim
    kv_bytes = entry_bytes(job.workload.precision) * tokens * kv_heads * both_widths
    ring_s = all_gather_s(cluster, plans.cp, members, kv_bytes * plans.cp)
    share = job.trainer.cp_overlap.value
    ring_forward = ring_s - np.minimum(share * ring_s, core_s)
    ring_backward = 2 * ring_s - np.minimum(2 * share * ring_s, ATTENTION_BACKWARD_OVER_FORWARD * core_s)
    ulysses_s = all_to_all_s(cluster, plans.cp, members, ulysses_sent_bytes(job, plans))
    is_ulysses, gathers = plans.is_cp(CpKind.ULYSSES), plans.is_cp(CpKind.ALL_GATHER)
    forward = np.where(gathers, ring_s, ring_forward)
    backward = np.where(gathers, 2 * ring_s, ring_backward)
    return np.where(is_ulysses, ulysses_s, forward), np.where(is_ulysses, ulysses_s, backward)


def _ep_comm(job: Job, plans: Plans, gemm: Floats, core_s: Floats) -> tuple[Floats, Floats]:
    """Exposed seconds of one expert layer's dispatch and combine, forward and backward.

        2 all-to-alls of 2 k T h / s_p bytes over ep, and what `_share_experts_s` adds

    What they cost is in `objectives.cost.dispatch`; with 8 bits one of the two all-to-alls each way carries
    half the bytes.  Overlapped, up to the trainer's share of a pass's exchange
    runs beside another micro-batch's pass the other way.

    Source
    ------
    Lepikhin et al. (2020), arXiv:2006.16668, section 3.3; two per pass: X-MoE, arXiv:2508.13337;
    DeepSeek-V3 (2024), arXiv:2412.19437, sections 3.2 and 3.3.2 (8 bits, overlap of forward and backward).
    """
    sent = entry_bytes(job.workload.precision) * sent_tokens(job, plans) * job.model.d_model
    line = exchange_line(job, plans)
    exchange = line.seconds(sent * (0.5 if job.workload.fp8_dispatch else 1.0)) + line.seconds(sent)
    total = exchange + _share_experts_s(job, plans, sent) + 2 * regroup_s(job, plans, sent)
    hidden = job.trainer.ep_overlap.value * plans.overlap_ep * exchange
    backward_s = 2 * gemm + ATTENTION_BACKWARD_OVER_FORWARD * core_s
    return total - np.minimum(hidden, backward_s), total - np.minimum(hidden, gemm + core_s)


def _share_experts_s(job: Job, plans: Plans, sent: Floats) -> Floats:
    """Seconds, one way, in which tensor-parallel ranks make an expert layer whole around its exchange.

        sharded       1 all-gather, 1 reduce-scatter over etp
        duplicated    1 all-reduce over etp
        dropped       1 all-gather, 1 all-reduce over etp; 1 all-gather over tp, of what came back

    Backward, a dropped token is gathered and a gathered one dropped: as many.

    Source
    ------
    Singh et al. (2023), arXiv:2303.06318; DeepSpeed, moe/sharded_moe.py, MOELayer.forward.
    """
    cluster, etp_members = job.cluster, mesh.etp_members(job.cluster, plans)
    gather = all_gather_s(cluster, plans.etp, etp_members, sent * plans.etp)
    sharded = gather + reduce_scatter_s(cluster, plans.etp, etp_members, sent * plans.etp)
    if not plans.expert_tokens.any():
        return sharded
    dropped = plans.sends_tokens(ExpertTokens.DROPPED)
    outputs = np.where(dropped, sent * plans.etp, sent)
    reduce = all_reduce_s(cluster, plans.etp, etp_members, outputs)
    back = all_gather_s(cluster, plans.tp, mesh.tp_members(cluster, plans), sent * plans.tp)
    duplicated = plans.sends_tokens(ExpertTokens.DUPLICATED)
    return np.where(dropped, gather + reduce + back, np.where(duplicated, reduce, sharded))
