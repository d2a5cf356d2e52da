"""What a launcher cannot express is refused by the knob's name; what it can is said in its own words."""

from dataclasses import replace
from itertools import pairwise

import pytest

from runners.launchers import LAUNCHERS, load_launcher
from runners.launchers.base import Options, check_exportable, stage_layers, words
from runners.launchers.deepspeed import engine_config
from runners.launchers.export import export_files
from runners.launchers.megatron_lm import recomputed_per_chunk
from runners.launchers.megatron_model import layer_pattern
from search_spaces.errors import CannotExport, InvalidSpec, UnknownName
from search_spaces.model import NormKind, QkNorm
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan
from tests.runners.launchers.cases import (
    CASES,
    DEEPSEEK_LITE,
    DEEPSEEK_V3,
    GPT_FRONTIER,
    LLAMA_8B,
    LLAMA_70B,
    MEGATRON,
    MIXTRAL,
    QWEN_8B,
    QWEN_MOE,
    X_MOE,
    XMOE_LARGE,
    job,
)

SP = "sequence_parallel=true"
REFUSED = {
    "megatron-lm": [
        (LLAMA_8B, "dp=64 zero=3 quantized_weights=true", "quantized_weights=true"),
        (LLAMA_8B, "dp=64 zero=3 hpz=8", "hpz=8"),
        (LLAMA_8B, "dp=64 zero=3 quantized_gradients=true", "quantized_gradients=true"),
        (LLAMA_8B, "dp=64 zero=3 recompute=full sequence_chunk=4096", "sequence_chunk=4096"),
        (
            LLAMA_8B,
            "dp=64 zero=3 recompute=full sequence_chunk=4096 offload_sequence=true",
            "offload_sequence=true",
        ),
        (LLAMA_8B, "dp=64 zero=3 recompute=full offload_checkpoints=true", "offload_checkpoints=true"),
        (MIXTRAL, "tp=2 dp=32 ep=8 expert_tokens=dropped zero=1", "expert_tokens=dropped"),
        (LLAMA_8B, "dp=64 recompute=full keep_received=true", "keep_received=true"),
        (LLAMA_8B, "dp=64 zero=1 optimizer_tile=1000000", "optimizer_tile=1000000"),
        (LLAMA_8B, "dp=64 zero=1 offload_optimizer=true offload_bucket=8000000", "offload_bucket=8000000"),
        (LLAMA_8B, "dp=64 offload_optimizer=true coalesced_buckets=4", "coalesced_buckets=4"),
        (LLAMA_70B, "tp=8 pp=4 dp=16 schedule=gpipe", "schedule=gpipe"),
        (LLAMA_70B, "tp=8 pp=4 dp=16 schedule=zb-h1", "schedule=zb-h1"),
        (LLAMA_70B, "tp=8 pp=4 dp=16 vpp=5", "schedule=1f1b: vpp=5"),
        (LLAMA_70B, "tp=8 pp=4 dp=16 vpp=2 schedule=v-half", "schedule=v-half"),
        (LLAMA_70B, "tp=8 pp=4 dp=16 extra_warmup=2", "extra_warmup=2"),
        (LLAMA_70B, "tp=8 pp=4 dp=16 vpp=3 schedule=interleaved", "vpp=3"),
        (LLAMA_70B, "tp=8 pp=4 dp=16 first_layers=18", "pp=4"),
        (LLAMA_70B, "tp=8 pp=4 dp=16 zero=3", "zero=3"),
        (LLAMA_8B, "dp=64 offload_optimizer=true", "offload_optimizer=true"),
        (LLAMA_8B, "dp=64 zero=3 offload_optimizer=true", "offload_optimizer=true"),
        (LLAMA_8B, "tp=2 dp=32 overlap_tp=true", "overlap_tp=true"),
        (LLAMA_8B, "pp=2 dp=32 overlap_pp=true", "overlap_pp=true"),
        (LLAMA_8B, "pp=2 dp=32 vpp=2 schedule=interleaved", "overlap_pp=false"),
        (MIXTRAL, "pp=2 dp=32 ep=8 rank_order=tp-cp-pp-dp", "rank_order=tp-cp-pp-dp"),
        (LLAMA_8B, "dp=64 ep=2", "ep=2"),
        (MIXTRAL, "tp=2 dp=32 ep=8", "sequence_parallel=false"),
        (MIXTRAL, "pp=2 dp=32 ep=8 overlap_ep=true", "overlap_ep=true"),
        (MIXTRAL, "dp=64 ep=8 overlap_ep=true recompute=full", "overlap_ep=true"),
        (XMOE_LARGE, "dp=256 ep=64 hierarchical_ep=true", "hierarchical_ep=true"),
        (XMOE_LARGE, "dp=256 ep=64 dispatch=einsum", "dispatch=einsum"),
        (XMOE_LARGE, "dp=256 ep=64 dispatch=padded", "dispatch=padded"),
        (LLAMA_8B, "pp=4 dp=16 recompute=full recompute_stages=2", "recompute_stages=2"),
    ],
    "deepspeed": [
        (LLAMA_8B, "dp=64 zero=2 quantized_weights=true", "quantized_weights=true"),
        (LLAMA_8B, "dp=64 zero=1 hpz=8", "hpz=8"),
        (LLAMA_8B, "dp=64 quantized_gradients=true", "quantized_gradients=true"),
        (LLAMA_8B, "dp=64 zero=3 recompute=full sequence_chunk=4096", "sequence_chunk=4096"),
        (LLAMA_8B, "dp=16 cp=4 cp_kind=ulysses recompute=full sequence_chunk=3000", "sequence_chunk=3000"),
        (
            LLAMA_8B,
            "dp=16 cp=4 cp_kind=ulysses recompute=full offload_sequence=true",
            "offload_sequence=true",
        ),
        (LLAMA_8B, "dp=64 zero=3 offload_checkpoints=true", "offload_checkpoints=true"),
        (MIXTRAL, "tp=2 dp=32 ep=8 expert_tokens=duplicated zero=1", "expert_tokens=duplicated"),
        (MIXTRAL, "tp=2 dp=32 ep=8 recompute=full keep_received=true", "keep_received=true"),
        (LLAMA_8B, "dp=64 zero=1 optimizer_tile=1000000", "optimizer_tile=1000000"),
        (LLAMA_8B, "dp=64 zero=1 offload_optimizer=true offload_bucket=8000000", "offload_bucket=8000000"),
        (LLAMA_8B, "dp=64 offload_optimizer=true coalesced_buckets=4", "coalesced_buckets=4"),
        (GPT_FRONTIER, "tp=4 pp=16 dp=16 zero=2", "zero=2"),
        (GPT_FRONTIER, "tp=4 pp=16 dp=16 schedule=gpipe", "schedule=gpipe"),
        (GPT_FRONTIER, "tp=4 pp=16 dp=16 schedule=message-driven", "schedule=message-driven"),
        (GPT_FRONTIER, "tp=4 pp=16 dp=16 vpp=2 schedule=interleaved", "schedule=interleaved, vpp=2"),
        (GPT_FRONTIER, "tp=4 pp=16 dp=16 schedule=zb-h1 sequence_parallel=true", "sequence_parallel=true"),
        (GPT_FRONTIER, "tp=4 pp=16 dp=16 first_layers=5 last_layers=7", "first_layers=5, last_layers=7"),
        (GPT_FRONTIER, "tp=4 pp=16 dp=16 recompute=full recompute_every=2", "recompute_every=2"),
        (GPT_FRONTIER, "tp=4 pp=16 dp=16 rank_order=tp-cp-pp-dp", "rank_order=tp-cp-pp-dp"),
        (GPT_FRONTIER, "tp=4 pp=16 dp=16 overlap_dp=true", "overlap_dp=true"),
        (GPT_FRONTIER, "tp=4 pp=16 dp=16 overlap_pp=true", "overlap_pp=true"),
        (LLAMA_8B, f"tp=2 dp=32 overlap_tp=true {SP}", "overlap_tp=true"),
        (LLAMA_8B, "dp=16 cp=4", "cp_kind=ring"),
        (MIXTRAL, "dp=64 ep=8 overlap_ep=true deduplicate_ep=true", "overlap_ep=true deduplicate_ep=true"),
        (LLAMA_8B, "pp=2 dp=16 cp=2 cp_kind=ulysses", "cp=2"),
        (LLAMA_8B, "dp=64 offload_optimizer=true", "offload_optimizer=true"),
        (MIXTRAL, "tp=4 dp=16 ep=8 etp=2", "etp=2"),
        (MIXTRAL, "tp=2 pp=2 dp=16 ep=8", "pp=2"),
        (MIXTRAL, "tp=16 dp=4 ep=8", "ep=8"),
        (DEEPSEEK_V3, "tp=2 dp=1024", "attention.latent"),
        (XMOE_LARGE, "dp=256 ep=64 zero=1 dispatch=padding-free", "dispatch=padding-free"),
        (XMOE_LARGE, "dp=256 ep=64 zero=1", "dispatch=plain"),
        (XMOE_LARGE, "dp=256 ep=64 zero=1 hierarchical_ep=true", "hierarchical_ep=true"),
        (GPT_FRONTIER, "tp=4 pp=16 dp=16 recompute=full recompute_stages=3", "recompute_stages=3"),
    ],
    "x-moe": [
        (XMOE_LARGE, "dp=256 ep=64 zero=1 deduplicate_ep=true", "dispatch=plain"),
        (XMOE_LARGE, "dp=256 ep=64 zero=1 dispatch=padded deduplicate_ep=true", "deduplicate_ep=true"),
        (XMOE_LARGE, "dp=256 ep=64 zero=1 hierarchical_ep=true", "hierarchical_ep=true"),
        (XMOE_LARGE, "pp=2 dp=128 ep=64 zero=1", "pp=2"),
        (XMOE_LARGE, "tp=4 dp=64 ep=128 etp=4 zero=1", "ep=128"),
    ],
    "torchtitan": [
        (LLAMA_8B, "pp=4 dp=16 vpp=2 schedule=interleaved overlap_dp=true", "overlap_pp=false"),
        (LLAMA_8B, "dp=64 zero=3", "overlap_dp=false"),
        (LLAMA_8B, "tp=8 cp=8 cp_kind=all-gather", "overlap_dp=false"),
        (MIXTRAL, "dp=64 ep=8 zero=3 dispatch=padding-free", "dispatch=padding-free"),
        (LLAMA_8B, "dp=64 zero=3 quantized_weights=true", "quantized_weights=true"),
        (LLAMA_8B, "dp=64 zero=3 hpz=8", "hpz=8"),
        (LLAMA_8B, "dp=64 zero=3 quantized_gradients=true", "quantized_gradients=true"),
        (LLAMA_8B, "dp=64 zero=3 recompute=full sequence_chunk=4096", "sequence_chunk=4096"),
        (
            LLAMA_8B,
            "dp=64 zero=3 recompute=full sequence_chunk=4096 offload_sequence=true",
            "offload_sequence=true",
        ),
        (LLAMA_8B, "dp=64 zero=3 recompute=full offload_checkpoints=true", "offload_checkpoints=true"),
        (LLAMA_8B, "dp=64 offload_optimizer=true offload_bucket=8000000", "offload_bucket=8000000"),
        (LLAMA_8B, "dp=64 recompute=full keep_received=true", "keep_received=true"),
        (QWEN_MOE, "tp=2 dp=32 ep=8 expert_tokens=dropped zero=3", "expert_tokens=dropped"),
        (LLAMA_8B, "tp=2 pp=4 dp=8 schedule=dualpipe", "schedule=dualpipe"),
        (LLAMA_8B, "tp=2 pp=4 dp=8 schedule=message-driven pipeline_limit=8", "pipeline_limit=8"),
        (LLAMA_8B, "tp=2 pp=4 dp=8 schedule=zb-h2 optimizer_sync=post-validation", "optimizer_sync=post-v"),
        (LLAMA_8B, "tp=2 pp=4 dp=8 schedule=zb-v", "schedule=zb-v"),
        (LLAMA_8B, "pp=4 dp=16 vpp=2 schedule=v-min first_layers=6 last_layers=10", "first_layers=6"),
        (LLAMA_8B, f"tp=2 pp=4 dp=8 schedule=zb-h1 overlap_tp=true {SP}", "overlap_tp=true"),
        (LLAMA_8B, "dp=64 zero=1", "zero=1"),
        (LLAMA_8B, "dp=32 cp=2 zero=3", "cp_kind=ring"),
        (LLAMA_8B, "dp=64 zero=3 offload_optimizer=true", "offload_optimizer=true"),
        (LLAMA_8B, "pp=4 dp=16 first_layers=10 last_layers=6", "first_layers=10"),
        (LLAMA_8B, "pp=2 dp=32 rank_order=tp-cp-pp-dp", "rank_order=tp-cp-pp-dp"),
        (LLAMA_8B, "dp=64 recompute=full recompute_every=2", "recompute_every=2"),
        (LLAMA_8B, "dp=64 overlap_tp=true", "overlap_tp=true"),
        (QWEN_MOE, f"tp=2 dp=32 ep=8 etp=2 zero=3 {SP}", "etp=2"),
        (QWEN_MOE, "dp=64 ep=8", "ep=8"),
        (MIXTRAL, "dp=64 ep=8 zero=3", "moe"),
        (DEEPSEEK_V3, "tp=2 dp=1024 zero=3", "n_predict_layers=1"),
        (job("llama-3-8b", "dgx-h100", 64, 256, 8192, "fp8"), "dp=64 zero=3", "precision=fp8"),
    ],
    "axonn": [
        (LLAMA_8B, "tp=2 pp=4 dp=8 rank_order=tp-cp-pp-dp", "schedule=1f1b"),
        (LLAMA_8B, "pp=4 dp=16 schedule=message-driven", "rank_order=tp-cp-dp-pp"),
        (
            LLAMA_8B,
            "pp=4 dp=16 schedule=message-driven rank_order=tp-cp-pp-dp pipeline_limit=8",
            "pipeline_limit=8",
        ),
        (LLAMA_8B, "dp=32 cp=2", "cp=2"),
        (LLAMA_8B, "dp=64 zero=1", "zero=1"),
        (LLAMA_8B, "dp=64 offload_optimizer=true coalesced_buckets=4", "offload_optimizer=true"),
        (
            job("gpt2-xl", "dgx-2", 32, 256, 1024, "fp16"),
            "dp=32 offload_optimizer=true",
            "coalesced_buckets=0",
        ),
        (LLAMA_8B, "dp=64 overlap_dp=true", "overlap_dp=true"),
        (LLAMA_8B, "dp=64 optimizer_tile=1000000", "optimizer_tile=1000000"),
        (LLAMA_8B, "dp=64 recompute=full keep_received=true", "keep_received=true"),
        (MIXTRAL, "dp=64", "moe"),
        (LLAMA_8B, f"tp=2 dp=32 {SP}", "sequence_parallel=true"),
    ],
    "llm-foundry": [
        (LLAMA_8B, "dp=64 zero=3", "overlap_dp=false"),
        (LLAMA_8B, "dp=64", "overlap_dp=false"),
        (LLAMA_8B, "dp=64 zero=3 quantized_weights=true", "quantized_weights=true"),
        (LLAMA_8B, "dp=64 zero=3 hpz=8", "hpz=8"),
        (LLAMA_8B, "dp=64 zero=3 quantized_gradients=true", "quantized_gradients=true"),
        (LLAMA_8B, "dp=64 zero=3 recompute=full sequence_chunk=4096", "sequence_chunk=4096"),
        (
            LLAMA_8B,
            "dp=64 zero=3 recompute=full sequence_chunk=4096 offload_sequence=true",
            "offload_sequence=true",
        ),
        (LLAMA_8B, "dp=64 zero=3 recompute=full offload_checkpoints=true", "offload_checkpoints=true"),
        (LLAMA_8B, "dp=64 zero=3 recompute=full keep_received=true", "keep_received=true"),
        (LLAMA_8B, "dp=64 zero=3 optimizer_tile=1000000", "optimizer_tile=1000000"),
        (LLAMA_8B, f"tp=2 dp=32 {SP}", "tp=2"),
        (LLAMA_8B, "pp=4 dp=16", "pp=4"),
        (LLAMA_8B, "dp=32 cp=2", "cp=2"),
        (LLAMA_8B, "pp=2 dp=32 schedule=gpipe", "schedule=gpipe"),
        (LLAMA_8B, "pp=2 dp=32 rank_order=tp-cp-pp-dp", "rank_order=tp-cp-pp-dp"),
        (LLAMA_8B, "dp=64 zero=1", "zero=1"),
        (LLAMA_8B, "dp=64 zero=3 offload_optimizer=true", "offload_optimizer=true"),
        (LLAMA_8B, "dp=64 zero=3 recompute=selective", "recompute=selective"),
        (LLAMA_8B, "dp=64 zero=3 recompute=full recompute_every=2", "recompute_every=2"),
        (LLAMA_8B, "dp=64 recompute=full", "recompute=full"),
        (MIXTRAL, "dp=64 zero=3", "moe"),
        (MIXTRAL, "dp=64 ep=8 zero=3", "ep=8"),
        (QWEN_8B, "dp=64 zero=3", "attention.qk_norm=per_head"),
        (DEEPSEEK_LITE, "dp=64 zero=3", "attention.latent"),
        (job("llama-3-8b", "dgx-h100", 64, 256, 8192, "fp8"), "dp=64 zero=3", "precision=fp8"),
        (job("gpt2", "dgx-a100", 8, 64, 2048), "dp=8 zero=3", "seq_len=2048"),
    ],
}


