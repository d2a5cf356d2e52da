"""One engine for every timeline: tasks with needs, on streams that take turns and links that share.

    A task may start when all tasks that it needs have ended, each some seconds ago (`delay_s`: a latency that
    occupies nothing).  Its stream runs one task at a time, in the tasks' order, or, `by_arrival`, whichever
    became ready first (of those ready at one moment, the first in order).

        speed = min(1, capacity of its link / weights of all tasks that run on the link)
                / slow-down of its kind, while its device computes and communicates at once

A task of w seconds ends when its speed has added up to w; its stream stays taken `hold_s` longer.  Links are
shared fairly and fluidly: a task that comes or goes changes the others' speed at once.

Source: max-min fair sharing of one bottleneck, Bertsekas and Gallager (1992), Data Networks, section 6.5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from search_spaces.errors import InvalidSpec, check
from search_spaces.plan import Bools, Floats, Ints

NOTHING = -1
_MOST_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tasks:
    """Tasks as columns, shape (n_tasks,); a stream runs its own in ascending order.

    `stream` -1: a task that takes no turn.  `link` -1: no link; `weight` is how many equal flows it stands
    for there.  Task i needs `before[before_first[i]]` to `before[before_first[i + 1] - 1]`, each with its own
    `delay_s`; shapes (n_tasks + 1,) and (n_edges,).  On a stream that queues by arrival, an urgent task goes
    before all that wait.
    """

    work_s: Floats
    stream: Ints
    before_first: Ints
    before: Ints
    delay_s: Floats
    hold_s: Floats | None = None
    link: Ints | None = None
    weight: Floats | None = None
    is_urgent: Bools | None = None

    def __len__(self) -> int:
        return len(self.work_s)

    def needs(self, task: int) -> Ints:
        """The tasks that one needs."""
        return self.before[int(self.before_first[task]) : int(self.before_first[task + 1])]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Resources:
    """Streams, (n_streams,), and links, (n_links,).

    `device` -1: a stream that slows nobody.  A capacity is counted in flows of weight 1 at full speed.
    `compute_slowdown` and `comm_slowdown` (1 or more) stretch a device's tasks while it runs both kinds.
    """

    n_streams: int
    device: Ints | None = None
    is_comm: Bools | None = None
    by_arrival: Bools | None = None
    capacity: Floats = field(default_factory=lambda: np.zeros(0))
    compute_slowdown: float = 1.0
    comm_slowdown: float = 1.0

    def __post_init__(self) -> None:
        for name in ("compute_slowdown", "comm_slowdown"):
            value = getattr(self, name)
            check(1 <= value < float("inf"), f"{name} must be finite and at least 1", value)
        check(bool(np.all(self.capacity > 0)), "a link's capacity must be positive", self.capacity)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """When each task ran; `turn` numbers the tasks in the order of their starts (by streams in a sweep)."""

    start_s: Floats
    finish_s: Floats
    turn: Ints


Name = tuple[str, str]  # where a task runs, and what it is: "rank 0", "F(micro-batch 3, chunk 0)"


def _number(task: int) -> Name:
    return "the machine", f"task {task}"


def execute(
    tasks: Tasks, resources: Resources, *, name: Callable[[int], Name] = _number, by_events: bool = False
) -> Run:
    """Start and end of every task.

    Where nothing shares, slows or queues by arrival, a sweep finds the same times without looking at events
    one by one; `by_events` forces the event loop.  Cost grows linearly with tasks and edges (times the
    logarithm of those that run at once).

    Raises
    ------
    InvalidSpec
        The tasks deadlock: the sentence says by `name` what each stuck one waits for, and the circle.  Or
        seconds are not finite, or negative: time would not end, or run backwards.
    """
    _check_seconds(tasks)
    kernel = _kernel()
    n = len(tasks)
    work, n_streams = _work(kernel, tasks, resources)
    start_s, finish_s, turn = np.zeros(n), np.full(n, np.nan), np.arange(n)
    if by_events or _needs_events(tasks, resources):
        place = _place(kernel, resources, n_streams)
        n_ran = kernel.run_events(work, place, start_s, finish_s, turn)
    else:
        n_ran = kernel.sweep(work, start_s, finish_s)
    if n_ran < n:
        raise InvalidSpec("a schedule must let every rank finish", _stuck(tasks, work, finish_s, name))
    return Run(start_s=start_s, finish_s=finish_s, turn=turn)


def _check_seconds(tasks: Tasks) -> None:
    for column in (tasks.work_s, tasks.hold_s, tasks.delay_s):
        if column is not None and len(column):
            least_s, most_s = float(np.min(column)), float(np.max(column))  # either is nan where any is
            must = "what a task takes, holds or waits must be finite seconds and not negative"
            check(0 <= least_s <= most_s < float("inf"), must, f"{least_s:g} to {most_s:g}")


def load() -> None:
    """Load the compiled event loop now; the first time on a machine it is compiled."""
    none, no_time = np.zeros(0, np.int64), np.zeros(0)
    nothing = Tasks(
        work_s=no_time, stream=none, before_first=np.zeros(1, np.int64), before=none, delay_s=no_time
    )
    execute(nothing, Resources(n_streams=1), by_events=True)


@cache
def _kernel() -> ModuleType:
    """The compiled loops; Numba is loaded by whoever simulates first."""
    return import_module("objectives.simulator.kernel")


def _needs_events(tasks: Tasks, resources: Resources) -> bool:
    queues = resources.by_arrival is not None and bool(resources.by_arrival.any())
    shares = tasks.link is not None and bool(np.any(tasks.link != NOTHING))
    return queues or shares or max(resources.compute_slowdown, resources.comm_slowdown) > 1


def _work(kernel: ModuleType, tasks: Tasks, resources: Resources) -> tuple[Any, int]:
    """The kernel's columns; a task without a stream gets one of its own behind the others."""
    n = len(tasks)
    stream, n_streams = np.asarray(tasks.stream, np.int64), resources.n_streams
    alone = np.flatnonzero(stream == NOTHING)
    if len(alone):
        stream = stream.copy()
        stream[alone] = n_streams + np.arange(len(alone))
        n_streams += len(alone)
    is_sorted = bool(np.all(stream[1:] >= stream[:-1]))
    return kernel.Work(
        work_s=tasks.work_s,
        hold_s=np.zeros(n) if tasks.hold_s is None else tasks.hold_s,
        stream=stream,
        link=np.full(n, NOTHING) if tasks.link is None else tasks.link,
        weight=np.ones(n) if tasks.weight is None else tasks.weight,
        is_urgent=np.zeros(n, np.bool_) if tasks.is_urgent is None else tasks.is_urgent,
        before_first=tasks.before_first,
        before=tasks.before,
        delay_s=tasks.delay_s,
        stream_first=np.concatenate(([0], np.cumsum(np.bincount(stream, minlength=n_streams)))),
        order=np.arange(n) if is_sorted else np.argsort(stream, kind="stable"),
    ), n_streams


