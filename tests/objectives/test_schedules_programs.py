"""What every schedule's program must be, what generators plan with, and how impossible asks are refused."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.simulator.program import Op, Pass, program_of
from objectives.simulator.schedules import (
    SCHEDULES,
    TWO_CHUNKS,
    PassCosts,
    Release,
    check_program,
    one_f_one_b,
    peak_in_flight,
    program,
)  # fmt: skip
from objectives.simulator.schedules.slots import orders_of
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Schedule
from tests.objectives.schedule_times import EQUAL, UNEQUAL, bubbles, longest_path_s

F, B, BI, W, FB = Pass
COSTS = PassCosts(forward_s=10.0, backward_input_s=12.0, backward_weight_s=8.0)


@st.composite
def programs(draw):
    """Any schedule of any size that it takes."""
    schedule = draw(st.sampled_from(list(Schedule)))
    p, m = draw(st.integers(1, 6)), draw(st.integers(1, 20))
    if schedule is Schedule.DUALPIPE:
        p, m = 2 * p, 2 * (2 * p + m)
    if schedule is Schedule.DUALPIPE_V:
        m += 2 * p
    v = draw(st.integers(1, 3)) if schedule is Schedule.INTERLEAVED else 1
    costs = draw(st.sampled_from([PassCosts(), COSTS]))
    extra = draw(st.integers(0, 4)) if schedule is Schedule.ONE_F_ONE_B else 0
    return program(schedule, p, m, v, costs=costs, extra_warmup=extra)


def halves(op):
    """A pass as forward passes, gradients of the input and gradients of the weights."""
    first, second = (op.microbatch, op.chunk), (op.with_microbatch, op.with_chunk)
    return {
        F: [("F", *first)], B: [("B", *first), ("W", *first)], BI: [("B", *first)], W: [("W", *first)],
        FB: [("F", *first), ("B", *second), ("W", *second)],
    }[op.kind]  # fmt: skip


@given(programs())
def test_every_rank_runs_every_pass_once_and_the_ranks_never_wait_in_a_circle(made):
    per_route = made.n_microbatches // len(set(made.route.tolist()))
    for rank in range(made.n_ranks):
        counted = Counter(half for op in made.order(rank) for half in halves(op))
        assert set(counted.values()) == {1}
        assert len(counted) == 3 * made.n_chunks * per_route
    check_program(made)
    assert longest_path_s(made, UNEQUAL) > 0


@given(programs(), st.sampled_from(Release))
def test_memory_returns_to_nothing(made, release):
    takes = Counter()
    for rank in range(made.n_ranks):
        for op in made.order(rank):
            takes[rank] += {F: 2, B: -2, FB: 0, BI: -1, W: -1}[op.kind]
        peak = peak_in_flight(made, rank, release)
        assert 0 < peak <= made.n_microbatches
    assert not any(takes.values())


@pytest.mark.parametrize("schedule", Schedule)
def test_every_name_has_a_schedule_and_its_word_will_do(schedule):
    assert schedule in SCHEDULES
    by_name, by_word = program(schedule, 4, 8), program(str(schedule), 4, 8)
    assert [by_name.order(i) for i in range(4)] == [by_word.order(i) for i in range(4)]


@pytest.mark.parametrize("schedule", TWO_CHUNKS)
def test_a_schedule_of_two_chunks_says_so_whether_asked_for_one_or_two(schedule):
    one, two = program(schedule, 4, 8), program(schedule, 4, 8, 2)
    assert one.n_chunks == two.n_chunks == 2
    assert [one.order(i) for i in range(4)] == [two.order(i) for i in range(4)]


@pytest.mark.parametrize("extra", [0, 1, 3, 100])
def test_a_deeper_warm_up_keeps_more_and_idles_as_long_where_messages_are_free(extra):
    made = program("1f1b", 4, 16, extra_warmup=extra)
    assert [peak_in_flight(made, i) for i in range(4)] == [min(16, 4 - i + extra) for i in range(4)]
    assert bubbles(made, EQUAL) == (9, 9)


def test_a_deeper_warm_up_can_be_told_rank_by_rank():
    made = one_f_one_b(4, 16, np.array([3, 2, 1, 0]))
    assert [peak_in_flight(made, i) for i in range(4)] == [7, 5, 3, 1]


@pytest.mark.parametrize("schedule", [Schedule.V_HALF, Schedule.V_MIN])
@pytest.mark.parametrize("p", [1, 2, 3, 5, 6, 8])
def test_repeating_the_steady_state_is_what_the_pattern_would_do(schedule, p, monkeypatch):
    from objectives.simulator.schedules import v_shaped

    for m in (4 * p + 9, 6 * p + 20):
        repeated = program(schedule, p, m)
        with monkeypatch.context() as patch:
            patch.setattr(v_shaped, "_stretched", lambda *_: None)
            whole = program(schedule, p, m)
        assert [repeated.order(i) for i in range(p)] == [whole.order(i) for i in range(p)]


def test_a_pattern_keeps_lanes_in_order():
    (order,) = orders_of(np.array([[0, 1, 2, 4]]), 3)
    for lane in range(6):
        assert order[order[:, 0] == lane, 1].tolist() == [0, 1, 2]


@pytest.mark.parametrize("schedule", [Schedule.ZB_H2, Schedule.ZB_V])
def test_uneven_ranks_and_messages_are_planned_with(schedule):
    rng = np.random.default_rng(7)
    for _ in range(5):
        forward_s, input_s, weight_s = rng.uniform(5, 15, (3, 4))
        costs = PassCosts(
            forward_s=forward_s,
            backward_input_s=input_s,
            backward_weight_s=weight_s,
            send_s=rng.uniform(0, 3, 4),
        )
        planned, drawn = program(schedule, 4, 12, costs=costs), program(schedule, 4, 12)
        check_program(planned)
        assert span_s(planned, costs) <= span_s(drawn, costs) * (1 + 1e-9)


def span_s(made, costs):
    from objectives.simulator.timeline import PassTimes, simulate

    table = costs.table(made.n_ranks, made.n_chunks)
    times = PassTimes(
        forward_s=table[0], backward_input_s=table[1], backward_weight_s=table[2],
        send_s=costs.sends_s(made.n_ranks),
    )  # fmt: skip
    return simulate(made, times).span_bubble_s


@pytest.mark.parametrize("release", Release)
@pytest.mark.parametrize("limit", [1, 2, 4, 5.5, 7, 12])
def test_zb_h2_stays_within_the_memory_it_is_given(limit, release):
    made = program(Schedule.ZB_H2, 4, 16, costs=COSTS, memory_limit=limit, release=release)
    assert max(peak_in_flight(made, i, release) for i in range(4)) <= limit


@pytest.mark.parametrize("schedule", [Schedule.ZB_H2, Schedule.ZB_V])
def test_memory_may_be_without_bound(schedule):
    check_program(program(schedule, 4, 16, costs=COSTS, memory_limit=float("inf")))


def test_more_memory_idles_less():
    spans = [
        bubbles(program("zb-h2", 4, 24, costs=COSTS, memory_limit=limit), UNEQUAL)[0] for limit in (2, 4, 8)
    ]
    assert spans == sorted(spans, reverse=True)
    assert len(set(spans)) == 3


def test_a_schedule_of_64_ranks_and_1600_micro_batches_is_whole():
    made = program(Schedule.ZB_H1, 64, 1600)
    assert len(made) == 64 * 1600 * 3
    assert made.order(0)[-1] == Op(W, 1599)


REFUSED = {
    "unknown": (("zb-h3", 4, 8), {}, r"a schedule must be one of .*; got 'zb-h3'.\nhint: did you mean 'zb-h"),
    "chunks": (("1f1b", 4, 8, 2), {}, "the schedule 1f1b holds one chunk a rank; got 2"),
    "three chunks": (("v-min", 4, 8, 3), {}, "the schedule v-min holds two chunks a rank; got 3"),
    "nothing to do": (
        ("gpipe", 4, 0, 1),
        {},
        "at least one rank, one micro-batch and one chunk; got 4, 0, 1",
    ),
    "odd ranks": (("dualpipe", 3, 8), {}, "even number of ranks .* got 3 ranks, 8 micro-batches"),
    "odd micro-batches": (("dualpipe", 4, 9), {}, "even number of micro-batches.* got 4 ranks, 9 micro"),
    "few micro-batches": (("dualpipe", 4, 6), {}, "two or more a rank; got 4 ranks, 6 micro-batches"),
    "few for dualpipe-v": (("dualpipe-v", 4, 7), {}, "two micro-batches for every rank; got 4 ranks, 7"),
    "another's warm-up": (("gpipe", 4, 8), {"extra_warmup": 1}, "is an option of 1f1b alone; got gpipe"),
    "negative warm-up": (
        ("1f1b", 4, 8),
        {"extra_warmup": -1},
        "extra_warmup must be .* not negative; got -1",
    ),
    "another's limit": (("zb-v", 4, 8), {"limit": 4}, "limit is an option of message-driven alone; got zb-v"),
    "negative limit": (("message-driven", 4, 8), {"limit": -2}, "as many as ranks. or more; got -2"),
    "another's memory": (("zb-h1", 4, 8), {"memory_limit": 4}, "option of zb-h2 and zb-v alone; got zb-h1"),
    "no memory": (("zb-h2", 4, 8), {"memory_limit": 0.5}, "must hold one micro-batch; got 0.5"),
    "little for zb-v": (("zb-v", 4, 8), {"memory_limit": 3}, "as there are ranks; got a limit of 3"),
}


@pytest.mark.parametrize(("arguments", "options", "match"), REFUSED.values(), ids=REFUSED)
def test_an_impossible_schedule_is_refused(arguments, options, match):
    with pytest.raises(InvalidSpec, match=match):
        program(*arguments, **options)


@pytest.mark.parametrize(
    ("costs", "match"),
    [
        ({"forward_s": 0.0}, "forward_s must be finite and above zero; got 0.0"),
        (
            {"backward_weight_s": float("nan")},
            "backward_weight_s must be finite and above zero; got nan",
        ),
        ({"send_s": -1.0}, "PassCosts.send_s must be finite and not negative; got -1.0"),
    ],
    ids=["no time", "not a number", "negative"],
)
def test_impossible_costs_are_refused(costs, match):
    with pytest.raises(InvalidSpec, match=match):
        PassCosts(**costs)


def test_costs_must_fit_the_ranks():
    costs = PassCosts(forward_s=np.ones(3))
    with pytest.raises(
        InvalidSpec, match=r"pass costs need one number, or shape \(4,\) or \(4, 1\); got \(3, 1\)"
    ):
        program("zb-h2", 4, 8, costs=costs)


GOOD = [[Op(F, 0), Op(F, 1), Op(B, 0), Op(B, 1)], [Op(F, 0), Op(BI, 0), Op(W, 0), Op(F, 1), Op(B, 1)]]
FAULTS = {
    "missing forward": (1, GOOD[1][:3] + GOOD[1][4:], r"F\(micro-batch 1, chunk 0\), stage 1 is missing"),
    "missing backward": (0, GOOD[0][:3], r"B\(micro-batch 1, chunk 0\), stage 0 is missing"),
    "missing weight": (1, GOOD[1][:2] + GOOD[1][3:], r"W\(micro-batch 0, chunk 0\), stage 1 is missing"),
    "doubled": (0, [*GOOD[0], Op(F, 0)], r"F\(micro-batch 0, chunk 0\), stage 0 comes a second time"),
    "doubled half": (0, [*GOOD[0], Op(W, 1)], r"W\(micro-batch 1, chunk 0\), stage 0 comes a second time"),
    "no such micro-batch": (0, [*GOOD[0], Op(F, 2)], r"F\(micro-batch 2, chunk 0\), stage 0 does not exist"),
    "no such chunk": (0, [*GOOD[0], Op(F, 0, 1)], r"F\(micro-batch 0, chunk 1\) does not exist"),
    "backward first": (0, GOOD[0][::-1], r"B\(micro-batch 1, chunk 0\), stage 0 comes before its forward"),
    "weight first": (
        1,
        [Op(F, 0), Op(W, 0), Op(BI, 0), *GOOD[1][3:]],
        r"W\(micro-batch 0, chunk 0\), stage 1 comes before its gradient of the input",
    ),
}


@pytest.mark.parametrize(("rank", "order", "match"), FAULTS.values(), ids=FAULTS)
def test_a_program_with_a_wrong_pass_is_told_which(rank, order, match):
    check_program(program_of(GOOD, n_microbatches=2))
    orders = [order if i == rank else good for i, good in enumerate(GOOD)]
    bad = program_of(orders, n_microbatches=2, stage=np.array([[0], [1]]), route=np.array([0]))
    with pytest.raises(InvalidSpec, match=f"got rank {rank}: {match}"):
        check_program(bad)


def test_a_micro_batch_belongs_to_one_end_of_dual_pipe():
    made = program("dualpipe", 2, 4)
    swapped = replace(made, microbatch=np.where(made.microbatch == 0, 3, made.microbatch))
    with pytest.raises(InvalidSpec, match=r"rank 0: F\(micro-batch 3, chunk 0\), stage 0 does not exist"):
        check_program(swapped)