@pytest.mark.parametrize(
    ("launcher", "job", "plan", "knob"), [(name, *row) for name, rows in REFUSED.items() for row in rows]
)
def test_a_plan_that_a_launcher_cannot_express_is_refused_by_the_knobs_name(launcher, job, plan, knob):
    lacks = load_launcher(launcher).lacks(job, Plan.parse(plan))
    assert any(sentence.startswith(knob) for sentence in lacks), lacks
    with pytest.raises(CannotExport, match="must be able to express the plan; got ") as refusal:
        check_exportable(job, Plan.parse(plan), load_launcher(launcher))
    assert knob in str(refusal.value)


BUILDERS = [name for name in LAUNCHERS if name != "axonn"]  # a library: the model is its user's
MODEL_CHANGES = {
    "norm=non_parametric": dict(norm=NormKind.NON_PARAMETRIC),
    "norms_per_layer=4": dict(norms_per_layer=4),
    "parallel_block=true": dict(parallel_block=True),
    "final_norm=false": dict(final_norm=False),
}


@pytest.mark.parametrize("launcher", BUILDERS)
@pytest.mark.parametrize("field", MODEL_CHANGES)
def test_a_model_that_a_launcher_cannot_build_is_refused_by_the_fields_name(launcher, field):
    odd = replace(LLAMA_8B, model=replace(LLAMA_8B.model, **MODEL_CHANGES[field]))
    lacks = load_launcher(launcher).lacks(
        odd, Plan(dp=64, zero=0 if launcher in ("deepspeed", "x-moe") else 3)
    )
    assert any(sentence.startswith(field) for sentence in lacks), lacks