def _place(kernel: ModuleType, resources: Resources, n_streams: int) -> object:
    def padded(values: Ints | Bools | None, other: int) -> Ints:
        column = np.full(n_streams, other)
        if values is not None:
            column[: len(values)] = values
        return column

    device = padded(resources.device, NOTHING)
    listed = np.argsort(device, kind="stable")
    n_devices = int(device.max(initial=NOTHING)) + 1
    return kernel.Place(
        device=device,
        is_comm=padded(resources.is_comm, 0),
        by_arrival=padded(resources.by_arrival, 0),
        capacity=np.asarray(resources.capacity, np.float64),
        device_first=np.searchsorted(device[listed], np.arange(n_devices + 1)),
        device_streams=listed,
        rate_overlapped=1 / np.array([resources.compute_slowdown, resources.comm_slowdown]),
    )


def _stuck(tasks: Tasks, work: Any, finish_s: Floats, name: Callable[[int], Name]) -> str:
    """What the stuck streams' next tasks wait for, and the circle that they close."""
    has_run = ~np.isnan(finish_s)
    of_streams = np.split(work.order, work.stream_first[1:-1])
    next_of = {
        stream: int(mine[~has_run[mine]][0])
        for stream, mine in enumerate(of_streams)
        if not has_run[mine].all()
    }
    waits: dict[int, int] = {}
    for task in next_of.values():
        lacking = [int(need) for need in tasks.needs(task) if not has_run[need]]
        if lacking:
            waits[task] = lacking[0]
    follows = {task: next_of[int(work.stream[need])] for task, need in waits.items()}
    return waiting_words([(name(task), name(need)) for task, need in waits.items()]) + "".join(
        f"; in a circle: {' -> '.join(' at '.join(name(task)) for task in circle)}"
        for circle in _circles(follows)
    )


def waiting_words(pairs: Sequence[tuple[Name, Name]]) -> str:
    """What waits for what; the first four of them."""
    words = [f"{here} at {this} waits for {that} of {there}" for (here, this), (there, that) in pairs]
    more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    return "; ".join(words[:_MOST_NAMED]) + more


def _circles(follows: dict[int, int]) -> list[list[int]]:
    """A circle of a map, its first member twice, if there is one."""
    for first in follows:
        path = [first]
        while path[-1] in follows and follows[path[-1]] not in path:
            path.append(follows[path[-1]])
        if path[-1] in follows:
            return [[*path[path.index(follows[path[-1]]) :], follows[path[-1]]]]
    return []
