"""The clock: when every pass of a schedule starts and ends, or where the schedule deadlocks.

    F(s, j)   waits for F(s - 1, j) and its message         s  virtual stage    j  micro-batch
    B(s, j)   waits for B(s + 1, j) and its message, on the last stage for F(s, j)
    W(s, j)   waits for B_i(s, j)

A rank runs one pass at a time, in the order its schedule gives. The wiring of a program depends on no
duration, so it is made once and clocked as often as durations change.
"""

from dataclasses import dataclass

import numpy as np

from objectives.simulator.program import Op, Pass, Program
from search_spaces.errors import InvalidSpec, check
from search_spaces.plan import Bools, Floats, Ints

_NOTHING = -1
_MOST_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassTimes:
    """Seconds of one micro-batch through one chunk, and of the message to the next virtual stage.

    Passes have shape (n_ranks, n_chunks); `send_s` has shape (n_ranks,) and is that of the link towards the
    next rank (the last rank's leads back to the first, for the next chunk).
    """

    forward_s: Floats
    backward_input_s: Floats
    backward_weight_s: Floats
    send_s: Floats

    def table(self) -> Floats:
        """Seconds of every kind of pass; shape (n_kinds, n_ranks, n_chunks)."""
        whole = self.backward_input_s + self.backward_weight_s
        return np.stack([self.forward_s, whole, self.backward_input_s, self.backward_weight_s])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wiring:
    """A program's passes in an order in which they can run; every array has shape (n_ops,).

    `previous` is the pass before on the same rank, `needs` the pass whose result it waits for (-1: none);
    `link` is the rank whose link that result crosses (-1: it is already there), `sends` that of its own.
    """

    program: Program
    kind: Ints
    rank: Ints
    chunk: Ints
    microbatch: Ints
    previous: Ints
    needs: Ints
    link: Ints
    sends: Ints

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Timeline:
    """When each pass runs: row i is pass i of the wiring; shape (n_ops,), seconds."""

    wiring: Wiring
    start_s: Floats
    finish_s: Floats

    @property
    def makespan_s(self) -> float:
        """Seconds from the first start to the last end."""
        return float(self.finish_s.max() - self.start_s.min())

    @property
    def rank_finish_s(self) -> Floats:
        """When each rank is done; shape (n_ranks,)."""
        done = np.zeros(self.wiring.program.n_ranks)
        np.maximum.at(done, self.wiring.rank, self.finish_s)
        return done

    @property
    def busy_s(self) -> Floats:
        """Seconds each rank computes; shape (n_ranks,)."""
        spent = self.finish_s - self.start_s
        return np.bincount(self.wiring.rank, spent, self.wiring.program.n_ranks).astype(np.float64)

    @property
    def idle_s(self) -> Floats:
        """Seconds each rank waits between the first start and the last end of all; shape (n_ranks,)."""
        return self.makespan_s - self.busy_s

    @property
    def span_idle_s(self) -> Floats:
        """Seconds each rank waits between its own first start and last end (steps may interlock)."""
        first = np.full(self.wiring.program.n_ranks, np.inf)
        np.minimum.at(first, self.wiring.rank, self.start_s)
        return np.asarray(self.rank_finish_s - first - self.busy_s)

    def of_rank(self, rank: int) -> Bools:
        """Which passes are the rank's."""
        return np.asarray(self.wiring.rank == rank)


def simulate(program: Program, times: PassTimes, *, sends_block: bool = False) -> Timeline:
    """The program's timeline with these durations."""
    wiring = wire(program)
    return clock(wiring, pass_s(wiring, times), times.send_s, sends_block=sends_block)


def pass_s(wiring: Wiring, times: PassTimes) -> Floats:
    """Seconds of every pass of the wiring; shape (n_ops,)."""
    table = times.table()
    shape, given = (wiring.program.n_ranks, wiring.program.n_chunks), table.shape[1:]
    check(given == shape, f"pass times must have the shape (n_ranks, n_chunks) = {shape}", given)
    for name, values in (("pass times", table), ("send times", times.send_s)):
        is_time = bool(np.all((values >= 0) & np.isfinite(values)))
        check(is_time, f"{name} must be finite and not negative", values)
    durations: Floats = table[wiring.kind, wiring.rank, wiring.chunk]
    return durations


def clock(wiring: Wiring, duration_s: Floats, send_s: Floats, *, sends_block: bool = False) -> Timeline:
    """Start and end of every pass.

        start = max(end of the rank's previous pass, end of what it needs + its message)

    With `sends_block` the sender computes nothing while its message travels.
    """
    link_s = np.append(send_s, 0.0)  # link -1 costs nothing
    delay_s, after_s = link_s[wiring.link], link_s[wiring.sends] if sends_block else np.zeros(len(wiring))
    finish, start = [0.0] * (len(wiring) + 1), [0.0] * len(wiring)  # position -1 is the beginning of time
    columns = (wiring.previous, wiring.needs, delay_s, duration_s, after_s)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    free = [0.0] * (len(wiring) + 1)
    for i, (previous, needs, delay, duration, after) in enumerate(rows):
        arrives, begin = finish[needs] + delay, free[previous]
        begin = max(begin, arrives)
        start[i] = begin
        finish[i] = begin + duration
        free[i] = finish[i] + after
    return Timeline(wiring=wiring, start_s=np.array(start), finish_s=np.array(finish[:-1]))