@pytest.mark.parametrize("launcher", BUILDERS)
def test_norms_over_all_heads_and_biases_in_odd_places_are_refused(launcher):
    attention = replace(LLAMA_8B.model.attention, qk_norm=QkNorm.FULL, out_bias=True)
    odd = replace(LLAMA_8B, model=replace(LLAMA_8B.model, attention=attention))
    lacks = " ".join(load_launcher(launcher).lacks(odd, Plan(dp=64)))
    assert "attention.qk_norm=full" in lacks
    assert "bias" in lacks


@pytest.mark.parametrize("launcher", BUILDERS)
def test_sinks_and_biases_of_experts_are_refused(launcher):
    model = load_model("mixtral-8x7b")
    attention = replace(model.attention, sinks=True)
    odd = replace(
        LLAMA_8B, model=replace(model, attention=attention, moe=replace(model.moe, expert_bias=True))
    )
    lacks = " ".join(load_launcher(launcher).lacks(odd, Plan(dp=64)))
    assert "attention.sinks=true" in lacks
    assert "moe" in lacks


@pytest.mark.parametrize("launcher", BUILDERS)
@pytest.mark.parametrize(("chunk", "refused"), [(4096, True), (LLAMA_8B.workload.seq_len, False)])
def test_chunks_that_are_shorter_than_the_sequence_are_refused(launcher, chunk, refused):
    attention = replace(LLAMA_8B.model.attention, window=chunk, chunked=True)
    odd = replace(LLAMA_8B, model=replace(LLAMA_8B.model, attention=attention))
    lacks = " ".join(load_launcher(launcher).lacks(odd, Plan(dp=64)))
    assert ("attention.window=4096" in lacks or "attention.chunked" in lacks) == refused


