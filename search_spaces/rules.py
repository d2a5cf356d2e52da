"""What makes a plan legal: named rules, vectorised; a rule's name is the sentence a user reads.

A rule tells which knobs it needs, so that it can be applied as soon as those are set.  Two kinds: what must
hold (`must`), and what keeps every plan from appearing twice under other names (`once`): a knob that does
nothing in a plan keeps its neutral value there.
"""

import numpy as np

from search_spaces.framework import (
    EndStages,
    ExpertRanks,
    ExpertTensor,
)
from search_spaces.model import ModelSpec
from search_spaces.opt_in_rules import OPT_IN_RULES
from search_spaces.plan import (
    SPLIT_BACKWARD,
    V_SHAPED,
    Bools,
    CpKind,
    ExpertTokens,
    Ints,
    Module,
    OptimizerSync,
    RankOrder,
    Recompute,
    Schedule,
)
from search_spaces.rule import Columns, Context, Rule, among, chosen, devices_asked, divides, rule, runs


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
    fewest = np.where(runs(p, *V_SHAPED), most, fewest)
    held: Bools = (np.maximum(first, last) <= most) & (np.minimum(first, last) >= fewest)
    return held


def _ulysses_heads(c: Context, p: Columns) -> Bools:
    held: Bools = ~chosen(p, CpKind.ULYSSES, "cp_kind") | (
        c.model.attention.n_heads % (p["tp"] * p["cp"]) == 0
    )
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
        return divides(p["ep"], p["dp"])
    return divides(p["ep"], p["tp"] * p["cp"] * np.where(p["zero"] > 0, p["dp"], 1))


def _expert_replicas(c: Context, p: Columns) -> Bools | bool:
    if c.framework.experts.own_replicas_in_any_order or c.model.moe is None:
        return True
    inside = chosen(p, RankOrder.TP_CP_PP_DP, "rank_order") & (p["pp"] > 1)
    held: Bools = ~inside | (p["etp"] * p["ep"] == p["tp"] * p["cp"])
    return held


def _waiting_transfers(c: Context, p: Columns) -> Bools | bool:
    if c.framework.waits_from_pp <= 2:
        return True
    held: Bools = (p["vpp"] == 1) | (p["pp"] >= c.framework.waits_from_pp) | p["overlap_pp"].astype(bool)
    return held


def _n_microbatches(c: Context, p: Columns) -> Ints:
    asked = c.workload.global_batch // (p["micro_batch"] * p["dp"])
    return np.where(p["n_microbatches"] > 0, p["n_microbatches"], asked)


def _two_ways_fill(c: Context, p: Columns) -> Bools:
    """Micro-batches enter from both ends in pairs; with fewer than 2 p the order has no steady state."""
    m = _n_microbatches(c, p)
    dualpipe = (p["pp"] % 2 == 0) & (m % 2 == 0)
    held: Bools = ~runs(p, Schedule.DUALPIPE, Schedule.DUALPIPE_V) | (
        (m >= 2 * p["pp"]) & (dualpipe | ~runs(p, Schedule.DUALPIPE))
    )
    return held


def _limit_is_named_once(c: Context, p: Columns) -> Bools:
    held: Bools = (p["pipeline_limit"] != p["pp"]) & (p["pipeline_limit"] <= _n_microbatches(c, p))
    return held


def _longer_warmup(c: Context, p: Columns) -> Bools:
    room = _n_microbatches(c, p) - p["pp"]
    held: Bools = (p["extra_warmup"] == 0) | (
        runs(p, Schedule.ONE_F_ONE_B) & (p["pp"] > 1) & (p["extra_warmup"] <= room)
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
        chosen(p, Recompute.FULL, "recompute") & (p["recompute_every"] <= layers)
    )
    return held


