"""Bytes: the Frontier log, ZeRO's table, and every stage against the four that `estimate` looks at."""

from dataclasses import fields, replace

import numpy as np
import pytest

from objectives.cost.reserve import device_bytes, memory_bounds_bytes, reserved_bytes
from objectives.cost.stages import leaves_a_stage_empty, stages_of
from objectives.cost.states import deepspeed_bytes_after_step, held_states
from objectives.cost.step import estimate, stage_profile
from search_spaces.framework import FRAMEWORKS
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans
from search_spaces.units import MIB
from search_spaces.workload import Precision
from tests.objectives.jobs import JOBS, frontier_job, job_of, legal_plans

# MiB that gpt175b_megatron_16N_newcomm-405287.o prints as "max allocated" on stages 0 to 15.
LOGGED_PEAK_MIB = np.array([
    33901.5, 31435.5, 31135.5, 30835.5, 30535.5, 30235.5, 29935.5, 29635.5,
    29335.5, 29034.5, 28735.5, 28435.5, 28135.5, 27835.5, 27535.5, 29137.8,
])  # fmt: skip
LOGGED_PLAN = Plan.parse("tp=4 pp=16 dp=2 micro_batch=1 zero=1 recompute=full")
WORKSPACE_MIB = 1010.0  # the one constant fitted to the log

GPT = job_of("megatron-22b", "dgx-a100", 16, seq_len=2048, global_batch=64)


def priced(job, *texts):
    return estimate(job, Plans.of([Plan.parse(text) for text in texts]))


def logged_model_mib():
    memory = stage_profile(frontier_job(), LOGGED_PLAN).memory
    live = memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes + memory.activations_bytes
    return live / MIB + WORKSPACE_MIB


def test_fourteen_middle_stages_are_the_frontier_logs():
    # The allocator rounds to whole MiB: stage 9 is logged one lower than its neighbours' step.
    np.testing.assert_allclose(logged_model_mib()[1:15], LOGGED_PEAK_MIB[1:15], atol=1.0)


def test_activations_fall_by_300_mib_from_stage_to_stage():
    activations = stage_profile(frontier_job(), LOGGED_PLAN).memory.activations_bytes
    assert np.diff(activations[:15]).tolist() == [-300.0 * MIB] * 14


@pytest.mark.parametrize("stage", [0, 15])
def test_the_end_stages_are_near_the_log(stage):
    # The embedding's and the head's own workspaces are not in the fitted constant.
    assert logged_model_mib()[stage] == pytest.approx(LOGGED_PEAK_MIB[stage], rel=0.02)


def test_between_steps_deepspeed_keeps_2_plus_14_over_d_bytes_a_parameter():
    assert deepspeed_bytes_after_step(2_718_480_384, 2) / MIB == pytest.approx(23_361, rel=0.002)


@pytest.mark.parametrize("name", JOBS)
def test_the_peak_is_that_of_the_fullest_of_all_stages(name):
    job, plans = JOBS[name], legal_plans(name, 80)
    found = estimate(job, plans)
    for i, plan in enumerate(plans):
        profile = stage_profile(job, plan)
        of_stages = profile.memory.total_bytes
        assert found.peak_memory_bytes[i] == pytest.approx(of_stages.max(), rel=1e-12), plan.key
        assert of_stages[found.peak_stage[i]] == pytest.approx(of_stages.max(), rel=1e-12), plan.key


@pytest.mark.parametrize("name", ["dense-first", "latent", "every-third"])
def test_deep_pipelines_of_unlike_stages_keep_their_fullest(name):
    job, plans = JOBS[name], legal_plans(name, 50, pp=(4, 8, 10, 15, 16, 30, 32))
    peaks = [stage_profile(job, plan).memory.total_bytes.max() for plan in plans]
    np.testing.assert_allclose(estimate(job, plans).peak_memory_bytes, peaks, rtol=1e-12)


@pytest.mark.parametrize("name", JOBS)
def test_stages_share_all_layers_and_all_expert_layers(name):
    job = JOBS[name]
    for plan in legal_plans(name, 60):
        stages = stages_of(job, Plans.of([plan]), np.arange(plan.pp)[:, None])
        assert stages.n_layers.sum() == job.model.n_layers, plan.key
        assert stages.n_moe.sum() == job.model.n_moe_layers, plan.key


@pytest.mark.parametrize("name", JOBS)
def test_the_parts_of_memory_add_up_and_none_is_negative(name):
    memory = estimate(JOBS[name], legal_plans(name)).memory
    parts = np.stack([getattr(memory, field.name) for field in fields(memory)])
    assert (parts >= 0).all()
    np.testing.assert_allclose(parts.sum(axis=0), memory.total_bytes)


def test_zero_divides_one_more_part_of_the_state_with_every_stage():
    """Rajbhandari et al. (2020), figure 1, over dp = 16."""
    memory = priced(GPT, *(f"dp=16 micro_batch=1 zero={stage}" for stage in range(4))).memory
    parts = np.stack([memory.optimizer_bytes, memory.gradients_bytes, memory.weights_bytes])
    shards = parts[:, :1] / parts
    np.testing.assert_allclose(shards, [[1, 16, 16, 16], [1, 1, 16, 16], [1, 1, 1, 16]])


