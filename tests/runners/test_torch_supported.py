"""What the built-in trainer refuses, each with one sentence; its profile lets nothing of it through."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from runners.torch_trial.runner import Options
from runners.torch_trial.supported import refusals
from search_spaces.cluster_presets import load_cluster
from search_spaces.model import LatentAttention, MoeSpec, QkNorm
from search_spaces.plan import CpKind, Plan, Plans, Schedule
from search_spaces.space import SearchSpace, SpaceSpec
from search_spaces.workload import CudaGraphs, Precision
from tests.runners.jobs import tiny_job

JOB = tiny_job()
ATTENTION, EMBEDDING = JOB.model.attention, JOB.model.embedding
LATENT = replace(
    ATTENTION,
    n_kv_heads=4,
    latent=LatentAttention(kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8),
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(attention=LATENT), "latent attention"),
        (dict(n_predict_layers=1), "one token ahead"),
        (dict(embedding=replace(EMBEDDING, width=8)), "embeddings of the model's own width"),
        (dict(attention=replace(ATTENTION, qk_norm=QkNorm.FULL)), "by heads only"),
        (dict(moe=MoeSpec(n_experts=2, top_k=1, expert_width=8, capacity_factor=1.0)), "drops no tokens"),
        (dict(attention=replace(ATTENTION, window=2, chunked=True)), "within no chunks"),
        (dict(attention=replace(ATTENTION, sinks=True)), "no attention sinks"),
        (dict(moe=MoeSpec(n_experts=2, top_k=1, expert_width=8, expert_bias=True)), "experts with biases"),
        (dict(norms_per_layer=3), "two norms a layer"),
        (dict(embedding=replace(EMBEDDING, n_positions=16)), "as many learned positions"),
        (dict(attention=replace(ATTENTION, head_dim=7)), "an even width"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_model_that_it_does_not_build_is_refused(changes, words):
    (reason,) = refusals(replace(JOB.model, **changes), JOB.workload, Plan(dp=2))
    assert reason.startswith("the built-in trainer ")
    assert words in reason


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(precision=Precision.FP8), "bf16 or fp32"),
        (dict(cuda_graphs=CudaGraphs.STEP), "no graphs"),
        (dict(fp8_dispatch=True), "own precision"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_workload_that_it_does_not_run_is_refused(changes, words):
    (reason,) = refusals(JOB.model, replace(JOB.workload, **changes), Plan(dp=2))
    assert words in reason


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("pp=2 schedule=dualpipe vpp=2", "holds the model twice"),
        ("pp=2 schedule=zb-h2 optimizer_sync=post-validation", "waits for all stages"),
        ("dp=2 zero=1 offload_optimizer=true", "optimizer on the device"),
        ("tp=2 sequence_parallel=true overlap_tp=true", "tensor parallelism's exchanges"),
        ("dp=2 ep=2 overlap_ep=true", "experts' exchanges"),
        ("dp=2 ep=2 deduplicate_ep=true", "once for each of its experts"),
        ("dp=2 ep=2 hierarchical_ep=true", "straight to each device"),
        ("dp=2 ep=2 dispatch=padding-free", "as the model says"),
        ("pp=2 recompute=full recompute_stages=1", "every stage alike"),
        ("dp=2 recompute_modules=moe_act", "no single products"),
        ("pp=2 dp=2 zero=3 schedule=zb-h1", "FSDP loses gradients"),
        ("dp=2 zero=1 overlap_dp=true", "overlaps gradients at zero=0"),
        ("pp=8", "more pipeline stages than layers"),
    ],
)
def test_a_plan_that_it_would_run_otherwise_is_refused(plan, words):
    (reason,) = refusals(JOB.model, JOB.workload, Plan.parse(plan))
    assert words in reason


def test_a_ring_over_a_window_is_refused_and_the_way_out_named():
    model = replace(JOB.model, attention=replace(ATTENTION, window=8))
    (reason,) = refusals(model, JOB.workload, Plan(cp=2))
    assert "cp_kind=ulysses or all-gather do" in reason
    assert list(refusals(model, JOB.workload, Plan(cp=2, cp_kind=CpKind.ULYSSES))) == []


@pytest.mark.parametrize("n_devices", [2, 4])
def test_every_plan_that_the_profile_lets_through_is_run(n_devices):
    workload = replace(JOB.workload, framework="meshtune")
    space = SearchSpace(JOB.model, load_cluster("local", n_devices), workload, SpaceSpec())
    plans = Plans.concatenate(list(space.chunks()))
    assert len(plans) > 100
    assert {schedule for schedule in Schedule if plans.is_schedule(schedule).any()} >= {
        Schedule.GPIPE,
        Schedule.ZB_H1,
        Schedule.INTERLEAVED,
    }
    refused = [(plan.key, *refusals(JOB.model, workload, plan)) for plan in plans]
    assert [each for each in refused if len(each) > 1] == []


@pytest.mark.parametrize("page", ["real-runs.md", "study-file.md"])
def test_the_pages_name_every_option(page):
    text = (Path(__file__).parents[2] / "docs" / page).read_text()
    assert [each.name for each in fields(Options) if f"`{each.name}`" not in text] == []
