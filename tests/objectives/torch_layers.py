"""Transformer layers as trainers build them, on fake tensors: what torch itself says they keep.

Communication is left out, its shapes are not: a gather widens a local tensor, a scatter narrows it.  Norms
and fused gates are autograd functions that save what their kernels save.
"""

from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import checkpoint


class FusedNorm(torch.autograd.Function):
    """RMSNorm in one kernel: saves its input and an fp32 statistic of every row."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x, torch.empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, grad):
        return torch.empty_like(grad)


class FusedGate(torch.autograd.Function):
    """SwiGLU in one kernel: saves both factors' one tensor."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)

    @staticmethod
    def backward(ctx, grad):
        return torch.empty_like(ctx.saved_tensors[0])


class Gather(torch.autograd.Function):
    """A sequence's parts from `n` ranks; its gradient is scattered again."""

    @staticmethod
    def forward(ctx, x, n):
        ctx.n = n
        return x.new_empty(x.shape[0], x.shape[1] * n, x.shape[2])

    @staticmethod
    def backward(ctx, grad):
        return grad.new_empty(grad.shape[0], grad.shape[1] // ctx.n, grad.shape[2]), None


class Scatter(torch.autograd.Function):
    """One rank's part of a reduced sequence."""

    @staticmethod
    def forward(ctx, x, n):
        ctx.n = n
        return x.new_empty(x.shape[0], x.shape[1] // n, x.shape[2])

    @staticmethod
    def backward(ctx, grad):
        return grad.new_empty(grad.shape[0], grad.shape[1] * ctx.n, grad.shape[2]), None


class GatheringLinear(torch.autograd.Function):
    """A column-parallel product that saves its own part of the input and gathers again."""

    @staticmethod
    def forward(ctx, x, weight, n):
        ctx.save_for_backward(x, weight)
        return x.new_empty(x.shape[0], x.shape[1] * n, weight.shape[0])

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight), None


class Column(nn.Module):
    """A column-parallel projection; `shards` ranks hold the sequence's parts."""

    def __init__(self, rows, columns, shards, keeps_gathered):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(columns, rows))
        self.shards, self.keeps_gathered = shards, keeps_gathered

    def forward(self, x):
        if self.shards == 1:
            return functional.linear(x, self.weight)
        if self.keeps_gathered:
            return functional.linear(Gather.apply(x, self.shards), self.weight)
        return GatheringLinear.apply(x, self.weight, self.shards)


class Row(nn.Module):
    """A row-parallel projection."""

    def __init__(self, rows, columns, shards):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(columns, rows))
        self.shards = shards

    def forward(self, x):
        y = functional.linear(x, self.weight)
        return y if self.shards == 1 else Scatter.apply(y, self.shards)


class Attention(nn.Module):
    """Grouped-query attention on one rank of tp."""

    def __init__(self, spec, tp, shards, *, keeps_gathered=False, redoes_core=False):
        super().__init__()
        a = spec.attention
        self.heads, self.groups, self.width = a.n_heads // tp, max(a.n_kv_heads // tp, 1), a.head_dim
        columns = (self.heads + 2 * self.groups) * self.width
        self.qkv = Column(spec.d_model, columns, shards, keeps_gathered)
        self.out = Row(self.heads * self.width, spec.d_model, shards)
        self.redoes_core = redoes_core

    def core(self, q, k, v):
        grouped = self.groups < self.heads
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return out.transpose(1, 2).flatten(2)

    def forward(self, x):
        qkv = self.qkv(x)
        widths = [n * self.width for n in (self.heads, self.groups, self.groups)]
        q, k, v = (part.unflatten(-1, (-1, self.width)).transpose(1, 2) for part in qkv.split(widths, -1))
        if self.redoes_core:
            return self.out(checkpoint(self.core, q, k, v, use_reentrant=False))
        return self.out(self.core(q, k, v))


class Mlp(nn.Module):
    """Two matrices and GELU, or three and a gate, in one kernel or by two operations."""

    def __init__(self, h, width, n_matrices, shards, *, keeps_gathered=False, keeps_gate=False):
        super().__init__()
        self.up = Column(h, (n_matrices - 1) * width, shards, keeps_gathered)
        self.down = Row(width, h, shards)
        self.gated, self.keeps_gate = n_matrices > 2, keeps_gate

    def forward(self, x):
        x = self.up(x)
        if not self.gated:
            return self.down(functional.gelu(x))
        if not self.keeps_gate:
            return self.down(FusedGate.apply(x))
        gate, up = x.chunk(2, -1)
        return self.down(functional.silu(gate) * up)


