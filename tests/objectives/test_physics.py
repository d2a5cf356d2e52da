"""What must hold of seconds and bytes whatever the constants: limits, directions, units, and absent parts."""

from dataclasses import fields, replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.cost.memory import kept_activations
from objectives.cost.result import StepTime
from objectives.cost.states import held_states
from objectives.cost.step import estimate
from objectives.uncertainty import bounds, constants, step_interval_s, with_constant
from search_spaces.plan import CpKind, Recompute, Schedule, code
from tests.objectives.jobs import JOBS, legal_plans, with_links

every_job = pytest.mark.parametrize("name", JOBS)
ENDLESS, ROUNDING = 1e30, 1e-9
N_PLANS = 60
OFTEN = settings(max_examples=8, deadline=None)
factors = st.floats(1.0, 1000.0)
# Constants that make a step slower as they grow, and those that make it faster, by the end of their name.
SLOWER = (
    "latency_s",
    "launch_s",
    "start_s",
    "fixed_s",
    "per_log2",
    "operations",
    "score_bytes",
    "operations_per_layer",
    "traffic",
    "depth",
    "exponent",
    "traffic_bytes",
    "logits_bytes",
    "accumulation_bytes",
)
FASTER = ("efficiency", "overlap", "trainer.attention", "fp8_share", "product_share", "unaligned_share")
UNTIMED = ("memory_reserve_bytes", "device_hour_price")
# Every second that is neither the device's rates nor a link's.
OTHER_SECONDS = ("device.kernel_launch_s", "nature.kernel_start_s", "step_fixed_s")
# The idle formula of zero-bubble schedules counts longer weight passes of the other stages as filling, also
# where those stages are not the worst: a constant may win back there a part of what it costs elsewhere.
ZERO_BUBBLE_GAIN = 0.02


@cache
def sample(name):
    return legal_plans(name, N_PLANS)


def time_of(job, plans):
    return estimate(job, plans).time


def with_device(job, **changes):
    return replace(job, cluster=replace(job.cluster, device=replace(job.cluster.device, **changes)))


def with_value(job, name, value):
    return with_constant(job, name, replace(constants(job)[name], value=value))


def device_rates(job, factor):
    """The job on a device that computes and moves bytes so many times as fast."""
    device = job.cluster.device
    return with_device(
        job,
        peak_flops_per_s={kind: factor * peak for kind, peak in device.peak_flops_per_s.items()},
        memory_bandwidth_bytes_per_s=factor * device.memory_bandwidth_bytes_per_s,
        host_bandwidth_bytes_per_s=factor * device.host_bandwidth_bytes_per_s,
    )


def links(job, **factors_of):
    return replace(job, cluster=with_links(job.cluster, **factors_of))


def on_device(plans):
    """The plans with their optimizers on the device: the host's own speed is not the cluster's."""
    return plans.take(~plans.offload_optimizer)


def splits_backward(plans):
    return plans.is_schedule(Schedule.ZB_H1) | plans.is_schedule(Schedule.ZB_H2)


def with_seconds(job, factor):
    """The job with every second of hosts and kernels multiplied."""
    for name in OTHER_SECONDS:
        job = with_value(job, name, factor * constants(job)[name].value)
    return job


def no_slower(slower, faster, gain=ROUNDING):
    """Sums of many parts round in their last digits."""
    return (slower >= faster * (1 - gain)).all()


# Limits


@every_job
def test_an_endless_device_leaves_communication_waiting_and_fixed_costs(name):
    job, plans = device_rates(JOBS[name], ENDLESS), on_device(sample(name))
    job = with_value(job, "trainer.shard_operations", 0.0)  # the optimizer's waiting
    time = time_of(job, plans)
    assert time.compute_s.max() < ROUNDING
    assert time.optimizer_s.max() < ROUNDING
    again = plans.is_recompute(Recompute.FULL)  # which repeats its communication too
    assert time.recompute_s[~again].max(initial=0) < ROUNDING


@every_job
def test_endless_devices_links_and_hosts_leave_what_a_step_always_costs(name):
    job = links(device_rates(JOBS[name], ENDLESS), bandwidth=ENDLESS, latency=0.0)
    job = with_value(with_seconds(job, 0.0), "step_fixed_s", 0.5)
    time = time_of(job, on_device(sample(name)))
    np.testing.assert_allclose(time.total_s, 0.5, rtol=ROUNDING)


@every_job
def test_no_link_and_no_host_leaves_the_worst_stages_computation(name):
    """Pure compute: m times its passes and the bubble of the others, and no more."""
    job = links(with_seconds(JOBS[name], 0.0), bandwidth=ENDLESS, latency=0.0)
    job = with_value(job, "straggler_per_log2", 0.0)
    time = time_of(job, on_device(sample(name)))
    busy_s = time.compute_s + time.recompute_s + time.bubble_s + time.optimizer_s
    np.testing.assert_allclose(time.total_s, busy_s, rtol=1e-6)


