"""GPipe, 1F1B and interleaved 1F1B: the backward pass is whole.

    p  n_ranks   m  n_microbatches   v  n_chunks   i  rank   F, B  seconds of a rank's whole share

Bubbles assume equal stages and free messages; bubble = makespan - m (F + B).
"""

import numpy as np

from objectives.simulator.program import Program, round_robin
from objectives.simulator.schedules.writer import B, Columns, F, Writer, assemble
from search_spaces.errors import check
from search_spaces.plan import Ints


def gpipe(n_ranks: int, n_microbatches: int) -> Program:
    """All forward passes, then all backward passes.

        bubble = (p - 1) (F + B)        in flight = m

    Source: Huang et al. (2019), arXiv:1811.06965, figure 2c.
    """
    columns = _warm_alternate_cool(n_microbatches, n_microbatches)
    return assemble([columns] * n_ranks, n_microbatches=n_microbatches)


def one_f_one_b(n_ranks: int, n_microbatches: int, extra_warmup: int | Ints = 0) -> Program:
    """1F1B: warm up, alternate one forward and one backward pass, cool down.

        warm-up passes of rank i = min(m, p - i - 1 + extra_warmup_i)
        bubble = (p - 1) (F + B)        in flight = min(m, p - i + extra_warmup_i)

    `extra_warmup`, for all ranks or one number a rank, lets forward passes run ahead: with messages that take
    time, a rank then has something to do while it waits.

    Raises
    ------
    InvalidSpec
        `extra_warmup` is negative, or does not have one number a rank.

    Source: Narayanan et al. (2021), arXiv:2104.04473, figure 4 (top), PipeDream-Flush.
    """
    extra = np.asarray(extra_warmup, dtype=np.int64)
    check(
        extra.shape in ((), (n_ranks,)) and bool((extra >= 0).all()),
        "extra_warmup must be one number, or one a rank, and not negative",
        extra_warmup,
    )
    return warmed_up(np.arange(n_ranks)[::-1] + extra, n_microbatches)


def warmed_up(n_warmup: Ints, n_microbatches: int) -> Program:
    """One forward and one backward pass in turn, after so many forward passes on each rank."""
    depths = np.minimum(n_warmup, n_microbatches).tolist()
    ranks = [_warm_alternate_cool(n_microbatches, depth) for depth in depths]
    return assemble(ranks, n_microbatches=n_microbatches)


def interleaved(n_ranks: int, n_microbatches: int, n_chunks: int) -> Program:
    """Interleaved 1F1B: each rank holds v chunks and visits them a group of micro-batches at a time.

        bubble = (p - 1) (F + B) / v                where p divides m
        warm-up passes of rank i = min(m v, 2 (p - i - 1) + (v - 1) g), or all m v where m = p
        in flight = p + (p - 1 - 2 i) / v           where p divides m and m >= 2 p; m where m = p

    The groups hold g = p micro-batches where p divides m.  Else Megatron-LM asks for groups of at least p,
    the last one included: m is dealt to floor(m / p) groups as evenly as can be, larger ones first, g that of
    the first.  Fewer micro-batches than ranks are one group.

    Source: Narayanan et al. (2021), arXiv:2104.04473, section 2.2.2 and figure 4 (bottom); warm-up and groups
    (`microbatch_group_size_per_vp_stage`) as Megatron-LM counts them.
    """
    p, m, v = n_ranks, n_microbatches, n_chunks
    microbatch, chunk, largest = _visits(p, m, v)
    ranks = []
    for rank in range(p):
        n_warmup = m * v if m == p else min(m * v, 2 * (p - rank - 1) + (v - 1) * largest)
        columns = _warm_alternate_cool(m * v, n_warmup)
        visit = columns[:, 1]
        is_forward = columns[:, 0] == F.kind
        columns[:, 2] = np.where(is_forward, chunk[visit], v - 1 - chunk[visit])
        columns[:, 1] = microbatch[visit]
        ranks.append(columns)
    return assemble(ranks, n_microbatches=m, stage=round_robin(p, v))


def _visits(p: int, m: int, v: int) -> tuple[Ints, Ints, int]:
    """Micro-batch and chunk of every forward pass of a rank, shape (m v,) both, and the largest group."""
    n_groups = max(1, m // p)
    sizes = np.full(n_groups, m // n_groups) + (np.arange(n_groups) < m % n_groups)
    group = np.repeat(np.arange(n_groups), sizes)
    # Group by group, chunk by chunk, micro-batch by micro-batch.
    order = np.lexsort((np.tile(np.arange(m), v), np.repeat(np.arange(v), m), np.tile(group, v)))
    return order % m, order // m, int(sizes[0])


def _warm_alternate_cool(n: int, n_warmup: int) -> Columns:
    writer = Writer()
    writer.repeat(n_warmup, F)
    writer.repeat(n - n_warmup, F, B)
    writer.repeat(n_warmup, B)
    return writer.columns()
