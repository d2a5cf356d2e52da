"""The engine against a plain clock in Python, its two loops against each other, and what it must keep."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.simulator.engine import Resources, Tasks, execute
from search_spaces.errors import InvalidSpec


def tasks_of(rows, **columns):
    """Tasks from (seconds, stream, needs), needs as a list of tasks or of (task, delay)."""
    needs = [[each if isinstance(each, tuple) else (each, 0.0) for each in row[2]] for row in rows]
    return Tasks(
        work_s=np.array([row[0] for row in rows], float),
        stream=np.array([row[1] for row in rows]),
        before_first=np.cumsum([0, *map(len, needs)]),
        before=np.array([task for row in needs for task, _ in row], np.int64),
        delay_s=np.array([delay for row in needs for _, delay in row], float),
        **{name: np.array(values) for name, values in columns.items()},
    )


@st.composite
def machines(draw, *, shares=False, in_order=False):
    """Random tasks, each needing earlier ones, on random streams, devices and links."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n, n_streams = int(rng.integers(1, 40)), int(rng.integers(1, 6))
    rows = []
    for task in range(n):
        needs = rng.choice(task, size=min(task, int(rng.integers(0, 4))), replace=False) if task else []
        rows.append(
            (
                rng.uniform(0.1, 2),
                int(rng.integers(0, n_streams)),
                [(int(k), rng.uniform(0, 0.5)) for k in needs],
            )
        )
    link = rng.integers(-1, 3, n) if shares else np.full(n, -1)
    tasks = tasks_of(
        rows, link=link, weight=rng.uniform(0.5, 2, n), hold_s=rng.uniform(0, 0.3, n) * (rng.random(n) < 0.3)
    )
    slow = rng.uniform(1, 2, 2) if shares else (1.0, 1.0)
    return tasks, Resources(
        n_streams=n_streams, device=rng.integers(0, 2, n_streams), is_comm=rng.random(n_streams) < 0.5,
        by_arrival=None if in_order else rng.random(n_streams) < 0.5, capacity=rng.uniform(0.5, 2, 3),
        compute_slowdown=slow[0], comm_slowdown=slow[1],
    )  # fmt: skip


def plain_clock(tasks, resources):  # noqa: C901 - one loop, written to be read against the rules
    """The engine's rules, event by event, with nothing remembered: every speed worked out at every event."""
    n, now = len(tasks), 0.0
    by_arrival = (
        resources.by_arrival if resources.by_arrival is not None else np.zeros(resources.n_streams, bool)
    )
    left, start, finish = tasks.work_s.copy(), np.full(n, np.nan), np.full(n, np.nan)
    running, taken_until = {}, np.zeros(resources.n_streams)

    def ready_at(task):
        edges = range(tasks.before_first[task], tasks.before_first[task + 1])
        return max((ended[tasks.before[k]] + tasks.delay_s[k] for k in edges), default=0.0)

    def speeds():
        kinds = {(int(resources.device[s]), bool(resources.is_comm[s])) for s in running}
        found = {}
        for stream, task in running.items():
            flows = sum(
                tasks.weight[other] for other in running.values() if tasks.link[other] == tasks.link[task]
            )
            share = 1.0 if tasks.link[task] < 0 else min(1.0, resources.capacity[tasks.link[task]] / flows)
            both = {(int(resources.device[stream]), kind) for kind in (False, True)} <= kinds
            slow = resources.comm_slowdown if resources.is_comm[stream] else resources.compute_slowdown
            found[task] = share / (slow if both else 1.0)
        return found

    while np.isnan(finish).any():
        ended = np.where(np.isnan(finish), np.inf, finish)
        for stream in range(resources.n_streams):
            if stream in running or taken_until[stream] > now + 1e-12:
                continue
            waiting = [t for t in np.flatnonzero(tasks.stream == stream) if np.isnan(start[t])]
            if by_arrival[stream]:
                waiting = sorted(
                    (t for t in waiting if ready_at(t) <= now + 1e-12), key=lambda t: (ready_at(t), t)
                )
            if waiting and ready_at(waiting[0]) <= now + 1e-12:
                running[stream], start[waiting[0]] = waiting[0], now
        rates = speeds()
        moments = [now + left[task] / rate for task, rate in rates.items()]
        moments += [at for task in range(n) if np.isnan(start[task]) and (at := ready_at(task)) > now + 1e-12]
        moments += [at for at in taken_until if at > now + 1e-12]
        then = min(moments)
        for stream, task in list(running.items()):
            left[task] -= rates[task] * (then - now)
            if left[task] <= 1e-10:
                finish[task], taken_until[stream] = then, then + tasks.hold_s[task]
                del running[stream]
        now = then
    return start, finish


