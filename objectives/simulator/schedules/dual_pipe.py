"""DualPipe and DualPipeV: one micro-batch's forward pass runs beside another's backward pass.

    p  n_ranks   m  n_microbatches   i  rank
    F, B, B_i, W  seconds of a pass through a chunk, B = B_i + W     F&B  of a forward and a backward at once

Eight steps, the same for both.  DualPipe holds the model twice and feeds both ends, so a rank and its mirror
image do the same with the copies exchanged; DualPipeV folds the model in two and feeds one end.

Source: DeepSeek-AI (2024), arXiv:2412.19437, section 3.2.1 and figure 5; the steps of deepseek-ai/DualPipe.
"""

import numpy as np

from objectives.simulator.program import Pass, Program, both_ways, v_shape
from objectives.simulator.schedules.writer import Columns, Turn, Writer, assemble
from search_spaces.errors import check


def dual_pipe(n_ranks: int, n_microbatches: int) -> Program:
    """DualPipe: half of the micro-batches from each end of the pipeline, over two copies of the model.

        bubble <= (p / 2 - 1) (F&B + B - 3 W)       equal where F&B = F + B and B = 2 W = 2 F
        in flight = p + 1                           weights twice

    The first m / 2 micro-batches go from rank 0 to rank p - 1 (chunk 0), the others the other way (chunk 1).

    Raises
    ------
    InvalidSpec
        p or m is odd, or m is below 2 p.
    """
    p, m = n_ranks, n_microbatches
    check(
        p % 2 == 0 and m % 2 == 0 and m >= 2 * p,
        "DualPipe needs an even number of ranks and an even number of micro-batches, two or more a rank",
        f"{p} ranks, {m} micro-batches",
    )
    half = p // 2
    ranks = []
    for rank in range(p):
        near = int(rank >= half)  # the chunk whose micro-batches enter at the end nearer to this rank
        columns = _steps(half, min(rank, p - 1 - rank), m // 2, near)
        columns[:, 1] += np.where(columns[:, 2] == 1, m // 2, 0)
        columns[:, 3] += np.where(columns[:, 4] == 1, m // 2, 0)
        ranks.append(columns)
    return assemble(ranks, n_microbatches=m, stage=both_ways(p), route=np.array([0, 1]))


def dual_pipe_v(n_ranks: int, n_microbatches: int) -> Program:
    """DualPipeV: DualPipe cut in half, one copy of the model, two chunks a rank, down and up again.

        bubble <= (p - 1) (F&B + B - 3 W)           equal where F&B = F + B and B = 2 W = 2 F
        in flight = p + 1 / 2

    Raises
    ------
    InvalidSpec
        m is below 2 p.

    Source: as DualPipe's; its README counts the 2 p stages (PP), and DualPipe's formulas hold for those.
    """
    p, m = n_ranks, n_microbatches
    check(
        m >= 2 * p,
        "DualPipeV needs at least two micro-batches for every rank",
        f"{p} ranks, {m} micro-batches",
    )
    ranks = [_steps(p, rank, m, 0) for rank in range(p)]
    return assemble(ranks, n_microbatches=m, stage=v_shape(p))


def _steps(half: int, i: int, m: int, near: int) -> Columns:
    """What a rank does: `half` ranks in its half, i its distance from the end, m micro-batches a chunk."""
    far = 1 - near
    turn = {(kind, chunk): Turn(kind, chunk) for kind in Pass for chunk in (0, 1)}
    near_f, far_f, far_b = turn[Pass.FORWARD, near], turn[Pass.FORWARD, far], turn[Pass.BACKWARD, far]
    near_f_far_b = Turn(Pass.FORWARD_BACKWARD, near, far)
    far_f_near_b = Turn(Pass.FORWARD_BACKWARD, far, near)
    n_behind, n_main = half - i - 1, m - 2 * half + i + 1
    writer = Writer()
    writer.repeat(2 * n_behind, near_f)
    writer.repeat(i + 1, near_f, far_f)
    writer.repeat(n_behind, turn[Pass.BACKWARD_INPUT, far], turn[Pass.BACKWARD_WEIGHT, far], far_f)
    is_middle = int(n_behind == 0)  # its first pair is not run at once: the other half waits for the result
    writer.repeat(is_middle, near_f, far_b, far_f_near_b)
    writer.repeat(n_main - is_middle, near_f_far_b, far_f_near_b)
    writer.repeat(n_behind, far_b, far_f_near_b)
    _cool_down(writer, i, n_behind, near)
    return writer.columns()


def _cool_down(writer: Writer, i: int, n_behind: int, near: int) -> None:
    """Steps 6 to 8: backward passes, first whole and then split, and their weight gradients."""
    n_whole = i + 1  # of the 2 (i + 1) passes that alternate between the chunks, far first
    chunks = [1 - near, near] * (i + 1)
    for at, chunk in enumerate(chunks):
        writer.repeat(1, Turn(Pass.BACKWARD if at < n_whole else Pass.BACKWARD_INPUT, chunk))
    waiting = [*chunks[n_whole:], *[near] * n_behind]  # weight gradients, first in first out
    for chunk in waiting[:n_behind]:
        writer.repeat(1, Turn(Pass.BACKWARD_WEIGHT, chunk))
        writer.repeat(1, Turn(Pass.BACKWARD_INPUT, near))
    for chunk in waiting[n_behind:]:
        writer.repeat(1, Turn(Pass.BACKWARD_WEIGHT, chunk))