@pytest.mark.parametrize("launcher", ["megatron-lm", "deepspeed"])
def test_a_sequence_longer_than_the_learned_positions_is_refused(launcher):
    long = job("frontier-175b", "frontier", 1024, 1280, 4096)
    lacks = load_launcher(launcher).lacks(long, Plan.parse("tp=4 pp=16 dp=16"))
    assert lacks == ["seq_len=4096: the model's learned positions end at 2048"]


@pytest.mark.parametrize("launcher", BUILDERS)
@pytest.mark.parametrize(
    ("plan", "match"),
    [(Plan(dp=32), r"must occupy all devices .*64"), (Plan(dp=64, micro_batch=3), "must divide")],
)
def test_a_plan_of_another_job_is_refused(launcher, plan, match):
    with pytest.raises(InvalidSpec, match=match):
        export_files(LLAMA_8B, plan, launcher, "both", Options())


@pytest.mark.parametrize(("launcher", "scheduler"), [("megatron", "slurm"), ("megatron-lm", "slrum")])
def test_an_unknown_name_is_an_error_that_suggests_the_nearest(launcher, scheduler):
    with pytest.raises(UnknownName, match=r"did you mean '(megatron-lm|slurm)'"):
        export_files(LLAMA_8B, Plan(dp=64), launcher, scheduler, Options())


