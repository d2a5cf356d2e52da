"""Kernels: heads that tensor cores cannot read, kernels that start, and a host that waits for each."""

from dataclasses import replace

import pytest

from objectives.cost.kernels import width_factor
from objectives.cost.step import estimate
from search_spaces.cluster import assumed
from search_spaces.cluster_presets import load_device
from search_spaces.habits import ASSUMED_HABITS
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans
from search_spaces.workload import Precision
from tests.objectives.jobs import job_of

ALONE = Plan(tp=8, pp=2, dp=4)


def time_of(job, plan=ALONE):
    return estimate(job, Plans.of([plan])).time


def gpt(head_dim, **workload):
    model = load_model("gpt3-175b")
    attention = replace(model.attention, head_dim=head_dim)
    model = replace(model, attention=attention)
    workload = {"flash_attention": False, "precision": Precision.FP16} | workload
    return job_of(model, "dgx-a100", 64, seq_len=2048, global_batch=64, **workload)


@pytest.mark.parametrize("head_dim", [108, 150, 450])
def test_heads_of_odd_rows_are_multiplied_without_tensor_cores(head_dim):
    below, odd, above = (
        time_of(gpt(d)).compute_s[0] for d in (head_dim // 8 * 8, head_dim, head_dim // 8 * 8 + 8)
    )
    assert odd > 1.2 * max(below, above)


def test_a_fused_kernel_does_not_mind():
    fused = [time_of(gpt(d, flash_attention=True)).compute_s[0] for d in (104, 108, 112)]
    assert fused == sorted(fused)
    assert fused[2] < 1.1 * fused[0]


def test_every_kernel_starts():
    job = job_of("gpt3-175b", "dgx-a100", 64, seq_len=2048, global_batch=64)
    none = replace(job, nature=replace(job.nature, kernel_start_s=assumed(0.0)))
    twice = replace(
        job, nature=replace(job.nature, kernel_start_s=assumed(2 * job.nature.kernel_start_s.value))
    )
    assert time_of(none).launch_s[0] == 0
    assert time_of(twice).launch_s[0] == pytest.approx(2 * time_of(job).launch_s[0])


def test_a_host_that_waits_for_every_kernel_is_never_ahead():
    free, blocked = (
        job_of("gpt3-175b", "dgx-a100", 64, seq_len=2048, global_batch=64, launch_blocking=on)
        for on in (False, True)
    )
    issue_s, start_s = free.cluster.device.kernel_launch_s.value, free.nature.kernel_start_s.value
    assert time_of(blocked).launch_s[0] == pytest.approx(
        time_of(free).launch_s[0] * (issue_s + start_s) / start_s
    )


def test_megatron_splits_messages_between_stages_over_tensor_parallel_ranks():
    jobs = {
        name: replace(job_of("gpt3-175b", "dgx-a100", 64, framework=name), habits=ASSUMED_HABITS)
        for name in ("any", "megatron-lm")
    }
    sent = {name: time_of(job).pp_comm_s[0] for name, job in jobs.items()}
    assert sent["megatron-lm"] < 0.3 * sent["any"]
    beside_sp = replace(ALONE, sequence_parallel=True)
    assert time_of(jobs["megatron-lm"], beside_sp).pp_comm_s == time_of(jobs["any"], beside_sp).pp_comm_s


def test_megatron_keeps_gradients_in_fp16_where_it_trains_in_fp16():
    half, brain = (
        job_of("gpt3-175b", "dgx-a100", 64, framework="megatron-lm", precision=precision)
        for precision in (Precision.FP16, Precision.BF16)
    )
    assert half.workload.training_state.gradient_bytes == 2
    assert brain.workload.training_state.gradient_bytes == 4


def test_the_device_waits_for_the_host_at_every_message():
    job, plan = job_of("gpt3-175b", "dgx-a100", 64, framework="megatron-lm"), ALONE
    free = replace(job, habits=replace(job.trainer, message_operations=assumed(0.0)))
    n_messages = 2 * job.workload.global_batch // plan.dp + 2 * (plan.pp - 1)
    waits_s = job.trainer.message_operations.value * job.cluster.device.kernel_launch_s.value
    assert time_of(job, plan).pp_comm_s[0] == pytest.approx(
        time_of(free, plan).pp_comm_s[0] + n_messages * waits_s
    )


@pytest.mark.parametrize(("head_dim", "least", "most"), [(64, 1.1, 1.4), (128, 1.0, 1.0), (256, 0.8, 0.95)])
def test_narrow_heads_wait_for_exponentials(head_dim, least, most):
    """As FlashAttention-3 on H100: heads of 64 reach 0.7 to 0.8 of the rate of 128, those of 256 more."""
    device = load_device("h100-80")
    assert least <= width_factor(device, head_dim) <= most
    assert width_factor(replace(device, exponential_share=0.0), head_dim) == 1


def test_faster_tensor_cores_leave_narrow_heads_further_behind():
    factors = [width_factor(load_device(name), 64) for name in ("v100-32", "a100-80", "h100-80", "gb200")]
    assert factors == sorted(factors)
    assert factors[0] < 1.1 < 1.3 < factors[-1]