@given(machines(shares=True))
def test_links_and_slow_downs_are_those_of_a_plain_clock(machine):
    found = execute(*machine)
    start, finish = plain_clock(*machine)
    np.testing.assert_allclose(found.finish_s, finish, atol=1e-7)
    np.testing.assert_allclose(found.start_s, start, atol=1e-7)


@given(machines(in_order=True))
def test_the_sweep_and_the_event_loop_give_the_same_times(machine):
    swept, by_events = execute(*machine), execute(*machine, by_events=True)
    np.testing.assert_array_equal(swept.start_s, by_events.start_s)
    np.testing.assert_array_equal(swept.finish_s, by_events.finish_s)


@given(machines(shares=True))
def test_no_order_violates_a_dependency_and_no_stream_does_two_things(machine):
    tasks, resources = machine
    run = execute(tasks, resources)
    waiter = np.repeat(np.arange(len(tasks)), np.diff(tasks.before_first))
    assert np.all(run.start_s[waiter] >= run.finish_s[tasks.before] + tasks.delay_s - 1e-9)
    for stream in range(resources.n_streams):
        mine = np.flatnonzero(tasks.stream == stream)
        mine = mine[np.argsort(run.turn[mine])]
        assert np.all(run.start_s[mine][1:] >= (run.finish_s + tasks.hold_s)[mine][:-1] - 1e-9)


@given(machines(shares=True))
def test_nothing_ends_before_its_work_is_done(machine):
    tasks, resources = machine
    run = execute(tasks, resources)
    assert np.all(run.finish_s - run.start_s >= tasks.work_s - 1e-9)


@given(machines(in_order=True))
def test_where_nothing_is_shared_busy_time_is_the_sum_of_the_work(machine):
    run = execute(*machine)
    np.testing.assert_allclose(run.finish_s - run.start_s, machine[0].work_s, atol=1e-9)


@given(machines(in_order=True), st.floats(0.1, 1))
def test_more_bandwidth_is_never_slower_in_a_fixed_order_without_sharing(machine, factor):
    """Then every start is a maximum of sums of durations: no duration that shrinks moves any start later."""
    tasks, resources = machine
    chosen = np.arange(len(tasks)) % 3 == 0
    faster = replace(tasks, work_s=np.where(chosen, factor, 1) * tasks.work_s, delay_s=factor * tasks.delay_s)
    assert np.all(execute(faster, resources).finish_s <= execute(tasks, resources).finish_s + 1e-9)


def test_a_shared_link_can_make_faster_slower():
    """A first flow that ends sooner brings its successor to the critical flow's link while that is busy."""

    def makespan(first_s):
        rows = [(2.0, 0, []), (10.0, 1, [0]), (first_s, 2, []), (1.0, 3, [2])]
        tasks = tasks_of(rows, link=[0, -1, -1, 0])
        return execute(tasks, Resources(n_streams=4, capacity=np.ones(1))).finish_s.max()

    assert makespan(3.0) == 12
    assert makespan(0.5) == 13


