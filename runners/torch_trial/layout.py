"""What a module must know of the plan on its rank: groups, sequence split, and what is computed again."""

from dataclasses import dataclass
from typing import Any

import torch

from runners.torch_trial.collectives import Group, make_group
from runners.torch_trial.mesh import Groups, groups_of, place_of
from search_spaces.plan import CpKind, Module, Plan, Recompute


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One rank's groups and the plan they come from; the whole model on one rank has `Plan()`."""

    plan: Plan
    rank: int
    tp: Group
    cp: Group
    data: Group
    pp: Group
    experts: Group
    expert_data: Group
    kv: Group
    ends: Group

    @property
    def splits_sequence(self) -> bool:
        """Whether tensor-parallel ranks share the sequence between their matrix products."""
        return self.plan.sequence_parallel and self.tp.size > 1

    @property
    def etp_index(self) -> int:
        """Which part of its experts' matrices this rank holds."""
        return self.experts.index % self.plan.etp

    @property
    def ep_index(self) -> int:
        """Which experts this rank holds."""
        return self.experts.index // self.plan.etp

    @property
    def has_zigzag(self) -> bool:
        """Whether a rank holds an early and a late piece of the sequence, so that causal work is even."""
        return self.cp.size > 1 and self.plan.cp_kind is not CpKind.ULYSSES

    def redoes(self, module: Module) -> bool:
        """Whether the backward pass computes this module of a layer again."""
        return module in str(self.plan.recompute_modules).split("+")

    @property
    def redoes_attention(self) -> bool:
        """Whether the backward pass computes the attention core again."""
        return self.plan.recompute is Recompute.SELECTIVE


def make_layout(plan: Plan, rank: int, n_kv_heads: int) -> Layout:
    """The layout of a rank; every rank makes its groups in the same order."""
    groups: Groups = groups_of(plan, rank, n_kv_heads)
    known: dict[tuple[int, ...], Group] = {}
    for name in Groups.__slots__:
        ranks = getattr(groups, name)
        if rank in ranks and ranks not in known:
            known[ranks] = make_group(ranks, rank)
    if groups.ends not in known:  # a middle stage makes one too: see `make_group`
        make_group((rank,), rank, also_alone=True)
    if plan.zero >= 2 and len(groups.expert_data) == 1:  # FSDP wants a handle
        known[groups.expert_data] = make_group(groups.expert_data, rank, also_alone=True)
    outside = Group(ranks=groups.ends, index=-1)
    made = {name: known.get(getattr(groups, name), outside) for name in Groups.__slots__}
    assert place_of(plan, rank).ep == made["experts"].index // plan.etp
    return Layout(plan=plan, rank=rank, **made)


def local_positions(layout: Layout, seq_len: int, *, device: Any = None) -> Any:
    """Places in the sequence of this context-parallel rank's tokens, in the order it holds them."""
    n, r = layout.cp.size, layout.cp.index
    if not layout.has_zigzag:
        return torch.arange(r * seq_len // n, (r + 1) * seq_len // n, device=device)
    pieces = torch.arange(seq_len, device=device).chunk(2 * n)
    return torch.cat([pieces[r], pieces[2 * n - 1 - r]])