class Experts(nn.Module):
    """A router, and the copies of every token through matrices that stand for its experts'."""

    def __init__(self, spec):
        super().__init__()
        self.top_k, width = spec.moe.top_k, spec.moe.expert_width
        self.router = nn.Linear(spec.d_model, spec.moe.n_experts, bias=False)
        self.mlp = Mlp(spec.d_model, width, spec.moe.n_matrices, 1)

    def forward(self, x):
        routed = x.repeat_interleave(self.top_k, dim=1)  # each copy computed once, wherever its expert lies
        return Combine.apply(self.mlp(routed), self.router(x))


class Combine(torch.autograd.Function):
    """A token's copies, weighted and summed: saves the copies."""

    @staticmethod
    def forward(ctx, copies, scores):
        ctx.save_for_backward(copies)
        ctx.scores = scores.shape
        return copies.new_empty(copies.shape[0], scores.shape[1], copies.shape[2])

    @staticmethod
    def backward(ctx, grad):
        return torch.empty_like(ctx.saved_tensors[0]), grad.new_empty(ctx.scores)


class Layer(nn.Module):
    """Norm, attention, residual, norm, MLP or experts, residual."""

    def __init__(self, spec, tp=1, *, sequence_parallel=False, redoes_core=False, redoes_mlp=False, **habits):
        super().__init__()
        shards = tp if sequence_parallel else 1
        self.redoes_mlp = redoes_mlp
        gathered = habits.get("keeps_gathered", False)
        self.attention = Attention(spec, tp, shards, keeps_gathered=gathered, redoes_core=redoes_core)
        if spec.moe is None:
            self.mlp = Mlp(spec.d_model, spec.mlp.width // tp, spec.mlp.n_matrices, shards, **habits)
        else:
            self.mlp = Experts(spec)

    def forward(self, x):
        x = x + self.attention(FusedNorm.apply(x))
        normed = FusedNorm.apply(x)
        return x + (
            checkpoint(self.mlp, normed, use_reentrant=False) if self.redoes_mlp else self.mlp(normed)
        )


def bytes_by_kind(tracker, when="current"):
    """What a tracker has counted, by kind in small letters."""
    (snapshot,) = tracker.get_tracker_snapshot(when).values()
    return {str(getattr(kind, "value", kind)).lower(): n for kind, n in snapshot.items()}


@contextmanager
def faked(dtype):
    """Fake tensors of a default kind."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with FakeTensorMode():
            yield
    finally:
        torch.set_default_dtype(default)


def kept_by(n_layers, make, shape, *, redoes_layers=False):
    """Bytes that a stack of layers keeps of one pass: its activations with its input, without its output."""
    with faked(torch.bfloat16):
        layers = [make() for _ in range(n_layers)]
        x = first = torch.empty(*shape, requires_grad=True)
        tracker = MemTracker()
        tracker.track_external(*layers, x)
        with tracker:
            for layer in layers:
                x = checkpoint(layer, x, use_reentrant=False) if redoes_layers else layer(x)
            kept = bytes_by_kind(tracker)["activation"]
        return kept + first.nbytes - x.nbytes


def loss_peak_bytes(tokens, vocab, h=64):
    """Most bytes of an output layer and its cross entropy in fp32, without parameters and gradients."""
    with faked(torch.bfloat16):
        head = nn.Linear(h, vocab, bias=False)
        x, labels = torch.empty(tokens, h, requires_grad=True), torch.empty(tokens, dtype=torch.long)
        tracker = MemTracker()
        tracker.track_external(head, x, labels)
        with tracker:
            functional.cross_entropy(head(x).float(), labels).backward()
        peak = bytes_by_kind(tracker, "peak")
        return peak["activation"] + peak["temp"]


def state_bytes(n_layers, make):
    """Bytes of weights, gradients and Adam's moments after one step in fp32."""
    with faked(torch.float32):
        layers = nn.ModuleList(make() for _ in range(n_layers))
        x = torch.empty(1, 64, layers[0].attention.qkv.weight.shape[1])
        optimizer = torch.optim.Adam(layers.parameters(), foreach=False)
        tracker = MemTracker()
        tracker.track_external(layers, optimizer, x)
        with tracker:
            for layer in layers:
                x = layer(x)
            x.sum().backward()
            optimizer.step()
            return bytes_by_kind(tracker)


def fsdp_bytes(n_layers, make, n_devices, seq_len, h):
    """Peak bytes of one rank of FSDP2, by kind, layers and all that is around them wrapped."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=n_devices)
    try:
        mesh = init_device_mesh("cpu", (n_devices,))
        with faked(torch.float32):
            layers = nn.Sequential(*(make() for _ in range(n_layers)))
            for layer in layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(layers, mesh=mesh)
            optimizer = torch.optim.Adam(layers.parameters(), foreach=False)
            tracker = FSDPMemTracker(layers, optimizer)
            tracker.track_inputs((x := torch.empty(1, seq_len, h),))
            with tracker:
                for _ in range(2):
                    layers(x).sum().backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    tracker.reset_mod_stats()
            return bytes_by_kind(tracker, "peak")
    finally:
        dist.destroy_process_group()
