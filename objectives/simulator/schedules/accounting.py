"""What a schedule keeps in memory, and whether it runs every pass once."""

from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from objectives.simulator.program import Op, Pass, Program
from search_spaces.errors import InvalidSpec
from search_spaces.memory_habits import Release
from search_spaces.plan import Bools, Floats, Ints

# Halves that B_i gives back; W gives the others.
HALVES_AT_BACKWARD_INPUT = {Release.AT_BACKWARD_INPUT: 2, Release.HALF_AND_HALF: 1, Release.AT_WEIGHT: 0}


def in_flight(program: Program, release: Release = Release.AT_BACKWARD_INPUT) -> tuple[Floats, Floats]:
    """Micro-batches whose activations a rank keeps during each pass and after it; shape (n_ops,) both.

    A micro-batch is one pass through the rank's whole share of the model: a chunk counts as 1 / the chunks of
    its route.  A forward pass takes memory as it starts; a backward pass gives it back as it ends.
    """
    chunks = np.bincount(program.route)
    unit = 2 * int(np.lcm.reduce(chunks[chunks > 0]))  # whole numbers, so that nothing is lost in rounding
    share = unit // chunks[program.route]
    at_b = HALVES_AT_BACKWARD_INPUT[release]
    takes = np.isin(program.kind, (Pass.FORWARD, Pass.FORWARD_BACKWARD)) * share[program.chunk]
    halves = np.array([0, 2, at_b, 2 - at_b, 2])[program.kind]
    is_pair = program.kind == Pass.FORWARD_BACKWARD
    gives = halves * share[np.where(is_pair, program.with_chunk, program.chunk)] // 2
    total = np.concatenate([[0], np.cumsum(takes - gives)])
    after = total[1:] - np.repeat(total[program.first[:-1]], np.diff(program.first))
    return (after + gives) / unit, after / unit


def peak_in_flight(program: Program, rank: int, release: Release = Release.AT_BACKWARD_INPUT) -> float:
    """Most micro-batches whose activations the rank keeps at once."""
    during, _ = in_flight(program, release)
    return float(during[program.first[rank] : program.first[rank + 1]].max(initial=0.0))


@dataclass(frozen=True, slots=True)
class Fault:
    """A pass that is wrong: `at` is its place in the columns, or -1 where it is missing."""

    rank: int
    words: str
    at: int = -1


def check_program(program: Program) -> None:
    """Refuse a program unless it runs every pass of every micro-batch through every chunk exactly once.

    That is one F, and one B or one B_i and one W, of each micro-batch of the chunk's route; on a rank a
    backward pass comes after its forward pass, and W after its B_i.

    Raises
    ------
    InvalidSpec
        Names the rank and the first pass that is missing, doubled or impossible.
    """
    if fault := first_fault(program):
        refuse(fault)


def refuse(fault: Fault, where: str = "") -> NoReturn:
    """Raise the sentence for a fault."""
    raise InvalidSpec("a schedule must run every pass exactly once, where it is possible",
                      f"{where}rank {fault.rank}: {fault.words}")  # fmt: skip


def first_fault(program: Program) -> Fault | None:
    """The first pass that is impossible, doubled, missing or too early, in this order; None: all is well."""
    passes = _passes(program)
    return (
        _impossible(program, passes)
        or _doubled(program, passes)
        or _missing(program, passes)
        or _too_early(program, passes)
    )