def arguments(name, job, plan):
    return words(load_launcher(name).launch(job, Plan.parse(plan), Options()).arguments)


@pytest.mark.parametrize(
    ("plan", "present", "absent"),
    [
        (
            "dp=64",
            [],
            ["--use-distributed-optimizer", "--sequence-parallel", "--cp-comm-type", "--recompute-method"],
        ),
        ("dp=64 zero=1", ["--use-distributed-optimizer"], ["--use-megatron-fsdp"]),
        ("dp=64 zero=2", ["--use-megatron-fsdp optim_grads fsdp_dtensor"], []),
        ("dp=64 zero=3", ["--use-megatron-fsdp optim_grads_params fsdp_dtensor"], []),
        ("dp=64 overlap_dp=true", ["--overlap-grad-reduce"], ["--overlap-param-gather"]),
        ("dp=64 zero=1 overlap_dp=true", ["--overlap-grad-reduce --overlap-param-gather"], []),
        ("dp=64 recompute=full", ["--recompute-method uniform --recompute-num-layers 1"], []),
        (
            "pp=4 dp=16 recompute=full recompute_every=4",
            ["--recompute-method block --recompute-num-layers 2"],
            [],
        ),
        ("dp=16 cp=4 cp_kind=ulysses", ["--context-parallel-size 4 --cp-comm-type a2a"], []),
    ],
)
def test_a_knob_becomes_megatrons_flag(plan, present, absent):
    found = arguments("megatron-lm", LLAMA_8B, plan)
    for group in present:
        assert set(group.split()) <= set(found)
    assert set(absent).isdisjoint(found)