# Directions


@every_job
@OFTEN
@given(latency=factors, bandwidth=factors)
def test_worse_links_are_never_faster(name, latency, bandwidth):
    job, plans = JOBS[name], sample(name)
    worse = links(job, latency=latency, bandwidth=1 / bandwidth)
    assert no_slower(time_of(worse, plans).total_s, time_of(job, plans).total_s)


@every_job
@OFTEN
@given(factor=factors)
def test_a_faster_device_is_never_slower(name, factor):
    job, plans = JOBS[name], sample(name)
    assert no_slower(time_of(job, plans).total_s, time_of(device_rates(job, factor), plans).total_s)


@every_job
def test_every_constant_moves_the_step_in_its_direction(name):
    job, plans = JOBS[name], sample(name)
    splits = splits_backward(plans)
    for constant_name, constant in constants(job).items():
        low, high = (
            time_of(with_constant(job, constant_name, bound), plans).total_s
            for bound in bounds(constant_name, replace(constant, spread=0.1))
        )
        assert constant_name.endswith(FASTER + SLOWER + UNTIMED), constant_name
        slower, faster = (low, high) if constant_name.endswith(FASTER) else (high, low)
        assert no_slower(slower[~splits], faster[~splits]), constant_name
        assert no_slower(slower, faster, ZERO_BUBBLE_GAIN), constant_name


def test_products_of_unaligned_heads_move_the_step_by_their_share():
    """Heads of 80 entries are rows of whole 16 bytes, heads of 108 are not."""
    share = "nature.unaligned_share"
    for head_dim, is_moved in ((80, False), (108, True)):
        job = JOBS["dense"]
        attention = replace(job.model.attention, head_dim=head_dim)
        model, workload = (
            replace(job.model, attention=attention),
            replace(job.workload, flash_attention=False),
        )
        job = replace(job, model=model, workload=workload)
        more = with_value(job, share, 1.1 * constants(job)[share].value)
        here, there = (time_of(each, sample("dense")).compute_s for each in (job, more))
        assert ((there < here) == is_moved).all()


@every_job
def test_every_habit_of_issuing_operations_costs_time(name):
    """Also those that a job's own trainer does not have."""
    job, plans = JOBS[name], sample(name)
    plans = plans.take(~splits_backward(plans))
    here = time_of(job, plans).total_s
    for habit, value in (
        ("message_operations", 20.0),
        ("peer_operations", 50.0),
        ("shard_operations", 5.0),
        ("accumulation_bytes", 20.0),
    ):
        there = time_of(with_value(job, f"trainer.{habit}", value), plans).total_s
        assert no_slower(there, here), habit
        touched = {
            "message_operations": (plans.pp > 1) & ~plans.overlap_pp,
            "shard_operations": (plans.zero >= 1) & (plans.dp > 1),
        }.get(habit, np.zeros(len(plans), bool))
        if constants(job)[f"trainer.{habit}"].value < value:
            assert (there > here)[touched].all(), habit


@every_job
def test_more_work_takes_longer_and_no_less_memory(name):
    job, plans = JOBS[name], sample(name)
    plans = plans.take((plans.first_layers == 0) & (plans.last_layers == 0))
    if job.workload.framework == "nanotron":  # which moves layers between stages as the MLP grows
        plans = plans.take(plans.pp == 1)
    here = estimate(job, plans)
    workload, model = job.workload, job.model
    for more in (
        replace(job, workload=replace(workload, global_batch=2 * workload.global_batch)),
        replace(job, workload=replace(workload, seq_len=2 * workload.seq_len)),
        replace(
            job,
            model=replace(
                model, embedding=replace(model.embedding, vocab_size=2 * model.embedding.vocab_size)
            ),
        ),
        replace(job, model=replace(model, mlp=replace(model.mlp, width=2 * model.mlp.width))),
    ):
        there = estimate(more, plans)
        assert no_slower(there.step_s, here.step_s)
        # An interleaved pipeline of just p micro-batches runs all of them forward first, and holds them.
        whole = plans.vpp == 1
        assert no_slower(there.peak_memory_bytes[whole], here.peak_memory_bytes[whole])


@pytest.mark.parametrize("name", ["dense", "grouped", "experts"])
def test_twice_the_layers_are_twice_the_computation_of_layers(name):
    job = JOBS[name]
    plans = sample(name)
    plans = plans.take((plans.first_layers == 0) & (plans.last_layers == 0) & (plans.recompute_every == 1))
    once, twice, thrice = (
        time_of(replace(job, model=replace(job.model, n_layers=n * job.model.n_layers)), plans)
        for n in (1, 2, 3)
    )
    # What is not layers, embedding and head, is the same in all three.
    np.testing.assert_allclose(
        thrice.compute_s - twice.compute_s, twice.compute_s - once.compute_s, rtol=1e-6
    )
    assert (twice.compute_s > once.compute_s).all()


