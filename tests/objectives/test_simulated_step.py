"""A plan's step on the engine: equal to the closed form where that is exact, and whole in every device."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.cost.step import estimate, stage_profile
from objectives.simulator.agreement import AGREES_TO, assumptions, gpipe_s, one_f_one_b_s
from objectives.simulator.memory import rank_memory
from objectives.simulator.program import Op, Pass, program_of
from objectives.simulator.randomness import ExpertLoad, Randomness
from objectives.simulator.schedules import Release, program
from objectives.simulator.step import PLAIN, Detail, StepOptions, StepSimulator, simulate_step
from objectives.simulator.step_costs import row_costs
from objectives.simulator.step_graph import Activity
from objectives.simulator.timeline import PassTimes, simulate
from search_spaces.cluster import assumed
from search_spaces.errors import InvalidSpec
from search_spaces.plan import OptimizerSync, Plan, Recompute, Schedule
from search_spaces.units import MIB
from tests.objectives.jobs import JOBS, frontier_job, job_of, legal_plans
from tests.objectives.test_memory import LOGGED_PEAK_MIB, LOGGED_PLAN, WORKSPACE_MIB

FREE = StepOptions(slowdown=assumed(1.0), shares_links=False)
PIECES = StepOptions()
LLAMA = job_of("llama-3-8b", "dgx-h100", 16, seq_len=8192, global_batch=16)
MIXTRAL = job_of("mixtral-8x7b", "dgx-h100", 16, global_batch=16)
SMALL = [
    Plan.parse("tp=2 pp=2 dp=4 micro_batch=1 overlap_dp=true"),
    Plan.parse(
        "tp=2 pp=2 dp=2 cp=2 micro_batch=1 zero=1 sequence_parallel=true overlap_dp=true overlap_tp=true"
    ),
    Plan.parse("tp=1 pp=4 dp=4 micro_batch=1 zero=3 overlap_dp=true"),
    Plan.parse("tp=2 pp=2 dp=4 micro_batch=1 vpp=2 schedule=interleaved zero=2 overlap_pp=true"),
    Plan.parse("tp=2 pp=4 dp=2 micro_batch=1 schedule=zb-h1"),
]


def drawn(**what):
    return replace(PLAIN, randomness=Randomness(**what))


def inside_the_assumptions(name, n_plans, seed):
    """Of so many random legal plans of a job, how many the closed form is exact for; the engine agrees."""
    job, plans = JOBS[name], legal_plans(name, n_plans, seed=seed)
    expected, inside = estimate(job, plans).step_s, 0
    for i, plan in enumerate(plans):
        if not assumptions(job, plan):
            inside += 1
            assert StepSimulator(job, plan).seconds(0) == pytest.approx(expected[i], rel=AGREES_TO), plan.key
    return inside


@pytest.mark.parametrize("name", JOBS)
def test_the_engine_agrees_with_the_closed_form_wherever_that_is_exact(name):
    assert any(inside_the_assumptions(name, 80, seed) for seed in range(5, 15))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_engine_agrees_with_the_closed_form_on_a_thousand_plans_inside_its_assumptions():
    found, seed = dict.fromkeys(JOBS, 0), 6
    while sum(found.values()) < 1000:
        for name in JOBS:
            found[name] += inside_the_assumptions(name, 200, seed)
        seed += 1
    print(f"{sum(found.values())} of {(seed - 6) * 200 * len(JOBS)} random legal plans: {found}")
    assert all(found.values())


@given(st.integers(2, 9), st.integers(0, 30), st.sampled_from([0, 0.05, 0.3]), st.integers(0, 10**6))
def test_uneven_pipelines_have_exact_forms(p, more, send, seed):
    rng, m = np.random.default_rng(seed), p + more
    forward_s, backward_s = rng.uniform(0.5, 1.5, p), rng.uniform(0.5, 3, p)
    times = PassTimes(
        forward_s=forward_s[:, None], backward_input_s=backward_s[:, None] / 2,
        backward_weight_s=backward_s[:, None] / 2, send_s=np.full(p, send),
    )  # fmt: skip
    rank = np.arange(p)
    forward_s, backward_s = forward_s + send * (rank < p - 1), backward_s + send * (rank > 0)
    for schedule, form in ((Schedule.GPIPE, gpipe_s), (Schedule.ONE_F_ONE_B, one_f_one_b_s)):
        found = simulate(program(schedule, p, m), times, sends_block=True).makespan_s
        assert form(forward_s, backward_s, m) == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("name", JOBS)
def test_pieces_that_share_nothing_are_the_passes(name):
    """Without an overlapped reduction, links shared or slow-down, finer tasks are the same seconds."""
    job = JOBS[name]
    for plan in legal_plans(name, 25, seed=3):
        if not plan.overlap_dp and not plan.overlap_pp:
            whole, pieces = simulate_step(job, plan), simulate_step(job, plan, FREE)
            assert pieces.step_s == pytest.approx(whole.step_s, rel=1e-6), plan.key
            np.testing.assert_allclose(
                pieces.exposed_comm_s - pieces.parts_s["pp_comm_s"],
                whole.exposed_comm_s - whole.parts_s["pp_comm_s"], rtol=1e-6, atol=1e-6,
            )  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_slow_downs_and_shared_links_only_cost_a_fixed_order(name):
    job = JOBS[name]
    for plan in legal_plans(name, 8, seed=4):
        free, real = simulate_step(job, plan, FREE), simulate_step(job, plan, PIECES)
        assert real.step_s >= free.step_s * (1 - 1e-3), plan.key
        np.testing.assert_allclose(sum(real.parts_s.values()), real.makespan_s, rtol=1e-9)


@pytest.mark.parametrize("plan", SMALL, ids=str)
@pytest.mark.parametrize("options", [PLAIN, PIECES], ids=["passes", "pieces"])
def test_representative_ranks_are_all_ranks(plan, options):
    job = LLAMA
    one, all_ranks = (simulate_step(job, plan, replace(options, all_ranks=every)) for every in (False, True))
    assert all_ranks.step_s == pytest.approx(one.step_s, rel=1e-12)
    n_copies = plan.tp * plan.cp * plan.dp
    for name, seconds in one.parts_s.items():
        np.testing.assert_allclose(all_ranks.parts_s[name], np.tile(seconds, n_copies), rtol=1e-9, atol=1e-9)


def test_experts_joined_over_all_ranks_take_as_long():
    plan = Plan.parse("tp=2 pp=2 dp=4 ep=4 etp=1 micro_batch=1")
    one, all_ranks = (
        simulate_step(MIXTRAL, plan, replace(PIECES, all_ranks=every)) for every in (False, True)
    )
    assert one.parts_s["ep_comm_s"].min() > 0
    assert all_ranks.step_s == pytest.approx(one.step_s, rel=1e-12)


@pytest.mark.parametrize("plan", SMALL[:2], ids=str)
def test_permuting_symmetric_ranks_changes_nothing(plan):
    """Devices of a tensor-parallel group, and whole replicas, may change places with their slowness."""
    rng, shape = np.random.default_rng(0), (plan.dp, plan.cp, plan.tp, plan.pp)
    slow = rng.uniform(1, 1.2, shape)

    def step_s(factors):
        rows = tuple(map(tuple, factors.reshape(-1, plan.pp).tolist()))
        return simulate_step(LLAMA, plan, replace(PIECES, all_ranks=True, copy_factors=rows)).step_s

    first = step_s(slow)
    assert first > simulate_step(LLAMA, plan, PIECES).step_s
    for axis in (0, 1, 2):
        assert step_s(np.flip(slow, axis=axis)) == pytest.approx(first, rel=1e-9)


def test_a_slow_device_holds_up_all_that_it_shares_with():
    plan = SMALL[0]
    factors = np.ones((8, 2))
    factors[5, 1] = 1.5
    rows = tuple(map(tuple, factors.tolist()))
    slow = simulate_step(LLAMA, plan, replace(PIECES, all_ranks=True, copy_factors=rows))
    assert slow.step_s > 1.2 * simulate_step(LLAMA, plan, PIECES).step_s


def test_a_slow_link_delays_and_a_slow_rank_more_than_its_share():
    plan = Plan.parse("tp=2 pp=4 dp=2 micro_batch=1")
    usual = simulate_step(LLAMA, plan).step_s
    for options in (Randomness(slow_links=((1, 50.0),)), Randomness(slow_ranks=((2, 1.3),))):
        assert simulate_step(LLAMA, plan, replace(PLAIN, randomness=options)).step_s > 1.02 * usual
    with pytest.raises(
        InvalidSpec, match="a slow rank must be one of the 4 there are, counted from 0; got 4"
    ):
        simulate_step(LLAMA, plan, replace(PLAIN, randomness=Randomness(slow_ranks=((4, 2.0),))))


def test_the_same_seed_is_the_same_step_and_jitter_spreads():
    plan = SMALL[0]
    quiet, loud = (replace(PLAIN, randomness=Randomness(jitter=jitter)) for jitter in (0.01, 0.1))
    assert simulate_step(LLAMA, plan, loud, seed=3).step_s == simulate_step(LLAMA, plan, loud, seed=3).step_s
    calm_s, wild_s = (
        [simulator.seconds(seed) for seed in range(30)]
        for simulator in (StepSimulator(LLAMA, plan, options) for options in (quiet, loud))
    )
    assert np.std(wild_s) > 3 * np.std(calm_s) > 0
    # The slowest of many passes sets the pace: jitter with a median of 1 makes the median step slower.
    assert np.median(wild_s) > simulate_step(LLAMA, plan).step_s


def loaded(kind, **more):
    plan = Plan.parse("tp=1 pp=2 dp=8 ep=8 micro_batch=1")
    options = replace(PLAIN, randomness=Randomness(expert_load=kind, **more))
    return simulate_step(MIXTRAL, plan, options)


def test_uneven_experts_are_slower_the_more_uneven_they_are():
    even, zipf = loaded(ExpertLoad.UNIFORM), loaded(ExpertLoad.ZIPF)
    steep = loaded(ExpertLoad.ZIPF, zipf_exponent=2.0)
    assert even.step_s < zipf.step_s < steep.step_s
    flat = loaded(ExpertLoad.HISTOGRAM, histogram=(1.0,) * 8)
    assert flat.step_s == pytest.approx(even.step_s, rel=1e-9)


def test_the_hottest_rank_keeps_what_its_experts_got():
    one_expert = loaded(ExpertLoad.HISTOGRAM, histogram=(1.0, *(0.0,) * 7))
    uneven = replace(MIXTRAL, workload=replace(MIXTRAL.workload, expert_imbalance=8.0))
    as_told = simulate_step(uneven, one_expert.plan)
    np.testing.assert_allclose(one_expert.memory.peak_bytes, as_told.memory.peak_bytes)
    even = loaded(ExpertLoad.UNIFORM).memory.peak_activation_bytes
    assert np.all(one_expert.memory.peak_activation_bytes > 3 * even)
    start, end = (one_expert.memory.over_time(0)[1][at] for at in (0, -1))
    assert end == pytest.approx(one_expert.memory.constant_bytes[0])
    assert start > end


def test_each_half_of_a_pair_of_passes_has_its_own_load():
    plan = Plan.parse("tp=2 pp=2 dp=4 ep=4 micro_batch=1 schedule=dualpipe")
    step = StepSimulator(MIXTRAL, plan, drawn(expert_load=ExpertLoad.ZIPF)).input(0)
    paired = step.program
    split = program_of(
        [[each for op in paired.order(rank) for each in halves(op)] for rank in range(paired.n_ranks)],
        n_microbatches=paired.n_microbatches, stage=paired.stage, route=paired.route,
    )  # fmt: skip
    both, apart = (
        row_costs(MIXTRAL, plan, made, step.parts, drawn(expert_load=ExpertLoad.ZIPF).randomness,
                  np.random.default_rng(0))
        for made in (paired, split)
    )  # fmt: skip
    busy_s = [np.bincount(made.rank, costs.total_s) for made, costs in ((paired, both), (split, apart))]
    np.testing.assert_allclose(*busy_s, rtol=1e-12)


def halves(op):
    if op.kind is not Pass.FORWARD_BACKWARD:
        return [op]
    return [Op(Pass.FORWARD, op.microbatch, op.chunk), Op(Pass.BACKWARD, op.with_microbatch, op.with_chunk)]


def test_a_rank_without_tokens_waits_or_hangs_the_trainer():
    one_expert = dict(histogram=(1.0, *(0.0,) * 7))
    waits = loaded(ExpertLoad.HISTOGRAM, **one_expert)
    assert waits.n_empty_expert_ranks > 0
    assert waits.hang == ""
    assert waits.step_s > 2 * loaded(ExpertLoad.UNIFORM).step_s  # one of eight ranks does all the work
    hangs = loaded(ExpertLoad.HISTOGRAM, empty_ranks_hang=True, **one_expert)
    assert "ranks had no token, and the trainer waits for them" in hangs.hang
    with pytest.raises(InvalidSpec, match="the histogram needs a share of each of 8; got 2"):
        loaded(ExpertLoad.HISTOGRAM, histogram=(1.0, 2.0))


def test_without_a_barrier_zero_bubble_steps_interlock():
    plan = Plan.parse("tp=2 pp=4 dp=2 micro_batch=1 schedule=zb-h2")
    barrier = simulate_step(LLAMA, plan).step_s
    interlocked = simulate_step(LLAMA, plan, replace(PLAIN, sync=OptimizerSync.POST_VALIDATION))
    assert interlocked.step_s < barrier
    assert interlocked.span_bubble_fraction < interlocked.makespan_bubble_fraction


def test_gradients_hide_behind_the_last_backward_passes_in_buckets():
    plan = Plan.parse("tp=1 pp=1 dp=16 micro_batch=1 overlap_dp=true")
    found = simulate_step(LLAMA, plan, PIECES)
    reduces = found.activities.activity == Activity.REDUCE
    last = found.passes.finish_s.max()
    early = (
        reduces & (found.activities.finish_s < last) & (found.activities.finish_s > found.activities.start_s)
    )
    assert early.sum() >= 4
    alone = simulate_step(LLAMA, replace(plan, overlap_dp=False), PIECES)
    assert found.parts_s["dp_comm_s"][0] < 0.5 * alone.parts_s["dp_comm_s"][0]


def test_the_simulators_memory_is_the_frontier_log_with_one_constant():
    found = simulate_step(frontier_job(), LOGGED_PLAN)
    memory = found.stage_memory
    states = memory.weights_bytes + memory.gradients_bytes + memory.optimizer_bytes
    peaks = (states + found.memory.peak_activation_bytes) / MIB + WORKSPACE_MIB
    # The allocator rounds to whole MiB; the ends have workspaces of their own.
    np.testing.assert_allclose(peaks[1:15], LOGGED_PEAK_MIB[1:15], atol=1.0)
    np.testing.assert_allclose(peaks[[0, 15]], LOGGED_PEAK_MIB[[0, 15]], rtol=0.02)


@pytest.mark.parametrize("name", JOBS)
def test_peaks_are_the_closed_forms_and_memory_returns_to_its_start(name):
    job = JOBS[name]
    for plan in legal_plans(name, 15, seed=6):
        found, profile = simulate_step(job, plan), stage_profile(job, plan)
        memory, left = found.memory, np.full(plan.pp, np.nan)
        left[memory.timeline.rank[memory.row]] = memory.after_bytes  # of a rank's passes the last stays
        np.testing.assert_allclose(left, 0, atol=1e-6 * profile.activation_bytes.max())
        if plan.schedule in (Schedule.GPIPE, Schedule.ONE_F_ONE_B):
            kept = profile.in_flight * profile.activation_bytes
            np.testing.assert_allclose(found.memory.peak_activation_bytes, kept, rtol=1e-9)


@pytest.mark.parametrize(
    ("release", "held"),
    [(Release.AT_BACKWARD_INPUT, [7, 5, 3, 1]), (Release.AT_WEIGHT, [7, 7, 7, 7])],
    ids=["at B", "at W"],
)
def test_when_activations_go_decides_the_peak_and_what_holds_it(release, held):
    plan = program(Schedule.ZB_H2, 4, 12)
    ones = np.ones((4, 1))
    times = PassTimes(forward_s=ones, backward_input_s=ones, backward_weight_s=ones, send_s=np.zeros(4))
    memory = rank_memory(simulate(plan, times), ones, release=release)
    assert memory.peak_activation_bytes.tolist() == held
    for rank, n in enumerate(held):
        kept = memory.held_at_peak(rank)
        assert sum(each.n_bytes for each in kept) == n
        seconds, n_bytes = memory.over_time(rank)
        assert n_bytes.max() == n
        assert memory.peak_at_s[rank] == seconds[np.argmax(n_bytes)]
        assert n_bytes[-1] == 0


def test_half_of_the_activations_may_go_with_each_half_of_the_backward_pass():
    plan = program(Schedule.ZB_H2, 4, 12)
    ones = np.ones((4, 1))
    found = simulate(
        plan, PassTimes(forward_s=ones, backward_input_s=ones, backward_weight_s=ones, send_s=np.zeros(4))
    )
    peaks = [rank_memory(found, ones, release=release).peak_activation_bytes for release in Release]
    assert np.all(peaks[0] <= peaks[1])
    assert np.all(peaks[1] <= peaks[2])


@settings(max_examples=20)
@given(st.sampled_from(list(Schedule)), st.sampled_from(list(Detail)))
def test_every_schedule_of_a_plan_is_simulated(schedule, detail):
    vpp = 2 if schedule is Schedule.INTERLEAVED else 1
    plan = Plan(tp=2, cp=2, pp=2, dp=2, micro_batch=1, schedule=schedule, vpp=vpp)
    found = simulate_step(LLAMA, plan, StepOptions(detail=detail))
    assert found.step_s > 0
    np.testing.assert_allclose(sum(found.parts_s.values()), found.makespan_s, rtol=1e-9)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda: StepOptions(n_groups=0), "n_groups must be from 1 to 64; got 0"),
        (lambda: StepOptions(slowdown=assumed(0.5)), "the overlap slow-down must be at least 1; got 0.5"),
        (lambda: Randomness(jitter=-1.0), "jitter, .* must be from 0 to 10; got -1.0"),
        (lambda: Randomness(jitter=float("nan")), "jitter, .* must be from 0 to 10; got nan"),
        (lambda: Randomness(jitter=1000.0), "jitter, .* must be from 0 to 10; got 1000.0"),
        (
            lambda: Randomness(slow_ranks=((0, 0.5),)),
            "takes from 1 to a million times as long; got 0: 0.5",
        ),
        (
            lambda: simulate_step(LLAMA, SMALL[0], drawn(slow_links=((1, 2.0),))),
            "a slow link must be one that messages cross: .*; got that behind rank 1 of 2",
        ),
        (
            lambda: simulate_step(
                LLAMA,
                replace(SMALL[4], recompute=Recompute.FULL, schedule=Schedule.GPIPE),
                replace(PLAIN, program=program(Schedule.ZB_H1, 4, 8)),
            ),
            r"must not recompute whole layers; got recompute=full and Bi\(micro-batch 0, chunk 0\)",
        ),
        (
            lambda: simulate_step(LLAMA, SMALL[0], drawn(expert_load=ExpertLoad.ZIPF)),
            "a load of experts needs a model with experts; got llama-3-8b, which is dense",
        ),
        (
            lambda: Randomness(expert_load=ExpertLoad.HISTOGRAM),
            "a histogram needs shares that are not negative",
        ),
    ],
    ids=[
        "groups",
        "slow-down",
        "jitter",
        "no jitter",
        "a factor e^1000",
        "straggler",
        "slow link",
        "halves of layers done again",
        "load of a dense model",
        "histogram",
    ],
)
def test_an_impossible_option_is_refused(wrong, match):
    with pytest.raises(InvalidSpec, match=match):
        wrong()
