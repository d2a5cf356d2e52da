"""What is to be ordered: seconds and bytes of every pass, where stages lie, and how much memory there is.

p  n_ranks   m  n_microbatches   v  n_chunks   t  turn: letter · v + chunk, letters F, B_i, W
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np

from objectives.simulator.program import NOTHING, Pass, Program, round_robin, v_shape
from objectives.simulator.schedules import Release
from objectives.simulator.schedules.accounting import HALVES_AT_BACKWARD_INPUT
from objectives.simulator.schedules.writer import assemble
from objectives.simulator.timeline import PassTimes, Timeline, wire
from search_spaces.errors import InvalidSpec, check
from search_spaces.plan import Floats, Ints, OptimizerSync

ROUNDING = 1e-9  # bytes are added up in another order by whoever checks


class Placement(StrEnum):
    """Where the stages lie: dealt in turns (c p + i), or down the pipeline and up again (i, 2 p - 1 - i)."""

    ROUND_ROBIN = "round-robin"
    V_SHAPE = "v-shape"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageCosts:
    """Seconds of every pass and message, and the bytes that one micro-batch keeps in one chunk.

    `activation_bytes` has shape (n_ranks, n_chunks), as the passes of `times` have; `release` says when they
    are given back.

    Raises
    ------
    InvalidSpec
        Shapes differ, or a number is negative or not finite.
    """

    times: PassTimes
    activation_bytes: Floats
    release: Release = Release.AT_WEIGHT

    def __post_init__(self) -> None:
        shape = self.times.forward_s.shape
        check(
            len(shape) == 2 and min(shape) > 0,
            "pass times must have the shape (n_ranks, n_chunks), each at least 1",
            shape,
        )
        for name in ("backward_input_s", "backward_weight_s"):
            given = getattr(self.times, name).shape
            check(given == shape, f"{name} must have the shape of forward_s, {shape}", given)
        given = self.activation_bytes.shape
        check(given == shape, f"activation_bytes must have the shape (n_ranks, n_chunks) = {shape}", given)
        sends = self.times.send_s.shape
        check(sends == shape[:1], f"send_s must have the shape (n_ranks,) = {shape[:1]}", sends)
        for name, values in (
            ("activation_bytes", self.activation_bytes), ("pass times", self.times.table()),
            ("send_s", self.times.send_s),
        ):  # fmt: skip
            is_amount = bool(np.all((values >= 0) & np.isfinite(values)))
            check(is_amount, f"{name} must be finite and not negative", values)


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """Costs, a memory limit a rank (bytes, shape (n_ranks,)), and what is to be made small.

    With `OptimizerSync.BARRIER` that is the makespan; with `POST_VALIDATION`, where consecutive steps
    interlock, the longest span of a rank: last end - first start.
    """

    costs: StageCosts
    n_microbatches: int
    limit_bytes: Floats
    sync: OptimizerSync
    placement: Placement

    @property
    def n_ranks(self) -> int:
        """Pipeline ranks."""
        return len(self.costs.activation_bytes)

    @property
    def n_chunks(self) -> int:
        """Parts of the model that a rank holds."""
        return int(self.costs.activation_bytes.shape[1])

    @cached_property
    def stage(self) -> Ints:
        """The place of every chunk along the model; shape (n_ranks, n_chunks)."""
        if self.placement is Placement.V_SHAPE:
            return v_shape(self.n_ranks)
        return round_robin(self.n_ranks, self.n_chunks)

    @cached_property
    def work_s(self) -> Floats:
        """Seconds of every turn; shape (n_ranks, n_turns)."""
        times = self.costs.times
        return np.concatenate([times.forward_s, times.backward_input_s, times.backward_weight_s], axis=1)

    @cached_property
    def taken_bytes(self) -> Floats:
        """What a turn takes as it starts; shape (n_ranks, n_turns)."""
        nothing = np.zeros_like(self.costs.activation_bytes)
        return np.concatenate([self.costs.activation_bytes, nothing, nothing], axis=1)

    @cached_property
    def given_bytes(self) -> Floats:
        """What a turn gives back as it ends; shape (n_ranks, n_turns)."""
        at_input = HALVES_AT_BACKWARD_INPUT[self.costs.release] / 2
        kept = self.costs.activation_bytes
        return np.concatenate([0 * kept, at_input * kept, (1 - at_input) * kept], axis=1)

    @cached_property
    def needs(self) -> tuple[Ints, Ints, Floats]:
        """Rank and turn that every turn needs (-1: none), and the seconds of the message.

        They are read off the engine's own wiring of one micro-batch; shape (n_ranks, n_turns) each.
        """
        shape = self.work_s.shape
        wiring = wire(self.program(np.tile(np.arange(shape[1]), (shape[0], 1)), 1))
        counts = np.diff(wiring.before_first)
        has_need = np.flatnonzero(counts)
        rank, turn = np.full(shape, NOTHING).ravel(), np.full(shape, NOTHING).ravel()
        delay_s = np.zeros(len(rank))
        rank[has_need], turn[has_need] = np.divmod(wiring.before, shape[1])
        delay_s[has_need] = np.append(self.costs.times.send_s, 0.0)[wiring.edge_link]
        return rank.reshape(shape), turn.reshape(shape), delay_s.reshape(shape)

    @cached_property
    def floor_s(self) -> float:
        """What no order can go below: a rank's work, behind the way of the first micro-batch to it.

        Where steps interlock, the work of the busiest rank alone.
        """
        work_s = self.n_microbatches * self.work_s.sum(axis=1)
        if self.sync is OptimizerSync.POST_VALIDATION:
            return float(work_s.max())
        rank, turn, delay_s = self.needs
        arrives_s = np.zeros(self.n_ranks)
        for each in range(self.n_ranks):
            i, t = each, int(np.argmin(self.stage[each]))
            while turn[i, t] >= 0:
                arrives_s[each] += delay_s[i, t]
                i, t = int(rank[i, t]), int(turn[i, t])
                arrives_s[each] += self.work_s[i, t]
        return float((arrives_s + work_s).max())

    def figure_s(self, timeline: Timeline) -> float:
        """What is to be made small, of a timeline of the engine."""
        if self.sync is OptimizerSync.BARRIER:
            return timeline.makespan_s
        return float((timeline.rank_finish_s - timeline.rank_start_s).max())

    def program(self, turns: Ints, n_microbatches: int) -> Program:
        """Orders as a program; `turns` has shape (n_ranks, n_turns · n_microbatches)."""
        kinds = np.array([Pass.FORWARD, Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT])
        ranks = []
        for order in turns:
            by_turn = np.argsort(order, kind="stable")
            microbatch = np.empty_like(order)
            microbatch[by_turn] = np.tile(np.arange(n_microbatches), len(order) // n_microbatches)
            nothing = np.full(len(order), NOTHING)
            columns = [kinds[order // self.n_chunks], microbatch, order % self.n_chunks, nothing, nothing]
            ranks.append(np.stack(columns, axis=1))
        return assemble(ranks, n_microbatches=n_microbatches, stage=self.stage)

    def turns(self, program: Program) -> Ints | None:
        """A program's orders as turns, a whole backward pass as its halves; None: not first in, first out."""
        rows = []
        for rank in range(self.n_ranks):
            mine = slice(int(program.first[rank]), int(program.first[rank + 1]))
            order, microbatch = _halves(program, mine)
            for turn in range(3 * self.n_chunks):
                if not np.array_equal(microbatch[order == turn], np.arange(self.n_microbatches)):
                    return None
            rows.append(order)
        return np.stack(rows)


