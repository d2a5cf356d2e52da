"""Programs on the clock: nothing runs before what it needs, and a deadlock is told."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.simulator.program import Op, Pass, program_of
from objectives.simulator.schedules import program
from objectives.simulator.timeline import PassTimes, clock, pass_s, simulate, wire
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Schedule

F, B, BI, W, FB = Pass


def equal_times(program, f=1.0, bi=1.0, w=1.0, send=0.0):
    ones = np.ones((program.n_ranks, program.n_chunks))
    return PassTimes(
        forward_s=f * ones, backward_input_s=bi * ones, backward_weight_s=w * ones,
        send_s=np.full(program.n_ranks, send),
    )  # fmt: skip


@st.composite
def pipelines(draw):
    """A program of any schedule and times of any unevenness."""
    schedule = draw(st.sampled_from(list(Schedule)))
    p = 2 * draw(st.integers(1, 3)) if schedule is Schedule.DUALPIPE else draw(st.integers(2, 6))
    v = draw(st.integers(1, 3)) if schedule is Schedule.INTERLEAVED else 1
    found = program(schedule, p, 2 * p * draw(st.integers(1, 2)), v)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    seconds, send_s = rng.uniform(0.1, 2, (3, p, found.n_chunks)), rng.uniform(0, 0.5, p)
    times = PassTimes(
        forward_s=seconds[0], backward_input_s=seconds[1], backward_weight_s=seconds[2], send_s=send_s
    )  # fmt: skip
    return found, times, draw(st.booleans())


def halves(program, at):
    """The single passes that one op is, as (letter, stage, route, micro-batch)."""
    op = program.op(at)
    rank = int(program.rank[at])
    parts = [("F" if op.kind in (F, FB) else "W" if op.kind is W else "B", op.chunk, op.microbatch)]
    parts += [("B", op.with_chunk, op.with_microbatch)] * (op.kind is FB)
    return [(letter, int(program.stage[rank, c]), int(program.route[c]), j) for letter, c, j in parts]


@given(pipelines())
def test_no_pass_starts_before_what_it_needs_and_its_message(pipeline):
    plan, times, sends_block = pipeline
    found = simulate(plan, times, sends_block=sends_block)
    where = {half: at for at in range(len(plan)) for half in halves(plan, at)}
    last = int(plan.stage.max())
    for (letter, stage, route, j), at in where.items():
        need = ("F", stage - 1, route, j)
        if letter != "F":
            need = ("B", stage + (letter == "B"), route, j)
        if letter == "B" and stage == last:
            need = ("F", stage, route, j)
        if need in where:
            apart = found.rank[at] != found.rank[where[need]]
            least_s = times.send_s.min() if apart and plan.n_ranks > 1 else 0
            assert found.start_s[at] >= found.finish_s[where[need]] + least_s - 1e-12


@given(pipelines())
def test_a_rank_runs_its_passes_one_at_a_time_and_in_order(pipeline):
    plan, times, sends_block = pipeline
    found = simulate(plan, times, sends_block=sends_block)
    ran = found.in_order()
    for rank in range(plan.n_ranks):
        mine = np.flatnonzero(found.of_rank(rank))
        mine = mine[np.argsort(found.turn[mine])]
        assert np.all(found.start_s[mine][1:] >= found.finish_s[mine][:-1])
        assert [plan.op(at) for at in mine] == list(ran.order(rank))
        if not plan.by_arrival:
            assert ran.order(rank) == plan.order(rank)


@given(pipelines())
def test_what_ran_by_arrival_runs_again_in_that_order(pipeline):
    plan, times, sends_block = pipeline
    found = simulate(plan, times, sends_block=sends_block)
    again = simulate(found.in_order(), times, sends_block=sends_block)
    assert again.makespan_s == pytest.approx(found.makespan_s)


@given(pipelines())
def test_busy_and_idle_seconds_fill_the_makespan(pipeline):
    plan, times, _ = pipeline
    found = simulate(plan, times)
    np.testing.assert_allclose(found.busy_s, np.bincount(found.rank, pass_s(plan, times)))
    np.testing.assert_allclose(found.busy_s + found.idle_s, found.makespan_s)
    assert np.all(found.span_idle_s <= found.idle_s + 1e-9)
    assert found.rank_finish_s.max() == found.finish_s.max()


@given(pipelines(), st.floats(0.1, 10))
def test_slowing_everything_slows_the_step_by_as_much(pipeline, factor):
    plan, times, sends_block = pipeline
    plan = simulate(plan, times).in_order()  # what arrives first may be rounded another way
    wiring, seconds = wire(plan), pass_s(plan, times)
    fast = clock(wiring, seconds, times.send_s, sends_block=sends_block)
    slow = clock(wiring, factor * seconds, factor * times.send_s, sends_block=sends_block)
    np.testing.assert_allclose(slow.finish_s, factor * fast.finish_s)


@given(pipelines(), st.integers(0, 10**6))
def test_no_pass_that_takes_longer_makes_a_fixed_order_shorter(pipeline, which):
    plan, times, sends_block = pipeline
    plan = simulate(plan, times).in_order()
    wiring, seconds = wire(plan), pass_s(plan, times)
    longer_s = seconds.copy()
    longer_s[which % len(seconds)] += 1
    before, after = (clock(wiring, d, times.send_s, sends_block=sends_block) for d in (seconds, longer_s))
    assert after.finish_s.max() >= before.finish_s.max()


@given(pipelines())
def test_blocking_sends_and_the_event_loop_never_help(pipeline):
    plan, times, _ = pipeline
    plan = simulate(plan, times).in_order()
    free = simulate(plan, times).makespan_s
    assert simulate(plan, times, sends_block=True).makespan_s >= free - 1e-9
    assert clock(wire(plan), pass_s(plan, times), times.send_s, by_events=True).makespan_s == free


def test_messages_of_a_filling_pipeline_add_up():
    ones = np.ones((3, 1))
    times = PassTimes(
        forward_s=ones, backward_input_s=ones, backward_weight_s=ones, send_s=np.array([0.25, 0.5, 9.0])
    )  # fmt: skip
    # One micro-batch: 3 forward, 3 backward, and each of the two boundaries crossed both ways.
    assert simulate(program(Schedule.ONE_F_ONE_B, 3, 1), times).makespan_s == 3 * 1 + 3 * 2 + 2 * (0.25 + 0.5)


def test_a_v_turns_without_a_message():
    plan = program_of(
        [[Op(F, 0), Op(F, 0, 1)], [Op(F, 0), Op(F, 0, 1)]], n_microbatches=1, stage=np.array([[0, 3], [1, 2]])
    )
    # Down over one link, around on the second rank, and up over the same link.
    assert simulate(plan, equal_times(plan, send=0.5)).start_s.tolist() == [0, 4, 1.5, 2.5]


def test_a_pair_of_passes_has_a_cost_of_its_own():
    plan = program_of([[Op(F, 0), Op(FB, 1, 0, 0, 0), Op(B, 1)]], n_microbatches=2)
    times = equal_times(plan)
    assert simulate(plan, times).finish_s.tolist() == [1, 4, 6]
    assert simulate(plan, replace(times, forward_backward_s=np.array([[2.5]]))).finish_s.tolist() == [
        1,
        3.5,
        5.5,
    ]


@pytest.mark.parametrize(
    ("p", "m", "limit", "send", "bubble", "one_f_one_b"),
    [(8, 32, 8, 0, 300, 210), (12, 512, 12, 1, 4844, 330), (12, 512, 24, 1, 352, 330)],
    ids=["at its own limit", "there with messages", "at twice that"],
)
def test_first_come_first_served_loses_to_an_order_at_a_low_limit(p, m, limit, send, bubble, one_f_one_b):
    """The last rank goes back at once, all others take what arrived first.

    F = 10, B = 20, messages of 1 (whole numbers: rounding must not decide what arrived first).
    """
    plan = program(Schedule.MESSAGE_DRIVEN, p, m, limit=limit)
    rows = np.lexsort((plan.kind, plan.microbatch, plan.rank))
    names = ("kind", "microbatch", "chunk", "with_microbatch", "with_chunk")
    plan = replace(plan, **{name: getattr(plan, name)[rows] for name in names})
    assert simulate(plan, equal_times(plan, 10, 10, 10, send=send)).makespan_bubble_s == pytest.approx(bubble)
    ordered = program(Schedule.ONE_F_ONE_B, p, m)
    assert simulate(ordered, equal_times(ordered, 10, 10, 10)).makespan_bubble_s == one_f_one_b


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_no_more_than_the_limit_are_between_their_passes_on_the_first_stage(limit):
    plan = program(Schedule.MESSAGE_DRIVEN, 4, 12, limit=limit)
    found = simulate(plan, equal_times(plan, send=0.3))
    first = found.of_rank(0)
    moments = np.concatenate(
        [found.start_s[first & (plan.kind == F)], found.finish_s[first & (plan.kind == B)]]
    )
    change = np.repeat([1, -1], len(moments) // 2)
    held = np.cumsum(change[np.lexsort((change, moments))])
    assert held.max() == limit


DEADLOCKS = {
    "two ranks wait for each other": (
        [[Op(B, 0), Op(F, 0)], [Op(F, 0), Op(B, 0)]],
        r"rank 0 at B\(micro-batch 0, chunk 0\) waits for B\(micro-batch 0, chunk 0\) of rank 1; "
        r"rank 1 at F\(micro-batch 0, chunk 0\) waits for F\(micro-batch 0, chunk 0\) of rank 0; "
        r"in a circle: rank 0 at B\(micro-batch 0, chunk 0\) -> rank 1 at F\(",
    ),
    "a rank never sends": (
        [[], [Op(F, 0), Op(B, 0)]],
        r"got rank 1 at F\(micro-batch 0, chunk 0\) waits for F\(micro-batch 0, chunk 0\) of rank 0",
    ),
    "a backward pass before its forward": (
        [[Op(B, 0), Op(F, 0)]],
        r"got rank 0 at B\(micro-batch 0, chunk 0\) waits for F\(micro-batch 0, chunk 0\) of rank 0",
    ),
}


@pytest.mark.parametrize(("orders", "match"), DEADLOCKS.values(), ids=DEADLOCKS)
def test_a_deadlock_names_the_ranks_and_what_they_wait_for(orders, match):
    plan = program_of(orders, n_microbatches=1)
    with pytest.raises(InvalidSpec, match=match):
        simulate(plan, equal_times(plan))


@pytest.mark.parametrize(
    ("orders", "match"),
    [
        ([[Op(F, 3)]], r"passes must be of 1 micro-batches and 1 chunks; got F\(micro-batch 3, chunk 0\)"),
        (
            [[Op(F, 0), Op(F, 0)]],
            r"must run every pass once; got F\(micro-batch 0, chunk 0\) twice on rank 0",
        ),
    ],
    ids=["no such micro-batch", "twice"],
)
def test_an_impossible_pass_is_refused(orders, match):
    with pytest.raises(InvalidSpec, match=match):
        wire(program_of(orders, n_microbatches=1))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_times_must_be_finite_and_not_negative(bad):
    plan = program(Schedule.ONE_F_ONE_B, 2, 2)
    times = equal_times(plan)
    times.forward_s[0, 0] = bad
    with pytest.raises(InvalidSpec, match="pass times must be finite and not negative"):
        simulate(plan, times)


def test_times_of_another_shape_are_refused():
    plan = program(Schedule.ONE_F_ONE_B, 2, 2)
    with pytest.raises(InvalidSpec, match=r"shape \(n_ranks, n_chunks\) = \(2, 1\); got \(3, 1\)"):
        simulate(plan, equal_times(program(Schedule.ONE_F_ONE_B, 3, 2)))