RULES: tuple[Rule, ...] = (
    rule("tp divides n_heads", "tp", lambda c, p: c.model.attention.n_heads % p["tp"] == 0),
    rule("tp divides n_kv_heads or is a multiple of it", "tp", _kv_heads_fit),
    rule("the framework splits layers", "tp", lambda c, p: (p["tp"] == 1) | c.framework.splits_layers),
    rule("tp divides d_model", "tp", lambda c, p: c.model.d_model % p["tp"] == 0),
    rule("tp divides the mlp width", "tp", _mlp_width),
    rule("pp is at most n_layers", "pp", lambda c, p: p["pp"] <= c.model.n_layers),
    rule("stages hold whole layers", "pp first_layers last_layers", _split_exists),
    rule("named stages differ from the middle ones; of two stages only the first is named",
          "pp first_layers last_layers", _split_is_named_once),
    rule("the framework sets the layers of the first and the last stage", "first_layers last_layers",
          lambda c, p: ((p["first_layers"] == 0) & (p["last_layers"] == 0))
          | (c.framework.end_stages not in (EndStages.EVEN, EndStages.BALANCED))),
    rule("the framework takes so many layers off an end stage",
          "pp vpp schedule first_layers last_layers", _end_stages_fit),
    rule("the framework lays tied embeddings on two stages", "pp",
          lambda c, p: (p["pp"] == 1) | c.framework.ties_over_stages | (not c.model.embedding.tied)),
    rule("the framework trains experts in a pipeline", "pp",
          lambda c, p: (p["pp"] == 1) | c.framework.experts.in_pipeline | (c.model.moe is None)),
    rule("2 * cp divides seq_len", "cp",
          lambda c, p: (p["cp"] == 1) | divides(2 * p["cp"], c.workload.seq_len)),
    rule("the framework splits sequences in this way", "cp cp_kind",
          lambda c, p: (p["cp"] == 1) | among(p["cp_kind"], c.framework.cp_kinds)),
    rule("the framework splits sequences beside a pipeline", "pp cp",
          lambda c, p: (p["cp"] == 1) | (p["pp"] == 1) | (not c.framework.cp_alone)),
    rule("the framework splits sequences beside sequence_parallel", "cp sequence_parallel",
          lambda c, p: (p["cp"] == 1) | ~p["sequence_parallel"].astype(bool) | (not c.framework.cp_alone)),
    rule("cp_kind is set only with cp above 1", "cp cp_kind",
          lambda c, p: (p["cp"] > 1) | chosen(p, CpKind.RING, "cp_kind")),
    rule("tp * cp divides n_heads with ulysses", "tp cp cp_kind", _ulysses_heads),
    rule("nodes are at most the cluster's", "nodes",
          lambda c, p: p["nodes"] * c.cluster.devices_per_node <= c.cluster.n_devices),
    rule("tp * cp * dp * pp is the number of devices", "tp pp cp nodes dp",
          lambda c, p: p["tp"] * p["pp"] * p["cp"] * p["dp"] == devices_asked(c, p)),
    rule("micro_batch * dp divides the global batch", "dp micro_batch n_microbatches",
          lambda c, p: (p["n_microbatches"] > 0)
          | (c.workload.global_batch % (p["micro_batch"] * p["dp"]) == 0)),
    rule("micro_batch * n_microbatches * dp is at most the global batch", "dp micro_batch n_microbatches",
          lambda c, p: p["n_microbatches"] * p["micro_batch"] * p["dp"] <= c.workload.global_batch),
    rule("ep divides n_experts", "ep", lambda c, p: _experts(c) % p["ep"] == 0),
    rule("etp divides the expert width", "etp", lambda c, p: _expert_width(c) % p["etp"] == 0),
    rule("the framework splits experts' matrices by this degree", "tp ep etp", _expert_tensor),
    rule("the framework splits experts' matrices beside linear layers with a bias", "etp",
          lambda c, p: (p["etp"] == 1) | c.framework.experts.split_beside_biases | (not _has_bias(c))),
    rule("the framework spreads experts over these ranks", "tp cp dp ep zero", _expert_ranks),
    rule("etp is at most tp", "tp etp", lambda c, p: p["etp"] <= p["tp"]),
    rule("etp * ep divides tp * cp * dp", "tp cp dp ep etp",
          lambda c, p: (p["tp"] * p["cp"] * p["dp"]) % (p["etp"] * p["ep"]) == 0),
    rule("vpp divides the layers of every stage", "pp vpp first_layers last_layers", _chunks_are_whole),
    rule("vpp above 1 goes with the interleaved schedule and the V-shaped ones, and they with it",
          "vpp schedule",
          lambda c, p: (p["vpp"] > 1) == runs(p, Schedule.INTERLEAVED, *V_SHAPED)),
    rule("zb-v, v-half, v-min and dualpipe-v hold two chunks a rank (vpp=2)", "vpp schedule",
          lambda c, p: (p["vpp"] == 2) | ~runs(p, *V_SHAPED)),
    rule("a schedule other than 1f1b needs pp above 1", "pp schedule",
          lambda c, p: (p["pp"] > 1) | chosen(p, Schedule.ONE_F_ONE_B, "schedule")),
    rule("the framework runs the schedule", "pp schedule",
          lambda c, p: (p["pp"] == 1) | among(p["schedule"], c.framework.schedules)),
    rule("interleaving needs pp to divide the micro-batches", "pp dp micro_batch n_microbatches schedule",
          lambda c, p: ~chosen(p, Schedule.INTERLEAVED, "schedule") | (_n_microbatches(c, p) % p["pp"] == 0)),
    rule("dualpipe feeds both ends: pp and the micro-batches are even, and these at least 2 * pp; "
          "dualpipe-v needs as many", "pp dp micro_batch n_microbatches schedule", _two_ways_fill),
    rule("optimizer_sync=post-validation is set only with zb-h2 and zb-v, which idle without it",
          "schedule optimizer_sync",
          lambda c, p: chosen(p, OptimizerSync.BARRIER, "optimizer_sync")
          | runs(p, Schedule.ZB_H2, Schedule.ZB_V)),
    rule("the framework can take an optimizer step back in this precision", "optimizer_sync",
          lambda c, p: chosen(p, OptimizerSync.BARRIER, "optimizer_sync")
          | (c.workload.precision in c.framework.post_validates_in)),
    rule("pipeline_limit is set only with the message-driven schedule", "schedule pipeline_limit",
          lambda c, p: (p["pipeline_limit"] == 0) | runs(p, Schedule.MESSAGE_DRIVEN)),
    rule("pipeline_limit is at most the micro-batches, and 0 where it would be pp",
          "pp dp micro_batch n_microbatches pipeline_limit", _limit_is_named_once),
    rule("extra_warmup needs a 1f1b pipeline and pp + extra_warmup micro-batches",
          "pp dp micro_batch n_microbatches schedule extra_warmup", _longer_warmup),
    rule("the framework lengthens the warm-up of 1f1b", "extra_warmup",
          lambda c, p: (p["extra_warmup"] == 0) | c.framework.warms_up_longer),
    rule("the framework fills a 1f1b pipeline: at least pp - 1 micro-batches",
          "pp dp micro_batch n_microbatches schedule",
          lambda c, p: (_n_microbatches(c, p) >= p["pp"] - 1) | (not c.framework.fills_pipeline)
          | ~chosen(p, Schedule.ONE_F_ONE_B, "schedule")),
    rule("the framework runs the zero stage", "pp zero",
          lambda c, p: np.where(p["pp"] > 1, np.isin(p["zero"], c.framework.zero_stages_with_pipeline),
                                np.isin(p["zero"], c.framework.zero_stages))),
    rule("in a pipeline zero=2 is zero=1: gradients are summed whole and reduced once", "pp zero",
          lambda c, p: (p["pp"] == 1) | (p["zero"] != 2)
          | c.framework.shards_by_layer | (not {1, 2} <= set(c.framework.zero_stages_with_pipeline))),
    rule("zero above 0 needs dp * cp above 1", "dp cp zero",
          lambda c, p: (p["zero"] == 0) | (p["dp"] * p["cp"] > 1)),
    rule("sequence_parallel needs tp above 1", "tp sequence_parallel",
          lambda c, p: (p["tp"] > 1) | ~p["sequence_parallel"].astype(bool)),
    rule("tp * cp divides seq_len with sequence_parallel", "tp cp sequence_parallel",
          lambda c, p: ~p["sequence_parallel"].astype(bool)
          | divides(p["tp"] * p["cp"], c.workload.seq_len)),
    rule("experts with tp above 1 need sequence_parallel", "tp expert_tokens sequence_parallel",
          lambda c, p: p["sequence_parallel"].astype(bool) | (p["tp"] == 1) | (c.model.moe is None)
          | ~chosen(p, ExpertTokens.SHARDED, "expert_tokens")),
    rule("recompute_every above 1 needs recompute=full and as many layers",
          "pp vpp recompute recompute_every", _recompute_every),
    rule("the framework recomputes so much", "recompute",
          lambda c, p: among(p["recompute"], c.framework.recomputes)),
    rule("the framework recomputes at the zero stage", "zero recompute",
          lambda c, p: chosen(p, Recompute.NONE, "recompute")
          | np.isin(p["zero"], c.framework.zero_stages_with_recompute)),
    rule("the framework recomputes every n-th layer", "recompute_every",
          lambda c, p: (p["recompute_every"] == 1) | c.framework.recompute_every),
    rule("recompute_modules beside recompute=full have nothing to do", "recompute recompute_modules",
          lambda c, p: (p["recompute_modules"] == 0) | ~chosen(p, Recompute.FULL, "recompute")),
    rule("the framework recomputes modules by name", "recompute_modules",
          lambda c, p: (p["recompute_modules"] == 0) | c.framework.recompute_modules),
    rule("recompute_modules are those that the model has", "recompute_modules",
          lambda c, p: (p["recompute_modules"] & ~_modules_of(c.model)) == 0),
    rule("schedules that split the backward pass do not recompute whole layers", "schedule recompute",
          lambda c, p: ~runs(p, *SPLIT_BACKWARD) | ~chosen(p, Recompute.FULL, "recompute")),
    rule("the framework offloads the optimizer in this precision", "offload_optimizer",
          lambda c, p: ~p["offload_optimizer"].astype(bool)
          | (not c.framework.update.offloads_in) | (c.workload.precision in c.framework.update.offloads_in)),
    rule("the framework offloads the optimizer at the zero stage", "zero offload_optimizer",
          lambda c, p: ~p["offload_optimizer"].astype(bool)
          | np.isin(p["zero"], c.framework.zero_stages_with_offload)),
    rule("overlap_dp needs dp * cp above 1", "dp cp overlap_dp",
          lambda c, p: ~p["overlap_dp"].astype(bool) | (p["dp"] * p["cp"] > 1)),
    rule("overlap_tp needs sequence_parallel", "sequence_parallel overlap_tp",
          lambda c, p: ~p["overlap_tp"].astype(bool) | p["sequence_parallel"].astype(bool)),
    rule("the framework overlaps tensor parallelism", "overlap_tp",
          lambda c, p: ~p["overlap_tp"].astype(bool) | c.framework.overlaps_tp),
    rule("the framework overlaps tensor parallelism beside a split backward pass", "schedule overlap_tp",
          lambda c, p: ~p["overlap_tp"].astype(bool) | c.framework.overlaps_tp_beside_split
          | ~runs(p, *SPLIT_BACKWARD)),
    rule("overlap_pp needs two chunks a rank, or dualpipe's two stages", "schedule overlap_pp",
          lambda c, p: ~p["overlap_pp"].astype(bool)
          | runs(p, Schedule.INTERLEAVED, Schedule.DUALPIPE, *V_SHAPED)),
    rule("the framework leaves transfers of so short a pipeline unoverlapped", "pp vpp overlap_pp",
          _waiting_transfers),
    rule("the framework always overlaps gradient reduction (overlap_dp)", "dp cp overlap_dp",
          lambda c, p: p["overlap_dp"].astype(bool) | (p["dp"] * p["cp"] == 1)
          | (not c.framework.always_overlaps_dp)),
    rule("the framework overlaps gradient reduction at the zero stage", "zero overlap_dp",
          lambda c, p: ~p["overlap_dp"].astype(bool)
          | np.isin(p["zero"], c.framework.zero_stages_with_overlap)),
    rule("overlap_ep and deduplicate_ep need ep above 1", "ep overlap_ep deduplicate_ep",
          lambda c, p: (p["ep"] > 1) | ~(p["overlap_ep"] | p["deduplicate_ep"]).astype(bool)),
    rule("the framework overlaps expert parallelism", "overlap_ep",
          lambda c, p: c.framework.experts.overlaps | ~p["overlap_ep"].astype(bool)),
    rule("the framework deduplicates expert parallelism", "deduplicate_ep",
          lambda c, p: c.framework.experts.deduplicates | ~p["deduplicate_ep"].astype(bool)),
    rule("overlap_ep does not recompute whole layers", "recompute overlap_ep",
          lambda c, p: ~p["overlap_ep"].astype(bool) | ~chosen(p, Recompute.FULL, "recompute")),
    rule("overlap_ep beside a pipeline needs the interleaved schedule, dualpipe or dualpipe-v",
          "pp schedule overlap_ep",
          lambda c, p: ~p["overlap_ep"].astype(bool) | (p["pp"] == 1)
          | runs(p, Schedule.INTERLEAVED, Schedule.DUALPIPE, Schedule.DUALPIPE_V)),
    rule("the framework gives experts replicas of their own in this rank order",
          "tp pp cp ep etp rank_order", _expert_replicas),
    rule("rank_order is set only with dp and pp above 1", "pp dp rank_order",
          lambda c, p: ((p["pp"] > 1) & (p["dp"] > 1)) | chosen(p, RankOrder.TP_CP_DP_PP, "rank_order")),
    rule("the framework lays ranks in this order", "pp dp rank_order",
          lambda c, p: (p["pp"] == 1) | (p["dp"] == 1) | among(p["rank_order"], c.framework.rank_orders)),
    rule("the framework always coalesces the buckets of an offloaded optimizer",
          "dp cp offload_optimizer coalesced_buckets",
          lambda c, p: ~p["offload_optimizer"].astype(bool) | (p["coalesced_buckets"] > 0)
          | (p["dp"] * p["cp"] == 1) | (not c.framework.update.always_coalesces)),
    *OPT_IN_RULES,
)  # fmt: skip


def broken_rules(context: Context, columns: Columns) -> list[str]:
    """Names of the rules that the first plan of the columns breaks."""
    broken = []
    for each in RULES:
        held = each.holds(context, columns)
        if not (held if isinstance(held, bool) else bool(np.broadcast_to(held, (1,))[0])):
            broken.append(each.name)
    return broken
