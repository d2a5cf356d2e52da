"""Which layers a pipeline stage holds, and how many parameters one of its devices.

    L  n_layers     p  pp     v  vpp     i  stage

A stage without a number of its own holds the middle share (L - first - last) / (p - those named).
With v chunks, chunk c of stage i follows chunk c of stage i - 1, and chunk c + 1 of stage 0 follows them all.
Arrays over stages have shape (n_stages, n_plans).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from objectives.cost.factored import distinct_settings, setting_codes
from objectives.metrics import Job
from search_spaces.framework import framework_named
from search_spaces.model import ModelSpec
from search_spaces.parameters import (
    embedding_rank_parameters,
    expert_rank_parameters,
    head_rank_parameters,
    layer_rank_parameters,
    predict_rank_parameters,
)
from search_spaces.plan import Bools, Floats, Ints, Plans

LAYOUT_KNOBS = ("pp", "vpp", "first_layers", "last_layers")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stages:
    """Some stages of every plan; every array has shape (n_stages, n_plans)."""

    index: Ints
    n_layers: Ints
    n_moe: Ints
    is_first: Bools
    is_last: Bools


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Representatives:
    """Stages that bound all others, and how many each stands for; both (n_representatives, n_plans)."""

    index: Ints
    weight: Floats


def representatives(model: ModelSpec, plans: Plans, *, by_cost: bool = False) -> Representatives:
    """The first stage, the last, and of the stages between the earliest of every kind.

    A kind is a number of layers and of expert layers; the earliest of a kind has the most micro-batches in
    flight.
    """
    last = plans.pp - 1
    first_weight, last_weight = np.ones(len(plans)), np.minimum(last, 1).astype(np.float64)
    if model.n_moe_layers in (0, model.n_layers) and not by_cost:
        index = np.stack([np.zeros_like(last), np.minimum(1, last), last])
        weight = np.stack([first_weight, np.maximum(plans.pp - 2, 0).astype(np.float64), last_weight])
        return Representatives(index=index, weight=weight)
    layouts, which = distinct_settings(setting_codes(plans, LAYOUT_KNOBS))
    index, weight = _kinds_between(model, plans.take(layouts), by_cost=by_cost)
    index, weight = index[:, which], weight[:, which]
    return Representatives(
        index=np.concatenate([np.zeros_like(last)[None], index, last[None]]),
        weight=np.concatenate([first_weight[None], weight, last_weight[None]]),
    )


def _kinds_between(model: ModelSpec, plans: Plans, *, by_cost: bool) -> tuple[Ints, Floats]:
    """The earliest middle stage of every kind, and how many there are; rows without a kind weigh nothing."""
    stage = np.arange(int(plans.pp.max(initial=1)))[:, None] + np.zeros_like(plans.pp)
    stages = stages_of(model, plans, stage, by_cost=by_cost)
    kinds = stages.n_layers * (model.n_layers + 1) + stages.n_moe
    between = (stage > 0) & (stage < plans.pp - 1)
    earliest, counts = [], []
    for kind in np.unique(kinds[between]):
        alike = between & (kinds == kind)
        earliest.append(np.argmax(alike, axis=0))
        counts.append(np.sum(alike, axis=0))
    if not counts:
        return np.zeros((0, len(plans)), np.int64), np.zeros((0, len(plans)))
    count = np.stack(counts)
    # Kinds that a layout has move to the top, so that as few rows as possible remain.
    order = np.argsort(count == 0, axis=0, kind="stable")[: int(np.sum(count > 0, axis=0).max())]
    weight = np.take_along_axis(count, order, axis=0).astype(np.float64)
    return np.take_along_axis(np.stack(earliest), order, axis=0), weight


def stages_by_cost(job: Job) -> bool:
    """Whether the job's trainer balances its stages by weights."""
    return framework_named(job.workload.framework).stages_by_cost


def stages_of(model: ModelSpec, plans: Plans, index: Ints, *, by_cost: bool = False) -> Stages:
    """Layers of the given stages of every plan; `by_cost` balances those that no plan names."""
    last = plans.pp - 1
    named = (plans.first_layers > 0).astype(np.int64) + (plans.last_layers > 0)
    rest = model.n_layers - plans.first_layers - plans.last_layers
    middle = rest // np.maximum(plans.pp - named, 1)
    first = np.where(plans.first_layers > 0, plans.first_layers, middle)
    final = np.where(plans.last_layers > 0, plans.last_layers, middle)
    n_layers = np.where(index == 0, first, np.where(index == last, final, middle))
    before = np.where(index > 0, first + (index - 1) * middle, 0)
    if by_cost:
        n_layers, before = _balanced(model, plans, index, (n_layers, before))
    return Stages(
        index=index,
        n_layers=n_layers,
        n_moe=_moe_layers(model, plans, before, n_layers),
        is_first=index == 0,
        is_last=index == last,
    )