@every_job
def test_twice_the_batch_is_less_than_twice_the_step_and_more_than_once(name):
    job, plans = JOBS[name], sample(name)
    doubled = replace(job, workload=replace(job.workload, global_batch=2 * job.workload.global_batch))
    once, twice = time_of(job, plans).total_s, time_of(doubled, plans).total_s
    assert (twice > once).all()
    assert no_slower(2 * once, twice)  # bubble, optimizer and fixed costs come once


# Units


@every_job
@OFTEN
@given(factor=st.floats(1e-3, 1e3))
def test_a_slower_clock_scales_every_part(name, factor):
    """All rates over k and all seconds times k: every part takes k times as long."""
    job, plans = JOBS[name], on_device(sample(name))
    slower = links(device_rates(job, 1 / factor), bandwidth=1 / factor, latency=factor)
    slower = with_seconds(slower, factor)
    here, there = time_of(job, plans), time_of(slower, plans)
    np.testing.assert_allclose(there.total_s, factor * here.total_s, rtol=1e-6)
    one = plans.pp == 1  # of stages that take equally long rounding picks the worst, and with it the parts
    for field in fields(StepTime):
        part, scaled = (getattr(time, field.name)[one] for time in (there, here))
        np.testing.assert_allclose(part, factor * scaled, rtol=1e-6, atol=1e-9 * factor, err_msg=field.name)


@every_job
def test_twice_the_peak_halves_what_the_peak_bounds_and_nothing_else(name):
    job, plans = JOBS[name], on_device(sample(name))
    plans = plans.take((plans.pp == 1) & ~plans.overlap_tp & ~plans.overlap_dp & (plans.cp == 1))
    job = with_device(with_value(job, "device.kernel_launch_s", 0.0), memory_bandwidth_bytes_per_s=ENDLESS)
    peaks = {kind: 2 * peak for kind, peak in job.cluster.device.peak_flops_per_s.items()}
    here, there = time_of(job, plans), time_of(with_device(job, peak_flops_per_s=peaks), plans)
    np.testing.assert_allclose(there.compute_s, here.compute_s / 2)
    for part in ("tp_comm_s", "ep_comm_s", "dp_comm_s", "pp_comm_s"):
        np.testing.assert_allclose(getattr(there, part), getattr(here, part), err_msg=part)


# Parts that are not there


@every_job
def test_a_degree_of_one_communicates_nothing(name):
    plans = sample(name)
    time = time_of(JOBS[name], plans)
    alone = {
        "tp_comm_s": plans.tp == 1,
        "cp_comm_s": plans.cp == 1,
        "ep_comm_s": (plans.ep == 1) & (plans.etp == 1),
        "pp_comm_s": plans.pp == 1,
        "bubble_s": plans.pp == 1,
        "dp_comm_s": (plans.dp * plans.cp == 1) & (plans.edp == 1) & (plans.pp == 1),
        "recompute_s": plans.is_recompute(Recompute.NONE),
        "offload_s": ~plans.offload_optimizer,
        "optimizer_s": plans.offload_optimizer,
    }
    for part, absent in alone.items():
        assert getattr(time, part)[absent].max(initial=0) == pytest.approx(0, abs=ROUNDING), part


@every_job
def test_zero_never_holds_more_state_than_the_stage_before(name):
    job, plans = JOBS[name], on_device(sample(name))
    held = []
    for stage in range(4):
        table = held_states(job, replace(plans, zero=np.full(len(plans), stage)))
        held.append(table.weights_bytes + table.gradients_bytes + table.optimizer_bytes)
    for more, less in pairwise(held):
        assert no_slower(more, less)


@every_job
def test_splitting_never_keeps_more_of_a_micro_batch(name):
    """Sequence parallelism divides what tensor parallelism leaves whole."""
    job, plans = JOBS[name], sample(name)
    plans = plans.take((plans.tp > 1) & (plans.cp_kind == code(CpKind.RING)))
    whole, split = (
        kept_activations(job, replace(plans, sequence_parallel=np.full(len(plans), value))).kept_bytes
        for value in (False, True)
    )
    assert no_slower(whole, split)


# Intervals


@every_job
def test_an_interval_holds_its_estimate_and_grows_with_every_spread(name):
    job, plans = JOBS[name], sample(name).take(np.arange(10))
    low_s, high_s = step_interval_s(job, plans)
    middle_s = time_of(job, plans).total_s
    assert (low_s < middle_s).all()
    assert (middle_s < high_s).all()
    surer = replace(constants(job)["device.sustained_efficiency"], spread=0.0)
    low, high = step_interval_s(with_constant(job, "device.sustained_efficiency", surer), plans)
    assert no_slower(high_s / low_s, high / low)
