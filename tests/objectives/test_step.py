"""Seconds of a step: sums, limits, and the same answer whatever else is in the batch."""

from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest

from objectives.cost.activations import ACTIVATION_KNOBS
from objectives.cost.factored import distinct_settings, factored, setting_codes
from objectives.cost.memory import fullest_stage, kept_activations, peak_memory
from objectives.cost.passes import PASS_KNOBS, pass_table
from objectives.cost.states import STATE_BYTES_KNOBS, STATE_KNOBS, held_states, state_times
from objectives.cost.step import CHUNK_PLANS, chunks, estimate, estimate_chunk, least_step_s, stage_profile
from objectives.cost.tokens import microbatches
from search_spaces.cluster import assumed
from search_spaces.plan import CpKind, Plan, Plans, RankOrder, Recompute, code
from search_spaces.space import SearchSpace, SpaceSpec
from search_spaces.units import GB
from tests.objectives.jobs import JOBS, UNUSUAL_JOBS, job_of, legal_plans, unusual_plans, with_links

COMM_PARTS = ("tp_comm_s", "cp_comm_s", "ep_comm_s", "pp_comm_s", "dp_comm_s")
TABLES = (
    (PASS_KNOBS, pass_table),
    (STATE_KNOBS, state_times),
    (STATE_BYTES_KNOBS, held_states),
    (ACTIVATION_KNOBS, kept_activations),
)
every_job = pytest.mark.parametrize("name", JOBS)


def time_of(job, plans):
    return estimate(job, plans).time


def with_device(job, **changes):
    return replace(job, cluster=replace(job.cluster, device=replace(job.cluster.device, **changes)))


@every_job
def test_the_parts_add_up_and_none_is_negative(name):
    time = time_of(JOBS[name], legal_plans(name))
    parts = np.stack([getattr(time, field.name) for field in fields(time)])
    assert (parts >= 0).all()
    assert np.isfinite(parts).all()
    np.testing.assert_allclose(parts.sum(axis=0), time.total_s)


@every_job
def test_a_plan_costs_the_same_alone_as_in_a_batch_and_in_any_order(name):
    job, plans = JOBS[name], legal_plans(name)
    together, backwards = estimate(job, plans), estimate(job, plans.take(np.arange(len(plans))[::-1]))
    assert together.step_s.tolist() == backwards.step_s[::-1].tolist()
    for i in range(0, len(plans), 20):
        alone = estimate(job, plans.take(slice(i, i + 1)))
        assert alone.step_s[0] == together.step_s[i], plans.row(i).key
        assert alone.peak_memory_bytes[0] == together.peak_memory_bytes[i], plans.row(i).key


@every_job
def test_no_plan_and_many_plans_are_both_answered(name):
    job, plans = JOBS[name], legal_plans(name)
    many = plans.take(np.arange(CHUNK_PLANS + 100) % len(plans))
    assert [len(part) for part in chunks(many)] == [CHUNK_PLANS, 100]
    assert estimate(job, many).step_s[: len(plans)].tolist() == estimate(job, plans).step_s.tolist()
    assert len(estimate(job, plans.take(slice(0, 0))).step_s) == 0


@every_job
@pytest.mark.parametrize(("knobs", "function"), TABLES)
def test_factored_tables_are_the_direct_ones(name, knobs, function):
    job, plans = JOBS[name], legal_plans(name)
    direct, shared = function(job, plans), factored(plans, knobs, lambda rows: function(job, rows))
    for field in fields(direct):
        np.testing.assert_array_equal(getattr(shared, field.name), getattr(direct, field.name), field.name)


@pytest.mark.parametrize("name", UNUSUAL_JOBS)
@pytest.mark.parametrize(("knobs", "function"), TABLES)
def test_factored_tables_are_the_direct_ones_with_every_knob(name, knobs, function):
    job, plans = UNUSUAL_JOBS[name], unusual_plans(name)
    direct, shared = function(job, plans), factored(plans, knobs, lambda rows: function(job, rows))
    for field in fields(direct):
        assert same(getattr(shared, field.name), getattr(direct, field.name)), field.name


def same(a, b):
    return (a is None and b is None) or np.array_equal(a, b)


