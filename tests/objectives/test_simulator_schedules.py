"""Schedules against the closed forms of their papers, on grids; sizes in flight; what is run."""

from collections import Counter

import numpy as np
import pytest

from objectives.simulator.schedules import SCHEDULES, Pass, peak_in_flight, program
from objectives.simulator.timeline import PassTimes, simulate
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Schedule

# Seconds of F, B_i and W through a rank's whole share; whole numbers, so equality is exact.
COSTS = [(1, 1, 1), (10, 12, 8), (2, 3, 4), (12, 36, 24)]
RANKS = [1, 2, 3, 4, 5, 7, 8, 12, 16]
MICROBATCHES = [1, 2, 3, 4, 7, 8, 16, 32, 64]
FREED_AT_BACKWARD = (Pass.BACKWARD, Pass.BACKWARD_INPUT)


def equal_times(n_ranks, n_chunks, costs, send_s=0.0):
    forward_s, input_s, weight_s = (np.full((n_ranks, n_chunks), cost / n_chunks) for cost in costs)
    return PassTimes(
        forward_s=forward_s,
        backward_input_s=input_s,
        backward_weight_s=weight_s,
        send_s=np.full(n_ranks, send_s),
    )


def bubble_s(schedule, p, m, costs, v=1):
    timeline = simulate(program(schedule, p, m, v), equal_times(p, v, costs))
    return timeline.makespan_s - m * sum(costs)


@pytest.mark.parametrize("costs", COSTS, ids=str)
@pytest.mark.parametrize("schedule", [Schedule.GPIPE, Schedule.ONE_F_ONE_B])
def test_gpipe_and_1f1b_idle_as_long_as_their_closed_form_says(schedule, costs):
    # Narayanan et al. (2021), arXiv:2104.04473, section 2.2.1.
    for p in RANKS:
        for m in MICROBATCHES:
            assert bubble_s(schedule, p, m, costs) == (p - 1) * sum(costs)


@pytest.mark.parametrize("v", [1, 2, 4])
@pytest.mark.parametrize("n_rounds", [1, 2, 3, 6], ids=lambda n: f"m={n}p")
def test_interleaving_divides_the_bubble_by_the_chunks(v, n_rounds):
    # Narayanan et al. (2021), arXiv:2104.04473, section 2.2.2; n_rounds = 1 is Megatron's all-warm-up case.
    for p in range(2, 13):
        for costs in COSTS:
            got = bubble_s(Schedule.INTERLEAVED, p, n_rounds * p, costs, v)
            assert got == pytest.approx((p - 1) * sum(costs) / v, rel=1e-12)


@pytest.mark.parametrize("costs", COSTS, ids=str)
def test_zb_h1_idles_as_long_as_its_closed_form_says(costs):
    # Qi et al. (2023), arXiv:2401.10241, table 1, for W <= F; beyond, rank 0 starves before its first B.
    forward_s, input_s, weight_s = costs
    for p in RANKS:
        for m in [n for n in MICROBATCHES if n >= p]:
            assert bubble_s(Schedule.ZB_H1, p, m, costs) == (p - 1) * (input_s + max(forward_s - weight_s, 0))


@pytest.mark.parametrize(("p", "bubble"), [(4, 42), (8, 98)])
def test_zb_h1_has_the_bubble_of_the_official_generator(p, bubble):
    assert bubble_s(Schedule.ZB_H1, p, 3 * p, (10, 12, 8)) == bubble


@pytest.mark.parametrize("p", RANKS)
def test_zb_h2_idles_only_in_the_ramp_where_all_passes_are_equal(p):
    # Qi et al. (2023), arXiv:2401.10241, table 1: (p - 1) (F + B - 2 W) = 0; a barrier leaves (p - 1) F.
    timeline = simulate(program(Schedule.ZB_H2, p, 3 * p), equal_times(p, 1, (10, 10, 10)))
    assert timeline.span_idle_s.tolist() == [0] * p
    assert bubble_s(Schedule.ZB_H2, p, 3 * p, (10, 10, 10)) == (p - 1) * 10


@pytest.mark.parametrize("p", RANKS)
@pytest.mark.parametrize("m", MICROBATCHES)
def test_1f1b_keeps_as_many_micro_batches_as_ranks_are_left(p, m):
    orders = program(Schedule.ONE_F_ONE_B, p, m).orders
    peaks = [peak_in_flight(order, release=FREED_AT_BACKWARD) for order in orders]
    assert peaks == [min(m, p - i) for i in range(p)]


@pytest.mark.parametrize("m", MICROBATCHES)
def test_gpipe_keeps_every_micro_batch(m):
    orders = program(Schedule.GPIPE, 4, m).orders
    assert [peak_in_flight(order, release=FREED_AT_BACKWARD) for order in orders] == [m] * 4


@pytest.mark.parametrize("p", RANKS)
def test_zb_h1_keeps_p_micro_batches_until_their_weight_gradients(p):
    orders = program(Schedule.ZB_H1, p, 3 * p).orders
    assert [peak_in_flight(order, release=(Pass.BACKWARD_WEIGHT,)) for order in orders] == [p] * p


@pytest.mark.parametrize("p", RANKS)
def test_zb_h2_keeps_almost_twice_as_many(p):
    orders = program(Schedule.ZB_H2, p, 3 * p).orders
    assert [peak_in_flight(order, release=(Pass.BACKWARD_WEIGHT,)) for order in orders] == [2 * p - 1] * p


@pytest.mark.parametrize("v", [2, 3, 4])
@pytest.mark.parametrize("p", [2, 4, 8])
def test_interleaving_keeps_a_little_more_than_1f1b(p, v):
    # p + (p - 1 - 2 i) / v micro-batches, in chunks of 1 / v; all of them where m = p.
    long, short = (program(Schedule.INTERLEAVED, p, m, v).orders for m in (3 * p, p))
    chunks = [peak_in_flight(order, release=FREED_AT_BACKWARD) for order in long]
    assert chunks == [p * v + (p - 1 - 2 * i) for i in range(p)]
    assert {peak_in_flight(order, release=FREED_AT_BACKWARD) for order in short} == {p * v}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("p", "m"), [(1, 1), (4, 2), (4, 4), (3, 12), (8, 16)])
def test_every_rank_runs_every_pass_once(schedule, p, m):
    if schedule is Schedule.INTERLEAVED and m % p:
        m *= p
    v = 2 if schedule is Schedule.INTERLEAVED else 1
    split = schedule in (Schedule.ZB_H1, Schedule.ZB_H2)
    kinds = (
        [Pass.FORWARD, Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT] if split else [Pass.FORWARD, Pass.BACKWARD]
    )
    once = Counter((kind, j, c) for kind in kinds for j in range(m) for c in range(v))
    for order in program(schedule, p, m, v).orders:
        assert Counter(map(tuple, order)) == once


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((Schedule.INTERLEAVED, 4, 6, 2), "needs pp to divide the number of micro-batches; got pp=4, m=6"),
        ((Schedule.ONE_F_ONE_B, 4, 8, 2), "the schedule 1f1b holds one chunk a rank; got 2"),
        ((Schedule.GPIPE, 4, 0, 1), "at least one rank, one micro-batch and one chunk; got 4, 0, 1"),
    ],
    ids=["indivisible", "chunks", "nothing to do"],
)
def test_an_impossible_schedule_is_refused(arguments, match):
    with pytest.raises(InvalidSpec, match=match):
        program(*arguments)
