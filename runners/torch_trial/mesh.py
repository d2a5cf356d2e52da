"""Who speaks with whom: each rank's place along the axes of a plan, and the ranks of its groups.

inner = tp + t (cp + c dp)        place within a pipeline stage
inner = etp + t_e (ep + e edp)    the same place on the expert mesh

t  tp   c  cp   t_e  etp   e  ep          (names alone are indices, letters are degrees)
"""

from collections.abc import Callable
from dataclasses import dataclass

from search_spaces.plan import V_SHAPED, Plan, RankOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One rank's indices along every axis."""

    tp: int
    cp: int
    dp: int
    pp: int
    plan: Plan

    @property
    def inner(self) -> int:
        """Place within the pipeline stage."""
        return self.tp + self.plan.tp * (self.cp + self.plan.cp * self.dp)

    @property
    def etp(self) -> int:
        """Which part of its experts' matrices it holds."""
        return self.inner % self.plan.etp

    @property
    def ep(self) -> int:
        """Which experts it holds."""
        return self.inner // self.plan.etp % self.plan.ep

    @property
    def rank(self) -> int:
        """The rank in the world."""
        plan = self.plan
        if plan.rank_order is RankOrder.TP_CP_PP_DP:
            return self.tp + plan.tp * (self.cp + plan.cp * (self.pp + plan.pp * self.dp))
        return self.inner + plan.tp * plan.cp * plan.dp * self.pp


def place_of(plan: Plan, rank: int) -> Place:
    """The indices of a rank."""
    rest, tp = divmod(rank, plan.tp)
    rest, cp = divmod(rest, plan.cp)
    if plan.rank_order is RankOrder.TP_CP_PP_DP:
        dp, pp = divmod(rest, plan.pp)
    else:
        pp, dp = divmod(rest, plan.dp)
    return Place(tp=tp, cp=cp, dp=dp, pp=pp, plan=plan)


def leaders(plan: Plan) -> list[int]:
    """The first rank of each pipeline stage."""
    places = [place_of(plan, rank) for rank in range(plan.world_size)]
    return [place.rank for place in places if place.inner == 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Groups:
    """The ranks of one rank's groups, in the order of their indices.

    `data` holds the copies of its dense parameters (dp and cp together), `expert_data` those of its experts;
    `experts` exchange tokens; `kv` hold the same key-value heads; `ends` are the first and the last pipeline
    stage of its pipeline.
    """

    tp: tuple[int, ...]
    cp: tuple[int, ...]
    data: tuple[int, ...]
    pp: tuple[int, ...]
    experts: tuple[int, ...]
    expert_data: tuple[int, ...]
    kv: tuple[int, ...]
    ends: tuple[int, ...]


def groups_of(plan: Plan, rank: int, n_kv_heads: int) -> Groups:
    """Groups of a rank."""
    me = place_of(plan, rank)
    places = [place_of(plan, each) for each in range(plan.world_size)]
    stage = sorted((each for each in places if each.pp == me.pp), key=lambda each: each.inner)
    spread = plan.etp * plan.ep

    def ranks(alike: Callable[[Place], object], among: list[Place] = stage) -> tuple[int, ...]:
        return tuple(each.rank for each in among if alike(each) == alike(me))

    pipeline = sorted((each for each in places if each.inner == me.inner), key=lambda each: each.pp)
    tp = ranks(lambda each: (each.cp, each.dp))
    copies = max(plan.tp // n_kv_heads, 1)
    first = me.tp // copies * copies
    return Groups(
        tp=tp,
        cp=ranks(lambda each: (each.tp, each.dp)),
        data=ranks(lambda each: each.tp),
        pp=tuple(each.rank for each in pipeline),
        experts=ranks(lambda each: each.inner // spread),
        expert_data=ranks(lambda each: each.inner % spread),
        kv=tp[first : first + copies],
        ends=(pipeline[0].rank, pipeline[-1].rank) if plan.pp > 1 else (rank,),
    )


def stage_layers(plan: Plan, n_layers: int) -> list[range]:
    """Layers of every chunk of the model, in the model's order; a pipeline stage holds `vpp` of them.

    With a V-shaped schedule chunk i lies on stage i and chunk 2 pp - 1 - i with it, else chunks go round.
    """
    named = (plan.first_layers > 0) + (plan.last_layers > 0)
    middle = (n_layers - plan.first_layers - plan.last_layers) // max(plan.pp - named, 1)
    sizes = [middle] * plan.pp
    sizes[0] = plan.first_layers or middle
    sizes[-1] = plan.last_layers or sizes[-1]
    chunks = [sizes[stage] // plan.vpp for stage in chunk_stages(plan)]
    starts = [sum(chunks[:i]) for i in range(len(chunks))]
    return [range(start, start + size) for start, size in zip(starts, chunks, strict=True)]


def chunk_stages(plan: Plan) -> list[int]:
    """The pipeline stage that holds each chunk of the model."""
    down = list(range(plan.pp))
    return down + down[::-1] if plan.schedule in V_SHAPED else down * plan.vpp