def _balanced(model: ModelSpec, plans: Plans, index: Ints, even: tuple[Ints, Ints]) -> tuple[Ints, Ints]:
    """Layers of the given stages, and those before them, where a plan leaves the split to its trainer."""
    n_layers, before = even
    free = (plans.first_layers == 0) & (plans.last_layers == 0) & (plans.vpp == 1)
    for pp in np.unique(plans.pp[free]):
        counts = np.array(balanced_layers(model, int(pp)))
        starts = np.concatenate(([0], np.cumsum(counts)[:-1]))
        place = np.minimum(index, pp - 1)
        here = free & (plans.pp == pp)
        n_layers = np.where(here, counts[place], n_layers)
        before = np.where(here, starts[place], before)
    return n_layers, before


@cache
def balanced_layers(model: ModelSpec, n_stages: int) -> tuple[int, ...]:
    """Layers of every stage where a trainer balances its blocks' weights, the head's as one block of them.

    A stage takes blocks until their weights, with those of all stages before, exceed its share of the total.

    Source
    ------
    nanotron, src/nanotron/trainer.py and models/llama.py (get_block_compute_costs).
    """
    stages = _stages_of_blocks(model, n_stages)[: model.n_layers]
    return tuple(stages.count(stage) for stage in range(n_stages))


def leaves_a_stage_empty(model: ModelSpec, n_stages: int) -> bool:
    """Whether such a balance gives the last stage nothing: no layer, norm, head, cast or loss."""
    return n_stages - 1 not in _stages_of_blocks(model, n_stages)


def _stages_of_blocks(model: ModelSpec, n_stages: int) -> list[int]:
    """The stage of every layer, and of the norm, the head, the cast to fp32 and the loss behind them."""
    attention = 4 * model.attention.n_heads * model.attention.head_dim
    layer = (attention + model.mlp.n_matrices * model.mlp.width) * model.d_model
    weights = [layer] * model.n_layers + [0, model.embedding.vocab_size * model.d_model, 0, 0]
    stages, stage, so_far = [], 0, 0
    for weight in weights:
        stages.append(min(stage, n_stages - 1))
        so_far += weight
        stage += so_far * n_stages > sum(weights) * (stage + 1)
    return stages


def _moe_layers(model: ModelSpec, plans: Plans, before: Ints, n_layers: Ints) -> Ints:
    """Expert layers of a stage, over all its chunks."""
    if model.moe is None:
        return np.zeros_like(n_layers)
    so_far = np.concatenate(([0], np.cumsum(model.is_moe_layer)))
    total = np.zeros_like(n_layers)
    for chunk in range(int(plans.vpp.max(initial=1))):
        start = np.minimum((chunk * model.n_layers + before) // plans.vpp, model.n_layers)
        end = np.minimum(start + n_layers // plans.vpp, model.n_layers)
        total += np.where(chunk < plans.vpp, so_far[end] - so_far[start], 0)
    return total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RankParameters:
    """Parameters one device holds: dense ones, and those of routed experts (sharded over other groups)."""

    dense: Floats
    expert: Floats

    @property
    def total(self) -> Floats:
        """All of them."""
        return self.dense + self.expert


def rank_parameters(job: Job, plans: Plans, stages: Stages) -> RankParameters:
    """Parameters on one device of each stage; arrays have shape (n_stages, n_plans).

    Source
    ------
    Per-rank integers of a 175B GPT on Frontier (tp 4, pp 16): 2,718,480,384 on a middle stage.
    """
    model, tp = job.model, plans.tp
    n_dense = stages.n_layers - stages.n_moe
    dense: Floats = (n_dense * layer_rank_parameters(model, tp)).astype(np.float64)
    expert = np.zeros_like(dense)
    if model.moe is not None:
        per_layer = expert_rank_parameters(model, plans.ep, plans.etp)
        dense += stages.n_moe * layer_rank_parameters(model, tp, "moe")
        expert += (stages.n_moe + stages.is_last * model.n_predict_layers) * per_layer
    dense += stages.is_last * predict_rank_parameters(model, tp)
    dense += stages.is_first * embedding_rank_parameters(model, tp)
    copies = framework_named(job.workload.framework).keeps_stage_input
    dense += stages.is_last * head_rank_parameters(model, tp, plans.pp, copies_positions=copies)
    return RankParameters(dense=dense, expert=expert)
