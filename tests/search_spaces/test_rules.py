"""Each rule where it holds and where it does not; a rule names the knobs that it reads."""

from dataclasses import replace

import numpy as np
import pytest

from search_spaces.cluster_presets import load_cluster
from search_spaces.framework import FRAMEWORKS
from search_spaces.knobs import OPT_IN, ORDER, default_splits
from search_spaces.model_presets import load_model
from search_spaces.plan import KNOB_NAMES, Plan, column
from search_spaces.rule import Context
from search_spaces.rules import RULES, broken_rules
from search_spaces.space import RULES_AT, SearchSpace, SpaceSpec
from search_spaces.workload import Workload

OFF = ("tp=2 pp=2 dp=16", "dp=64 zero=3", "cp=8 dp=8 cp_kind=ulysses zero=1 recompute=full",
       "tp=2 dp=32 ep=8 rank_order=tp-cp-pp-dp recompute=full recompute_every=2")  # fmt: skip


def context_of(model="llama-3-70b", n_devices=64, **workload):
    given = Workload(**{"seq_len": 8192, "global_batch": 64, **workload})
    return Context(model=load_model(model), cluster=load_cluster("dgx-h100", n_devices), workload=given)


def columns_of(*plans):
    return {name: column([getattr(plan, name) for plan in plans], name) for name in KNOB_NAMES}


def broken(context, text):
    return broken_rules(context, columns_of(Plan.parse(text)))


TWO_WAYS = (
    "dualpipe feeds both ends: pp and the micro-batches are even, and these at least 2 * pp; "
    "dualpipe-v needs as many"
)
SOME_STAGES = "recompute_stages needs something redone, 1f1b or gpipe, and fewer stages than pp"
LONGER_WARMUP = "extra_warmup needs a 1f1b pipeline and pp + extra_warmup micro-batches"
BIASED = "qwen3-30b-a3b with biases"
HPZ = "hpz divides dp * cp, and the replicas of an expert, and is smaller than dp * cp"
NEAR = "tp * hpz divides a node or the scale-up domain, with rank_order=tp-cp-dp-pp"
WHOLE = "sequence_chunk divides seq_len into more than one, and is a multiple of 2 * cp"
ULYSSES = "cp=8 dp=8 cp_kind=ulysses recompute=full"
LLAMA, MIXTRAL, DEEPSEEK = context_of(), context_of("mixtral-8x7b"), context_of("deepseek-v3")


@pytest.mark.parametrize(
    ("context", "text"),
    [
        (LLAMA, "tp=8 pp=8"),
        (LLAMA, "tp=16 pp=4 sequence_parallel=true"),
        (LLAMA, "tp=8 pp=8 first_layers=9 last_layers=11"),
        (LLAMA, "tp=8 pp=2 dp=4 first_layers=39 zero=1 overlap_dp=true"),
        (LLAMA, "tp=8 cp=8 cp_kind=ulysses"),
        (LLAMA, "tp=8 pp=4 dp=2 vpp=5 schedule=interleaved overlap_pp=true"),
        (MIXTRAL, "dp=64 ep=8 zero=1"),
        (MIXTRAL, "tp=8 dp=8 ep=8 etp=8 sequence_parallel=true"),
        (DEEPSEEK, "pp=16 dp=4 ep=4 first_layers=3 last_layers=2"),
        (context_of(framework="deepspeed"), "tp=8 pp=8"),
        (context_of(framework="megatron-lm"), "tp=8 dp=8 zero=1 offload_optimizer=true"),
        (context_of(framework="torchtitan"), "dp=64 zero=3 overlap_dp=true"),
        (LLAMA, "tp=8 pp=8 vpp=2 schedule=zb-v optimizer_sync=post-validation overlap_pp=true"),
        (LLAMA, "tp=8 pp=8 schedule=dualpipe"),
        (LLAMA, "tp=8 pp=8 vpp=2 schedule=dualpipe-v"),
        (LLAMA, "tp=8 pp=8 schedule=message-driven pipeline_limit=16"),
        (LLAMA, "tp=8 pp=8 extra_warmup=7"),
        (LLAMA, "dp=64 zero=3 quantized_weights=true hpz=8 quantized_gradients=true"),
        (LLAMA, "tp=2 dp=32 zero=3 hpz=4"),
        (LLAMA, "cp=8 dp=8 cp_kind=ulysses zero=3 hpz=8"),
        (MIXTRAL, "dp=64 ep=8 zero=3 hpz=8"),
        (LLAMA, f"{ULYSSES} sequence_chunk=4096 offload_sequence=true offload_checkpoints=true"),
        (context_of(framework="deepspeed"), f"{ULYSSES} zero=3 hpz=8 sequence_chunk=1024"),
        (context_of(framework="torchtitan"), "tp=8 pp=8 vpp=2 schedule=v-min overlap_pp=true"),
        (
            context_of(framework="zero-bubble", precision="fp16"),
            "tp=8 pp=8 schedule=zb-h2 optimizer_sync=post-validation",
        ),
        (context_of(framework="axonn"), "pp=8 dp=8 schedule=message-driven rank_order=tp-cp-pp-dp"),
        (context_of(framework="axonn"), "dp=64"),
    ],
)
def test_a_sound_plan_breaks_no_rule(context, text):
    assert broken(context, text) == []


