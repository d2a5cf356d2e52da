"""The clock of a pipeline: when every pass of a program starts and ends, or where the program deadlocks.

    F(s, j)   waits for F(s - 1, j) and its message         s  stage along a route    j  micro-batch
    B(s, j)   waits for B(s + 1, j) and its message, on the last stage for F(s, j)
    W(s, j)   waits for B_i(s, j)

A rank runs one pass at a time, in its order or by arrival.  The wiring of a program depends on no duration,
so it is made once and clocked as often as durations change.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from objectives.simulator.engine import NOTHING, Name, Resources, Run, Tasks, execute, waiting_words
from objectives.simulator.program import Pass, Program
from search_spaces.errors import InvalidSpec, check
from search_spaces.plan import Bools, Floats, Ints

LETTER_OF_KIND = np.array([0, 1, 1, 2, 0])  # F, B, B, W, and the forward half of F&B
LETTERS = ("F", "B", "W")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassTimes:
    """Seconds of one micro-batch through one chunk, and of the message to the next stage.

    Passes have shape (n_ranks, n_chunks); `forward_backward_s` is that of a forward and a whole backward pass
    run as one (None: their sum), by the forward half's chunk.  `send_s` has shape (n_ranks,): the link
    between rank i and rank i + 1, either way (the last rank's leads back to the first, for the next chunk).
    """

    forward_s: Floats
    backward_input_s: Floats
    backward_weight_s: Floats
    send_s: Floats
    forward_backward_s: Floats | None = None

    def table(self) -> Floats:
        """Seconds of F, B, B_i and W; shape (4, n_ranks, n_chunks)."""
        whole = self.backward_input_s + self.backward_weight_s
        return np.stack([self.forward_s, whole, self.backward_input_s, self.backward_weight_s])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wiring:
    """What every pass of a program waits for; row i is pass i of the program.

    Pass i needs `before[before_first[i]]` to `before[before_first[i + 1] - 1]`; each of these results crosses
    the link of rank `edge_link` (-1: it is already there); `edge_half` is 1 where it is that of F&B's
    backward half.  `sends` are the links that a pass's own results
    take, shape (2, n_ops): those of its first or only half, and of F&B's second.
    """

    program: Program
    rank: Ints
    before_first: Ints
    before: Ints
    edge_link: Ints
    edge_half: Ints
    sends: Ints

    def __len__(self) -> int:
        return len(self.rank)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """When each pass runs: row i is pass i of the program; shape (n_ops,), seconds.

    `turn` orders the passes by their starts.
    """

    program: Program
    rank: Ints
    start_s: Floats
    finish_s: Floats
    turn: Ints

    @property
    def makespan_s(self) -> float:
        """Seconds from the first start to the last end."""
        return float(self.finish_s.max() - self.start_s.min())

    @property
    def rank_start_s(self) -> Floats:
        """When each rank starts its first pass; shape (n_ranks,); infinite for a rank without passes."""
        first = np.full(self.program.n_ranks, np.inf)
        np.minimum.at(first, self.rank, self.start_s)
        return first

    @property
    def rank_finish_s(self) -> Floats:
        """When each rank is done; shape (n_ranks,)."""
        done = np.zeros(self.program.n_ranks)
        np.maximum.at(done, self.rank, self.finish_s)
        return done

    @property
    def busy_s(self) -> Floats:
        """Seconds each rank computes; shape (n_ranks,)."""
        spent = self.finish_s - self.start_s
        return np.bincount(self.rank, spent, self.program.n_ranks).astype(np.float64)

    @property
    def idle_s(self) -> Floats:
        """Seconds each rank waits between the first start and the last end of all; shape (n_ranks,)."""
        return self.makespan_s - self.busy_s

    @property
    def span_idle_s(self) -> Floats:
        """Seconds each rank waits between its own first start and last end (steps may interlock)."""
        first = np.minimum(self.rank_start_s, self.rank_finish_s)
        return np.asarray(self.rank_finish_s - first - self.busy_s)

    @property
    def makespan_bubble_s(self) -> float:
        """Idle seconds where a barrier closes the step: the makespan less the work of the busiest rank."""
        return self.makespan_s - float(self.busy_s.max())

    @property
    def span_bubble_s(self) -> float:
        """Idle seconds where steps interlock: the longest span of a rank less the most work of one."""
        return float(np.max(self.span_idle_s + self.busy_s) - self.busy_s.max())

    def of_rank(self, rank: int) -> Bools:
        """Which passes are the rank's."""
        return np.asarray(self.rank == rank)

    def in_order(self) -> Program:
        """The program with every rank's passes in the order in which they ran, no longer by arrival."""
        return reordered(self.program, np.lexsort((self.turn, self.rank)))


def reordered(program: Program, rows: Ints) -> Program:
    """The program with its passes in the order of `rows`, rank after rank."""
    names = ("kind", "microbatch", "chunk", "with_microbatch", "with_chunk")
    columns = {name: getattr(program, name)[rows] for name in names}
    return replace(program, by_arrival=False, limit=0, **columns)


def simulate(program: Program, times: PassTimes, *, sends_block: bool = False) -> Timeline:
    """The program's timeline with these durations.

    Messages delay their receiver; with `sends_block` the sender computes nothing meanwhile either.

    Raises
    ------
    InvalidSpec
        The schedule deadlocks, runs a pass twice or one that cannot be, or times are not times.
    """
    return clock(wire(program), pass_s(program, times), times.send_s, sends_block=sends_block)


def pass_s(program: Program, times: PassTimes) -> Floats:
    """Seconds of every pass of the program; shape (n_ops,)."""
    table = times.table()
    shape, given = (program.n_ranks, program.n_chunks), table.shape[1:]
    check(given == shape, f"pass times must have the shape (n_ranks, n_chunks) = {shape}", given)
    both_s = np.zeros(shape) if times.forward_backward_s is None else times.forward_backward_s
    check(both_s.shape == shape, f"forward_backward_s must have the shape {shape}", both_s.shape)
    for name, values in (("pass times", table), ("pass times", both_s), ("send times", times.send_s)):
        is_time = bool(np.all((values >= 0) & np.isfinite(values)))
        check(is_time, f"{name} must be finite and not negative", values)
    rank, kind = program.rank, program.kind
    durations: Floats = np.concatenate([table, both_s[None]])[kind, rank, program.chunk]
    if times.forward_backward_s is None:
        both = kind == Pass.FORWARD_BACKWARD
        durations[both] = (
            table[0, rank[both], program.chunk[both]] + table[1, rank[both], program.with_chunk[both]]
        )
    return durations


def clock(
    wiring: Wiring, duration_s: Floats, send_s: Floats, *, sends_block: bool = False, by_events: bool = False,
    name: Callable[[int], Name] | None = None,
) -> Timeline:  # fmt: skip
    """Start and end of every pass; `name` says what passes are called where they deadlock.

        start = max(end of the rank's previous pass, end of what it needs + its message)

    With `sends_block` the sender computes nothing while its message travels.
    """
    program = wiring.program
    link_s = np.append(send_s, 0.0)  # link -1 costs nothing
    tasks = Tasks(
        work_s=duration_s,
        stream=wiring.rank,
        before_first=wiring.before_first,
        before=wiring.before,
        delay_s=link_s[wiring.edge_link],
        hold_s=np.max(link_s[wiring.sends], axis=0) if sends_block else None,
        is_urgent=_follows_at_once(wiring) if program.by_arrival else None,
    )
    resources = Resources(
        n_streams=program.n_ranks,
        by_arrival=np.ones(program.n_ranks, np.bool_) if program.by_arrival else None,
    )
    run = execute(tasks, resources, name=name or pass_name(wiring), by_events=by_events)
    return timeline_of(wiring, run)


def _follows_at_once(wiring: Wiring) -> Bools:
    """Backward passes that a forward pass of their own rank makes ready: no message, so no queue."""
    program = wiring.program
    is_last = program.stage[wiring.rank, program.chunk] == program.stage.max()
    return np.asarray(is_last & np.isin(program.kind, (Pass.BACKWARD, Pass.BACKWARD_INPUT)))


def timeline_of(wiring: Wiring, run: Run) -> Timeline:
    """The passes of a run; further tasks behind them are left out."""
    n = len(wiring)
    return Timeline(
        program=wiring.program, rank=wiring.rank,
        start_s=run.start_s[:n], finish_s=run.finish_s[:n], turn=run.turn[:n],
    )  # fmt: skip


class pass_name:  # noqa: N801 - a function that remembers a wiring
    """Names of passes for sentences: their rank, and which pass."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring

    def __call__(self, task: int) -> Name:
        """Where a pass runs, and what it is."""
        return f"rank {self._wiring.rank[task]}", str(self._wiring.program.op(task))


def wire(program: Program) -> Wiring:
    """Every pass with what it waits for.

    Raises
    ------
    InvalidSpec
        A pass is impossible or there twice, or one waits for another that no rank runs.
    """
    keys = _keys(program)
    place = _places(program, keys)
    needs = np.where(keys.needs == NOTHING, NOTHING, place[keys.needs])
    absent = (needs == NOTHING) & (keys.needs != NOTHING)
    if absent.any():
        raise InvalidSpec("a schedule must let every rank finish", _absent(program, keys, absent))
    needs = np.concatenate([needs, _limited(program, place)])
    hops = np.append(_hops(program).ravel(), NOTHING)
    is_need = (needs != NOTHING).T
    before = needs.T[is_need]
    rank = keys.rank
    counts = is_need.sum(axis=1)
    waiter = np.repeat(np.arange(len(rank)), counts)
    crossed = np.pad(keys.crosses, ((0, len(needs) - len(keys.crosses)), (0, 0)), constant_values=NOTHING)
    link = hops[crossed.T[is_need]]
    is_backward = np.pad(keys.needs_backward, ((0, len(needs) - len(keys.needs)), (0, 0)))
    is_pair = program.kind[before] == Pass.FORWARD_BACKWARD
    return Wiring(
        program=program,
        rank=rank,
        before_first=np.concatenate(([0], np.cumsum(counts))),
        before=before,
        edge_link=np.where(rank[before] == rank[waiter], NOTHING, link),
        edge_half=(is_backward.T[is_need] & is_pair).astype(np.int64),
        sends=hops[keys.sends],
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Keys:
    """Every pass's results and needs as numbers; shape (1, n_ops), or (2, n_ops) where there are F&B.

    number = ((letter · n_routes + route) n_stages + stage) m + micro-batch, below n_results; letters F, B, W.
    `crosses` and `sends` number the boundaries that the need and the result cross (-1: none): that between
    stages s and s + 1 of a route is route · n_stages + s.
    """

    rank: Ints
    n_results: int
    results: Ints
    needs: Ints
    crosses: Ints
    sends: Ints

    @property
    def needs_backward(self) -> Bools:
        """Where what is needed is the gradient that a backward pass hands on."""
        return np.asarray(self.needs >= self.n_results // 3)


def _keys(program: Program) -> _Keys:
    rank = program.rank
    letter = LETTER_OF_KIND[program.kind]
    halves = [_half(program, rank, letter, program.chunk, program.microbatch, program.kind >= 0)]
    both = program.kind == Pass.FORWARD_BACKWARD
    if both.any():
        ones = np.ones_like(letter)
        halves.append(_half(program, rank, ones, program.with_chunk, program.with_microbatch, both))
    results, needs, crosses, sends = (np.stack(each) for each in zip(*halves, strict=True))
    n_results = 3 * (int(program.route.max()) + 1) * (int(program.stage.max()) + 1) * program.n_microbatches
    return _Keys(rank=rank, n_results=n_results, results=results, needs=needs, crosses=crosses, sends=sends)


def _half(
    program: Program, rank: Ints, letter: Ints, chunk: Ints, microbatch: Ints, exists: Bools
) -> tuple[Ints, Ints, Ints, Ints]:  # fmt: skip
    """Results, needs, boundaries crossed by the needs and by the results."""
    m, n_chunks = program.n_microbatches, program.n_chunks
    is_outside = exists & ((microbatch < 0) | (microbatch >= m) | (chunk < 0) | (chunk >= n_chunks))
    if is_outside.any():
        must = f"passes must be of {m} micro-batches and {n_chunks} chunks"
        raise InvalidSpec(must, str(program.op(int(is_outside.argmax()))))
    n_stages, n_routes = int(program.stage.max()) + 1, int(program.route.max()) + 1
    stage = program.stage[rank, chunk]
    boundary = program.route[chunk] * n_stages + stage
    base, block = boundary * m + microbatch, n_routes * n_stages * m
    is_forward, is_weight = letter == 0, letter == 2
    is_last = stage == n_stages - 1
    forward_need = np.where(stage > 0, base - m, NOTHING)
    backward_need = np.where(is_last, base, base + block + m)
    needs = np.where(is_forward, forward_need, np.where(is_weight, base + block, backward_need))
    below, above = np.where(stage > 0, boundary - 1, NOTHING), np.where(is_last, NOTHING, boundary)
    crosses = np.where(is_forward, below, np.where(is_weight, NOTHING, above))
    sends = np.where(is_forward, above, np.where(is_weight, NOTHING, below))
    columns = (base + letter * block, needs, crosses, sends)
    return tuple(np.where(exists, each, NOTHING) for each in columns)  # type: ignore[return-value]


def _places(program: Program, keys: _Keys) -> Ints:
    """Which pass leaves each result (-1: none)."""
    place = np.full(keys.n_results, NOTHING)
    rows = np.arange(len(program))
    for results in keys.results:
        real = results != NOTHING
        is_taken = place[results] != NOTHING
        place[results[real]] = rows[real]
        twice = real & (is_taken | (place[results] != rows))
        if twice.any():
            at = int(twice.argmax())
            raise InvalidSpec(
                "a schedule must run every pass once", f"{program.op(at)} twice on rank {keys.rank[at]}"
            )
    return place


def _absent(program: Program, keys: _Keys, absent: Bools) -> str:
    """Passes that wait for what no rank runs."""
    rank_of, chunk_of = _owners(program)
    pairs: list[tuple[Name, Name]] = []
    seen: set[int] = set()
    for half, at in np.argwhere(absent).tolist():
        rank = int(keys.rank[at])
        if rank not in seen:
            seen.add(rank)
            letter_and_boundary, microbatch = divmod(int(keys.needs[half, at]), program.n_microbatches)
            letter, boundary = divmod(letter_and_boundary, rank_of.size)
            needed = f"{LETTERS[letter]}(micro-batch {microbatch}, chunk {chunk_of.flat[boundary]})"
            pairs.append(((f"rank {rank}", str(program.op(at))), (f"rank {rank_of.flat[boundary]}", needed)))
    return waiting_words(pairs)


def _owners(program: Program) -> tuple[Ints, Ints]:
    """Rank and chunk of every stage of every route; shape (n_routes, n_stages)."""
    n_stages, n_routes = int(program.stage.max()) + 1, int(program.route.max()) + 1
    rank_of, chunk_of = (np.full((n_routes, n_stages), NOTHING) for _ in range(2))
    rank, chunk = np.indices(program.stage.shape)
    rank_of[program.route[chunk], program.stage] = rank
    chunk_of[program.route[chunk], program.stage] = chunk
    check(
        bool(np.all(rank_of != NOTHING)), "every stage of a route must lie on a rank", program.stage.tolist()
    )
    return rank_of, chunk_of


def _hops(program: Program) -> Ints:
    """The link between each stage and the next, as the rank that `send_s` counts it under (-1: same rank).

    Neighbours share the lower one's link; from the last rank to the first chunk of the next turn leads the
    last one's.  Shape (n_routes, n_stages).
    """
    rank_of, chunk_of = _owners(program)
    here, there = rank_of, np.roll(rank_of, -1, axis=1)
    turns = (here == program.n_ranks - 1) & (there == 0) & (chunk_of != np.roll(chunk_of, -1, axis=1))
    link = np.where((np.abs(here - there) == 1) & ~turns, np.minimum(here, there), here)
    link[here == there] = NOTHING
    link[:, -1] = NOTHING
    return link


def _limited(program: Program, place: Ints) -> Ints:
    """With a limit, the backward pass on the first stage that lets a forward pass there start."""
    if not program.limit:
        return np.zeros((0, len(program)), np.int64)
    n_stages, n_routes = int(program.stage.max()) + 1, int(program.route.max()) + 1
    m = program.n_microbatches
    needs = np.full(len(program), NOTHING)
    for route in range(n_routes):
        first = (route * n_stages) * m
        forwards = place[first : first + m]
        backwards = place[first + n_routes * n_stages * m :][:m]
        is_here = forwards != NOTHING
        forwards, backwards = forwards[is_here], backwards[is_here]
        n_later = max(0, len(forwards) - program.limit)
        needs[forwards[len(forwards) - n_later :]] = backwards[:n_later]
    return needs[None]
