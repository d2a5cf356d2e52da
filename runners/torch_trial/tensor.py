"""Tensor and sequence parallelism: a block's way in, its way out, and a vocabulary cut by rows.

Between blocks the sequence is whole on every rank, or split over them with sequence parallelism; inside a
block it is whole and the matrices are cut.

Source: Shoeybi et al. (2019), arXiv:1909.08053, section 3; Korthikanti et al. (2022), arXiv:2205.05198,
section 4.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from runners.torch_trial.collectives import (
    Group,
    all_reduce,
    copy_to,
    gather_sequence,
    reduce_from,
    scatter_sequence,
)
from runners.torch_trial.layout import Layout


def enter_block(x: Any, layout: Layout) -> Any:
    """The whole sequence, for matrices cut by columns."""
    return gather_sequence(x, layout.tp) if layout.splits_sequence else copy_to(x, layout.tp)


def leave_block(x: Any, layout: Layout) -> Any:
    """The sum of what matrices cut by rows gave, split along the sequence if it is so between blocks."""
    return scatter_sequence(x, layout.tp) if layout.splits_sequence else reduce_from(x, layout.tp)


def look_up(tokens: Any, table: Any, layout: Layout) -> Any:
    """Rows of a table cut by rows, as (sequence, batch, width); a rank gives zeros for rows of others."""
    n_rows = table.shape[0]
    if layout.tp.size == 1:
        return functional.embedding(tokens.T, table)
    own = tokens.T - layout.tp.index * n_rows
    is_mine = (own >= 0) & (own < n_rows)
    rows = functional.embedding(own.where(is_mine, 0), table)
    return leave_block(rows * is_mine[..., None], layout)


class _CrossEntropy(torch.autograd.Function):
    """Sum of −log softmax at the targets, each rank holding columns of the logits; fp32 inside."""

    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any, group: Group, n_real: int) -> Any:
        x = logits.to(torch.float32, copy=True)
        x[..., n_real:] = -torch.inf
        top = all_reduce(x.amax(dim=-1), group, dist.ReduceOp.MAX)
        x = (x - top[..., None]).exp_()
        total = all_reduce(x.sum(dim=-1), group)
        own = targets - group.index * logits.shape[-1]
        is_mine = (own >= 0) & (own < logits.shape[-1])
        own = own.where(is_mine, 0)
        at_target = x.gather(-1, own[..., None])[..., 0].log() * is_mine
        at_target = all_reduce(at_target, group)
        x.div_(total[..., None])
        ctx.save_for_backward(x, own, is_mine)
        ctx.dtype = logits.dtype
        return (total.log() - at_target).sum()

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        share, own, is_mine = ctx.saved_tensors
        out = share.scatter_add(-1, own[..., None], -is_mine[..., None].to(share.dtype))
        return (out * grad).to(ctx.dtype), None, None, None


def cross_entropy_sum(logits: Any, targets: Any, group: Group, vocab_size: int) -> Any:
    """Sum of the tokens' losses; `logits` (sequence, batch, own columns), `targets` (batch, sequence)."""
    if group.size == 1:
        return functional.cross_entropy(logits.float().flatten(0, 1), targets.T.flatten(), reduction="sum")
    n_real = min(max(vocab_size - group.index * logits.shape[-1], 0), logits.shape[-1])
    return _CrossEntropy.apply(logits, targets.T, group, n_real)
