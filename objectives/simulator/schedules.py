"""Pipeline schedules as data: for every rank, the ordered passes that it runs.

    p  n_ranks   m  n_microbatches   v  n_chunks   i  rank   j  micro-batch
    F  forward, B  whole backward = B_i + W, B_i  gradient of the input, W  gradient of the weights

Chunk c on rank i is virtual stage c p + i. A schedule says nothing about seconds: `timeline` has the clock.
Makespans below assume equal stages and free messages; bubble = makespan - m (F + B).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple

from search_spaces.errors import check
from search_spaces.plan import Schedule


class Pass(IntEnum):
    """One direction of a micro-batch through a chunk; the backward pass is whole, or its two halves."""

    FORWARD = 0
    BACKWARD = 1
    BACKWARD_INPUT = 2
    BACKWARD_WEIGHT = 3

    @property
    def letter(self) -> str:
        """F, B, Bi or W: the words of the papers."""
        return ("F", "B", "Bi", "W")[self]


class Op(NamedTuple):
    """A pass of one micro-batch through one chunk of a rank."""

    kind: Pass
    microbatch: int
    chunk: int = 0

    def __str__(self) -> str:
        return f"{self.kind.letter}(micro-batch {self.microbatch}, chunk {self.chunk})"


Order = tuple[Op, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A schedule written out: `orders[i]` is what rank i runs, in order."""

    n_microbatches: int
    n_chunks: int
    orders: tuple[Order, ...]

    @property
    def n_ranks(self) -> int:
        """Pipeline ranks."""
        return len(self.orders)

    def virtual_stage(self, rank: int, chunk: int) -> int:
        """Place of a rank's chunk along the model: c p + i."""
        return chunk * self.n_ranks + rank


def gpipe(rank: int, n_ranks: int, n_microbatches: int, n_chunks: int = 1) -> Order:
    """All forward passes, then all backward passes: bubble (p - 1) (F + B), m micro-batches in flight.

    Source: Huang et al. (2019), arXiv:1811.06965, figure 2c.
    """
    del rank, n_ranks, n_chunks
    forwards, backwards = _forwards(n_microbatches), _backwards(n_microbatches)
    return (*forwards, *backwards)


def one_f_one_b(rank: int, n_ranks: int, n_microbatches: int, n_chunks: int = 1) -> Order:
    """1F1B: warm up, alternate, cool down; bubble (p - 1) (F + B), min(m, p - i) micro-batches in flight.

    Source: Narayanan et al. (2021), arXiv:2104.04473, figure 4 (top), PipeDream-Flush.
    """
    del n_chunks
    n_warmup = min(n_ranks - rank - 1, n_microbatches)
    return _warm_alternate_cool(_forwards(n_microbatches), _backwards(n_microbatches), n_warmup)


