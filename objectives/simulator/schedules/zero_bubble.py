"""Zero-bubble schedules of one chunk a rank: the gradients of the weights wait, and fill what was idle.

    p  n_ranks   m  n_microbatches   i  rank
    F  forward, B_i  gradient of the input, W  gradient of the weights, B = B_i + W

Source: Qi et al. (2023), arXiv:2401.10241.
"""

from functools import partial

import numpy as np

from objectives.simulator.program import Program
from objectives.simulator.schedules.classic import warmed_up
from objectives.simulator.schedules.costs import PassCosts
from objectives.simulator.schedules.filling import Maker, Room, filled_best
from objectives.simulator.schedules.writer import BI, Columns, F, W, Writer, assemble
from search_spaces.errors import check
from search_spaces.memory_habits import Release
from search_spaces.plan import Ints


def zb_h1(n_ranks: int, n_microbatches: int) -> Program:
    """ZB-H1: 1F1B whose weight gradients wait, rank i's for i micro-batches, and fill the cool-down.

        bubble = (p - 1) (F + B_i - W) where W <= F, and m >= p; span and makespan alike
        activations kept until W: p micro-batches on every rank, as many as 1F1B's first

    Where W > F the idle of rank 0 before its first backward pass, (p - 1) B_i, is the bubble.

    Source: Qi et al. (2023), arXiv:2401.10241, section 2.3.1 and table 2.
    """
    ranks = [_split(n_microbatches, n_warmup=n_ranks - rank - 1, delay=rank) for rank in range(n_ranks)]
    return assemble(ranks, n_microbatches=n_microbatches)


def zb_h2(
    n_ranks: int,
    n_microbatches: int,
    costs: PassCosts | None = None,
    memory_limit: float | None = None,
    release: Release = Release.HALF_AND_HALF,
) -> Program:
    """ZB-H2: twice 1F1B's memory, and no idle where all passes take equally long.

        equal passes: span bubble = 0, makespan bubble = (p - 1) F, as drawn: rank i warms up for
        2 (p - i - 1) micro-batches and its weight gradients wait for 2 i
        activations kept until B_i: 2 p - 1 - 2 i; until W: 2 p - 1 on every rank, where m >= 2 p - 1

    With other costs each rank warms up for as long as its first gradient needs to come back, and the weight
    gradients go where they idle least (by span, then by makespan), within `memory_limit` micro-batches (2 p
    unless told) of which `release` says when they are given back; half and half is how sail-sg/zero-bubble
    counts.  Never worse than as drawn where that fits, or else than ZB-H1 where that does.  The official
    generator idles 6 s to 12 s at p = 4 and 8 s at p = 8 for (F, B_i, W) = (10, 12, 8); this one 4 s and 8 s,
    once m is three times p.

    Steps interlock, and nothing idles, only where no rank waits for all before its optimizer step.

    Raises
    ------
    InvalidSpec
        The memory limit is below one micro-batch.

    Source: Qi et al. (2023), arXiv:2401.10241, sections 2.3.2 and 3, and table 2.
    """
    p, m, costs = n_ranks, n_microbatches, costs or PassCosts()
    memory = 2 * p if memory_limit is None else min(memory_limit, m + 2 * p)  # nobody keeps more than m
    check(memory >= 1, "a memory limit must hold one micro-batch", f"{memory:g}")
    costs.check_fits(p, 1)
    if costs.are_equal and memory >= 2 * p - 1:
        return _zb_h2_drawn(p, m)
    fallen_back: list[Maker] = [partial(_zb_h2_drawn, p), partial(zb_h1, p), partial(_one_at_a_time, p)]
    drawn = next(make for make, needs in zip(fallen_back, (2 * p - 1, p, 1), strict=True) if memory >= needs)
    line = np.arange(p, 0, -1)
    depths = [_depths(p, costs, memory, rounding) for rounding in (0.0, 0.5, 0.99)]
    depths += [np.minimum(line, int(memory)), np.minimum(2 * line - 1, int(memory))]
    orders = [partial(warmed_up, depth - 1) for depth in {tuple(depth): depth for depth in depths}.values()]
    return filled_best(drawn, orders, (min(m, 3 * p), m), costs, Room(memory, release))


def _zb_h2_drawn(p: int, m: int) -> Program:
    ranks = [_split(m, n_warmup=2 * (p - rank - 1), delay=2 * rank) for rank in range(p)]
    return assemble(ranks, n_microbatches=m)


def _one_at_a_time(p: int, m: int) -> Program:
    """One micro-batch in flight: what fits wherever anything does."""
    return assemble([_split(m, n_warmup=0, delay=0)] * p, n_microbatches=m)


def _depths(p: int, costs: PassCosts, memory: float, rounding: float) -> Ints:
    """Forward passes of each rank before its first gradient: what fits while that comes back."""
    forward_s, input_s, _ = costs.table(p, 1)[:, :, 0]
    send_s = costs.sends_s(p)
    start_s = np.concatenate([[0.0], np.cumsum(forward_s + send_s)])
    most = int(memory)
    depths = [1]
    back_s = float(start_s[p - 1] + forward_s[p - 1])  # when the last rank can begin to go back
    for rank in reversed(range(p - 1)):
        back_s += float(input_s[rank + 1] + send_s[rank])
        fit = int((back_s - start_s[rank]) / forward_s[rank] + rounding + 1e-9)
        depths.append(min(most, max(fit, depths[-1])))
        back_s = max(back_s, float(start_s[rank] + depths[-1] * forward_s[rank]))
    return np.array(depths[::-1])


def _split(m: int, *, n_warmup: int, delay: int) -> Columns:
    """Forward passes to warm up, then a forward and a B_i in turn, each W `delay` micro-batches later."""
    n_warmup, delay = min(n_warmup, m), min(delay, m)
    n_forward = m - n_warmup  # backward passes that have a forward pass beside them
    both, either = min(delay, n_forward), max(delay, n_forward)
    writer = Writer()
    writer.repeat(n_warmup, F)
    writer.repeat(both, F, BI)
    writer.repeat(either - both, *((F, BI, W) if delay < n_forward else (BI,)))
    writer.repeat(m - either, BI, W)
    writer.repeat(delay, W)
    return writer.columns()
