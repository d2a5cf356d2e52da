"""Tasks of one step as they are put together: what each does, where, how long, and what it needs."""

from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from objectives.simulator.engine import NOTHING, Resources, Tasks
from search_spaces.plan import Floats, Ints


class Activity(IntEnum):
    """What a task does; the first five are those of `Pass`, and JOIN and BARRIER only wait."""

    FORWARD = 0
    BACKWARD = 1
    BACKWARD_INPUT = 2
    BACKWARD_WEIGHT = 3
    FORWARD_BACKWARD = 4
    TENSOR_COLLECTIVE = 5
    CONTEXT_COLLECTIVE = 6
    EXPERT_COLLECTIVE = 7
    SEND = 8
    REDUCE = 9
    GATHER = 10
    TIE = 11
    OPTIMIZER = 12
    OFFLOAD = 13
    FIXED = 14
    JOIN = 15
    BARRIER = 16

    @property
    def words(self) -> str:
        """The activity for people."""
        return self.name.lower().replace("_", " ")


class Stream(IntEnum):
    """Streams of a device: computation, and what runs beside it."""

    COMPUTE = 0
    COLLECTIVE = 1
    SEND_DOWN = 2
    SEND_UP = 3
    DATA = 4
    NONE = 5  # waits only

    @property
    def words(self) -> str:
        """The stream for people."""
        return self.name.lower().replace("_", " ")


N_STREAMS = len(Stream) - 1
_COLUMNS = ("activity", "rank", "stream", "work_s", "hold_s", "tier", "row")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTasks:
    """Tasks as columns, (n_tasks,), and what they need, (n_edges,): `task` needs `need` and `delay_s` more.

    `rank` is the pipeline rank and `copy` which of its symmetric devices; `tier` is the network tier that a
    task's bytes cross (-1: none); `row` is the program's pass that it belongs to (-1: none).
    """

    activity: Ints
    rank: Ints
    stream: Ints
    work_s: Floats
    hold_s: Floats
    tier: Ints
    row: Ints
    copy: Ints
    task: Ints
    need: Ints
    delay_s: Floats

    def __len__(self) -> int:
        return len(self.activity)


