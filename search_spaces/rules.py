"""What makes a plan legal: named rules, vectorised; a rule's name is the sentence a user reads.

A rule tells which knobs it needs, so that it can be applied as soon as those are set.  Two kinds: what must
hold (`must`), and what keeps every plan from appearing twice under other names (`once`): a knob that does
nothing in a plan keeps its neutral value there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from search_spaces.cluster import ClusterSpec
from search_spaces.framework import (
    EndStages,
    ExpertRanks,
    ExpertTensor,
    FrameworkProfile,
    framework_named,
)
from search_spaces.model import ModelSpec
from search_spaces.plan import (
    SPLIT_BACKWARD,
    V_SHAPED,
    Bools,
    CpKind,
    Dispatch,
    ExpertTokens,
    Ints,
    Module,
    OptimizerSync,
    RankOrder,
    Recompute,
    Schedule,
    code,
)
from search_spaces.workload import Workload

Columns = Mapping[str, Ints]
SCALE_UP_BANDWIDTH_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What rules are asked about: the job without its plan."""

    model: ModelSpec
    cluster: ClusterSpec
    workload: Workload

    @property
    def framework(self) -> FrameworkProfile:
        """The trainer's profile."""
        return framework_named(self.workload.framework)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A named condition over some knobs; `holds(context, columns)` has shape (n_plans,).

    `of_opt_in`: it holds wherever the knobs among them that only a user turns on are off, so that a space
    without them need not ask.
    """

    name: str
    knobs: tuple[str, ...]
    holds: Callable[[Context, Columns], Bools | bool]
    of_opt_in: bool = False


def scale_up_devices(context: Context) -> int:
    """Devices of the largest domain whose links keep a fair share of the innermost tier's bandwidth.

    Tensor parallelism is tried up to twice as far: a group over two domains is slow, a wider one hopeless.
    """
    tiers = context.cluster.tiers
    fair = [
        t
        for t in tiers
        if t.bandwidth_bytes_per_s >= SCALE_UP_BANDWIDTH_SHARE * tiers[0].bandwidth_bytes_per_s
    ]
    return max(context.cluster.n_devices if tier.size is None else tier.size for tier in fair)


def _rule(name: str, knobs: str, holds: Callable[[Context, Columns], Bools | bool]) -> Rule:
    return Rule(name=name, knobs=tuple(knobs.split()), holds=holds)


def _opt_in(name: str, knobs: str, holds: Callable[[Context, Columns], Bools | bool]) -> Rule:
    return Rule(name=name, knobs=tuple(knobs.split()), holds=holds, of_opt_in=True)


def _is(p: Columns, value: StrEnum, knob: str) -> Bools:
    held: Bools = p[knob] == code(value)
    return held


def _divides(degree: Ints, whole: int | Ints) -> Bools:
    divides: Bools = whole % degree == 0
    return divides


def _among(column: Ints, values: Sequence[StrEnum]) -> Bools:
    return np.isin(column, [code(value) for value in values])


def _runs(p: Columns, *schedules: Schedule) -> Bools:
    return _among(p["schedule"], schedules)


def _kv_heads_fit(c: Context, p: Columns) -> Bools:
    kv = c.model.attention.n_kv_heads
    held: Bools = (kv % p["tp"] == 0) | (p["tp"] % kv == 0)
    return held


def _mlp_width(c: Context, p: Columns) -> Bools:
    shared = c.model.moe.shared_width if c.model.moe else 0
    has_dense = c.model.n_moe_layers < c.model.n_layers
    dense_fits = (c.model.mlp.width % p["tp"] == 0) | (not has_dense)
    held: Bools = dense_fits & (shared % p["tp"] == 0)
    return held


def _split_exists(c: Context, p: Columns) -> Bools:
    named = (p["first_layers"] > 0).astype(np.int64) + (p["last_layers"] > 0)
    rest = c.model.n_layers - p["first_layers"] - p["last_layers"]
    middle = np.maximum(p["pp"] - named, 1)
    held: Bools = np.where(p["pp"] > named, (rest >= middle) & (rest % middle == 0), rest == 0)
    return held


def _layers_of_stages(c: Context, p: Columns) -> tuple[Ints, Ints, Ints]:
    named = (p["first_layers"] > 0).astype(np.int64) + (p["last_layers"] > 0)
    middle = (c.model.n_layers - p["first_layers"] - p["last_layers"]) // np.maximum(p["pp"] - named, 1)
    first = np.where(p["first_layers"] > 0, p["first_layers"], middle)
    return first, middle, np.where(p["last_layers"] > 0, p["last_layers"], middle)


def _split_is_named_once(c: Context, p: Columns) -> Bools:
    """One layout, one name: with two stages the first names the split, with one there is nothing to name."""
    first, middle, last = _layers_of_stages(c, p)
    names_first, names_last = p["first_layers"] > 0, p["last_layers"] > 0
    differs = (~names_first | (first != middle)) & (~names_last | (last != middle))
    held: Bools = differs & (~names_last | (p["pp"] > 2)) & (~names_first | (p["pp"] > 1))
    return held


def _chunks_are_whole(c: Context, p: Columns) -> Bools:
    first, middle, last = _layers_of_stages(c, p)
    v = p["vpp"]
    held: Bools = (first % v == 0) & (middle % v == 0) & (last % v == 0) & (np.minimum(first, last) >= v)
    return held


def _end_stages_fit(c: Context, p: Columns) -> Bools | bool:
    """What a trainer takes from an end stage comes off that stage's one chunk of a middle one's."""
    if c.framework.end_stages is not EndStages.LIGHTER:
        return True
    first, middle, last = _layers_of_stages(c, p)
    most = np.where(p["pp"] > 2, middle, np.maximum(first, last))
    fewest = most - most // p["vpp"]
    # A V has its first and its last chunk on one stage, which no one lightens twice.
    fewest = np.where(_runs(p, *V_SHAPED), most, fewest)
    held: Bools = (np.maximum(first, last) <= most) & (np.minimum(first, last) >= fewest)
    return held


def _ulysses_heads(c: Context, p: Columns) -> Bools:
    held: Bools = ~_is(p, CpKind.ULYSSES, "cp_kind") | (c.model.attention.n_heads % (p["tp"] * p["cp"]) == 0)
    return held


def _experts(c: Context) -> int:
    return c.model.moe.n_experts if c.model.moe else 1


def _expert_width(c: Context) -> int:
    return c.model.moe.expert_width if c.model.moe else 1


def _expert_tensor(c: Context, p: Columns) -> Bools | bool:
    ability = c.framework.experts.tensor
    if ability is ExpertTensor.ANY or c.model.moe is None:
        return True
    as_the_rest: Bools = p["etp"] == p["tp"]
    whole: Bools = p["etp"] == 1
    if ability is ExpertTensor.TP_OR_WHOLE:
        return as_the_rest | whole
    held: Bools = np.where(p["ep"] > 1, whole, as_the_rest)
    return held


def _has_bias(c: Context) -> bool:
    model = c.model
    has_dense = model.n_moe_layers < model.n_layers
    return model.attention.qkv_bias or model.attention.out_bias or (has_dense and model.mlp.bias)


def _expert_ranks(c: Context, p: Columns) -> Bools | bool:
    ability = c.framework.experts.ranks
    if ability is ExpertRanks.ALL:
        return True
    if ability is ExpertRanks.DP:
        return _divides(p["ep"], p["dp"])
    return _divides(p["ep"], p["tp"] * p["cp"] * np.where(p["zero"] > 0, p["dp"], 1))


def _expert_replicas(c: Context, p: Columns) -> Bools | bool:
    if c.framework.experts.own_replicas_in_any_order or c.model.moe is None:
        return True
    inside = _is(p, RankOrder.TP_CP_PP_DP, "rank_order") & (p["pp"] > 1)
    held: Bools = ~inside | (p["etp"] * p["ep"] == p["tp"] * p["cp"])
    return held


def _dispatch_has_capacity(c: Context, p: Columns) -> Bools:
    capacity = c.model.moe.capacity_factor if c.model.moe else None
    held: Bools = _is(p, Dispatch.PLAIN, "dispatch") | (capacity is not None)
    return held


def _recompute_stages(c: Context, p: Columns) -> Bools:
    redoes = ~_is(p, Recompute.NONE, "recompute") | (p["recompute_modules"] > 0)
    held: Bools = (p["recompute_stages"] == 0) | (
        redoes & (p["recompute_stages"] < p["pp"]) & _runs(p, Schedule.ONE_F_ONE_B, Schedule.GPIPE)
    )
    return held


def _waiting_transfers(c: Context, p: Columns) -> Bools | bool:
    if c.framework.waits_from_pp <= 2:
        return True
    held: Bools = (p["vpp"] == 1) | (p["pp"] >= c.framework.waits_from_pp) | p["overlap_pp"].astype(bool)
    return held


def devices_asked(context: Context, columns: Columns) -> Ints:
    """Devices of the nodes that a plan uses; 0 nodes stand for all of the cluster."""
    nodes = columns["nodes"]
    return np.where(nodes > 0, nodes * context.cluster.devices_per_node, context.cluster.n_devices)


def _n_microbatches(c: Context, p: Columns) -> Ints:
    asked = c.workload.global_batch // (p["micro_batch"] * p["dp"])
    return np.where(p["n_microbatches"] > 0, p["n_microbatches"], asked)


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
    held: Bools = _is(p, ExpertTokens.SHARDED, "expert_tokens") | (needs & whole_or_split)
    return held


def _two_ways_fill(c: Context, p: Columns) -> Bools:
    """Micro-batches enter from both ends in pairs; with fewer than 2 p the order has no steady state."""
    m = _n_microbatches(c, p)
    dualpipe = (p["pp"] % 2 == 0) & (m % 2 == 0)
    held: Bools = ~_runs(p, Schedule.DUALPIPE, Schedule.DUALPIPE_V) | (
        (m >= 2 * p["pp"]) & (dualpipe | ~_runs(p, Schedule.DUALPIPE))
    )
    return held


def _limit_is_named_once(c: Context, p: Columns) -> Bools:
    held: Bools = (p["pipeline_limit"] != p["pp"]) & (p["pipeline_limit"] <= _n_microbatches(c, p))
    return held


def _longer_warmup(c: Context, p: Columns) -> Bools:
    room = _n_microbatches(c, p) - p["pp"]
    held: Bools = (p["extra_warmup"] == 0) | (
        _runs(p, Schedule.ONE_F_ONE_B) & (p["pp"] > 1) & (p["extra_warmup"] <= room)
    )
    return held


def _modules_of(model: ModelSpec) -> int:
    """Bits of the modules that some layer of a model has; an expert layer's `moe` holds its `moe_act`."""
    has = {
        Module.LAYERNORM: True,
        Module.MLP: model.n_moe_layers < model.n_layers,
        Module.MOE: model.moe is not None,
        Module.MOE_ACT: model.moe is not None,
        Module.MLA_UP_PROJ: model.attention.latent is not None,
    }
    return sum(1 << i for i, module in enumerate(Module) if has[module])


