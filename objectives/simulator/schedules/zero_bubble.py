"""Zero-bubble schedules of one chunk a rank: the gradients of the weights wait, and fill what was idle.

    p  n_ranks   m  n_microbatches   i  rank
    F  forward, B_i  gradient of the input, W  gradient of the weights, B = B_i + W

Source: Qi et al. (2023), arXiv:2401.10241.
"""

from objectives.simulator.program import Program
from objectives.simulator.schedules.writer import BI, Columns, F, W, Writer, assemble


def zb_h1(n_ranks: int, n_microbatches: int) -> Program:
    """ZB-H1: 1F1B whose weight gradients wait, rank i's for i micro-batches, and fill the cool-down.

        bubble = (p - 1) (F + B_i - W) where W <= F, and m >= p; span and makespan alike
        activations kept until W: p micro-batches on every rank, as many as 1F1B's first

    Where W > F the idle of rank 0 before its first backward pass, (p - 1) B_i, is the bubble.

    Source: Qi et al. (2023), arXiv:2401.10241, section 2.3.1 and table 2.
    """
    ranks = [_split(n_microbatches, n_warmup=n_ranks - rank - 1, delay=rank) for rank in range(n_ranks)]
    return assemble(ranks, n_microbatches=n_microbatches)


def zb_h2(n_ranks: int, n_microbatches: int) -> Program:
    """ZB-H2 as drawn: rank i warms up for 2 (p - i - 1) micro-batches; its weight gradients wait for 2 i.

        activations kept until W: 2 p - 1 micro-batches on every rank, where m >= 2 p - 1
        activations kept until B_i: 2 p - 1 - 2 i
        F = B_i = W: no rank idles between its first pass and its last; makespan m (F + B) + (p - 1) F

    Steps interlock, and nothing idles, only where no rank waits for all before its optimizer step.

    Source: Qi et al. (2023), arXiv:2401.10241, section 2.3.2 and table 2.
    """
    ranks = [
        _split(n_microbatches, n_warmup=2 * (n_ranks - rank - 1), delay=2 * rank) for rank in range(n_ranks)
    ]
    return assemble(ranks, n_microbatches=n_microbatches)


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