def wire(program: Program) -> Wiring:
    """Every pass with what it waits for.

    Raises
    ------
    InvalidSpec
        The schedule deadlocks: the sentence names the ranks and what they wait for.
    """
    table = _table(program)
    needs, results = table.needs.tolist(), table.results.tolist()
    size = 3 * program.n_ranks * program.n_chunks * program.n_microbatches
    position, sleeper = (
        [_NOTHING] * (size + 1),
        [_NOTHING] * (size + 1),
    )  # the last place is that of "nothing"
    cursor, ends = program.first[:-1].tolist(), program.first[1:].tolist()
    sequence: list[int] = []
    awake = list(range(program.n_ranks))[::-1]
    while awake:
        rank = awake.pop()
        at, end = cursor[rank], ends[rank]
        while at < end:
            need = needs[at]
            if need != _NOTHING and position[need] == _NOTHING:
                sleeper[need] = rank
                break
            result = results[at]
            position[result] = len(sequence)
            sequence.append(at)
            at += 1
            if sleeper[result] != _NOTHING:
                awake.append(sleeper[result])
        cursor[rank] = at
    _check_all_ran(
        program, table, [rank for rank in range(program.n_ranks) if cursor[rank] < ends[rank]], cursor
    )
    return _wiring(program, table, np.array(sequence, dtype=np.int64), np.array(position, dtype=np.int64))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Table:
    """All passes, rank after rank, and what each leaves behind and waits for as a number (-1: nothing).

    number = (letter · n_stages + stage) m + micro-batch, with letter 0 for F, 1 for B and B_i (both give the
    gradient that the stage before waits for), 2 for W.
    """

    rank: Ints
    kind: Ints
    microbatch: Ints
    chunk: Ints
    results: Ints
    needs: Ints


def _table(program: Program) -> _Table:
    p, m = program.n_ranks, program.n_microbatches
    n_stages = p * program.n_chunks
    kind, microbatch, chunk, rank = program.kind, program.microbatch, program.chunk, program.rank
    _check_inside(program, (microbatch < 0) | (microbatch >= m) | (chunk < 0) | (chunk >= program.n_chunks))
    stage, letter = chunk * p + rank, np.array([0, 1, 1, 2])[kind]
    forward = np.where(stage > 0, (stage - 1) * m + microbatch, _NOTHING)
    backward = np.where(stage == n_stages - 1, stage, n_stages + stage + 1) * m + microbatch
    weight = (n_stages + stage) * m + microbatch
    return _Table(
        rank=rank, kind=kind, microbatch=microbatch, chunk=chunk,
        results=(letter * n_stages + stage) * m + microbatch,
        needs=np.choose(letter, [forward, backward, weight]),
    )  # fmt: skip


def _check_inside(program: Program, is_outside: Bools) -> None:
    must = f"passes must be of {program.n_microbatches} micro-batches and {program.n_chunks} chunks"
    if is_outside.any():
        raise InvalidSpec(must, str(program.op(int(is_outside.argmax()))))


def _check_all_ran(program: Program, table: _Table, stuck: list[int], cursor: list[int]) -> None:
    words = []
    for rank in stuck[:_MOST_NAMED]:
        at = cursor[rank]
        op = Op(Pass(int(table.kind[at])), int(table.microbatch[at]), int(table.chunk[at]))
        letter_and_stage, microbatch = divmod(int(table.needs[at]), program.n_microbatches)
        letter, stage = divmod(letter_and_stage, program.n_ranks * program.n_chunks)
        needed = f"{'FBW'[letter]}(micro-batch {microbatch}, chunk {stage // program.n_ranks})"
        words.append(f"rank {rank} at {op} waits for {needed} of rank {stage % program.n_ranks}")
    more = f" and {len(stuck) - _MOST_NAMED} more ranks" if len(stuck) > _MOST_NAMED else ""
    if stuck:
        raise InvalidSpec("a schedule must let every rank finish", "; ".join(words) + more)


def _wiring(program: Program, table: _Table, sequence: Ints, position: Ints) -> Wiring:
    """The passes in the sequence in which they ran; `position` says where in it each result appears."""
    kind, rank, chunk = table.kind[sequence], table.rank[sequence], table.chunk[sequence]
    place = np.empty(len(sequence), dtype=np.int64)
    place[sequence] = np.arange(len(sequence))
    first = np.diff(table.rank, prepend=_NOTHING) != 0
    previous = np.where(first, _NOTHING, np.roll(place, 1))[sequence]
    needs = np.where(table.needs == _NOTHING, _NOTHING, position[table.needs])[sequence]
    sends = _links(program, kind, rank, chunk)
    # A weight gradient and the last stage's backward pass follow a pass of their own rank: nothing travels.
    is_remote = (needs != _NOTHING) & (rank[needs] != rank)
    return Wiring(
        program=program, kind=kind, rank=rank, chunk=chunk, microbatch=table.microbatch[sequence],
        previous=previous, needs=needs, link=np.where(is_remote, sends[needs], _NOTHING), sends=sends,
    )  # fmt: skip


def _links(program: Program, kind: Ints, rank: Ints, chunk: Ints) -> Ints:
    """Link that a pass's result takes: forward the rank's own, backward the one before it; -1: none."""
    p, stage = program.n_ranks, chunk * program.n_ranks + rank
    forward = np.where(stage < p * program.n_chunks - 1, rank, _NOTHING)
    backward = np.where(stage > 0, (rank - 1) % p, _NOTHING)
    link = np.where(kind == Pass.FORWARD, forward, backward)
    return np.asarray(np.where((kind == Pass.BACKWARD_WEIGHT) | (p == 1), _NOTHING, link))