def _recompute_every(c: Context, p: Columns) -> Bools:
    layers = -(-c.model.n_layers // (p["pp"] * p["vpp"]))
    held: Bools = (p["recompute_every"] == 1) | (
        _is(p, Recompute.FULL, "recompute") & (p["recompute_every"] <= layers)
    )
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
    held: Bools = (p["hpz"] == 1) | (inside & _is(p, RankOrder.TP_CP_DP_PP, "rank_order"))
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


RULES: tuple[Rule, ...] = (
    _rule("tp divides n_heads", "tp", lambda c, p: c.model.attention.n_heads % p["tp"] == 0),
    _rule("tp divides n_kv_heads or is a multiple of it", "tp", _kv_heads_fit),
    _rule("the framework splits layers", "tp", lambda c, p: (p["tp"] == 1) | c.framework.splits_layers),
    _rule("tp divides d_model", "tp", lambda c, p: c.model.d_model % p["tp"] == 0),
    _rule("tp divides the mlp width", "tp", _mlp_width),
    _rule("pp is at most n_layers", "pp", lambda c, p: p["pp"] <= c.model.n_layers),
    _rule("stages hold whole layers", "pp first_layers last_layers", _split_exists),
    _rule("named stages differ from the middle ones; of two stages only the first is named",
          "pp first_layers last_layers", _split_is_named_once),
    _rule("the framework sets the layers of the first and the last stage", "first_layers last_layers",
          lambda c, p: ((p["first_layers"] == 0) & (p["last_layers"] == 0))
          | (c.framework.end_stages not in (EndStages.EVEN, EndStages.BALANCED))),
    _rule("the framework takes so many layers off an end stage",
          "pp vpp schedule first_layers last_layers", _end_stages_fit),
    _rule("the framework lays tied embeddings on two stages", "pp",
          lambda c, p: (p["pp"] == 1) | c.framework.ties_over_stages | (not c.model.embedding.tied)),
    _rule("the framework trains experts in a pipeline", "pp",
          lambda c, p: (p["pp"] == 1) | c.framework.experts.in_pipeline | (c.model.moe is None)),
    _rule("2 * cp divides seq_len", "cp",
          lambda c, p: (p["cp"] == 1) | _divides(2 * p["cp"], c.workload.seq_len)),
    _rule("the framework splits sequences in this way", "cp cp_kind",
          lambda c, p: (p["cp"] == 1) | _among(p["cp_kind"], c.framework.cp_kinds)),
    _rule("the framework splits sequences beside a pipeline", "pp cp",
          lambda c, p: (p["cp"] == 1) | (p["pp"] == 1) | (not c.framework.cp_alone)),
    _rule("the framework splits sequences beside sequence_parallel", "cp sequence_parallel",
          lambda c, p: (p["cp"] == 1) | ~p["sequence_parallel"].astype(bool) | (not c.framework.cp_alone)),
    _rule("cp_kind is set only with cp above 1", "cp cp_kind",
          lambda c, p: (p["cp"] > 1) | _is(p, CpKind.RING, "cp_kind")),
    _rule("tp * cp divides n_heads with ulysses", "tp cp cp_kind", _ulysses_heads),
    _rule("nodes are at most the cluster's", "nodes",
          lambda c, p: p["nodes"] * c.cluster.devices_per_node <= c.cluster.n_devices),
    _rule("tp * cp * dp * pp is the number of devices", "tp pp cp nodes dp",
          lambda c, p: p["tp"] * p["pp"] * p["cp"] * p["dp"] == devices_asked(c, p)),
    _rule("micro_batch * dp divides the global batch", "dp micro_batch n_microbatches",
          lambda c, p: (p["n_microbatches"] > 0)
          | (c.workload.global_batch % (p["micro_batch"] * p["dp"]) == 0)),
    _rule("micro_batch * n_microbatches * dp is at most the global batch", "dp micro_batch n_microbatches",
          lambda c, p: p["n_microbatches"] * p["micro_batch"] * p["dp"] <= c.workload.global_batch),
    _rule("ep divides n_experts", "ep", lambda c, p: _experts(c) % p["ep"] == 0),
    _rule("etp divides the expert width", "etp", lambda c, p: _expert_width(c) % p["etp"] == 0),
    _rule("the framework splits experts' matrices by this degree", "tp ep etp", _expert_tensor),
    _rule("the framework splits experts' matrices beside linear layers with a bias", "etp",
          lambda c, p: (p["etp"] == 1) | c.framework.experts.split_beside_biases | (not _has_bias(c))),
    _rule("the framework spreads experts over these ranks", "tp cp dp ep zero", _expert_ranks),
    _rule("etp is at most tp", "tp etp", lambda c, p: p["etp"] <= p["tp"]),
    _rule("etp * ep divides tp * cp * dp", "tp cp dp ep etp",
          lambda c, p: (p["tp"] * p["cp"] * p["dp"]) % (p["etp"] * p["ep"]) == 0),
    _rule("vpp divides the layers of every stage", "pp vpp first_layers last_layers", _chunks_are_whole),
    _rule("vpp above 1 goes with the interleaved schedule and the V-shaped ones, and they with it",
          "vpp schedule",
          lambda c, p: (p["vpp"] > 1) == _runs(p, Schedule.INTERLEAVED, *V_SHAPED)),
    _rule("zb-v, v-half, v-min and dualpipe-v hold two chunks a rank (vpp=2)", "vpp schedule",
          lambda c, p: (p["vpp"] == 2) | ~_runs(p, *V_SHAPED)),
    _rule("a schedule other than 1f1b needs pp above 1", "pp schedule",
          lambda c, p: (p["pp"] > 1) | _is(p, Schedule.ONE_F_ONE_B, "schedule")),
    _rule("the framework runs the schedule", "pp schedule",
          lambda c, p: (p["pp"] == 1) | _among(p["schedule"], c.framework.schedules)),
    _rule("interleaving needs pp to divide the micro-batches", "pp dp micro_batch n_microbatches schedule",
          lambda c, p: ~_is(p, Schedule.INTERLEAVED, "schedule") | (_n_microbatches(c, p) % p["pp"] == 0)),
    _rule("dualpipe feeds both ends: pp and the micro-batches are even, and these at least 2 * pp; "
          "dualpipe-v needs as many", "pp dp micro_batch n_microbatches schedule", _two_ways_fill),
    _rule("optimizer_sync=post-validation is set only with zb-h2 and zb-v, which idle without it",
          "schedule optimizer_sync",
          lambda c, p: _is(p, OptimizerSync.BARRIER, "optimizer_sync")
          | _runs(p, Schedule.ZB_H2, Schedule.ZB_V)),
    _rule("the framework can take an optimizer step back in this precision", "optimizer_sync",
          lambda c, p: _is(p, OptimizerSync.BARRIER, "optimizer_sync")
          | (c.workload.precision in c.framework.post_validates_in)),
    _rule("pipeline_limit is set only with the message-driven schedule", "schedule pipeline_limit",
          lambda c, p: (p["pipeline_limit"] == 0) | _runs(p, Schedule.MESSAGE_DRIVEN)),
    _rule("pipeline_limit is at most the micro-batches, and 0 where it would be pp",
          "pp dp micro_batch n_microbatches pipeline_limit", _limit_is_named_once),
    _rule("extra_warmup needs a 1f1b pipeline and pp + extra_warmup micro-batches",
          "pp dp micro_batch n_microbatches schedule extra_warmup", _longer_warmup),
    _rule("the framework lengthens the warm-up of 1f1b", "extra_warmup",
          lambda c, p: (p["extra_warmup"] == 0) | c.framework.warms_up_longer),
    _rule("the framework fills a 1f1b pipeline: at least pp - 1 micro-batches",
          "pp dp micro_batch n_microbatches schedule",
          lambda c, p: (_n_microbatches(c, p) >= p["pp"] - 1) | (not c.framework.fills_pipeline)
          | ~_is(p, Schedule.ONE_F_ONE_B, "schedule")),
    _rule("the framework runs the zero stage", "pp zero",
          lambda c, p: np.where(p["pp"] > 1, np.isin(p["zero"], c.framework.zero_stages_with_pipeline),
                                np.isin(p["zero"], c.framework.zero_stages))),
    _rule("zero above 0 needs dp * cp above 1", "dp cp zero",
          lambda c, p: (p["zero"] == 0) | (p["dp"] * p["cp"] > 1)),
    _rule("sequence_parallel needs tp above 1", "tp sequence_parallel",
          lambda c, p: (p["tp"] > 1) | ~p["sequence_parallel"].astype(bool)),
    _rule("tp * cp divides seq_len with sequence_parallel", "tp cp sequence_parallel",
          lambda c, p: ~p["sequence_parallel"].astype(bool)
          | _divides(p["tp"] * p["cp"], c.workload.seq_len)),
    _rule("experts with tp above 1 need sequence_parallel", "tp expert_tokens sequence_parallel",
          lambda c, p: p["sequence_parallel"].astype(bool) | (p["tp"] == 1) | (c.model.moe is None)
          | ~_is(p, ExpertTokens.SHARDED, "expert_tokens")),
    _rule("expert_tokens=duplicated and dropped need experts, whole or split as the rest, tp above 1 and no "
          "sequence_parallel", "tp etp expert_tokens sequence_parallel", _tokens_are_sent),
    _rule("the framework sends such tokens to its experts", "expert_tokens",
          lambda c, p: _among(p["expert_tokens"], c.framework.experts.tokens)),
    _rule("recompute_every above 1 needs recompute=full and as many layers",
          "pp vpp recompute recompute_every", _recompute_every),
    _rule("the framework recomputes so much", "recompute",
          lambda c, p: _among(p["recompute"], c.framework.recomputes)),
    _rule("the framework recomputes at the zero stage", "zero recompute",
          lambda c, p: _is(p, Recompute.NONE, "recompute")
          | np.isin(p["zero"], c.framework.zero_stages_with_recompute)),
    _rule("the framework recomputes every n-th layer", "recompute_every",
          lambda c, p: (p["recompute_every"] == 1) | c.framework.recompute_every),
    _rule("recompute_modules beside recompute=full have nothing to do", "recompute recompute_modules",
          lambda c, p: (p["recompute_modules"] == 0) | ~_is(p, Recompute.FULL, "recompute")),
    _rule("recompute_stages needs something redone, 1f1b or gpipe, and fewer stages than pp",
          "pp schedule recompute recompute_modules recompute_stages", _recompute_stages),
    _rule("the framework recomputes on some stages only", "recompute_stages",
          lambda c, p: (p["recompute_stages"] == 0) | c.framework.recompute_stages),
    _rule("the framework recomputes modules by name", "recompute_modules",
          lambda c, p: (p["recompute_modules"] == 0) | c.framework.recompute_modules),
    _rule("recompute_modules are those that the model has", "recompute_modules",
          lambda c, p: (p["recompute_modules"] & ~_modules_of(c.model)) == 0),
    _rule("schedules that split the backward pass do not recompute whole layers", "schedule recompute",
          lambda c, p: ~_runs(p, *SPLIT_BACKWARD) | ~_is(p, Recompute.FULL, "recompute")),
    _rule("the framework offloads the optimizer in this precision", "offload_optimizer",
          lambda c, p: ~p["offload_optimizer"].astype(bool)
          | (not c.framework.update.offloads_in) | (c.workload.precision in c.framework.update.offloads_in)),
    _rule("the framework offloads the optimizer at the zero stage", "zero offload_optimizer",
          lambda c, p: ~p["offload_optimizer"].astype(bool)
          | np.isin(p["zero"], c.framework.zero_stages_with_offload)),
    _rule("overlap_offload needs offload_optimizer", "offload_optimizer overlap_offload",
          lambda c, p: ~p["overlap_offload"].astype(bool) | p["offload_optimizer"].astype(bool)),
    _rule("the framework updates an offloaded optimizer beside its passes", "zero overlap_offload",
          lambda c, p: ~p["overlap_offload"].astype(bool)
          | np.isin(p["zero"], c.framework.zero_stages_with_overlapped_offload)),
    _rule("power_cap_w is 0, or from the device's lowest cap to less than its products draw", "power_cap_w",
          _power_cap),
    _rule("overlap_dp needs dp * cp above 1", "dp cp overlap_dp",
          lambda c, p: ~p["overlap_dp"].astype(bool) | (p["dp"] * p["cp"] > 1)),
    _rule("overlap_tp needs sequence_parallel", "sequence_parallel overlap_tp",
          lambda c, p: ~p["overlap_tp"].astype(bool) | p["sequence_parallel"].astype(bool)),
    _rule("the framework overlaps tensor parallelism", "overlap_tp",
          lambda c, p: ~p["overlap_tp"].astype(bool) | c.framework.overlaps_tp),
    _rule("the framework overlaps tensor parallelism beside a split backward pass", "schedule overlap_tp",
          lambda c, p: ~p["overlap_tp"].astype(bool) | c.framework.overlaps_tp_beside_split
          | ~_runs(p, *SPLIT_BACKWARD)),
    _rule("overlap_pp needs two chunks a rank, or dualpipe's two stages", "schedule overlap_pp",
          lambda c, p: ~p["overlap_pp"].astype(bool)
          | _runs(p, Schedule.INTERLEAVED, Schedule.DUALPIPE, *V_SHAPED)),
    _rule("the framework leaves transfers of so short a pipeline unoverlapped", "pp vpp overlap_pp",
          _waiting_transfers),
    _rule("the framework overlaps gradient reduction at the zero stage", "zero overlap_dp",
          lambda c, p: ~p["overlap_dp"].astype(bool)
          | np.isin(p["zero"], c.framework.zero_stages_with_overlap)),
    _rule("overlap_ep and deduplicate_ep need ep above 1", "ep overlap_ep deduplicate_ep",
          lambda c, p: (p["ep"] > 1) | ~(p["overlap_ep"] | p["deduplicate_ep"]).astype(bool)),
    _rule("hierarchical_ep needs ep above 1", "ep hierarchical_ep",
          lambda c, p: (p["ep"] > 1) | ~p["hierarchical_ep"].astype(bool)),
    _rule("the framework sends one message to a node and hands tokens on inside it", "hierarchical_ep",
          lambda c, p: c.framework.experts.hierarchical | ~p["hierarchical_ep"].astype(bool)),
    _rule("migrate_every needs ep above 1 and an expert_imbalance above 1", "ep migrate_every",
          lambda c, p: (p["migrate_every"] == 0) | ((p["ep"] > 1) & (c.workload.expert_imbalance > 1))),
    _rule("the framework moves experts while it trains", "migrate_every",
          lambda c, p: (p["migrate_every"] == 0) | c.framework.experts.migrates),
    _rule("dispatch is set only for a model with a capacity_factor: without one nothing is padded",
          "dispatch", _dispatch_has_capacity),
    _rule("the framework sends tokens in this way", "dispatch",
          lambda c, p: _among(p["dispatch"], c.framework.experts.dispatches)),
    _rule("the framework overlaps expert parallelism", "overlap_ep",
          lambda c, p: c.framework.experts.overlaps | ~p["overlap_ep"].astype(bool)),
    _rule("the framework deduplicates expert parallelism", "deduplicate_ep",
          lambda c, p: c.framework.experts.deduplicates | ~p["deduplicate_ep"].astype(bool)),
    _rule("overlap_ep does not recompute whole layers", "recompute overlap_ep",
          lambda c, p: ~p["overlap_ep"].astype(bool) | ~_is(p, Recompute.FULL, "recompute")),
    _rule("overlap_ep beside a pipeline needs the interleaved schedule, dualpipe or dualpipe-v",
          "pp schedule overlap_ep",
          lambda c, p: ~p["overlap_ep"].astype(bool) | (p["pp"] == 1)
          | _runs(p, Schedule.INTERLEAVED, Schedule.DUALPIPE, Schedule.DUALPIPE_V)),
    _rule("the framework gives experts replicas of their own in this rank order",
          "tp pp cp ep etp rank_order", _expert_replicas),
    _rule("rank_order is set only with dp and pp above 1", "pp dp rank_order",
          lambda c, p: ((p["pp"] > 1) & (p["dp"] > 1)) | _is(p, RankOrder.TP_CP_DP_PP, "rank_order")),
    _rule("the framework lays ranks in this order", "pp dp rank_order",
          lambda c, p: (p["pp"] == 1) | (p["dp"] == 1) | _among(p["rank_order"], c.framework.rank_orders)),
    _opt_in("quantized_weights, hpz above 1 and quantized_gradients need zero=3",
          "zero quantized_weights hpz quantized_gradients",
          lambda c, p: (p["zero"] == 3) | ~_zero_plus(p)),
    _opt_in("the framework quantizes what ZeRO-3 moves, or keeps its weights twice",
          "quantized_weights hpz quantized_gradients",
          lambda c, p: c.framework.zero_plus | ~_zero_plus(p)),
    _opt_in("hpz divides dp * cp, and the replicas of an expert, and is smaller than dp * cp",
          "tp dp cp ep etp hpz", _second_shards),
    _opt_in("tp * hpz divides a node or the scale-up domain, with rank_order=tp-cp-dp-pp",
          "tp hpz rank_order", _near_at_hand),
    _opt_in("sequence_chunk needs cp_kind=ulysses with cp above 1", "cp cp_kind sequence_chunk",
          lambda c, p: (p["sequence_chunk"] == 0) | ((p["cp"] > 1) & _is(p, CpKind.ULYSSES, "cp_kind"))),
    _opt_in("sequence_chunk divides seq_len into more than one, and is a multiple of 2 * cp",
          "cp sequence_chunk", _chunks_divide),
    _opt_in("sequence_chunk redoes every layer (recompute=full, recompute_every=1)",
          "recompute recompute_every sequence_chunk",
          lambda c, p: (p["sequence_chunk"] == 0)
          | (_is(p, Recompute.FULL, "recompute") & (p["recompute_every"] == 1))),
    _opt_in("sequence_chunk needs a model without experts, and fused attention over all of the sequence",
          "sequence_chunk",
          lambda c, p: (p["sequence_chunk"] == 0)
          | (c.model.moe is None and c.workload.flash_attention and c.model.attention.window is None)),
    _opt_in("the framework passes a sequence through a layer in chunks", "sequence_chunk",
          lambda c, p: (p["sequence_chunk"] == 0) | c.framework.chunks_sequences),
    _opt_in("offload_sequence needs a sequence_chunk", "sequence_chunk offload_sequence",
          lambda c, p: (p["sequence_chunk"] > 0) | ~p["offload_sequence"].astype(bool)),
    _opt_in("offload_checkpoints needs recompute=full", "recompute offload_checkpoints",
          lambda c, p: _is(p, Recompute.FULL, "recompute") | ~p["offload_checkpoints"].astype(bool)),
    _opt_in("the framework keeps inputs of layers on the host", "offload_checkpoints",
          lambda c, p: c.framework.offloads_checkpoints | ~p["offload_checkpoints"].astype(bool)),
    _rule("keep_received needs recompute=full", "recompute keep_received",
          lambda c, p: ~p["keep_received"].astype(bool) | _is(p, Recompute.FULL, "recompute")),
    _rule("the framework recomputes without communication", "keep_received",
          lambda c, p: ~p["keep_received"].astype(bool) | c.framework.keeps_received),
    _rule("offload_bucket needs offload_optimizer, and a framework that sets it",
          "offload_optimizer offload_bucket", _buckets_are_the_trainers),
    _rule("coalesced_buckets need an optimizer offloaded in buckets, zero=0, dp * cp above 1 and "
          "no overlap_dp",
          "dp cp zero overlap_dp offload_optimizer offload_bucket coalesced_buckets", _coalesces),
    _rule("the framework reduces gradients bucket by bucket of its update", "coalesced_buckets",
          lambda c, p: (p["coalesced_buckets"] == 0) | c.framework.update.coalesces),
    _rule("the framework always coalesces the buckets of an offloaded optimizer",
          "dp cp offload_optimizer coalesced_buckets",
          lambda c, p: ~p["offload_optimizer"].astype(bool) | (p["coalesced_buckets"] > 0)
          | (p["dp"] * p["cp"] == 1) | (not c.framework.update.always_coalesces)),
    _rule("the framework updates parameters in tiles", "optimizer_tile",
          lambda c, p: (p["optimizer_tile"] == 0) | c.framework.update.tiles),
)  # fmt: skip


def broken_rules(context: Context, columns: Columns) -> list[str]:
    """Names of the rules that the first plan of the columns breaks."""
    broken = []
    for rule in RULES:
        held = rule.holds(context, columns)
        if not (held if isinstance(held, bool) else bool(np.broadcast_to(held, (1,))[0])):
            broken.append(rule.name)
    return broken
