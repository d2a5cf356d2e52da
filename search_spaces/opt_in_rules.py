"""Rules of knobs that are off unless a user names them: a space without them need not ask most of them."""

import numpy as np

from search_spaces.plan import Bools, CpKind, Dispatch, ExpertTokens, RankOrder, Recompute, Schedule
from search_spaces.rule import (
    Columns,
    Context,
    Rule,
    among,
    chosen,
    opt_in,
    rule,
    runs,
    scale_up_devices,
)


def _dispatch_has_capacity(c: Context, p: Columns) -> Bools:
    held: Bools = chosen(p, Dispatch.PLAIN, "dispatch") | c.model.has_capacity
    return held


def _recompute_stages(c: Context, p: Columns) -> Bools:
    redoes = ~chosen(p, Recompute.NONE, "recompute") | (p["recompute_modules"] > 0)
    held: Bools = (p["recompute_stages"] == 0) | (
        redoes & (p["recompute_stages"] < p["pp"]) & runs(p, Schedule.ONE_F_ONE_B, Schedule.GPIPE)
    )
    return held


def _buckets_are_the_trainers(c: Context, p: Columns) -> Bools:
    update = c.framework.update
    held: Bools = (p["offload_bucket"] == 0) | (
        p["offload_optimizer"].astype(bool) & update.sets_offload_bucket
    )
    return held


def _coalesces(c: Context, p: Columns) -> Bools:
    """Pieces of a reduction are updated as they arrive: all of one step's, which nothing else hides."""
    in_buckets = (p["offload_bucket"] > 0) | (c.framework.update.offload_bucket > 0)
    once = (p["zero"] == 0) & (p["dp"] * p["cp"] > 1) & ~p["overlap_dp"].astype(bool)
    held: Bools = (p["coalesced_buckets"] == 0) | (p["offload_optimizer"].astype(bool) & in_buckets & once)
    return held


def _tokens_are_sent(c: Context, p: Columns) -> Bools:
    needs = (p["tp"] > 1) & ~p["sequence_parallel"].astype(bool) & (c.model.moe is not None)
    whole_or_split = (p["etp"] == 1) | (p["etp"] == p["tp"])
    held: Bools = chosen(p, ExpertTokens.SHARDED, "expert_tokens") | (needs & whole_or_split)
    return held


def _zero_plus(p: Columns) -> Bools:
    """Where ZeRO-3 moves fewer bytes: 8-bit weights, 4-bit gradients, or weights near at hand."""
    bits = (p["quantized_weights"] | p["quantized_gradients"]).astype(bool)
    return bits | (p["hpz"] > 1)


def _second_shards(c: Context, p: Columns) -> Bools:
    """A second copy needs more sharers than one of its groups, and so do experts' own replicas."""
    sharers = p["dp"] * p["cp"]
    held: Bools = (sharers % p["hpz"] == 0) & (p["hpz"] < sharers)
    if c.model.moe is not None:
        held &= p["tp"] * sharers // (p["etp"] * p["ep"]) % p["hpz"] == 0
    held |= p["hpz"] == 1
    return held


def _near_at_hand(c: Context, p: Columns) -> Bools:
    """Its members sit side by side, in whole groups to a node or to a scale-up domain."""
    reach = p["tp"] * p["hpz"]
    inside = (c.cluster.devices_per_node % reach == 0) | (scale_up_devices(c) % reach == 0)
    held: Bools = (p["hpz"] == 1) | (inside & chosen(p, RankOrder.TP_CP_DP_PP, "rank_order"))
    return held


def _chunks_divide(c: Context, p: Columns) -> Bools:
    """Whole chunks, more than one; an MLP takes half of one at a time, and each rank its share of that."""
    chunk = np.maximum(p["sequence_chunk"], 1)
    fits = (c.workload.seq_len % chunk == 0) & (chunk < c.workload.seq_len) & (chunk % (2 * p["cp"]) == 0)
    held: Bools = (p["sequence_chunk"] == 0) | fits
    return held


def _power_cap(c: Context, p: Columns) -> Bools:
    device, cap = c.cluster.device, p["power_cap_w"]
    lowest_w = device.draws.lowest_cap_share.value * device.power_w
    held: Bools = (cap == 0) | ((cap >= lowest_w) & (cap < device.draw_w("compute")))
    return held


