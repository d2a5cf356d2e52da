"""Context parallelism: attention over a sequence whose tokens lie on several ranks.

    ulysses     all-to-all: each rank gets all tokens of a part of the heads, and back
    all-gather  each rank gets all keys and values; its queries are an early and a late piece
    ring        keys and values go round; partial results are merged by their log-sum-exp

Tensors are (sequence, batch, heads, head width).

Source: Jacobs et al. (2023), arXiv:2309.14509; Llama team (2024), arXiv:2407.21783, section 3.3.2;
Liu et al. (2023), arXiv:2310.01889.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional

from runners.torch_trial.collectives import Group, exchange, gather_sequence
from runners.torch_trial.layout import Layout
from search_spaces.plan import CpKind


def attend(q: Any, k: Any, v: Any, *, layout: Layout, window: int | None) -> Any:
    """Causal attention of this rank's queries over the whole sequence."""
    if layout.cp.size == 1:
        return _attend_late(q, k, v, window=window)
    if layout.plan.cp_kind is CpKind.ULYSSES:
        return _ulysses(q, k, v, group=layout.cp, window=window)
    if layout.plan.cp_kind is CpKind.ALL_GATHER:
        return _all_gather(q, k, v, group=layout.cp, window=window)
    return ring(q, k, v, layout.cp)


def _attend_late(q: Any, k: Any, v: Any, *, window: int | None) -> Any:
    """Queries are the last tokens of those that keys and values belong to."""
    n_q, n_k = q.shape[0], k.shape[0]
    copies = q.shape[2] // k.shape[2]
    if copies > 1:
        k, v = (x.repeat_interleave(copies, dim=2) for x in (k, v))
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    mask = None
    if n_q != n_k or window is not None:
        distance = (torch.arange(n_q, device=q.device) + n_k - n_q)[:, None] - torch.arange(
            n_k, device=q.device
        )
        mask = (distance >= 0) & (distance < (window or n_k))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return out.permute(2, 0, 1, 3)


def _ulysses(q: Any, k: Any, v: Any, *, group: Group, window: int | None) -> Any:
    if k.shape[2] % group.size:  # fewer key-value heads than ranks: every query head brings its own
        k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    q, k, v = (_heads_for_sequence(x, group) for x in (q, k, v))
    return _sequence_for_heads(_attend_late(q, k, v, window=window), group)


def _heads_for_sequence(x: Any, group: Group) -> Any:
    """(s/n, b, a, d) to (s, b, a/n, d)."""
    n, s = group.size, x.shape[0]
    parts = torch.stack(x.chunk(n, dim=2)).flatten(0, 1)
    return exchange(parts, group, given=[s] * n, taken=[s] * n)


def _sequence_for_heads(x: Any, group: Group) -> Any:
    """(s, b, a/n, d) to (s/n, b, a, d)."""
    n, s = group.size, x.shape[0] // group.size
    parts = exchange(x.contiguous(), group, given=[s] * n, taken=[s] * n)
    return torch.cat(parts.chunk(n), dim=2)


def _all_gather(q: Any, k: Any, v: Any, *, group: Group, window: int | None) -> Any:
    """Each of the two pieces of the queries needs the keys up to its own end only."""
    n = group.size
    k, v = (_in_order(gather_sequence(x, group), n) for x in (k, v))
    piece = q.shape[0] // 2
    ends = [piece * (group.index + 1), piece * (2 * n - group.index)]
    return torch.cat([
        _attend_late(part, k[:end], v[:end], window=window)
        for part, end in zip(q.split(piece), ends, strict=True)
    ])  # fmt: skip


def _in_order(x: Any, n: int) -> Any:
    """Tokens of all ranks, an early and a late piece each, in the order of the sequence."""
    pieces = x.chunk(2 * n)
    return torch.cat([pieces[2 * i] for i in range(n)] + [pieces[2 * i + 1] for i in reversed(range(n))])


def ring(q: Any, k: Any, v: Any, group: Group) -> Any:
    """Ring attention with a log-sum-exp merge; (sequence, batch, heads, head width)."""
    copies = q.shape[2] // k.shape[2]
    if copies > 1:
        k, v = (x.repeat_interleave(copies, dim=2) for x in (k, v))
    q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    out = _Ring.apply(q, k, v, group)
    return out.permute(2, 0, 1, 3)