@pytest.mark.parametrize(
    ("context", "text", "rule"),
    [
        (LLAMA, "tp=32 pp=2 dp=2", "tp * cp * dp * pp is the number of devices"),
        (LLAMA, "tp=7 pp=8", "tp divides n_heads"),
        (context_of("phi-3-mini"), "tp=64", "tp divides n_heads"),
        (LLAMA, "tp=1 pp=64", "stages hold whole layers"),
        (
            LLAMA,
            "tp=8 pp=8 first_layers=10",
            "named stages differ from the middle ones; of two stages only the first is named",
        ),
        (
            LLAMA,
            "tp=8 pp=2 dp=4 last_layers=39",
            "named stages differ from the middle ones; of two stages only the first is named",
        ),
        (
            LLAMA,
            "dp=64 first_layers=80",
            "named stages differ from the middle ones; of two stages only the first is named",
        ),
        (context_of(seq_len=8190), "cp=64", "2 * cp divides seq_len"),
        (
            LLAMA,
            "tp=8 cp=8 cp_kind=ring dp=1 rank_order=tp-cp-pp-dp",
            "rank_order is set only with dp and pp above 1",
        ),
        (LLAMA, "dp=64 cp_kind=ulysses", "cp_kind is set only with cp above 1"),
        (context_of("qwen3-32b"), "cp=32 tp=4 cp_kind=ulysses", "tp * cp divides n_heads with ulysses"),
        (LLAMA, "dp=64 micro_batch=2", "micro_batch * dp divides the global batch"),
        (LLAMA, "dp=64 ep=2", "ep divides n_experts"),
        (MIXTRAL, "dp=64 ep=3", "ep divides n_experts"),
        (MIXTRAL, "dp=64 etp=2", "etp is at most tp"),
        (MIXTRAL, "tp=2 pp=16 dp=2 ep=8", "etp * ep divides tp * cp * dp"),
        (MIXTRAL, "tp=8 dp=8", "experts with tp above 1 need sequence_parallel"),
        (LLAMA, "tp=8 pp=8 vpp=3 schedule=interleaved", "vpp divides the layers of every stage"),
        (
            LLAMA,
            "tp=8 pp=8 vpp=2",
            "vpp above 1 goes with the interleaved schedule and the V-shaped ones, and they with it",
        ),
        (
            LLAMA,
            "tp=8 pp=4 dp=2 vpp=4 schedule=v-half",
            "zb-v, v-half, v-min and dualpipe-v hold two chunks a rank (vpp=2)",
        ),
        (
            LLAMA,
            "tp=8 pp=8 schedule=zb-v",
            "vpp above 1 goes with the interleaved schedule and the V-shaped ones, and they with it",
        ),
        (LLAMA, "tp=8 pp=8 micro_batch=8 schedule=dualpipe", TWO_WAYS),
        (context_of(global_batch=63), "tp=8 pp=8 schedule=dualpipe", TWO_WAYS),
        (LLAMA, "tp=8 pp=5 schedule=dualpipe", TWO_WAYS),
        (context_of(global_batch=15), "tp=8 pp=8 vpp=2 schedule=dualpipe-v", TWO_WAYS),
        (
            LLAMA,
            "tp=8 pp=8 optimizer_sync=post-validation",
            "optimizer_sync=post-validation is set only with zb-h2 and zb-v, which idle without it",
        ),
        (
            LLAMA,
            "tp=8 pp=8 pipeline_limit=4",
            "pipeline_limit is set only with the message-driven schedule",
        ),
        (
            LLAMA,
            "tp=8 pp=8 schedule=message-driven pipeline_limit=8",
            "pipeline_limit is at most the micro-batches, and 0 where it would be pp",
        ),
        (
            LLAMA,
            "tp=8 pp=8 schedule=message-driven pipeline_limit=65",
            "pipeline_limit is at most the micro-batches, and 0 where it would be pp",
        ),
        (LLAMA, "tp=8 pp=8 schedule=gpipe extra_warmup=1", LONGER_WARMUP),
        (LLAMA, "tp=8 pp=8 extra_warmup=57", LONGER_WARMUP),
        (LLAMA, "dp=64 extra_warmup=1", LONGER_WARMUP),
        (
            MIXTRAL,
            "pp=8 dp=8 ep=8 overlap_ep=true",
            "overlap_ep beside a pipeline needs the interleaved schedule, dualpipe or dualpipe-v",
        ),
        (
            MIXTRAL,
            "dp=64 ep=8 dispatch=padding-free",
            "dispatch is set only for a model with a capacity_factor: without one nothing is padded",
        ),
        (MIXTRAL, "dp=64 hierarchical_ep=true", "hierarchical_ep needs ep above 1"),
        (
            MIXTRAL,
            "dp=64 ep=8 migrate_every=10",
            "migrate_every needs ep above 1 and an expert_imbalance above 1",
        ),
        (LLAMA, "pp=8 tp=8 recompute_stages=2", SOME_STAGES),
        (LLAMA, "pp=8 tp=8 recompute=full recompute_stages=8", SOME_STAGES),
        (LLAMA, "pp=8 tp=8 schedule=zb-h1 recompute=selective recompute_stages=2", SOME_STAGES),
        (LLAMA, "dp=64 schedule=gpipe", "a schedule other than 1f1b needs pp above 1"),
        (
            context_of(global_batch=4),
            "tp=8 pp=8 vpp=2 schedule=interleaved",
            "interleaving needs pp to divide the micro-batches",
        ),
        (LLAMA, "tp=8 pp=8 zero=1", "zero above 0 needs dp * cp above 1"),
        (LLAMA, "dp=64 sequence_parallel=true", "sequence_parallel needs tp above 1"),
        (
            context_of(seq_len=8200),
            "tp=16 dp=4 sequence_parallel=true",
            "tp * cp divides seq_len with sequence_parallel",
        ),
        (LLAMA, "dp=64 recompute_every=2", "recompute_every above 1 needs recompute=full and as many layers"),
        (
            LLAMA,
            "tp=8 pp=8 recompute=full schedule=zb-h1",
            "schedules that split the backward pass do not recompute whole layers",
        ),
        (LLAMA, "tp=8 pp=8 overlap_dp=true", "overlap_dp needs dp * cp above 1"),
        (LLAMA, "tp=8 dp=8 overlap_tp=true", "overlap_tp needs sequence_parallel"),
        (
            LLAMA,
            "dp=64 zero=2 quantized_weights=true",
            "quantized_weights, hpz above 1 and quantized_gradients need zero=3",
        ),
        (LLAMA, "dp=64 zero=3 hpz=3", HPZ),
        (LLAMA, "dp=64 zero=3 hpz=64", HPZ),
        (MIXTRAL, "dp=64 ep=8 zero=3 hpz=16", HPZ),
        (LLAMA, "dp=64 zero=3 hpz=16", NEAR),
        (LLAMA, "tp=4 dp=16 zero=3 hpz=4", NEAR),
        (LLAMA, "pp=2 dp=32 zero=3 hpz=8 rank_order=tp-cp-pp-dp", NEAR),
        (
            LLAMA,
            "dp=64 recompute=full sequence_chunk=4096",
            "sequence_chunk needs cp_kind=ulysses with cp above 1",
        ),
        (
            LLAMA,
            "cp=8 dp=8 recompute=full sequence_chunk=4096",
            "sequence_chunk needs cp_kind=ulysses with cp above 1",
        ),
        (LLAMA, f"{ULYSSES} sequence_chunk=8192", WHOLE),
        (LLAMA, f"{ULYSSES} sequence_chunk=3000", WHOLE),
        (LLAMA, f"{ULYSSES} sequence_chunk=8", WHOLE),
        (
            LLAMA,
            "cp=8 dp=8 cp_kind=ulysses sequence_chunk=4096",
            "sequence_chunk redoes every layer (recompute=full, recompute_every=1)",
        ),
        (
            MIXTRAL,
            f"{ULYSSES} sequence_chunk=2048",
            "sequence_chunk needs a model without experts, and fused attention over all of the sequence",
        ),
        (LLAMA, f"{ULYSSES} offload_sequence=true", "offload_sequence needs a sequence_chunk"),
        (LLAMA, "dp=64 offload_checkpoints=true", "offload_checkpoints needs recompute=full"),
        (LLAMA, "tp=8 pp=8 overlap_pp=true", "overlap_pp needs two chunks a rank, or dualpipe's two stages"),
    ],
)
def test_an_unsound_plan_breaks_the_rule_named_for_it(context, text, rule):
    assert rule in broken(context, text)