@pytest.mark.parametrize("name", UNUSUAL_JOBS)
def test_memory_priced_by_setting_is_that_of_each_plan(name):
    job, drawn = UNUSUAL_JOBS[name], unusual_plans(name)
    plans = drawn.take(np.concatenate([np.arange(len(drawn)), np.arange(0, len(drawn), 3)]))
    held = peak_memory(job, plans)
    assert len(held.stage) <= len(drawn) < len(plans)
    memory, stage = held.by_plan()
    for i in range(0, len(plans), 7):
        alone, alone_stage = fullest_stage(job, plans.take(slice(i, i + 1)))
        assert (alone.total_bytes[0], alone_stage[0]) == (memory.total_bytes[i], stage[i]), plans.row(i).key
        assert held.total_bytes[i] == alone.total_bytes[0]


@pytest.mark.parametrize("name", UNUSUAL_JOBS)
def test_an_estimate_with_known_memory_is_the_same(name):
    job, plans = UNUSUAL_JOBS[name], unusual_plans(name)
    rows = np.random.default_rng(1).permutation(len(plans))[:100]
    known = estimate_chunk(job, plans.take(rows), peak_memory(job, plans).take(rows))
    direct = estimate_chunk(job, plans.take(rows))
    assert known.step_s.tolist() == direct.step_s.tolist()
    assert known.peak_memory_bytes.tolist() == direct.peak_memory_bytes.tolist()


@pytest.mark.parametrize("name", UNUSUAL_JOBS)
def test_no_step_is_shorter_than_its_bound(name):
    job, plans = UNUSUAL_JOBS[name], unusual_plans(name)
    least, step_s = least_step_s(job, plans), estimate(job, plans).step_s
    assert (least <= step_s).all()
    assert (least / step_s).max() > 0.5  # and it says something


def test_devices_that_share_a_core_have_a_bound_too():
    job = job_of("gpt2-xl", "dgx-a100", 8, seq_len=1024, global_batch=64)
    plans = next(SearchSpace(job.model, job.cluster, job.workload, SpaceSpec()).chunks())
    job = with_device(job, processes_per_core=4.0)
    assert job.cluster.turns == 4
    assert (least_step_s(job, plans) <= estimate(job, plans).step_s).all()


@every_job
def test_equal_settings_have_equal_codes_and_no_others(name):
    plans = legal_plans(name)
    codes, (first, inverse) = (
        setting_codes(plans, PASS_KNOBS),
        distinct_settings(setting_codes(plans, PASS_KNOBS)),
    )
    settings = list(zip(*(getattr(plans, knob).tolist() for knob in PASS_KNOBS), strict=True))
    assert len(first) == len(set(settings)) == len(set(codes.tolist()))
    assert [settings[i] for i in first[inverse]] == settings


def test_codes_too_wide_for_an_integer_are_made_narrow():
    plans = Plans.of([Plan(tp=2**20, pp=2**20, dp=2**20, cp=2**20, ep=n) for n in (1, 2, 2, 1)])
    codes = setting_codes(plans, ("tp", "pp", "dp", "cp", "ep"))
    assert codes[0] == codes[3] != codes[1] == codes[2]


@every_job
def test_links_without_end_leave_no_communication(name):
    job, plans = JOBS[name], legal_plans(name)
    free = time_of(replace(job, cluster=with_links(job.cluster, bandwidth=1e30, latency=0.0)), plans)
    for part in COMM_PARTS:
        # 1e30 times the bandwidth is not quite infinite.
        assert getattr(free, part).max() < 1e-9, part


@every_job
@pytest.mark.parametrize("factor", [1.1, 2.0, 10.0])
def test_more_bandwidth_is_never_slower(name, factor):
    job, plans = JOBS[name], legal_plans(name)
    faster = replace(job, cluster=with_links(job.cluster, bandwidth=factor))
    # Sums of other parts round in another way.
    assert (time_of(faster, plans).total_s <= time_of(job, plans).total_s * (1 + 1e-12)).all()


@every_job
def test_ten_times_all_speeds_is_a_tenth_of_the_time(name):
    job, plans = JOBS[name], legal_plans(name)
    device = job.cluster.device
    plans = plans.take(~plans.offload_optimizer)  # the host's own speed is not the cluster's
    faster = with_device(
        replace(job, cluster=with_links(job.cluster, bandwidth=10, latency=0.1)),
        memory_bandwidth_bytes_per_s=10 * device.memory_bandwidth_bytes_per_s,
        peak_flops_per_s={precision: 10 * peak for precision, peak in device.peak_flops_per_s.items()},
        kernel_launch_s=assumed(device.kernel_launch_s.value / 10),
    )
    fixed_s = assumed(job.cluster.step_fixed_s.value / 10)
    nature = replace(job.nature, kernel_start_s=assumed(job.nature.kernel_start_s.value / 10))
    faster = replace(faster, cluster=replace(faster.cluster, step_fixed_s=fixed_s), nature=nature)
    np.testing.assert_allclose(10 * time_of(faster, plans).total_s, time_of(job, plans).total_s)


