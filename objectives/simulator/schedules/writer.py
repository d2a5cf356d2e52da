"""Passes of one rank written phase by phase, and the ranks put together as a program.

A regular schedule is a few phases, each a short pattern of passes that repeats; the micro-batches of a kind
of pass and chunk count up by themselves.  A phase costs a few NumPy calls, however often it repeats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from objectives.simulator.program import NOTHING, Pass, Program, round_robin
from search_spaces.plan import Ints


@dataclass(frozen=True, slots=True)
class Turn:
    """A pass in a pattern: its kind and chunk; `with_chunk` is the backward half's of FORWARD_BACKWARD."""

    kind: Pass
    chunk: int = 0
    with_chunk: int = NOTHING


F, B, BI, W = (
    Turn(kind) for kind in (Pass.FORWARD, Pass.BACKWARD, Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT)
)

Columns = Ints  # shape (n_ops, 5): kind, micro-batch, chunk, micro-batch and chunk of the backward half


@dataclass(slots=True)
class Writer:
    """One rank's passes so far, and the next micro-batch of each kind of pass and chunk."""

    _blocks: list[Columns] = field(default_factory=list)
    _next: dict[tuple[Pass, int], int] = field(default_factory=dict)

    def repeat(self, n: int, *pattern: Turn) -> None:
        """Write the pattern n times (not at all for n below 1); a kind and chunk may appear once in it."""
        if n < 1:
            return
        block = np.full((n, len(pattern), 5), NOTHING, dtype=np.int64)
        for at, turn in enumerate(pattern):
            block[:, at, 0], block[:, at, 2] = turn.kind, turn.chunk
            if turn.kind is Pass.FORWARD_BACKWARD:
                block[:, at, 1] = self._count(Pass.FORWARD, turn.chunk, n)
                block[:, at, 3] = self._count(Pass.BACKWARD, turn.with_chunk, n)
                block[:, at, 4] = turn.with_chunk
            else:
                block[:, at, 1] = self._count(turn.kind, turn.chunk, n)
        self._blocks.append(block.reshape(-1, 5))

    def columns(self) -> Columns:
        """All passes written; shape (n_ops, 5)."""
        return np.concatenate([np.empty((0, 5), np.int64), *self._blocks])

    def _count(self, kind: Pass, chunk: int, n: int) -> Ints:
        """The next n micro-batches; a whole backward pass counts as both of its halves."""
        kinds = (Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT) if kind is Pass.BACKWARD else (kind,)
        start = self._next.get((kinds[0], chunk), 0)
        for each in kinds:
            self._next[each, chunk] = start + n
        return np.arange(start, start + n)


def assemble(
    ranks: Sequence[Columns],
    *,
    n_microbatches: int,
    stage: Ints | None = None,
    route: Ints | None = None,
    by_arrival: bool = False,
    limit: int = 0,
) -> Program:
    """A program from every rank's passes; stages are dealt round robin over one chunk unless told."""
    stage = round_robin(len(ranks), 1) if stage is None else stage
    columns = np.concatenate(ranks)
    kind, microbatch, chunk, with_microbatch, with_chunk = np.ascontiguousarray(columns.T)
    return Program(
        n_microbatches=n_microbatches,
        stage=stage,
        route=np.zeros(stage.shape[1], np.int64) if route is None else route,
        first=np.cumsum([0, *map(len, ranks)]),
        kind=kind,
        microbatch=microbatch,
        chunk=chunk,
        with_microbatch=with_microbatch,
        with_chunk=with_chunk,
        by_arrival=by_arrival,
        limit=limit,
    )


def write(n_ranks: int, n_microbatches: int, rank_of: Callable[[Writer, int], None]) -> Program:
    """A program of one chunk a rank: `rank_of(writer, rank)` writes each rank's passes."""
    writers = [Writer() for _ in range(n_ranks)]
    for rank, writer in enumerate(writers):
        rank_of(writer, rank)
    return assemble([writer.columns() for writer in writers], n_microbatches=n_microbatches)