def interleaved(rank: int, n_ranks: int, n_microbatches: int, n_chunks: int = 1) -> Order:
    """Interleaved 1F1B: each rank holds v chunks and visits them p micro-batches at a time.

        bubble = (p - 1) (F + B) / v
        warm-up passes of rank i = 2 (p - i - 1) + (v - 1) p, or all m v of them when m = p

    The number of micro-batches must be a multiple of the ranks.

    Source: Narayanan et al. (2021), arXiv:2104.04473, section 2.2.2 and figure 4 (bottom); the warm-up as
    Megatron-LM counts it.
    """
    p, m, v = n_ranks, n_microbatches, n_chunks
    check(
        m % p == 0,
        "the interleaved schedule needs pp to divide the number of micro-batches",
        f"pp={p}, m={m}",
    )
    visits = [(k // (p * v) * p + k % p, k % (p * v) // p) for k in range(m * v)]
    forwards = [Op(Pass.FORWARD, j, c) for j, c in visits]
    backwards = [Op(Pass.BACKWARD, j, v - 1 - c) for j, c in visits]
    n_warmup = m * v if m == p else min(m * v, 2 * (p - rank - 1) + (v - 1) * p)
    return _warm_alternate_cool(forwards, backwards, n_warmup)


def zb_h1(rank: int, n_ranks: int, n_microbatches: int, n_chunks: int = 1) -> Order:
    """ZB-H1: 1F1B whose weight gradients wait, rank i's for i micro-batches, and fill the cool-down.

        bubble = (p - 1) (F + B_i - W) where W <= F, and m >= p
        activations kept until W: p micro-batches on every rank, as many as 1F1B's first

    Where W > F the idle of rank 0 before its first backward pass, (p - 1) B_i, is the bubble.

    Source: Qi et al. (2023), arXiv:2401.10241, section 2.3.1 and table 2.
    """
    del n_chunks
    return _split_backward(n_microbatches, n_warmup=n_ranks - rank - 1, delay=rank)


def zb_h2(rank: int, n_ranks: int, n_microbatches: int, n_chunks: int = 1) -> Order:
    """ZB-H2: rank i warms up for 2 (p - i - 1) micro-batches; its weight gradients wait for 2 i.

        activations kept until W: 2 p - 1 micro-batches on every rank, where m >= 2 p - 1
        F = B_i = W: no rank idles between its first pass and its last; makespan m (F + B) + (p - 1) F

    Steps interlock, and nothing idles, only where no rank waits for all before its optimizer step.

    Source: Qi et al. (2023), arXiv:2401.10241, section 2.3.2 and table 2.
    """
    del n_chunks
    return _split_backward(n_microbatches, n_warmup=2 * (n_ranks - rank - 1), delay=2 * rank)


SCHEDULES: Mapping[Schedule, Callable[[int, int, int, int], Order]] = MappingProxyType(
    {
        Schedule.GPIPE: gpipe,
        Schedule.ONE_F_ONE_B: one_f_one_b,
        Schedule.INTERLEAVED: interleaved,
        Schedule.ZB_H1: zb_h1,
        Schedule.ZB_H2: zb_h2,
    }
)


def program(schedule: Schedule, n_ranks: int, n_microbatches: int, n_chunks: int = 1) -> Program:
    """The schedule written out for every rank; only the interleaved one knows chunks."""
    check(n_ranks >= 1 and n_microbatches >= 1 and n_chunks >= 1,
          "a schedule needs at least one rank, one micro-batch and one chunk",
          f"{n_ranks}, {n_microbatches}, {n_chunks}")  # fmt: skip
    check(
        n_chunks == 1 or schedule is Schedule.INTERLEAVED,
        f"the schedule {schedule} holds one chunk a rank",
        n_chunks,
        hint="set vpp=1, or schedule=interleaved",
    )
    orders = tuple(SCHEDULES[schedule](i, n_ranks, n_microbatches, n_chunks) for i in range(n_ranks))
    return Program(n_microbatches=n_microbatches, n_chunks=n_chunks, orders=orders)


def peak_in_flight(order: Order, *, release: Sequence[Pass]) -> int:
    """Most passes whose activations are kept at once: taken by a forward pass, freed by a `release` pass.

    Counted in chunks: v of them are one micro-batch through the rank's whole share.
    """
    held, most = 0, 0
    for op in order:
        held += (op.kind is Pass.FORWARD) - (op.kind in release)
        most = max(most, held)
    return most


def _forwards(n: int) -> list[Op]:
    return [Op(Pass.FORWARD, j) for j in range(n)]


def _backwards(n: int) -> list[Op]:
    return [Op(Pass.BACKWARD, j) for j in range(n)]


def _warm_alternate_cool(forwards: list[Op], backwards: list[Op], n_warmup: int) -> Order:
    n_steady = len(forwards) - n_warmup
    pairs = zip(forwards[n_warmup:], backwards[:n_steady], strict=True)
    return (*forwards[:n_warmup], *(op for pair in pairs for op in pair), *backwards[n_steady:])


def _split_backward(n_microbatches: int, *, n_warmup: int, delay: int) -> Order:
    """Forward passes to warm up, then a forward and a B_i in turn, each W `delay` micro-batches later."""
    m, n_warmup = n_microbatches, min(n_warmup, n_microbatches)
    order: list[Op] = _forwards(n_warmup)
    for j in range(m):
        if n_warmup + j < m:
            order.append(Op(Pass.FORWARD, n_warmup + j))
        order.append(Op(Pass.BACKWARD_INPUT, j))
        if j >= delay:
            order.append(Op(Pass.BACKWARD_WEIGHT, j - delay))
    order += [Op(Pass.BACKWARD_WEIGHT, j) for j in range(max(0, m - delay), m)]
    return tuple(order)