@dataclass(slots=True)
class Draft:
    """A growing list of tasks."""

    n: int = 0
    _columns: dict[str, list[Floats | Ints]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    _edges: list[tuple[Ints, Ints, Floats]] = field(default_factory=list)

    def add(
        self,
        activity: Ints | int,
        rank: Ints,
        stream: int,
        work_s: Floats | float,
        **more: Ints | float | Floats,
    ) -> Ints:
        """Append tasks, one for every entry of the broadcast columns, and return their numbers."""
        given = dict(
            activity=activity, rank=rank, stream=stream, work_s=work_s, hold_s=0.0, tier=NOTHING, row=NOTHING
        )
        columns = dict(zip(_COLUMNS, np.broadcast_arrays(*(given | more).values()), strict=True))
        for name in _COLUMNS:
            self._columns[name].append(columns[name].ravel())
        ids = self.n + np.arange(columns["rank"].size).reshape(columns["rank"].shape)
        self.n += ids.size
        return ids

    def need(self, task: Ints, need: Ints, delay_s: Floats | float = 0.0) -> None:
        """Make tasks wait for others; the three are broadcast."""
        edges = np.broadcast_arrays(task, need, delay_s)
        self._edges.append((edges[0].ravel(), edges[1].ravel(), edges[2].ravel()))

    def done(self) -> StepTasks:
        """The tasks as columns."""
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        empty = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        task, need, delay_s = (np.concatenate(each) for each in zip(empty, *self._edges, strict=True))
        return StepTasks(
            activity=columns["activity"].astype(np.int64), rank=columns["rank"].astype(np.int64),
            stream=columns["stream"].astype(np.int64), work_s=columns["work_s"].astype(np.float64),
            hold_s=columns["hold_s"].astype(np.float64), tier=columns["tier"].astype(np.int64),
            row=columns["row"].astype(np.int64), copy=np.zeros(self.n, np.int64),
            task=task, need=need, delay_s=delay_s,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdown:
    """How much a device's tasks take longer while it computes and communicates at once."""

    compute: float = 1.0
    comm: float = 1.0


def engine_input(
    tasks: StepTasks, *, n_ranks: int, n_tiers: int, slowdown: Slowdown, shares_links: bool
) -> tuple[Tasks, Resources]:
    """The tasks as the engine wants them: streams and links of every device."""
    n_devices = n_ranks * (int(tasks.copy.max(initial=0)) + 1)
    device = tasks.copy * n_ranks + tasks.rank
    by_task = np.argsort(tasks.task, kind="stable")
    counts = np.bincount(tasks.task, minlength=len(tasks))
    on_link = (tasks.tier != NOTHING) & shares_links
    of_device = np.tile(np.arange(N_STREAMS), n_devices)
    return Tasks(
        work_s=tasks.work_s,
        hold_s=tasks.hold_s,
        stream=np.where(tasks.stream == Stream.NONE, NOTHING, device * N_STREAMS + tasks.stream),
        link=np.where(on_link, device * n_tiers + tasks.tier, NOTHING),
        before_first=np.concatenate(([0], np.cumsum(counts))),
        before=tasks.need[by_task],
        delay_s=tasks.delay_s[by_task],
    ), Resources(
        n_streams=n_devices * N_STREAMS,
        device=np.repeat(np.arange(n_devices), N_STREAMS),
        is_comm=of_device != Stream.COMPUTE,
        by_arrival=of_device != Stream.COMPUTE,
        capacity=np.ones(n_devices * n_tiers),
        compute_slowdown=slowdown.compute,
        comm_slowdown=slowdown.comm,
    )


def on_every_device(tasks: StepTasks, groups: dict[int, Ints], factors: Floats) -> StepTasks:
    """The tasks of representative ranks, repeated on every symmetric device, collectives joined.

    `groups` maps an activity to the group of every copy, (n_copies,): its task starts when all members may
    start and ends, for whoever needs it, when all have.  BARRIER joins all copies.  `factors`, shape
    (n_copies, n_ranks), stretches what a device computes.

    Returns
    -------
    Copy k's tasks are rows k n to (k + 1) n - 1; those that join stand behind them.
    """
    n, n_copies = len(tasks), len(factors)
    groups = {**groups, Activity.BARRIER: np.zeros(n_copies, np.int64)}
    task, need = (_in_copies(column, n, n_copies) for column in (tasks.task, tasks.need))
    delay_s = np.tile(tasks.delay_s, n_copies)
    starts, ends = (np.tile(np.arange(n), n_copies) + np.repeat(np.arange(n_copies), n) * n for _ in range(2))
    joins: list[tuple[Ints, Ints]] = []
    n_all = n * n_copies
    for activity, group in groups.items():
        mine = np.flatnonzero(tasks.activity == activity)
        if not len(mine) or len(set(group.tolist())) == n_copies:
            continue
        which = np.unique(group, return_inverse=True)[1]
        n_joins = len(mine) * (int(which.max()) + 1)
        members = (np.arange(n_copies)[:, None] * n + mine).ravel()
        join = n_all + (which[:, None] * len(mine) + np.arange(len(mine))).ravel()
        starts[members], ends[members] = join, join + n_joins
        joins += [(members, join), (join + n_joins, members)]
        n_all += 2 * n_joins
    extra = n_all - n * n_copies
    edges = [(starts[task], ends[need], delay_s)]
    edges += [(waits, for_, np.zeros(len(waits))) for waits, for_ in joins]
    new_task, new_need, new_delay = (np.concatenate(each) for each in zip(*edges, strict=True))

    def column(values: Ints, filler: int) -> Ints:
        return np.concatenate([np.tile(values, n_copies), np.full(extra, filler)])

    stretch = np.where(tasks.stream == Stream.COMPUTE, factors[:, tasks.rank], 1.0)
    return replace(
        tasks,
        activity=column(tasks.activity, Activity.JOIN), rank=column(tasks.rank, 0),
        stream=column(tasks.stream, Stream.NONE), tier=column(tasks.tier, NOTHING),
        row=column(tasks.row, NOTHING),
        work_s=np.concatenate([(tasks.work_s * stretch).ravel(), np.zeros(extra)]),
        hold_s=np.concatenate([np.tile(tasks.hold_s, n_copies), np.zeros(extra)]),
        copy=np.concatenate([np.repeat(np.arange(n_copies), n), np.zeros(extra, np.int64)]),
        task=new_task, need=new_need, delay_s=new_delay,
    )  # fmt: skip


def _in_copies(column: Ints, n: int, n_copies: int) -> Ints:
    return (np.arange(n_copies)[:, None] * n + column).ravel()
