"""A schedule's timeline as what traces and pictures draw."""

import numpy as np

from objectives.simulator.step_graph import Stream
from objectives.simulator.trace import Spans


def pass_spans(ran):
    """The passes of a schedule's timeline, all on the compute streams."""
    order = ran.program
    return Spans(
        n_ranks=order.n_ranks,
        rank=ran.rank,
        stream=np.full(len(order), Stream.COMPUTE, np.int64),
        kind=order.kind,
        start_s=ran.start_s,
        finish_s=ran.finish_s,
        microbatch=order.microbatch,
        chunk=order.chunk,
        stage=order.stage[ran.rank, order.chunk],
        with_microbatch=order.with_microbatch,
        with_chunk=order.with_chunk,
    )
