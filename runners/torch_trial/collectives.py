"""Exchanges between the ranks of a group, each with its gradient; a group of one does nothing.

Activations are (sequence, batch, width): gathering along the sequence is a gather along the first dim.

Source: Megatron-LM's f, g and their sequence-parallel forms, Shoeybi et al. (2019), arXiv:1909.08053,
figure 3, and Korthikanti et al. (2022), arXiv:2205.05198, figure 5.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Ranks that exchange, this rank's place among them, and torch's handle (None for one rank)."""

    ranks: tuple[int, ...]
    index: int
    handle: Any = None

    @property
    def size(self) -> int:
        """How many ranks."""
        return len(self.ranks)


def make_group(ranks: tuple[int, ...], rank: int, *, also_alone: bool = False) -> Group:
    """A group of these ranks; all of them must call this, and no one else need.

    torch names a group by its ranks and by how many groups the process made before: ranks that ever share
    another group must have made equally many.  With `also_alone` a single rank gets a handle of its own.
    """
    if len(ranks) == 1 and not also_alone:
        return Group(ranks=ranks, index=0)
    handle = (
        dist.group.WORLD
        if len(ranks) == dist.get_world_size()
        else dist.new_group(list(ranks), use_local_synchronization=True)
    )
    return Group(ranks=ranks, index=ranks.index(rank), handle=handle)


def all_reduce(x: Any, group: Group, op: Any = None) -> Any:
    """The sum over a group, in place."""
    if group.size > 1:
        dist.all_reduce(x, op=op or dist.ReduceOp.SUM, group=group.handle)
    return x


def all_gather(x: Any, group: Group) -> Any:
    """Every rank's part, one after the other along the first dim."""
    whole = x.new_empty((group.size * x.shape[0], *x.shape[1:]))
    dist.all_gather_into_tensor(whole, x.contiguous(), group=group.handle)
    return whole


def reduce_scatter(x: Any, group: Group) -> Any:
    """The part, along the first dim, that a rank takes of the sum over a group."""
    part = x.new_empty((x.shape[0] // group.size, *x.shape[1:]))
    dist.reduce_scatter_tensor(part, x.contiguous(), group=group.handle)
    return part


def all_to_all(x: Any, group: Group, *, given: list[int], taken: list[int]) -> Any:
    """Rows to every rank (`given[i]` of them to rank i) and rows from every rank."""
    out = x.new_empty((sum(taken), *x.shape[1:]))
    dist.all_to_all_single(out, x.contiguous(), taken, given, group=group.handle)
    return out


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, group: Group) -> Any:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return all_reduce(grad.clone(memory_format=torch.contiguous_format), ctx.group), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, group: Group) -> Any:
        return all_reduce(x.clone(memory_format=torch.contiguous_format), group)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, group: Group) -> Any:
        ctx.group = group
        return all_gather(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return reduce_scatter(grad, ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, group: Group) -> Any:
        ctx.group = group
        return reduce_scatter(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return all_gather(grad, ctx.group), None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, group: Group, given: list[int], taken: list[int]) -> Any:
        ctx.group, ctx.given, ctx.taken = group, given, taken
        return all_to_all(x, group, given=given, taken=taken)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return all_to_all(grad, ctx.group, given=ctx.taken, taken=ctx.given), None, None, None


def copy_to(x: Any, group: Group) -> Any:
    """The same tensor on every rank, each of which uses it in its own way: gradients are summed."""
    return _Copy.apply(x, group) if group.size > 1 else x


def reduce_from(x: Any, group: Group) -> Any:
    """The sum of every rank's part; all ranks go on alike, so that the gradient is each one's own."""
    return _Reduce.apply(x, group) if group.size > 1 else x


def gather_sequence(x: Any, group: Group) -> Any:
    """The whole of a sequence that is split over the ranks; gradients are summed and split again."""
    return _Gather.apply(x, group) if group.size > 1 else x


def scatter_sequence(x: Any, group: Group) -> Any:
    """The sum of every rank's part, split along the sequence."""
    return _Scatter.apply(x, group) if group.size > 1 else x


def exchange(x: Any, group: Group, *, given: list[int], taken: list[int]) -> Any:
    """Rows to and from every rank, as many as told."""
    return _AllToAll.apply(x, group, given, taken) if group.size > 1 else x
