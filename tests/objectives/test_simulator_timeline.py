"""The clock: nothing runs before what it needs, no rank does two things, and a deadlock is told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.simulator.program import Op, Pass, program_of
from objectives.simulator.schedules import program
from objectives.simulator.timeline import PassTimes, clock, pass_s, simulate, wire
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Schedule

F, B = Pass.FORWARD, Pass.BACKWARD
SCHEDULES = [
    Schedule.GPIPE,
    Schedule.ONE_F_ONE_B,
    Schedule.INTERLEAVED,
    Schedule.ZB_H1,
    Schedule.ZB_H2,
]


@st.composite
def pipelines(draw):
    """A program of any schedule and times of any unevenness."""
    schedule = draw(st.sampled_from(SCHEDULES))
    p, v = draw(st.integers(1, 6)), draw(st.integers(1, 3)) if schedule is Schedule.INTERLEAVED else 1
    m = draw(st.integers(1, 4)) * (p if schedule is Schedule.INTERLEAVED else 1)
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    times = random_times(rng, p, v)
    return program(schedule, p, m, v), times, draw(st.booleans())


def random_times(rng, p, v):
    forward_s, input_s, weight_s = rng.uniform(0.1, 2, (3, p, v))
    return PassTimes(
        forward_s=forward_s,
        backward_input_s=input_s,
        backward_weight_s=weight_s,
        send_s=rng.uniform(0, 0.5, p),
    )


def rows(timeline):
    wiring = timeline.wiring
    stage = wiring.chunk * wiring.program.n_ranks + wiring.rank
    kinds = np.where(wiring.kind == Pass.BACKWARD_INPUT, B, wiring.kind)
    keys = zip(kinds.tolist(), stage.tolist(), wiring.microbatch.tolist(), strict=True)
    return dict(zip(keys, zip(timeline.start_s, timeline.finish_s, strict=True), strict=True))


@given(pipelines())
def test_no_pass_starts_before_what_it_needs_and_its_message(pipeline):
    plan, times, sends_block = pipeline
    timeline = simulate(plan, times, sends_block=sends_block)
    found, p = rows(timeline), plan.n_ranks
    message = np.zeros(p) if p == 1 else times.send_s
    for (kind, stage, j), (start, _) in found.items():
        if kind == F and stage:
            assert start >= found[F, stage - 1, j][1] + message[(stage - 1) % p]
        elif kind == B and stage < p * plan.n_chunks - 1:
            assert start >= found[B, stage + 1, j][1] + message[stage % p]
        elif kind != F:
            assert start >= found[F if kind == B else B, stage, j][1]


@given(pipelines())
def test_a_rank_runs_its_passes_one_at_a_time_and_in_order(pipeline):
    plan, times, sends_block = pipeline
    timeline = simulate(plan, times, sends_block=sends_block)
    wiring = timeline.wiring
    for rank in range(plan.n_ranks):
        mine = timeline.of_rank(rank)
        ran = zip(wiring.kind[mine], wiring.microbatch[mine], wiring.chunk[mine], strict=True)
        assert [Op(Pass(int(k)), int(j), int(c)) for k, j, c in ran] == list(plan.order(rank))
        assert np.all(timeline.start_s[mine][1:] >= timeline.finish_s[mine][:-1])


@given(pipelines())
def test_busy_and_idle_seconds_fill_the_makespan(pipeline):
    plan, times, _ = pipeline
    timeline = simulate(plan, times)
    np.testing.assert_allclose(timeline.busy_s + timeline.idle_s, timeline.makespan_s)
    assert np.all(timeline.span_idle_s <= timeline.idle_s + 1e-9)
    assert timeline.makespan_s >= timeline.busy_s.max()
    assert timeline.rank_finish_s.max() == timeline.finish_s.max()


@given(pipelines(), st.floats(0.1, 10))
def test_slowing_everything_slows_the_step_by_as_much(pipeline, factor):
    plan, times, sends_block = pipeline
    wiring = wire(plan)
    fast = clock(wiring, pass_s(wiring, times), times.send_s, sends_block=sends_block)
    slow = clock(wiring, factor * pass_s(wiring, times), factor * times.send_s, sends_block=sends_block)
    np.testing.assert_allclose(slow.finish_s, factor * fast.finish_s)


@given(pipelines(), st.integers(0, 10**6))
def test_no_pass_that_takes_longer_makes_the_step_shorter(pipeline, which):
    plan, times, sends_block = pipeline
    wiring = wire(plan)
    duration_s = pass_s(wiring, times)
    longer_s = duration_s.copy()
    longer_s[which % len(wiring)] += 1
    before, after = (clock(wiring, d, times.send_s, sends_block=sends_block) for d in (duration_s, longer_s))
    assert after.finish_s.max() >= before.finish_s.max()


@given(pipelines())
def test_blocking_sends_never_help(pipeline):
    plan, times, _ = pipeline
    assert simulate(plan, times, sends_block=True).makespan_s >= simulate(plan, times).makespan_s - 1e-9


def test_messages_of_a_filling_pipeline_add_up():
    times = PassTimes(
        forward_s=np.ones((3, 1)),
        backward_input_s=np.ones((3, 1)),
        backward_weight_s=np.ones((3, 1)),
        send_s=np.array([0.25, 0.5, 9.0]),
    )
    # One micro-batch: 3 forward, 3 backward, and each of the two boundaries crossed both ways.
    assert simulate(program(Schedule.ONE_F_ONE_B, 3, 1), times).makespan_s == 3 * 1 + 3 * 2 + 2 * (0.25 + 0.5)


DEADLOCKS = {
    "two ranks wait for each other": (
        [[Op(B, 0), Op(F, 0)], [Op(F, 0), Op(B, 0)]],
        r"rank 0 at B\(micro-batch 0, chunk 0\) waits for B\(micro-batch 0, chunk 0\) of rank 1; "
        r"rank 1 at F\(micro-batch 0, chunk 0\) waits for F\(micro-batch 0, chunk 0\) of rank 0",
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
    with pytest.raises(InvalidSpec, match=match):
        wire(program_of(orders, n_microbatches=1))


def test_a_pass_of_a_micro_batch_that_does_not_exist_is_refused():
    match = r"passes must be of 1 micro-batches and 1 chunks; got F\(micro-batch 3, chunk 0\)"
    with pytest.raises(InvalidSpec, match=match):
        wire(program_of([[Op(F, 3)]], n_microbatches=1))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_times_must_be_finite_and_not_negative(bad):
    times = random_times(np.random.default_rng(0), 2, 1)
    times.forward_s[0, 0] = bad
    with pytest.raises(InvalidSpec, match="pass times must be finite and not negative"):
        simulate(program(Schedule.ONE_F_ONE_B, 2, 2), times)


def test_times_of_another_shape_are_refused():
    with pytest.raises(InvalidSpec, match=r"shape \(n_ranks, n_chunks\) = \(2, 1\); got \(3, 1\)"):
        simulate(program(Schedule.ONE_F_ONE_B, 2, 2), random_times(np.random.default_rng(0), 3, 1))