def _halves(program: Program, mine: slice) -> tuple[Ints, Ints]:
    """Turns and micro-batches of some passes: F, B_i and W of each, as far as it has them."""
    kind, v = program.kind[mine], program.n_chunks
    is_pair = kind == Pass.FORWARD_BACKWARD
    chunk, microbatch = program.chunk[mine], program.microbatch[mine]
    back_chunk = np.where(is_pair, program.with_chunk[mine], chunk)
    back_microbatch = np.where(is_pair, program.with_microbatch[mine], microbatch)
    is_whole = is_pair | (kind == Pass.BACKWARD)
    exists = np.stack([
        is_pair | (kind == Pass.FORWARD), is_whole | (kind == Pass.BACKWARD_INPUT),
        is_whole | (kind == Pass.BACKWARD_WEIGHT),
    ], axis=1)  # fmt: skip
    turns = np.stack([chunk, v + back_chunk, 2 * v + back_chunk], axis=1)
    return turns[exists], np.stack([microbatch, back_microbatch, back_microbatch], axis=1)[exists]


def problem_of(
    costs: StageCosts,
    n_microbatches: int,
    *,
    memory_limit_bytes: float | Floats,
    sync: OptimizerSync,
    placement: Placement,
) -> Problem:
    """A checked problem.

    Raises
    ------
    InvalidSpec
        No order fits the memory: that is where one micro-batch in every chunk of a rank does not.
    """
    p, v = costs.activation_bytes.shape
    check(n_microbatches >= 1, "synthesis needs at least one micro-batch", n_microbatches)
    is_v = placement is Placement.V_SHAPE
    check(not is_v or v == 2, "the V placement has two chunks a rank", v, hint="give costs of two chunks")
    given = np.asarray(memory_limit_bytes, dtype=np.float64)
    must = "memory_limit_bytes must be one number, or one a rank, and not negative"
    check(given.shape in ((), (p,)) and bool(np.all(given >= 0)), must, memory_limit_bytes)
    limit = np.broadcast_to(given, (p,)).copy()
    least = costs.activation_bytes.sum(axis=1)
    lacking = np.flatnonzero(least > limit * (1 + ROUNDING))
    if len(lacking):
        rank = int(lacking[0])
        raise InvalidSpec(
            "the memory limit must hold one micro-batch in every chunk of a rank, or no order fits",
            f"rank {rank}: {limit[rank]:.0f} bytes, and {least[rank]:.0f} needed",
            hint="raise the limit, recompute more, or make micro-batches smaller",
        )
    return Problem(
        costs=costs, n_microbatches=n_microbatches, limit_bytes=limit, sync=sync, placement=placement
    )
