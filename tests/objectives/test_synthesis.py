"""Synthesis: never worse than a name, within memory, and on tiny pipelines the best there is."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from objectives.simulator.memory import rank_memory
from objectives.simulator.program import Pass, round_robin, v_shape
from objectives.simulator.schedules import Release, check_program, csv_of, program, program_of_csv
from objectives.simulator.synthesis import Placement, StageCosts, synthesize
from objectives.simulator.synthesis.problem import problem_of
from objectives.simulator.synthesis.search import Bench, repeated
from objectives.simulator.timeline import PassTimes, simulate
from search_spaces.errors import InvalidSpec
from search_spaces.plan import OptimizerSync, Schedule

BARRIER, POST_VALIDATION = OptimizerSync.BARRIER, OptimizerSync.POST_VALIDATION
NAMED = {
    Placement.ROUND_ROBIN: (Schedule.GPIPE, Schedule.ONE_F_ONE_B, Schedule.ZB_H1, Schedule.ZB_H2,
                            Schedule.MESSAGE_DRIVEN),
    Placement.V_SHAPE: (Schedule.ZB_V, Schedule.V_HALF, Schedule.V_MIN, Schedule.DUALPIPE_V),
}  # fmt: skip
ROUNDING = 1 + 1e-9


def uneven(rng, p, v=1, release=Release.AT_WEIGHT):
    forward_s, input_s, weight_s = rng.uniform(0.3, 2, (3, p, v))
    times = PassTimes(
        forward_s=forward_s,
        backward_input_s=input_s,
        backward_weight_s=weight_s,
        send_s=rng.uniform(0, 0.4, p),
    )
    return StageCosts(times=times, activation_bytes=rng.uniform(50, 150, (p, v)), release=release)


def equal(p, v=1, release=Release.AT_WEIGHT):
    ones = np.ones((p, v))
    times = PassTimes(forward_s=ones, backward_input_s=ones, backward_weight_s=ones, send_s=np.zeros(p))
    return StageCosts(times=times, activation_bytes=ones, release=release)


def case(seed):
    """A small random pipeline: costs, micro-batches and conditions."""
    rng = np.random.default_rng(seed)
    placement = list(Placement)[seed % 2]
    v = 2 if placement is Placement.V_SHAPE else 1
    p, m = int(rng.integers(2, 5)), int(rng.integers(2, 11))
    costs = uneven(rng, p, v, list(Release)[seed % 3])
    share = costs.activation_bytes.sum(axis=1)
    limit = np.maximum(share, share.mean() * p * rng.uniform(0.5, 2))
    sync = list(OptimizerSync)[seed // 2 % 2]
    return costs, m, dict(memory_limit_bytes=limit, sync=sync, placement=placement)


def figure_s(timeline, sync):
    if sync is BARRIER:
        return timeline.finish_s.max() - timeline.start_s.min()
    spans = []
    for rank in range(timeline.program.n_ranks):
        mine = timeline.rank == rank
        spans.append(timeline.finish_s[mine].max() - timeline.start_s[mine].min())
    return max(spans)


def peak_bytes(costs, timeline):
    return rank_memory(timeline, costs.activation_bytes, release=costs.release).peak_bytes


def named_figures(costs, m, limit, sync, placement):
    """Figures of the schedules as drawn that fit, without a look at what synthesis counted."""
    p, v = costs.activation_bytes.shape
    for schedule in NAMED[placement]:
        try:
            timeline = simulate(program(schedule, p, m, v), costs.times)
        except InvalidSpec:
            continue
        if np.all(peak_bytes(costs, timeline) <= limit * ROUNDING):
            yield schedule, figure_s(timeline, sync)


def words(m):
    """Every order of F, B_i and W of m micro-batches on one rank, first in first out."""

    def rest(done):
        if done == (m, m, m):
            yield ()
        for turn in range(3):
            if done[turn] < (m if turn == 0 else done[turn - 1]):
                after = tuple(n + (k == turn) for k, n in enumerate(done))
                yield from ((turn, *others) for others in rest(after))

    return [np.array(word) for word in rest((0, 0, 0))]


def bench(costs, m, limit=np.inf, sync=BARRIER, placement=Placement.ROUND_ROBIN):
    return Bench(problem_of(costs, m, memory_limit_bytes=limit, sync=sync, placement=placement))


def test_200_uneven_cases_are_never_worse_than_a_named_schedule_and_mostly_better():
    gains = []
    for seed in range(200):
        costs, m, conditions = case(seed)
        result = synthesize(costs, m, **conditions, budget=400)
        timeline = simulate(result.program, costs.times)
        assert result.figure_s == figure_s(timeline, conditions["sync"])
        assert np.all(peak_bytes(costs, timeline) <= conditions["memory_limit_bytes"] * ROUNDING)
        check_program(result.program)
        limit, sync, placement = conditions.values()
        for schedule, named_s in named_figures(costs, m, limit, sync, placement):
            assert result.figure_s <= named_s * ROUNDING, (seed, schedule)
            assert result.named[schedule] <= named_s * ROUNDING  # the best form is no worse than as drawn
        assert result.figure_s * ROUNDING >= result.floor_s
        gains += [result.gain] if result.gain is not None else []
    assert len(gains) > 150
    assert np.mean(np.array(gains) > 1e-6) > 0.5


@pytest.mark.parametrize("sync", OptimizerSync)
@pytest.mark.parametrize("room", [1.0, 1.6, 4.0])
@pytest.mark.parametrize(("p", "m"), [(2, 2), (2, 3), (3, 2)])
def test_on_tiny_pipelines_the_best_of_all_orders_is_found(p, m, room, sync):
    costs = uneven(np.random.default_rng(m), p)
    limit = room * costs.activation_bytes.max()
    measure = bench(costs, m, sync=sync)
    best_s = np.inf
    for orders in product(words(m), repeat=p):
        plan = measure.problem.program(np.stack(orders), m)
        try:
            timeline = simulate(plan, costs.times)
        except InvalidSpec:
            continue
        if np.all(peak_bytes(costs, timeline) <= limit):
            best_s = min(best_s, figure_s(timeline, sync))
    found = synthesize(costs, m, memory_limit_bytes=limit, sync=sync, budget=3000)
    assert found.figure_s == pytest.approx(best_s, rel=1e-12)


@pytest.mark.parametrize(("placement", "v"), [("round-robin", 1), ("round-robin", 2), ("v-shape", 2)])
def test_the_inner_clock_agrees_with_the_engine_and_with_its_memory(placement, v):
    rng, m = np.random.default_rng(3), 4
    n_infinite = n_finite = 0
    for seed in range(150):
        costs = uneven(rng, 3, v, list(Release)[seed % 3])
        limit = costs.activation_bytes.sum(axis=1).max() * rng.uniform(1, 4)
        sync = list(OptimizerSync)[seed % 2]
        measure = bench(costs, m, limit, sync, Placement(placement))
        turns = shuffled(measure.built(measure.rules(rng)[0]).turns, rng, 3 * v)
        try:
            timeline = simulate(measure.problem.program(turns, m), costs.times)
            fits = np.all(peak_bytes(costs, timeline) <= limit)
            expected_s = figure_s(timeline, sync) if fits and ordered(timeline) else np.inf
        except InvalidSpec:
            expected_s = np.inf
        assert measure.figure_s(turns) == expected_s
        n_infinite, n_finite = n_infinite + np.isinf(expected_s), n_finite + np.isfinite(expected_s)
    assert min(n_infinite, n_finite) > 20


def shuffled(turns, rng, n_swaps):
    turns = turns.copy()
    for _ in range(rng.integers(n_swaps + 1)):
        rank, k = rng.integers(len(turns)), rng.integers(turns.shape[1] - 1)
        turns[rank, [k, k + 1]] = turns[rank, [k + 1, k]]
    return turns


def ordered(timeline):
    """Whether check_program finds nothing: W after B_i after F on every rank."""
    check_program(timeline.program)
    return True


@pytest.mark.parametrize("seed", range(8))
def test_no_pass_of_a_synthesised_order_starts_before_what_it_needs(seed):
    costs, m, conditions = case(seed)
    p, v = costs.activation_bytes.shape
    timeline = simulate(synthesize(costs, m, **conditions, budget=200).program, costs.times)
    plan, stage = timeline.program, (v_shape(p) if v == 2 else round_robin(p, 1))
    place = stage[timeline.rank, plan.chunk]
    letters = {Pass.BACKWARD: "B", Pass.BACKWARD_INPUT: "B", Pass.BACKWARD_WEIGHT: "W", Pass.FORWARD: "F"}
    start, finish, where = {}, {}, {}
    for at in range(len(plan)):
        key = letters[Pass(plan.kind[at])], int(place[at]), int(plan.microbatch[at])
        start[key], finish[key], where[key] = (
            timeline.start_s[at], timeline.finish_s[at], timeline.rank[at]
        )  # fmt: skip
    for (letter, s, j), start_s in start.items():
        need = {"F": ("F", s - 1, j), "B": ("B", s + 1, j), "W": ("B", s, j)}[letter]
        need = ("F", s, j) if letter == "B" and need not in finish else need
        if need in finish and (letter, s, j) != need:
            link = min(where[need], where[letter, s, j])
            crosses = where[need] != where[letter, s, j]
            assert start_s >= finish[need] + crosses * costs.times.send_s[link]


def test_the_same_seed_gives_the_same_order():
    costs, m, conditions = case(10)
    first, again, other = (synthesize(costs, m, **conditions, budget=500, seed=seed) for seed in (1, 1, 2))
    columns = [np.stack([each.program.kind, each.program.microbatch]) for each in (first, again, other)]
    assert np.array_equal(columns[0], columns[1])
    assert first.figure_s == again.figure_s
    assert other.floor_s == first.floor_s


@pytest.mark.parametrize("p", [2, 4, 6])
def test_equal_costs_need_no_more_than_zero_bubble_theory_says(p):
    m = 3 * p
    barrier = synthesize(equal(p), m, memory_limit_bytes=p, sync=BARRIER)
    assert barrier.figure_s == 3 * m + p - 1  # ZB-H1, arXiv:2401.10241 table 2: (p - 1) (F + B_i - W)
    interlocked = synthesize(equal(p), m, memory_limit_bytes=2 * p, sync=POST_VALIDATION)
    assert interlocked.figure_s == 3 * m  # ZB-H2: none
    assert barrier.figure_s == barrier.floor_s
    assert interlocked.figure_s == interlocked.floor_s


@pytest.mark.parametrize("seed", [2, 3, 6, 7])
def test_interlocking_steps_follow_each_other_within_the_span(seed):
    costs, m, conditions = case(seed)
    assert conditions["sync"] is POST_VALIDATION
    result, n = synthesize(costs, m, **conditions, budget=200), 5
    problem = bench(costs, m, placement=conditions["placement"]).problem
    turns = problem.turns(result.program)
    steps = simulate(problem.program(np.tile(turns, n), n * m), costs.times)
    assert steps.makespan_s <= result.makespan_s + (n - 1) * result.figure_s * ROUNDING


def test_local_improvement_goes_on_where_greedy_ends():
    budgets = dict.fromkeys((0, 2000), 0.0)
    for seed in range(0, 40, 5):
        costs, _, conditions = case(seed)
        for budget in budgets:
            result = synthesize(costs, 8, **conditions, budget=budget)
            budgets[budget] += result.figure_s / result.floor_s
    assert budgets[2000] < budgets[0]


def test_a_limit_below_the_named_schedules_still_gets_an_order():
    result = synthesize(equal(4), 8, memory_limit_bytes=1.0, budget=100)
    assert result.figure_s == 8 * (4 + 4 + 1)  # rank 0: down the pipeline, up again, W; then the next
    assert "GiB" in result.named[Schedule.ZB_H1]


@pytest.mark.parametrize("v", [1, 2])
def test_memory_for_no_order_is_told(v):
    placement = list(Placement)[v - 1]
    with pytest.raises(InvalidSpec, match="rank 0: 1 bytes, and 100 needed"):
        synthesize(
            StageCosts(times=equal(3, v).times, activation_bytes=np.full((3, v), 100.0 / v)),
            4, memory_limit_bytes=np.array([1.0, 300, 300]), placement=placement,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(memory_limit_bytes=np.ones(2)), "one number, or one a rank"),
        (dict(memory_limit_bytes=np.nan), "not negative"),
        (dict(placement=Placement.V_SHAPE), "the V placement has two chunks a rank"),
        (dict(budget=-1), "budget must not be negative"),
        (dict(n_microbatches=0), "at least one micro-batch"),
    ],
    ids=["limits", "nan", "chunks", "budget", "micro-batches"],
)
def test_bad_input_gets_a_sentence(change, words):
    with pytest.raises(InvalidSpec, match=words):
        synthesize(**dict(costs=equal(3), n_microbatches=4, memory_limit_bytes=9.0) | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(activation_bytes=np.ones((2, 1))), "activation_bytes must have the shape"),
        (dict(activation_bytes=-np.ones((3, 1))), "activation_bytes must be finite"),
    ],
    ids=["shape", "sign"],
)
def test_costs_that_cannot_be_get_a_sentence(change, words):
    with pytest.raises(InvalidSpec, match=words):
        StageCosts(**dict(times=equal(3).times) | change)


@pytest.mark.parametrize("v", [1, 2])
def test_a_long_step_repeats_the_middle_of_a_short_one(v):
    p, m, few = 3, 40, 9
    costs, placement = uneven(np.random.default_rng(5), p, v), list(Placement)[v - 1]
    limit = 300.0 * v * p
    short, long = (bench(costs, n, limit, placement=placement) for n in (few, m))
    order = short.built(short.rules(np.random.default_rng(0))[0])
    figures = [long.figure_s(turns) for turns in repeated(short, order, m)]
    assert np.isfinite(figures).sum() >= 5
    per_microbatch_s = costs.times.table()[:2].sum(axis=(0, 2)).max()
    assert min(figures) < order.figure_s + 1.3 * (m - few) * per_microbatch_s


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_many_microbatches_are_never_worse_either(seed):
    costs, _, conditions = case(seed)
    limit, sync, placement = conditions.values()
    result = synthesize(costs, 60, **conditions, budget=300)
    check_program(result.program)
    figures = dict(named_figures(costs, 60, limit, sync, placement))
    assert all(result.figure_s <= each * ROUNDING for each in figures.values())


def test_the_order_survives_the_csv_of_pytorch():
    costs, m, conditions = case(4)
    plan = synthesize(costs, m, **conditions, budget=100).program
    again = program_of_csv(csv_of(plan))
    assert [again.order(rank) for rank in range(again.n_ranks)] == [
        plan.order(rank) for rank in range(plan.n_ranks)
    ]


def test_numba_is_loaded_by_the_first_search_only():
    code = "import sys, objectives.simulator.synthesis; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