@pytest.mark.parametrize(
    ("plan", "value"),
    [("dp=64", None), ("tp=2 dp=32", "1"), ("dp=32 cp=2", "1"), ("tp=2 dp=32 zero=3", "32")],
)
def test_megatrons_environment_follows_the_plan(plan, value):
    launch = load_launcher("megatron-lm").launch(LLAMA_8B, Plan.parse(plan), Options())
    assert launch.environment.get("CUDA_DEVICE_MAX_CONNECTIONS") == value


def test_expert_layers_are_written_as_megatron_does():
    assert layer_pattern(DEEPSEEK_V3.model) == "([0]*3+[1]*58)"
    assert layer_pattern(MIXTRAL.model) == "([1]*32)"


def test_recomputing_every_nth_layer_is_the_right_share_of_each_chunk():
    case = next(case for case in MEGATRON if case.name == "GPT-3")
    assert (
        recomputed_per_chunk(case.job.model, case.plan) == 2
    )  # 6 layers a stage, every 4th: the 1st and the 5th


@pytest.mark.parametrize("case", CASES["deepspeed"], ids=lambda case: case.name)
def test_deepspeeds_json_and_arguments_say_the_same(case):
    config = engine_config(case.job, case.plan)
    found = arguments("deepspeed", case.job, case.words)
    value = dict(pairwise(found))
    assert value["--micro-batch-size"] == str(config["train_micro_batch_size_per_gpu"])
    assert value["--global-batch-size"] == str(config["train_batch_size"])
    assert value["--zero-stage"] == str(config["zero_optimization"]["stage"])
    steps = config["gradient_accumulation_steps"]
    assert config["train_micro_batch_size_per_gpu"] * steps * case.plan.dp == config["train_batch_size"]
    assert ("--bf16" in found, "--fp16" in found) == ("bf16" in config, "fp16" in config)