@every_job
def test_recomputation_never_saves_time_and_never_keeps_more(name):
    job, plans = JOBS[name], legal_plans(name)
    plans = replace(plans, recompute_every=np.ones_like(plans.recompute_every))
    kinds = [replace(plans, recompute=np.full_like(plans.recompute, code(kind))) for kind in Recompute]
    for less, more in pairwise([kept_activations(job, each) for each in kinds]):
        assert (more.kept_bytes <= less.kept_bytes).all()
    for less, more in pairwise([pass_table(job, each) for each in kinds]):
        assert (more.worst_s >= less.worst_s * (1 - 1e-12)).all()  # a host-bound sum may round differently


@every_job
@pytest.mark.parametrize("knob", ["overlap_dp", "overlap_tp", "overlap_pp", "overlap_ep", "deduplicate_ep"])
def test_overlap_never_costs_time(name, knob):
    job, plans = JOBS[name], legal_plans(name)
    without, overlapped = (
        time_of(job, replace(plans, **{knob: np.full(len(plans), value)})).total_s for value in (False, True)
    )
    # Another stage may become the worst one, with less of its pass to hide reductions behind.
    assert (overlapped <= without * (1 + 1e-3)).all()


@every_job
def test_a_profiles_passes_are_the_steps(name):
    """The worst stage's passes, m times, are the step without bubble, messages and end."""
    job, plans = JOBS[name], legal_plans(name, 40)
    time = time_of(job, plans)
    busy = (
        time.compute_s + time.recompute_s + time.tp_comm_s + time.cp_comm_s + time.ep_comm_s + time.launch_s
    )
    for i, plan in enumerate(plans):
        profile = stage_profile(job, plan)
        worst = (profile.forward_s + profile.backward_s).max()
        assert busy[i] == pytest.approx(microbatches(job, plans)[i] * worst, rel=1e-9), plan.key


@every_job
def test_an_offloaded_optimizer_trades_memory_for_time(name):
    job, plans = JOBS[name], legal_plans(name)
    here, away = (
        estimate(job, replace(plans, offload_optimizer=np.full(len(plans), value))) for value in (False, True)
    )
    assert (away.step_s > here.step_s).all()
    assert (away.time.optimizer_s == 0).all()
    assert (here.time.offload_s == 0).all()


MOE = job_of("x-moe-large", "frontier", 256, global_batch=1024)


def test_recomputation_raises_the_all_to_alls_of_a_layer_from_four_to_six():
    """X-MoE (2025), arXiv:2508.13337: two more per expert layer."""
    plain, redone = (
        time_of(MOE, Plans.of([Plan(dp=256, ep=64, zero=1, recompute=kind)]))
        for kind in (Recompute.NONE, Recompute.FULL)
    )
    job = replace(MOE, cluster=with_links(MOE.cluster, bandwidth=1e30, latency=0.0))
    computed = time_of(job, Plans.of([Plan(dp=256, ep=64, zero=1, recompute=Recompute.FULL)]))
    again = redone.recompute_s - computed.recompute_s
    assert again / plain.ep_comm_s == pytest.approx(2 / 4)


def test_an_all_to_all_carries_k_copies_of_every_token():
    """4 k T h bytes a layer and pass, of which (n - m)/n leave a node of m; arXiv:2605.05049's bound."""
    cluster = with_links(MOE.cluster, latency=0.0)
    time = time_of(
        replace(MOE, cluster=cluster), Plans.of([Plan.parse("dp=256 ep=256 zero=1 dispatch=padding-free")])
    )
    fabric, model = cluster.tiers[-1], MOE.model
    sent = 2 * 4096 * model.moe.top_k * model.d_model * (256 - 32) / 256
    link = fabric.bandwidth_bytes_per_s * fabric.efficiency.value
    # Two exchanges each way, on 28 layers, for four micro-batches.
    assert time.ep_comm_s[0] == pytest.approx(4 * 28 * 4 * sent / link)