def microbatches_of(program: Program, chunk: int) -> range:
    """The micro-batches that visit a chunk: each of n routes has its n-th part of them, in order."""
    route, n_routes, m = int(program.route[chunk]), int(program.route.max()) + 1, program.n_microbatches
    return range(route * m // n_routes, (route + 1) * m // n_routes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passes:
    """Single passes (a pair counts as two, a whole B as B_i and W), each with its place in the program."""

    letter: Ints  # 0 F, 1 B or B_i, 2 B or W
    rank: Ints
    chunk: Ints
    microbatch: Ints
    at: Ints

    def number(self, program: Program) -> Ints:
        """Place of each pass in an array of shape (n_ranks, n_chunks, 3, n_microbatches)."""
        shape = (program.n_ranks, program.n_chunks, 3, program.n_microbatches)
        return np.ravel_multi_index((self.rank, self.chunk, self.letter, self.microbatch), shape)


def _passes(program: Program) -> _Passes:
    kind, at, rank = program.kind, np.arange(len(program)), program.rank
    backward = np.isin(kind, (Pass.BACKWARD, Pass.BACKWARD_INPUT, Pass.FORWARD_BACKWARD))
    weight = np.isin(kind, (Pass.BACKWARD, Pass.BACKWARD_WEIGHT, Pass.FORWARD_BACKWARD))
    forward = np.isin(kind, (Pass.FORWARD, Pass.FORWARD_BACKWARD))
    is_pair = kind == Pass.FORWARD_BACKWARD
    places = [at[forward], at[backward], at[weight]]
    chunk, microbatch = (
        np.where(is_pair, program.with_chunk, program.chunk),
        np.where(is_pair, program.with_microbatch, program.microbatch),
    )
    everywhere = np.concatenate(places)
    return _Passes(
        letter=np.repeat([0, 1, 2], [len(place) for place in places]),
        rank=rank[everywhere],
        chunk=np.concatenate([program.chunk[forward], *(chunk[place] for place in places[1:])]),
        microbatch=np.concatenate(
            [program.microbatch[forward], *(microbatch[place] for place in places[1:])]
        ),
        at=everywhere,
    )


def _impossible(program: Program, passes: _Passes) -> Fault | None:
    chunk_ok = (passes.chunk >= 0) & (passes.chunk < program.n_chunks)
    spans = [microbatches_of(program, chunk) for chunk in range(program.n_chunks)]
    low, high = np.array([(span.start, span.stop) for span in spans]).T
    chunk = np.where(chunk_ok, passes.chunk, 0)
    is_ok = chunk_ok & (passes.microbatch >= low[chunk]) & (passes.microbatch < high[chunk])
    if is_ok.all():
        return None
    worst = int(np.argmin(np.where(is_ok, len(program), passes.at)))
    return _at(program, passes, worst, "does not exist in this pipeline")


def _doubled(program: Program, passes: _Passes) -> Fault | None:
    number = passes.number(program)
    order = np.lexsort((passes.at, number))
    again = np.flatnonzero(np.diff(number[order]) == 0) + 1
    if not len(again):
        return None
    second = order[again][np.argmin(passes.at[order[again]])]
    return _at(program, passes, int(second), "comes a second time")


def _missing(program: Program, passes: _Passes) -> Fault | None:
    shape = (program.n_ranks, program.n_chunks, 3, program.n_microbatches)
    is_there = np.zeros(np.prod(shape), dtype=bool)
    is_there[passes.number(program)] = True
    is_due = np.zeros(shape, dtype=bool)
    for chunk in range(program.n_chunks):
        span = microbatches_of(program, chunk)
        is_due[:, chunk, :, span.start : span.stop] = True
    lacking = is_due & ~is_there.reshape(shape)
    if not lacking.any():
        return None
    rank, chunk, letter, microbatch = (int(each) for each in np.argwhere(lacking)[0])
    return Fault(rank, f"{_named(program, rank, chunk, letter, microbatch, lacking)} is missing")


def _named(program: Program, rank: int, chunk: int, letter: int, microbatch: int, lacking: Bools) -> str:
    """The pass in words: a backward pass of which both halves are lacking is a whole one."""
    whole = letter == 1 and lacking[rank, chunk, 2, microbatch]
    kind = (Pass.FORWARD, Pass.BACKWARD if whole else Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT)[letter]
    return _words(program, rank, Op(kind, microbatch, chunk))


def _too_early(program: Program, passes: _Passes) -> Fault | None:
    """F before B_i before W, by place; a whole backward pass is both at once."""
    place = np.full(program.n_ranks * program.n_chunks * 3 * program.n_microbatches, -1)
    place[passes.number(program)] = passes.at
    places = place.reshape(program.n_ranks, program.n_chunks, 3, program.n_microbatches)
    f, b, w = places[:, :, 0], places[:, :, 1], places[:, :, 2]
    for later, earlier, words in ((b, f, "its forward pass"), (w, b, "its gradient of the input")):
        # A whole backward pass stands where its own gradient of the input does, never where its forward does.
        early = (later < earlier) | ((later == earlier) & (earlier is f) & (later >= 0))
        if early.any():
            at = int(later[early].min())
            return Fault(int(program.rank[at]), f"{_op_words(program, at)} comes before {words}", at)
    return None


def _at(program: Program, passes: _Passes, which: int, words: str) -> Fault:
    at = int(passes.at[which])
    return Fault(int(passes.rank[which]), f"{_op_words(program, at)} {words}", at)


def _op_words(program: Program, at: int) -> str:
    return _words(program, int(program.rank[at]), program.op(at))


def _words(program: Program, rank: int, op: Op) -> str:
    is_chunk = 0 <= op.chunk < program.n_chunks
    return f"{op}, stage {program.stage[rank, op.chunk]}" if is_chunk else str(op)