@pytest.mark.parametrize("name", JOBS)
def test_a_higher_zero_stage_never_holds_more_state(name):
    job, plans = JOBS[name], legal_plans(name)
    lower = plans.take(plans.zero < 3)
    tables = [held_states(job, each) for each in (lower, replace(lower, zero=lower.zero + 1))]
    held = [table.weights_bytes + table.gradients_bytes + table.optimizer_bytes for table in tables]
    assert (held[1] <= held[0]).all()


def test_recomputation_keeps_less_the_more_it_redoes():
    kinds = ["none", "selective", "full recompute_every=4", "full recompute_every=2", "full"]
    kept = priced(GPT, *(f"tp=8 pp=2 dp=1 micro_batch=1 recompute={kind}" for kind in kinds))
    assert (np.diff(kept.memory.activations_bytes) < 0).all()


def test_an_offloaded_optimizer_leaves_only_its_buffer():
    memory = priced(
        GPT, "dp=16 micro_batch=1 zero=1", "dp=16 micro_batch=1 zero=1 offload_optimizer=true"
    ).memory
    assert memory.optimizer_bytes[1] == 4 * 40e6 < memory.optimizer_bytes[0]
    assert memory.weights_bytes[1] == memory.weights_bytes[0]


def test_logits_are_on_the_last_stage_only():
    job = job_of("llama-3-8b", "dgx-h100", 8, seq_len=8192, global_batch=8)
    logits = stage_profile(job, Plan.parse("pp=8 dp=1 micro_batch=1")).memory.logits_bytes
    assert logits[:-1].tolist() == [0.0] * 7
    # A 16-bit logit and its fp32 gradient for every token and word.
    assert logits[-1] == 8192 * 128_256 * 6


def test_fp32_keeps_twice_the_activations_of_16_bits():
    job = job_of("gpt2", "dgx-a100", 1, global_batch=4, flash_attention=False)
    single = replace(job, workload=replace(job.workload, precision=Precision.FP32))
    kept = [
        estimate(each, Plans.of([Plan(recompute="full")])).memory.activations_bytes[0]
        for each in (job, single)
    ]
    assert kept[1] == 2 * kept[0]


def test_korthikantis_34_sbh_holds_without_dropout_masks():
    """arXiv:2205.05198, table 2, both parallelisms: s b h / t (34 + 5 a s / h), of which masks 2 s b h."""
    job = job_of("megatron-22b", "dgx-a100", 8, seq_len=2048, global_batch=8, flash_attention=False)
    kept = estimate(job, Plans.of([Plan(tp=8, sequence_parallel=True)])).memory.activations_bytes[0]
    model, s = job.model, 2048
    a_layer = s * model.d_model / 8 * (32 + 5 * model.attention.n_heads * s / model.d_model)
    assert kept == pytest.approx(model.n_layers * a_layer, rel=1e-12)


@pytest.mark.parametrize("name", JOBS)
def test_the_interval_of_the_peak_holds_the_estimate(name):
    job, plans = JOBS[name], legal_plans(name, 100)
    memory = estimate(job, plans).memory
    low, high = memory_bounds_bytes(job, memory)
    assert (memory.allocated_bytes < low).all()
    assert (low < memory.total_bytes).all()
    assert (memory.total_bytes < high).all()


def test_blocks_and_the_whole_device_hold_more_than_live_tensors():
    memory = priced(GPT, "tp=8 pp=2 dp=1 micro_batch=1").memory
    assert memory.allocated_bytes < reserved_bytes(memory) < device_bytes(GPT, memory)
    crowded = replace(memory, activations_bytes=memory.activations_bytes + GPT.cluster.device.memory_bytes)
    assert device_bytes(GPT, crowded) == GPT.cluster.device.memory_bytes


def test_a_balance_by_weight_may_leave_the_last_stage_nothing():
    """A head of 2.2 layers' weights behind 32 layers leaves norm, cast and loss; behind 16 not even those."""
    model = replace(
        load_model("llama-3-8b"), n_layers=32, embedding=replace(GPT.model.embedding, vocab_size=131_072)
    )
    assert not leaves_a_stage_empty(model, 32)
    assert leaves_a_stage_empty(replace(model, n_layers=16), 32)


def test_a_trainer_that_keeps_cast_operands_keeps_fewer_bytes_in_fp8():
    plans = Plans.of([Plan(tp=4, dp=2, sequence_parallel=True)])

    def activations(framework, precision):
        asked = job_of("llama-3-8b", "dgx-h100", 8, framework=framework, precision=precision)
        return estimate(asked, plans).memory.activations_bytes[0]

    narrow, wide = (activations("megatron-lm", kind) for kind in (Precision.FP8, Precision.BF16))
    tokens, width, h, value = 4096, 14336 / 4, 4096, 4096 / 4
    assert wide - narrow == pytest.approx(32 * tokens * (2 * h / 4 + width - value))
    assert activations("torchtitan", Precision.FP8) == activations("torchtitan", Precision.BF16)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_gathered_sequences_lie_whole_beside_sequence_parallelism(micro_batch):
    text = f"tp=8 dp=8 zero=1 micro_batch={micro_batch}"
    split, whole = priced(
        JOBS["balanced"], f"{text} sequence_parallel=true", f"{text} sequence_parallel=false"
    ).memory.buffers_bytes
    one_sequence = 2 * micro_batch * JOBS["balanced"].workload.seq_len * JOBS["balanced"].model.d_model
    assert split - whole == FRAMEWORKS["nanotron"].memory.whole_sequences * one_sequence
