"""The transformer of a `ModelSpec`, one rank's share of it: embedding, layers, head.

    s  sequence   b  batch   h  d_model   a  heads   g  key-value heads   d  head width   f  mlp width   t  tp

Activations are (s, b, h).  The parts of a layer are cut over tensor-parallel ranks by heads and by columns of
the mlp; what is not cut is on every rank.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from runners.torch_trial.context import attend
from runners.torch_trial.experts import MixtureOfExperts
from runners.torch_trial.layout import Layout, local_positions
from runners.torch_trial.recompute import maybe_again
from runners.torch_trial.tensor import enter_block, leave_block, look_up
from runners.torch_trial.weights import Cut, Maker, Weight
from search_spaces.model import ModelSpec, NormKind, QkNorm
from search_spaces.plan import Module, Recompute

ROTARY_BASE = 10_000.0  # Su et al. (2021), arXiv:2104.09864, section 3.2.2
EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What every part is built from."""

    model: ModelSpec
    layout: Layout
    maker: Maker
    seq_len: int

    @property
    def on_part_of_sequence(self) -> str:
        """Who else sees a part of the gradient of a parameter between blocks."""
        return "tp" if self.layout.splits_sequence else ""

    def cut(self, dim: int) -> tuple[Cut, ...]:
        """Over tensor-parallel ranks."""
        return (Cut(dim=dim, index=self.layout.tp.index, parts=self.layout.tp.size),)

    def cut_kv(self) -> tuple[Cut, ...]:
        """Over tensor-parallel ranks, by key-value heads: a head on several ranks where there are too few."""
        t, g = self.layout.tp.size, self.model.attention.n_kv_heads
        return (Cut(dim=0, index=self.layout.tp.index * min(t, g) // t, parts=min(t, g)),)


class Norm(nn.Module):
    """RMS or layer norm over the last dim."""

    def __init__(self, build: Build, name: str, *, width: int, kind: NormKind, summed_over: str) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.has_weight = kind is not NormKind.NON_PARAMETRIC
        self.has_bias = kind is NormKind.LAYER
        around = dict(shape=(width,), spread=0.1, summed_over=summed_over)
        if self.has_weight:
            build.maker.give(self, "weight", Weight(name=f"{name}.weight", mean=1.0, **around))  # type: ignore[arg-type]
        if self.has_bias:
            build.maker.give(self, "bias", Weight(name=f"{name}.bias", **around))  # type: ignore[arg-type]

    def forward(self, x: Any) -> Any:
        """Of the same shape."""
        weight = self.weight if self.has_weight else None
        if self.kind is NormKind.RMS:
            return functional.rms_norm(x, (self.width,), weight, EPSILON)
        return functional.layer_norm(x, (self.width,), weight, self.bias if self.has_bias else None, EPSILON)


def layer_norm(build: Build, name: str) -> Norm:
    """A norm between blocks."""
    model = build.model
    return Norm(build, name, width=model.d_model, kind=model.norm, summed_over=build.on_part_of_sequence)


class Attention(nn.Module):
    """Multi-head or grouped-query attention, cut by heads."""

    def __init__(self, build: Build, layer: int) -> None:
        super().__init__()
        self.layout, self.spec = build.layout, build.model.attention
        self.window = build.model.window_of_layer[layer]
        self.is_rotary = build.model.embedding.n_positions == 0
        h, spec, name = build.model.d_model, self.spec, f"layers.{layer}.attention"
        rows = {"q": spec.n_heads, "k": spec.n_kv_heads, "v": spec.n_kv_heads}
        for part, heads in rows.items():
            cuts = build.cut(0) if part == "q" else build.cut_kv()
            sums = "kv" if part != "q" and build.layout.kv.size > 1 else ""
            width = heads * spec.head_dim
            weight = Weight(name=f"{name}.{part}", shape=(width, h), cuts=cuts, summed_over=sums, spread=0.1)
            build.maker.give(self, part, weight)
            if spec.qkv_bias:
                bias = Weight(name=f"{name}.{part}_bias", shape=(width,), cuts=cuts, summed_over=sums)
                build.maker.give(self, f"{part}_bias", bias)
        out = Weight(
            name=f"{name}.out", shape=(h, spec.n_heads * spec.head_dim), cuts=build.cut(1), spread=0.1
        )
        build.maker.give(self, "out", out)
        if spec.out_bias:
            bias = Weight(name=f"{name}.out_bias", shape=(h,), summed_over=build.on_part_of_sequence)
            build.maker.give(self, "out_bias", bias)
        self._give_qk_norm(build, name)

    def _give_qk_norm(self, build: Build, name: str) -> None:
        self.q_norm = self.k_norm = None
        if self.spec.qk_norm is QkNorm.PER_HEAD:
            sums = "tp" if self.layout.tp.size > 1 else ""
            width, kind = self.spec.head_dim, NormKind.RMS
            self.q_norm = Norm(build, f"{name}.q_norm", width=width, kind=kind, summed_over=sums)
            self.k_norm = Norm(build, f"{name}.k_norm", width=width, kind=kind, summed_over=sums)

    def forward(self, x: Any, rotation: Any) -> Any:
        """(s, b, h) between blocks, in and out."""
        x = enter_block(x, self.layout)
        q, k, v = (self._heads(x, part) for part in "qkv")
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.is_rotary:
            q, k = rotate(q, rotation), rotate(k, rotation)
        out = maybe_again(self.layout.redoes_attention, self._core, q, k, v)
        out = leave_block(functional.linear(out, self.out), self.layout)
        return out + self.out_bias if self.spec.out_bias else out

    def _heads(self, x: Any, part: str) -> Any:
        bias = getattr(self, f"{part}_bias") if self.spec.qkv_bias else None
        return functional.linear(x, getattr(self, part), bias).unflatten(-1, (-1, self.spec.head_dim))

    def _core(self, q: Any, k: Any, v: Any) -> Any:
        return attend(q, k, v, layout=self.layout, window=self.window).flatten(2)


def rotation_of(positions: Any, width: int) -> Any:
    """Cosine and sine of every position's angles; shape (2, s, 1, 1, width / 2)."""
    powers = torch.arange(0, width, 2, device=positions.device) / width
    angles = positions[:, None].float() * ROTARY_BASE**-powers
    return torch.stack([angles.cos(), angles.sin()])[:, :, None, None]


def rotate(x: Any, rotation: Any) -> Any:
    """Rotary position embedding: pairs of entries half a head apart turn by the position's angles."""
    cos, sin = rotation.to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class Mlp(nn.Module):
    """Two matrices with GELU, or three with SiLU on the gate, cut by columns of its width."""

    def __init__(self, build: Build, name: str, *, width: int, n_matrices: int, bias: bool = False) -> None:
        super().__init__()
        self.layout, self.is_gated, self.has_bias = build.layout, n_matrices == 3, bias
        h, give = build.model.d_model, build.maker.give
        for part in ("up", "gate")[: n_matrices - 1]:
            give(self, part, Weight(name=f"{name}.{part}", shape=(width, h), cuts=build.cut(0), spread=0.1))
            if bias:
                give(
                    self,
                    f"{part}_bias",
                    Weight(name=f"{name}.{part}_bias", shape=(width,), cuts=build.cut(0)),
                )
        give(self, "down", Weight(name=f"{name}.down", shape=(h, width), cuts=build.cut(1), spread=0.1))
        if bias:
            sums = build.on_part_of_sequence
            give(self, "down_bias", Weight(name=f"{name}.down_bias", shape=(h,), summed_over=sums))

    def forward(self, x: Any) -> Any:
        """(s, b, h) between blocks, in and out."""
        x = enter_block(x, self.layout)
        inner = functional.linear(x, self.up, self.up_bias if self.has_bias else None)
        if self.is_gated:
            gate = functional.linear(x, self.gate, self.gate_bias if self.has_bias else None)
            inner = functional.silu(gate) * inner
        else:
            inner = functional.gelu(inner)
        out = leave_block(functional.linear(inner, self.down), self.layout)
        return out + self.down_bias if self.has_bias else out


class ExpertBlock(nn.Module):
    """Routed experts and, beside them, the shared ones."""

    def __init__(self, build: Build, name: str) -> None:
        super().__init__()
        moe = build.model.moe
        assert moe is not None
        self.again = build.layout.redoes(Module.MOE)
        self.routed = MixtureOfExperts(build.model, build.layout, build.maker, name)
        self.shared: Mlp | None = None
        if moe.shared_width:
            self.shared = Mlp(build, f"{name}.shared", width=moe.shared_width, n_matrices=moe.n_matrices)
        self.has_gate = bool(moe.shared_width and moe.shared_gate)
        if self.has_gate:
            sums = build.on_part_of_sequence
            gate = Weight(name=f"{name}.gate", shape=(1, build.model.d_model), summed_over=sums, spread=0.1)
            build.maker.give(self, "gate", gate)

    def forward(self, x: Any) -> Any:
        """(s, b, h) between blocks, in and out."""
        out = self.routed(x)
        if self.shared is None:
            return out
        shared = self.shared(x)
        if self.has_gate:
            shared = shared * functional.linear(x, self.gate).sigmoid()
        return out + shared


class Layer(nn.Module):
    """Attention and an mlp or experts, each with its norm, added to what came in."""

    def __init__(self, build: Build, layer: int, *, again: bool) -> None:
        super().__init__()
        model, self.layout, self.again = build.model, build.layout, again
        self.is_parallel = model.parallel_block
        self.is_expert_layer = model.is_moe_layer[layer]
        self.attention = Attention(build, layer)
        name = f"layers.{layer}"
        self.mlp: nn.Module
        if self.is_expert_layer:
            self.mlp = ExpertBlock(build, f"{name}.moe")
        else:
            mlp = model.mlp
            self.mlp = Mlp(build, f"{name}.mlp", width=mlp.width, n_matrices=mlp.n_matrices, bias=mlp.bias)
        self.norms = nn.ModuleList(
            layer_norm(build, f"{name}.norms.{i}") for i in range(model.norms_per_layer)
        )
        self.mlp_again = self.layout.redoes(Module.MOE if self.is_expert_layer else Module.MLP)

    def forward(self, x: Any, rotation: Any) -> Any:
        """(s, b, h) between blocks, in and out."""
        return maybe_again(self.again, self._body, x, rotation)

    def _body(self, x: Any, rotation: Any) -> Any:
        if self.is_parallel:
            first = self._normed(0, x)
            second = self._normed(len(self.norms) - 1, x) if len(self.norms) > 1 else first
            return x + self.attention(first, rotation) + maybe_again(self.mlp_again, self.mlp, second)
        has_four = len(self.norms) == 4
        out = self.attention(self._normed(0, x), rotation)
        x = x + (self._normed(2, out) if has_four else out)
        out = maybe_again(self.mlp_again, self.mlp, self._normed(1, x))
        return x + (self._normed(3, out) if has_four else out)

    def _normed(self, which: int, x: Any) -> Any:
        return maybe_again(self.layout.redoes(Module.LAYERNORM), self.norms[which], x)


class Embedding(nn.Module):
    """Token table, cut by rows, and learned positions."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.layout, spec, h = build.layout, build.model.embedding, build.model.d_model
        table = Weight(name="embedding.table", shape=(spec.vocab_size, h), cuts=build.cut(0), spread=0.5)
        build.maker.give(self, "table", table)
        self.has_positions = spec.n_positions > 0
        if self.has_positions:
            sums = build.on_part_of_sequence
            shape = (spec.n_positions, h)
            positions = Weight(name="embedding.positions", shape=shape, summed_over=sums, spread=0.1)
            build.maker.give(self, "positions", positions)

    def forward(self, tokens: Any, places: Any) -> Any:
        """(b, s) to (s, b, h) between blocks."""
        x = look_up(tokens, self.table, self.layout)
        if not self.has_positions:
            return x
        if self.layout.splits_sequence:
            places = places.chunk(self.layout.tp.size)[self.layout.tp.index]
        return x + functional.embedding(places, self.positions)[:, None]


class Head(nn.Module):
    """Final norm and output projection, cut by columns of the vocabulary."""

    def __init__(self, build: Build, *, embedding: Embedding | None) -> None:
        super().__init__()
        self.layout, model = build.layout, build.model
        spec = model.embedding
        self.norm = layer_norm(build, "head.norm") if model.final_norm else None
        self.has_bias = spec.head_bias
        self.tied = (embedding,) if embedding is not None and spec.tied else ()
        if not self.tied:
            name = "embedding.table" if spec.tied else "head.out"
            shape, spread = (spec.vocab_size, model.d_model), 0.5 if spec.tied else 0.05
            out = Weight(name=name, shape=shape, cuts=build.cut(0), spread=spread)
            build.maker.give(self, "out", out)
        if spec.head_bias:
            build.maker.give(
                self, "bias", Weight(name="head.bias", shape=(spec.vocab_size,), cuts=build.cut(0))
            )

    def forward(self, x: Any) -> Any:
        """(s, b, h) between blocks to (s, b, columns of this rank)."""
        x = enter_block(self.norm(x) if self.norm is not None else x, self.layout)
        weight = self.tied[0].table if self.tied else self.out
        return functional.linear(x, weight, self.bias if self.has_bias else None)


class Chunk(nn.Module):
    """Consecutive layers of the model, with the embedding before the first and the head behind the last."""

    def __init__(self, build: Build, layers: range) -> None:
        super().__init__()
        model, plan = build.model, build.layout.plan
        is_first, is_last = layers.start == 0, layers.stop == model.n_layers
        self.embedding = Embedding(build) if is_first else None
        redo = plan.recompute is Recompute.FULL
        self.layers = nn.ModuleList(
            Layer(build, layer, again=redo and i % plan.recompute_every == 0)
            for i, layer in enumerate(layers)
        )
        self.head = Head(build, embedding=self.embedding) if is_last else None
        places = local_positions(build.layout, build.seq_len, device=build.maker.device)
        self.register_buffer("places", places, persistent=False)
        rotation = rotation_of(places, model.attention.head_dim)
        self.register_buffer("rotation", rotation, persistent=False)

    def forward(self, x: Any) -> Any:
        """Tokens (b, s) or activations (s, b, h) to activations, or to logits (s, b, own columns)."""
        if self.embedding is not None:
            x = self.embedding(x, self.places)
        for layer in self.layers:
            x = layer(x, self.rotation)
        return self.head(x) if self.head is not None else x