@pytest.mark.parametrize(
    ("framework", "text", "rule"),
    [
        (
            "deepspeed",
            "tp=8 pp=8 first_layers=9 last_layers=11",
            "the framework sets the layers of the first and the last stage",
        ),
        ("deepspeed", "tp=8 pp=4 dp=2 zero=3", "the framework runs the zero stage"),
        ("deepspeed", "cp=8 dp=8", "the framework splits sequences in this way"),
        (
            "deepspeed",
            "dp=64 offload_optimizer=true",
            "the framework offloads the optimizer at the zero stage",
        ),
        ("deepspeed", "dp=64 recompute=full recompute_every=2", "the framework recomputes every n-th layer"),
        ("deepspeed", "tp=8 pp=4 dp=2 rank_order=tp-cp-pp-dp", "the framework lays ranks in this order"),
        (
            "deepspeed",
            "tp=8 dp=8 sequence_parallel=true overlap_tp=true",
            "the framework overlaps tensor parallelism",
        ),
        ("deepspeed", "dp=64 recompute_modules=mlp", "the framework recomputes modules by name"),
        (
            "nanotron",
            "tp=8 pp=8 micro_batch=16",
            "the framework fills a 1f1b pipeline: at least pp - 1 micro-batches",
        ),
        ("megatron-lm", "tp=8 pp=8 schedule=zb-h1", "the framework runs the schedule"),
        ("torchtitan", "tp=8 pp=8 schedule=dualpipe", "the framework runs the schedule"),
        ("torchtitan", "dp=64 zero=3", "the framework always overlaps gradient reduction (overlap_dp)"),
        ("llm-foundry", "dp=64", "the framework always overlaps gradient reduction (overlap_dp)"),
        (
            "torchtitan",
            "tp=8 pp=8 vpp=2 schedule=v-min",
            "the framework leaves transfers of so short a pipeline unoverlapped",
        ),
        (
            "zero-bubble",
            "tp=8 pp=8 schedule=zb-h2 optimizer_sync=post-validation",
            "the framework can take an optimizer step back in this precision",
        ),
        ("zero-bubble", "tp=8 pp=8 extra_warmup=1", "the framework lengthens the warm-up of 1f1b"),
        ("axonn", "tp=8 dp=8", "the framework splits layers"),
        (
            "torchtitan",
            "tp=8 pp=8 schedule=zb-h1 sequence_parallel=true overlap_tp=true",
            "the framework overlaps tensor parallelism beside a split backward pass",
        ),
        (
            "torchtitan",
            "tp=8 pp=4 dp=2 vpp=2 schedule=v-half first_layers=18 last_layers=18 overlap_dp=true "
            "overlap_pp=true",
            "the framework takes so many layers off an end stage",
        ),
        (
            "megatron-lm",
            "dp=64 zero=3 offload_optimizer=true",
            "the framework offloads the optimizer at the zero stage",
        ),
        ("torchtitan", "dp=64 zero=1 overlap_dp=true", "the framework runs the zero stage"),
        (
            "torchtitan",
            "dp=64 zero=3 offload_optimizer=true overlap_dp=true",
            "the framework offloads the optimizer at the zero stage",
        ),
    ],
)
def test_a_trainer_refuses_what_it_cannot_run(framework, text, rule):
    assert broken(context_of(framework=framework), text) == [rule]
    assert broken(LLAMA, text) == []


