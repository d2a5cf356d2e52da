"""A schedule without an order: every rank runs whatever message arrived first (AxoNN).

p  n_ranks   m  n_microbatches   i  rank
"""

from dataclasses import replace

import numpy as np

from objectives.simulator.program import Program
from objectives.simulator.schedules.classic import warmed_up
from search_spaces.errors import check


def message_driven(n_ranks: int, n_microbatches: int, limit: int = 0) -> Program:
    """Run by arrival: first come, first served; the first rank injects a forward pass for each that returns.

        in flight <= limit        bubble = (p - 1) (F + B) where limit is about 2 p or more

    The first rank seeds `limit` micro-batches (0: as many as there are ranks, AxoNN's own choice); the last
    runs the backward pass of a micro-batch at once.  The columns hold a 1F1B order of that depth, which is
    what a rank falls back on between passes that are ready at the same instant.

    Raises
    ------
    InvalidSpec
        The limit is negative.

    Source: Singh and Bhatele (2021), arXiv:2110.13005, algorithm 2; `run_batch` of axonn.
    """
    check(limit >= 0, "the limit of micro-batches in flight must be 0 (as many as ranks) or more", limit)
    limit = limit or n_ranks
    n_warmup = np.minimum(np.arange(n_ranks)[::-1] + max(0, limit - n_ranks), limit - 1)
    return replace(warmed_up(n_warmup, n_microbatches), by_arrival=True, limit=limit)