@pytest.mark.parametrize(
    ("weight", "capacity", "ends"),
    [([1, 1], 1.0, [2, 3]), ([1, 1], 2.0, [1, 2]), ([1, 3], 1.0, [4, 7]), ([1, 1], 0.5, [4, 6])],
    ids=["two halves", "wide enough", "one for three", "half a link"],
)
def test_a_link_is_shared_fairly_and_at_once(weight, capacity, ends):
    tasks = tasks_of([(1.0, 0, []), (2.0, 1, [])], link=[0, 0], weight=weight)
    run = execute(tasks, Resources(n_streams=2, capacity=np.array([capacity])))
    assert run.finish_s.tolist() == ends  # capacity / flows each, then what is left alone


def test_computation_and_communication_slow_each_other_only_while_both_run():
    tasks = tasks_of([(1.0, 0, []), (2.0, 1, [])])
    beside = Resources(n_streams=2, device=np.array([0, 0]), is_comm=np.array([False, True]),
                       compute_slowdown=2.0, comm_slowdown=1.25)  # fmt: skip
    # Compute ends at 2; by then 2 / 1.25 = 1.6 of the communication is done, and 0.4 is left alone.
    assert execute(tasks, beside).finish_s.tolist() == [2.0, 2.4]
    apart = replace(beside, device=np.array([0, 1]))
    assert execute(tasks, apart).finish_s.tolist() == [1.0, 2.0]


def test_a_stream_by_arrival_takes_the_first_that_is_ready_and_in_order_the_first_in_order():
    rows = [(3.0, 0, []), (1.0, 1, [(0, 0.0)]), (1.0, 2, []), (1.0, 1, [(2, 0.0)])]
    in_order = Resources(n_streams=3)
    by_arrival = replace(in_order, by_arrival=np.array([False, True, False]))
    assert execute(tasks_of(rows), in_order).start_s.tolist() == [0, 3, 0, 4]
    assert execute(tasks_of(rows), by_arrival).start_s.tolist() == [0, 3, 0, 1]


def test_what_is_ready_at_once_runs_in_order_but_for_what_is_urgent():
    rows = [(1.0, 0, []), (1.0, 1, [0]), (1.0, 1, [0]), (1.0, 1, [0])]
    queue = Resources(n_streams=2, by_arrival=np.array([False, True]))
    assert execute(tasks_of(rows), queue).start_s.tolist() == [0, 1, 2, 3]
    urgent = tasks_of(rows, is_urgent=[False, False, False, True])
    assert execute(urgent, queue).start_s.tolist() == [0, 2, 3, 1]


def test_a_deadlock_names_what_waits_and_the_circle():
    tasks = tasks_of([(1.0, 0, [3]), (1.0, 0, []), (1.0, 1, [1]), (1.0, 1, [])])
    match = (
        r"rank 0 at a waits for d of rank 1; rank 1 at c waits for b of rank 0; in a circle: .*rank 0 at a$"
    )
    names = dict(enumerate([("rank 0", "a"), ("rank 0", "b"), ("rank 1", "c"), ("rank 1", "d")]))
    for by_events in (False, True):
        with pytest.raises(InvalidSpec, match=match.replace("$", r"\.")):
            execute(tasks, Resources(n_streams=2), name=names.__getitem__, by_events=by_events)


@pytest.mark.parametrize("by_events", [False, True])
@pytest.mark.parametrize("column", ["work_s", "hold_s", "delay_s"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_seconds_that_never_end_or_run_backwards_are_refused(column, wrong, by_events):
    tasks = tasks_of([(1.0, 0, []), (1.0, 0, [0])])
    tasks = replace(tasks, **{column: np.full(1 if column == "delay_s" else 2, wrong)})
    with pytest.raises(InvalidSpec, match="must be finite seconds and not negative; got"):
        execute(tasks, Resources(n_streams=1), by_events=by_events)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (dict(comm_slowdown=0.5), "comm_slowdown must be finite and at least 1; got 0.5"),
        (dict(capacity=np.zeros(1)), "a link's capacity must be positive"),
    ],
    ids=str,
)
def test_an_impossible_machine_is_refused(wrong, match):
    with pytest.raises(InvalidSpec, match=match):
        Resources(n_streams=1, **wrong)