@pytest.mark.parametrize(
    ("framework", "model", "text", "rule"),
    [
        (
            "megatron-lm", "llama-3-8b", "pp=2 dp=32 vpp=2 schedule=interleaved",
            "the framework leaves transfers of so short a pipeline unoverlapped",
        ),
        (
            "megatron-lm", "mixtral-8x7b", "pp=2 dp=32 ep=8 rank_order=tp-cp-pp-dp",
            "the framework gives experts replicas of their own in this rank order",
        ),
        (
            "megatron-lm", BIASED, "tp=2 dp=32 etp=2 sequence_parallel=true",
            "the framework splits experts' matrices beside linear layers with a bias",
        ),
        (
            "deepspeed", "llama-3-8b", "pp=2 cp=2 dp=16 cp_kind=ulysses",
            "the framework splits sequences beside a pipeline",
        ),
        (
            "deepspeed", "llama-3-8b", "tp=2 cp=2 dp=16 cp_kind=ulysses sequence_parallel=true",
            "the framework splits sequences beside sequence_parallel",
        ),
        (
            "deepspeed", "llama-3-8b", "dp=64 overlap_dp=true",
            "the framework overlaps gradient reduction at the zero stage",
        ),
        ("deepspeed", "mixtral-8x7b", "pp=2 dp=32", "the framework trains experts in a pipeline"),
        (
            "deepspeed", "mixtral-8x7b", "tp=16 dp=4 ep=8 sequence_parallel=true",
            "the framework spreads experts over these ranks",
        ),
        (
            "deepspeed", "mixtral-8x7b", "tp=4 dp=16 etp=2 sequence_parallel=true",
            "the framework splits experts' matrices by this degree",
        ),
        ("torchtitan", "mixtral-8x7b", "dp=64 ep=8 overlap_dp=true",
         "the framework spreads experts over these ranks"),
        (
            "torchtitan", "mixtral-8x7b", "tp=2 dp=32 zero=2 sequence_parallel=true overlap_dp=true",
            "the framework splits experts' matrices by this degree",
        ),
        (
            "torchtitan", "llama-3-8b", "pp=4 dp=16 first_layers=10 last_layers=6 overlap_dp=true",
            "the framework takes so many layers off an end stage",
        ),
        ("torchtitan", "gpt2", "pp=2 dp=32 overlap_dp=true",
         "the framework lays tied embeddings on two stages"),
    ],
)  # fmt: skip
def test_a_trainer_refuses_what_its_launcher_cannot_say(framework, model, text, rule):
    assert broken(_context_for(model, framework), text) == [rule]
    assert broken(_context_for(model, "any"), text) == []