OPT_IN_RULES: tuple[Rule, ...] = (
    opt_in("expert_tokens=duplicated and dropped need experts, whole or split as the rest, tp above 1 and no "
          "sequence_parallel", "tp etp expert_tokens sequence_parallel", _tokens_are_sent),
    rule("the framework sends such tokens to its experts", "expert_tokens",
          lambda c, p: among(p["expert_tokens"], c.framework.experts.tokens)),
    opt_in("recompute_stages needs something redone, 1f1b or gpipe, and fewer stages than pp",
          "pp schedule recompute recompute_modules recompute_stages", _recompute_stages),
    opt_in("the framework recomputes on some stages only", "recompute_stages",
          lambda c, p: (p["recompute_stages"] == 0) | c.framework.recompute_stages),
    opt_in("overlap_offload needs offload_optimizer", "offload_optimizer overlap_offload",
          lambda c, p: ~p["overlap_offload"].astype(bool) | p["offload_optimizer"].astype(bool)),
    opt_in("the framework updates an offloaded optimizer beside its passes", "zero overlap_offload",
          lambda c, p: ~p["overlap_offload"].astype(bool)
          | np.isin(p["zero"], c.framework.zero_stages_with_overlapped_offload)),
    opt_in("power_cap_w is 0, or from the device's lowest cap to less than its products draw", "power_cap_w",
          _power_cap),
    opt_in("hierarchical_ep needs ep above 1", "ep hierarchical_ep",
          lambda c, p: (p["ep"] > 1) | ~p["hierarchical_ep"].astype(bool)),
    opt_in("the framework sends one message to a node and hands tokens on inside it", "hierarchical_ep",
          lambda c, p: c.framework.experts.hierarchical | ~p["hierarchical_ep"].astype(bool)),
    opt_in("migrate_every needs ep above 1 and an expert_imbalance above 1", "ep migrate_every",
          lambda c, p: (p["migrate_every"] == 0) | ((p["ep"] > 1) & (c.workload.expert_imbalance > 1))),
    opt_in("the framework moves experts while it trains", "migrate_every",
          lambda c, p: (p["migrate_every"] == 0) | c.framework.experts.migrates),
    opt_in("dispatch is set only for a model with a capacity_factor: without one nothing is padded",
          "dispatch", _dispatch_has_capacity),
    rule("the framework sends tokens to experts of limited capacity in this way (dispatch)", "dispatch",
          lambda c, p: among(p["dispatch"], c.framework.experts.dispatches) | (not c.model.has_capacity)),
    opt_in("quantized_weights, hpz above 1 and quantized_gradients need zero=3",
          "zero quantized_weights hpz quantized_gradients",
          lambda c, p: (p["zero"] == 3) | ~_zero_plus(p)),
    opt_in("the framework quantizes what ZeRO-3 moves, or keeps its weights twice",
          "quantized_weights hpz quantized_gradients",
          lambda c, p: c.framework.zero_plus | ~_zero_plus(p)),
    opt_in("hpz divides dp * cp, and the replicas of an expert, and is smaller than dp * cp",
          "tp dp cp ep etp hpz", _second_shards),
    opt_in("tp * hpz divides a node or the scale-up domain, with rank_order=tp-cp-dp-pp",
          "tp hpz rank_order", _near_at_hand),
    opt_in("sequence_chunk needs cp_kind=ulysses with cp above 1", "cp cp_kind sequence_chunk",
          lambda c, p: (p["sequence_chunk"] == 0) | ((p["cp"] > 1) & chosen(p, CpKind.ULYSSES, "cp_kind"))),
    opt_in("sequence_chunk divides seq_len into more than one, and is a multiple of 2 * cp",
          "cp sequence_chunk", _chunks_divide),
    opt_in("sequence_chunk redoes every layer (recompute=full, recompute_every=1)",
          "recompute recompute_every sequence_chunk",
          lambda c, p: (p["sequence_chunk"] == 0)
          | (chosen(p, Recompute.FULL, "recompute") & (p["recompute_every"] == 1))),
    opt_in("sequence_chunk needs a model without experts, and fused attention over all of the sequence",
          "sequence_chunk",
          lambda c, p: (p["sequence_chunk"] == 0)
          | (c.model.moe is None and c.workload.flash_attention and c.model.attention.window is None)),
    opt_in("the framework passes a sequence through a layer in chunks", "sequence_chunk",
          lambda c, p: (p["sequence_chunk"] == 0) | c.framework.chunks_sequences),
    opt_in("offload_sequence needs a sequence_chunk", "sequence_chunk offload_sequence",
          lambda c, p: (p["sequence_chunk"] > 0) | ~p["offload_sequence"].astype(bool)),
    opt_in("offload_checkpoints needs recompute=full", "recompute offload_checkpoints",
          lambda c, p: chosen(p, Recompute.FULL, "recompute") | ~p["offload_checkpoints"].astype(bool)),
    opt_in("the framework keeps inputs of layers on the host", "offload_checkpoints",
          lambda c, p: c.framework.offloads_checkpoints | ~p["offload_checkpoints"].astype(bool)),
    opt_in("keep_received needs recompute=full", "recompute keep_received",
          lambda c, p: ~p["keep_received"].astype(bool) | chosen(p, Recompute.FULL, "recompute")),
    opt_in("the framework recomputes without communication", "keep_received",
          lambda c, p: ~p["keep_received"].astype(bool) | c.framework.keeps_received),
    opt_in("offload_bucket needs offload_optimizer, and a framework that sets it",
          "offload_optimizer offload_bucket", _buckets_are_the_trainers),
    opt_in("coalesced_buckets need an optimizer offloaded in buckets, zero=0, dp * cp above 1 and "
          "no overlap_dp",
          "dp cp zero overlap_dp offload_optimizer offload_bucket coalesced_buckets", _coalesces),
    opt_in("the framework reduces gradients bucket by bucket of its update", "coalesced_buckets",
          lambda c, p: (p["coalesced_buckets"] == 0) | c.framework.update.coalesces),
    opt_in("the framework updates parameters in tiles", "optimizer_tile",
          lambda c, p: (p["optimizer_tile"] == 0) | c.framework.update.tiles),
)  # fmt: skip