def test_gradients_of_tied_embeddings_travel_between_the_ends():
    plans = Plans.of([Plan(tp=4, pp=16, micro_batch=1), Plan(tp=4, pp=1, dp=1)])
    job = job_of("frontier-175b", "frontier", 64, seq_len=2048, global_batch=16)
    tables = [state_times(replace(job, model=model), plans) for model in (job.model, untied(job.model))]
    assert tables[0].tie_s[0] > 0 == tables[1].tie_s[0]
    assert tables[0].tie_s[1] == 0


def untied(model):
    return replace(model, embedding=replace(model.embedding, tied=False))


@pytest.mark.parametrize(("zero", "reductions", "gathers"), [(0, 2, 0), (1, 1, 1), (2, 8, 1), (3, 8, 16)])
def test_zero_moves_what_its_table_says(zero, reductions, gathers):
    """Eight micro-batches over one flat fabric, in units of one ring pass of 16-bit parameters."""
    job = job_of("gpt2-xl", "dgx-a100", 8, seq_len=1024, global_batch=64)
    flat = replace(
        with_links(job.cluster, latency=0.0), tiers=with_links(job.cluster, latency=0.0).tiers[-1:]
    )
    link = flat.tiers[0].bandwidth_bytes_per_s * flat.tiers[0].efficiency.value
    time = time_of(replace(job, cluster=flat), Plans.of([Plan(dp=8, zero=zero)]))
    ring_s = 1_557_611_200 * 7 / 8 / link
    assert time.dp_comm_s[0] == pytest.approx((4 * reductions + 2 * gathers) * ring_s)


def test_ranks_side_by_side_reduce_over_nvlink():
    plans = Plans.of([Plan(pp=16, dp=8, rank_order=order) for order in RankOrder])
    job = job_of("llama-2-13b", "dgx-h100", 128, seq_len=4096)
    table, time = pass_table(job, plans), time_of(job, plans)
    assert time.dp_comm_s[0] < time.dp_comm_s[1]
    assert table.send_s[0] == table.send_s[1]  # sixteen stages leave a node of eight in either order


def test_keys_and_values_ring_behind_the_attention_core():
    """Long sequences hide the ring, up to the share that the framework can."""
    exposed = []
    for seq_len in (8_192, 131_072):
        job = job_of("llama-3-8b", "dgx-h100", 8, seq_len=seq_len, global_batch=1)
        time = time_of(job, Plans.of([Plan(cp=8, recompute="full")]))
        exposed.append(time.cp_comm_s[0] / time.total_s[0])
    assert exposed[1] < exposed[0]


def test_a_faster_host_link_makes_offload_cheaper():
    job = job_of("llama-3-8b", "dgx-h100", 8, global_batch=8)
    plan = Plans.of([Plan(dp=8, zero=1, offload_optimizer=True)])
    slower = with_device(job, host_bandwidth_bytes_per_s=8 * GB)
    assert time_of(slower, plan).offload_s > time_of(job, plan).offload_s


def test_a_ring_hides_what_an_all_gather_of_keys_and_values_shows():
    asked = job_of("llama-3-8b", "dgx-h100", 64)
    kinds = [Plan(tp=2, dp=4, cp=8, cp_kind=kind) for kind in (CpKind.RING, CpKind.ALL_GATHER)]
    ring_s, gather_s = estimate(asked, Plans.of(kinds)).time.cp_comm_s
    assert 0 < ring_s < gather_s


@pytest.mark.parametrize("framework", ["any", "torchtitan"])
def test_a_pipeline_reduces_gradients_once_and_keeps_them_whole_until_then(framework):
    job = job_of("llama-3-8b", "dgx-h100", 32, global_batch=256, framework=framework)

    def priced(words):
        found = estimate(job, Plans.of([Plan.parse(f"tp=2 {words} overlap_dp=false micro_batch=1")]))
        return found.time.dp_comm_s[0], found.memory.gradients_bytes[0]

    (whole_s, whole_bytes), (once_s, once_bytes) = priced("pp=4 dp=4 zero=0"), priced("pp=4 dp=4 zero=2")
    assert once_bytes == whole_bytes
    assert once_s == pytest.approx(whole_s, rel=0.3)  # its weights come back in 16 bits
    (_, flat_bytes), (every_s, sharded_bytes) = priced("dp=16 zero=0"), priced("dp=16 zero=2")
    assert sharded_bytes == pytest.approx(flat_bytes / 16)
    assert every_s > 8 * once_s  # 16 micro-batches
