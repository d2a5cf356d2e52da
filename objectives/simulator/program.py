"""A pipeline schedule as data: which passes every rank runs, in order, in columns.

    p  n_ranks   m  n_microbatches   v  n_chunks   i  rank   j  micro-batch   c  chunk of a rank
    F  forward, B  whole backward = B_i + W, B_i  gradient of the input, W  gradient of the weights

A program says nothing about seconds.  `stage[i, c]` is the place of rank i's chunk c along the model and
`route[c]` the copy of the model that the chunk belongs to: a micro-batch visits the stages of one route only
(DualPipe holds the model twice and feeds it from both ends).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from search_spaces.plan import Ints

NOTHING = -1


class Pass(IntEnum):
    """What a rank does with a micro-batch; the backward pass is whole, or its two halves.

    FORWARD_BACKWARD runs the forward pass of one micro-batch and the whole backward pass of another at once.
    """

    FORWARD = 0
    BACKWARD = 1
    BACKWARD_INPUT = 2
    BACKWARD_WEIGHT = 3
    FORWARD_BACKWARD = 4

    @property
    def letter(self) -> str:
        """F, B, Bi, W or F&B: the words of the papers."""
        return ("F", "B", "Bi", "W", "F&B")[self]


@dataclass(frozen=True, slots=True)
class Op:
    """One pass, for people and small tests; a program holds columns of them.

    `with_microbatch` and `with_chunk` are the backward half of FORWARD_BACKWARD, else -1.
    """

    kind: Pass
    microbatch: int
    chunk: int = 0
    with_microbatch: int = NOTHING
    with_chunk: int = NOTHING

    def __str__(self) -> str:
        if self.kind is not Pass.FORWARD_BACKWARD:
            return f"{self.kind.letter}(micro-batch {self.microbatch}, chunk {self.chunk})"
        forward = f"micro-batch {self.microbatch}, chunk {self.chunk}"
        return f"F&B({forward}; micro-batch {self.with_microbatch}, chunk {self.with_chunk})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """A schedule written out: rank i runs passes first[i] to first[i + 1] - 1, in that order.

    `stage` has shape (n_ranks, n_chunks), `route` (n_chunks,), `first` (n_ranks + 1,), all others (n_ops,).
    `by_arrival`: a rank runs whatever became ready first instead of its order (message-driven).
    `limit`: with it, the first stage starts a micro-batch only while fewer than so many are between its
    forward and its backward pass there (0: no limit).
    """

    n_microbatches: int
    stage: Ints
    route: Ints
    first: Ints
    kind: Ints
    microbatch: Ints
    chunk: Ints
    with_microbatch: Ints
    with_chunk: Ints
    by_arrival: bool = False
    limit: int = 0

    def __len__(self) -> int:
        return len(self.kind)

    @property
    def n_ranks(self) -> int:
        """Pipeline ranks."""
        return len(self.stage)

    @property
    def n_chunks(self) -> int:
        """Parts of the model that a rank holds."""
        return int(self.stage.shape[1])

    @property
    def rank(self) -> Ints:
        """The rank of every pass; shape (n_ops,)."""
        return np.repeat(np.arange(self.n_ranks), np.diff(self.first))

    def op(self, at: int) -> Op:
        """One pass."""
        return Op(Pass(int(self.kind[at])), int(self.microbatch[at]), int(self.chunk[at]),
                  int(self.with_microbatch[at]), int(self.with_chunk[at]))  # fmt: skip

    def order(self, rank: int) -> tuple[Op, ...]:
        """What a rank runs."""
        return tuple(self.op(at) for at in range(int(self.first[rank]), int(self.first[rank + 1])))


def round_robin(n_ranks: int, n_chunks: int) -> Ints:
    """Stages of chunks dealt in turns: c p + i."""
    return np.arange(n_chunks)[None, :] * n_ranks + np.arange(n_ranks)[:, None]


def v_shape(n_ranks: int) -> Ints:
    """Stages of two chunks a rank, down and up again: i and 2 p - 1 - i."""
    rank = np.arange(n_ranks)
    return np.stack([rank, 2 * n_ranks - 1 - rank], axis=1)


def both_ways(n_ranks: int) -> Ints:
    """Stages of two copies of the model, fed from opposite ends: i and p - 1 - i."""
    rank = np.arange(n_ranks)
    return np.stack([rank, n_ranks - 1 - rank], axis=1)


def program_of(
    orders: Sequence[Iterable[Op]],
    *,
    n_microbatches: int,
    stage: Ints | None = None,
    route: Ints | None = None,
) -> Program:
    """A program from passes written out one by one; stages are dealt round robin unless told."""
    ranks = [tuple(order) for order in orders]
    ops = [op for order in ranks for op in order]
    n_chunks = 1 + max((max(op.chunk, op.with_chunk) for op in ops), default=0)
    stage = round_robin(len(ranks), n_chunks) if stage is None else stage

    def column(name: str) -> Ints:
        return np.array([getattr(op, name) for op in ops], dtype=np.int64)

    return Program(
        n_microbatches=n_microbatches,
        stage=stage,
        route=np.zeros(stage.shape[1], np.int64) if route is None else route,
        first=np.cumsum([0, *map(len, ranks)]),
        kind=column("kind"),
        microbatch=column("microbatch"),
        chunk=column("chunk"),
        with_microbatch=column("with_microbatch"),
        with_chunk=column("with_chunk"),
    )
