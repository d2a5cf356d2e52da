"""A mixture of experts over ranks: a router, an uneven all-to-all there and back, and the experts' products.

    E  n_experts   k  top_k   e  ep   t_e  etp

A token is sent to each rank that holds a part of one of its k experts: expert i's parts lie on the ranks
(i e / E) t_e + j.  No token is dropped.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional

from runners.torch_trial.collectives import all_to_all, exchange
from runners.torch_trial.layout import Layout
from runners.torch_trial.weights import Cut, Maker, Weight
from search_spaces.model import ModelSpec, MoeSpec


class Router(nn.Module):
    """Each token's experts and their weights: softmax, the best k, weights that add to one."""

    def __init__(self, model: ModelSpec, moe: MoeSpec, layout: Layout, maker: Maker, name: str) -> None:
        super().__init__()
        self.moe = moe
        shared = "tp" if layout.splits_sequence else ""
        self.has_bias = moe.router_bias
        # Wide enough a spread that rounding does not change a choice.
        whole = Weight(
            name=f"{name}.weight", shape=(moe.n_experts, model.d_model), spread=0.3, summed_over=shared
        )
        maker.give(self, "weight", whole)
        if moe.router_bias:
            maker.give(
                self,
                "bias",
                Weight(name=f"{name}.bias", shape=(moe.n_experts,), spread=0.1, summed_over=shared),
            )

    def forward(self, tokens: Any) -> tuple[Any, Any]:
        """(tokens, width) to weights and experts, both (tokens, k)."""
        bias = self.bias.float() if self.has_bias else None
        share = functional.linear(tokens.float(), self.weight.float(), bias).softmax(dim=-1)
        weight, expert = self._within_groups(share).topk(self.moe.top_k, dim=-1)
        return weight / weight.sum(dim=-1, keepdim=True), expert

    def _within_groups(self, share: Any) -> Any:
        n, top = self.moe.n_groups, self.moe.top_groups
        if top == n:
            return share
        grouped = share.unflatten(-1, (n, -1))
        best = grouped.amax(dim=-1).topk(top, dim=-1).indices
        is_open = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=share.device).scatter(
            -1, best, value=True
        )
        return grouped.masked_fill(~is_open[..., None], 0.0).flatten(-2)


class Experts(nn.Module):
    """The experts of a rank, or its part of each."""

    def __init__(self, model: ModelSpec, moe: MoeSpec, layout: Layout, maker: Maker, name: str) -> None:
        super().__init__()
        plan = layout.plan
        self.is_gated = moe.n_matrices == 3
        h, f = model.d_model, moe.expert_width
        mine = Cut(dim=0, index=layout.ep_index, parts=plan.ep)

        def matrix(what: str, rows: int, columns: int, cut_dim: int) -> Weight:
            part = Cut(dim=cut_dim, index=layout.etp_index, parts=plan.etp)
            shape = (moe.n_experts, rows, columns)
            return Weight(name=f"{name}.{what}", shape=shape, cuts=(mine, part), is_expert=True, spread=0.1)

        maker.give(self, "up", matrix("up", f, h, 1))
        if self.is_gated:
            maker.give(self, "gate", matrix("gate", f, h, 1))
        maker.give(self, "down", matrix("down", h, f, 2))

    def forward(self, tokens: Any, counts: list[int]) -> Any:
        """Tokens in the order of their experts, `counts` to each; an expert without tokens still runs."""
        out = []
        for i, part in enumerate(tokens.split(counts)):
            inner = part @ self.up[i].mT
            if self.is_gated:
                inner = functional.silu(part @ self.gate[i].mT) * inner
            else:
                inner = functional.gelu(inner)
            out.append(inner @ self.down[i].mT)
        return torch.cat(out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """Where copies of tokens go: `order` picks them, rank by rank; `given` and `taken` are rows a rank."""

    order: Any
    given: list[int]
    taken: list[int]
    by_expert: Any
    counts: list[int]


class MixtureOfExperts(nn.Module):
    """Router, exchange, experts, exchange, weighted sum; shared experts are the caller's."""

    def __init__(self, model: ModelSpec, layout: Layout, maker: Maker, name: str) -> None:
        super().__init__()
        assert model.moe is not None
        self.moe, self.layout = model.moe, layout
        self.router = Router(model, model.moe, layout, maker, f"{name}.router")
        self.experts = Experts(model, model.moe, layout, maker, f"{name}.experts")

    def forward(self, x: Any) -> Any:
        """(sequence, batch, width) of this rank's tokens."""
        tokens = x.flatten(0, 1)
        weight, expert = self.router(tokens)
        way = self._dispatch(expert)
        group = self.layout.experts
        arrived = exchange(tokens[way.order // self.moe.top_k], group, given=way.given, taken=way.taken)
        answers = self.experts(arrived[way.by_expert], way.counts)
        back = torch.empty_like(way.by_expert)
        back[way.by_expert] = torch.arange(len(back), device=back.device)
        returned = exchange(answers[back], group, given=way.taken, taken=way.given)
        weighed = returned * weight.flatten()[way.order, None].to(returned.dtype)
        return torch.zeros_like(tokens).index_add(0, way.order // self.moe.top_k, weighed).view_as(x)

    def _dispatch(self, expert: Any) -> Dispatch:
        """From each token's experts, (tokens, k), to what goes where."""
        plan, group = self.layout.plan, self.layout.experts
        held = self.moe.n_experts // plan.ep
        flat = expert.flatten()
        order = flat.argsort(stable=True)
        if isinstance(flat, FakeTensor):
            return self._even_dispatch(order)
        counts = torch.bincount(flat, minlength=self.moe.n_experts).view(plan.ep, held)
        to_each = counts.repeat_interleave(plan.etp, dim=0)
        if plan.etp > 1:
            blocks = order.split(counts.sum(dim=1).tolist())
            order = torch.cat([block for block in blocks for _ in range(plan.etp)])
        from_each = to_each
        if group.size > 1:
            one_each = [1] * group.size
            from_each = all_to_all(to_each, group, given=one_each, taken=one_each)
        # Rows arrive by source, then by expert: their experts' numbers sort them the other way round.
        number = torch.arange(held, device=flat.device).repeat(group.size)
        by_expert = number.repeat_interleave(from_each.flatten()).argsort(stable=True)
        return Dispatch(
            order=order,
            given=to_each.sum(dim=1).tolist(),
            taken=from_each.sum(dim=1).tolist(),
            by_expert=by_expert,
            counts=from_each.sum(dim=0).tolist(),
        )

    def _even_dispatch(self, order: Any) -> Dispatch:
        """As many tokens to each expert, where memory is counted and no router has values."""
        plan, n_ranks = self.layout.plan, self.layout.experts.size
        rows = -(-len(order) // plan.ep)
        held = self.moe.n_experts // plan.ep
        per_expert = -(-rows * n_ranks // held)
        n_rows = rows * n_ranks
        return Dispatch(
            order=order.new_empty(n_rows),
            given=[rows] * n_ranks,
            taken=[rows] * n_ranks,
            by_expert=order.new_empty(n_rows),
            counts=[max(min(per_expert, n_rows - i * per_expert), 0) for i in range(held)],
        )