def _context_for(model, framework):
    context = context_of(model.removesuffix(" with biases"), seq_len=4096, framework=framework)
    if model != BIASED:
        return context
    attention = replace(context.model.attention, qkv_bias=True)
    return replace(context, model=replace(context.model, attention=attention))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_reads_the_knobs_it_names_and_no_others(rule, framework):
    columns = columns_of(Plan(), Plan(tp=2, pp=2, dp=16))
    assert set(rule.knobs) <= set(KNOB_NAMES)
    context = context_of("mixtral-8x7b", framework=framework)
    held = rule.holds(context, {name: columns[name] for name in rule.knobs})
    assert np.broadcast_to(held, (2,)).shape == (2,)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.of_opt_in], ids=lambda rule: rule.name)
def test_a_rule_that_a_space_leaves_out_holds_where_its_knobs_are_off(rule, framework):
    plans = [Plan.parse(text) for text in OFF]
    assert all(getattr(plan, knob) == OPT_IN[knob] for plan in plans for knob in rule.knobs if knob in OPT_IN)
    for model in ("llama-3-70b", "mixtral-8x7b"):
        context = context_of(model, seq_len=8190, flash_attention=False, framework=framework)
        assert np.all(rule.holds(context, columns_of(*plans)))


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("dp=64 zero=3 hpz=8", "the framework quantizes what ZeRO-3 moves, or keeps its weights twice"),
        (f"{ULYSSES} sequence_chunk=4096", "the framework passes a sequence through a layer in chunks"),
        ("dp=64 recompute=full offload_checkpoints=true",
         "the framework keeps inputs of layers on the host"),
    ],
)  # fmt: skip
def test_only_deepspeed_has_them(text, rule):
    refusing = {name for name in FRAMEWORKS if rule in broken(context_of(framework=name), text)}
    assert refusing >= {"megatron-lm", "torchtitan", "llm-foundry", "meshtune"}
    assert not refusing & {"any", "deepspeed"}