@pytest.mark.parametrize(
    ("plan", "sizes"),
    [
        ("pp=4", (20, 20, 20, 20)),
        ("pp=4 first_layers=19 last_layers=19", (19, 21, 21, 19)),
        ("pp=4 first_layers=17", (17, 21, 21, 21)),
        ("pp=2 first_layers=30 last_layers=50", (30, 50)),
        ("pp=1", (80,)),
    ],
)
def test_layers_of_stages(plan, sizes):
    assert stage_layers(80, Plan.parse(plan)) == sizes


@pytest.mark.parametrize(
    "plan", ["pp=3", "pp=2 first_layers=30 last_layers=49", "pp=4 first_layers=90", "pp=2 first_layers=80"]
)
def test_layers_that_do_not_divide_are_an_error(plan):
    with pytest.raises(InvalidSpec, match="must share the layers evenly"):
        stage_layers(80, Plan.parse(plan))


def test_x_moe_is_told_how_tokens_travel():
    told = [words(load_launcher("x-moe").launch(case.job, case.plan, Options()).arguments) for case in X_MOE]
    named = [
        [flag for flag in ("--use-pft", "--use-uneven-all-to-all", "--use-rbd") if flag in each]
        for each in told
    ]
    assert named == [
        ["--use-pft", "--use-uneven-all-to-all", "--use-rbd"],
        ["--use-pft", "--use-uneven-all-to-all"],
        [],
    ]
    assert ["--enable-expert-tensor-parallelism" in each for each in told] == [False, False, True]


def test_x_moe_says_that_attention_keeps_whole_sequences():
    launch = load_launcher("x-moe").launch(X_MOE[0].job, X_MOE[0].plan, Options())
    assert "--sequence-parallel" not in words(launch.arguments)
    assert any("attention keeps more" in note for note in launch.notes)


@pytest.mark.parametrize(("dispatch", "pads"), [("plain", True), ("padding-free", False)])
def test_megatron_lm_pads_experts_unless_told_otherwise(dispatch, pads):
    plan = Plan.parse(f"dp=256 ep=64 zero=1 dispatch={dispatch}")
    said = words(load_launcher("megatron-lm").launch(XMOE_LARGE, plan, Options()).arguments)
    assert ("--moe-pad-expert-input-to-capacity" in said) is pads
    assert "--moe-expert-capacity-factor" in said


@pytest.mark.parametrize(("dispatch", "is_tutel"), [("padded", True), ("einsum", False)])
def test_deepspeed_asks_tutel_for_padded_experts(dispatch, is_tutel):
    plan = Plan.parse(f"dp=256 ep=64 zero=1 dispatch={dispatch}")
    said = words(load_launcher("deepspeed").launch(XMOE_LARGE, plan, Options()).arguments)
    assert ("--use-tutel" in said) is is_tutel