class _Ring(torch.autograd.Function):
    """(batch, heads, sequence, width).  Blocks are computed in fp32 from the scores."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, group: Group) -> Any:
        out, lse = torch.zeros_like(q, dtype=torch.float32), None
        kv = torch.stack([k, v])
        for step in range(group.size):
            waiting = _pass_on(kv, group) if step + 1 < group.size else None
            rows, columns = _needed(group, step, q.shape[2])
            scores = _scores(q, kv[0], rows, columns, diagonal=step == 0)
            block_lse = scores.logsumexp(dim=-1)
            block = (scores - block_lse[..., None]).exp() @ kv[1][:, :, columns].float()
            if lse is None:
                out, lse = block, block_lse
            else:
                old = lse[..., rows]
                new = torch.logaddexp(old, block_lse)
                out[:, :, rows] = (
                    out[:, :, rows] * (old - new).exp()[..., None]
                    + block * (block_lse - new).exp()[..., None]
                )
                lse[..., rows] = new
            kv = _received(waiting) if waiting else kv
        ctx.save_for_backward(q, k, v, out.to(q.dtype), lse)
        ctx.group = group
        return out.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        """Keys and values go round once more, and their gradients with them, home in the last step."""
        q, k, v, out, lse = ctx.saved_tensors
        group, grad = ctx.group, grad.float()
        delta = (grad * out).sum(dim=-1)
        dq, kv = torch.zeros_like(grad), torch.stack([k, v])
        dkv = torch.zeros_like(kv, dtype=torch.float32)
        scale = q.shape[-1] ** -0.5
        for step in range(group.size):
            waiting = _pass_on(kv, group) if step + 1 < group.size else None
            rows, columns = _needed(group, step, q.shape[2])
            key, value = (x[:, :, columns].float() for x in kv)
            share = (_scores(q, kv[0], rows, columns, diagonal=step == 0) - lse[..., rows, None]).exp()
            part = grad[:, :, rows]
            dkv[1, :, :, columns] += share.mT @ part
            ds = share * (part @ value.mT - delta[..., rows, None]) * scale
            dq[:, :, rows] += ds @ key
            dkv[0, :, :, columns] += ds.mT @ q[:, :, rows].float()
            dkv = _received(_pass_on(dkv, group))
            kv = _received(waiting) if waiting else kv
        return dq.to(q.dtype), dkv[0].to(k.dtype), dkv[1].to(v.dtype), None


def _needed(group: Group, step: int, n_tokens: int) -> tuple[slice, slice]:
    """Which of the queries see which of the visiting keys: all, or the late piece, or the early one."""
    whole, half = slice(0, n_tokens), n_tokens // 2
    if step == 0:
        return whole, whole
    source = (group.index - step) % group.size
    return (whole, slice(0, half)) if source < group.index else (slice(half, n_tokens), whole)


def _scores(q: Any, k: Any, rows: slice, columns: slice, *, diagonal: bool) -> Any:
    """Scaled products.  A rank's tokens are in the order of the sequence, so that its own block is causal."""
    scores = q[:, :, rows].float() @ k[:, :, columns].float().mT * q.shape[-1] ** -0.5
    if diagonal:
        n = scores.shape[-1]
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1), -torch.inf)
    return scores


def _pass_on(x: Any, group: Group) -> tuple[Any, list[Any]]:
    """Send to the next rank, receive from the one before; both go on while others compute."""
    x, arrived = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    after = group.ranks[(group.index + 1) % group.size]
    before = group.ranks[(group.index - 1) % group.size]
    operations = [
        dist.P2POp(dist.isend, x, after, group.handle),
        dist.P2POp(dist.irecv, arrived, before, group.handle),
    ]
    return arrived, [*dist.batch_isend_irecv(operations), x]


def _received(waiting: tuple[Any, list[Any]]) -> Any:
    arrived, works = waiting
    for work in works[:-1]:  # the last entry keeps what is sent alive
        work.wait()
    return arrived