def test_a_space_without_the_opt_in_knobs_asks_none_of_their_rules():
    context = context_of()
    space = SearchSpace(context.model, context.cluster, context.workload, SpaceSpec.of({"hpz": [1, 8]}))
    asked = {rule.name for rules in space._rules_at for rule in rules}
    left_out = {rule.name for rule in RULES} - asked
    assert left_out == {rule.name for rule in RULES if rule.of_opt_in and "hpz" not in rule.knobs}


def test_every_rule_is_applied_once_and_has_a_name_of_its_own():
    applied = [rule.name for rules in RULES_AT for rule in rules]
    assert sorted(applied) == sorted({rule.name for rule in RULES})


def test_every_knob_is_enumerated_once():
    knobs = [
        name for knob in ORDER for name in (("first_layers", "last_layers") if knob == "split" else (knob,))
    ]
    assert sorted(knobs) == sorted(KNOB_NAMES)


@pytest.mark.parametrize("pp", [2, 4, 16])
def test_default_splits_pass_the_rules_about_splits(pp):
    context = context_of(n_devices=16)
    rules = [rule for rule in RULES if set(rule.knobs) == {"pp", "first_layers", "last_layers"}]
    plans = columns_of(*(Plan(pp=pp, first_layers=a, last_layers=b) for a, b in default_splits(80, pp)))
    assert all(rule.holds(context, plans).all() for rule in rules)
