"""Which layers a pipeline stage holds, and how many parameters one of its devices.

    L  n_layers     p  pp     v  vpp     i  stage

A stage without a number of its own holds the middle share (L - first - last) / (p - those named).
A trainer that balances compute counts the output projection as H more layers, and a stage takes the layers
that fit into its share of them all:

    layers up to stage i    min(floor((L + H) (i + 1) / p), L)       H = V h / (entries of a layer's matrices)

With v chunks, chunk c of stage i follows chunk c of stage i - 1, and chunk c + 1 of stage 0 follows them all.
In a V, the second chunk of stage i follows that of stage i + 1: stage 0 has the model's beginning and end.
Arrays over stages have shape (n_stages, n_plans).
"""

from dataclasses import dataclass

import numpy as np

from objectives.cost.factored import distinct
from objectives.metrics import Job
from search_spaces.framework import EndStages, framework_named
from search_spaces.model import ModelSpec
from search_spaces.parameters import (
    embedding_rank_parameters,
    expert_rank_parameters,
    head_rank_parameters,
    layer_parameters,
    layer_rank_parameters,
    predict_rank_parameters,
)
from search_spaces.plan import Bools, Floats, Ints, Plans

ROUNDING = 1e-9  # of a layer: shares that are whole stay so
LAYOUT_KNOBS = ("pp", "vpp", "folds", "first_layers", "last_layers", "recompute_stages")


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


def representatives(job: Job, plans: Plans) -> Representatives:
    """The first stage, the last, and of the stages between the earliest of every kind.

    A kind is a number of layers and of expert layers, recomputing or not; the earliest of a kind has the most
    micro-batches in flight.
    """
    model = job.model
    last = plans.pp - 1
    first_weight, last_weight = np.ones(len(plans)), np.minimum(last, 1).astype(np.float64)
    if model.n_moe_layers in (0, model.n_layers) and not _balances(job):
        index = np.stack([np.zeros_like(last), np.minimum(1, last), last])
        weight = np.stack([first_weight, np.maximum(plans.pp - 2, 0).astype(np.float64), last_weight])
        if plans.recompute_stages.any():
            return _with_boundary(plans, index, weight)
        return Representatives(index=index, weight=weight)
    layouts, which = distinct(plans, LAYOUT_KNOBS)
    index, weight = _kinds_between(job, layouts)
    index, weight = index[:, which], weight[:, which]
    return Representatives(
        index=np.concatenate([np.zeros_like(last)[None], index, last[None]]),
        weight=np.concatenate([first_weight[None], weight, last_weight[None]]),
    )


def recomputes(plans: Plans, index: Ints) -> Bools:
    """Whether the given stages are among those that compute something again; (n_stages, n_plans)."""
    among: Bools = (plans.recompute_stages == 0) | (index < plans.recompute_stages)
    return among


def _with_boundary(plans: Plans, index: Ints, weight: Floats) -> Representatives:
    """One more stage: the first of those between that keeps everything, where only some compute again."""
    n, between = plans.recompute_stages, weight[1]
    again = np.where(n > 0, np.clip(n - 1, 0, between), between)
    first_kept = np.where(n > 0, np.clip(n, np.minimum(1, plans.pp - 1), plans.pp - 1), index[1])
    return Representatives(
        index=np.stack([index[0], index[1], first_kept, index[2]]),
        weight=np.stack([weight[0], again, between - again, weight[2]]),
    )


def _kinds_between(job: Job, plans: Plans) -> tuple[Ints, Floats]:
    """The earliest middle stage of every kind, and how many there are; rows without a kind weigh nothing."""
    stage = np.arange(int(plans.pp.max(initial=1)))[:, None] + np.zeros_like(plans.pp)
    stages = stages_of(job, plans, stage)
    kinds = 2 * (stages.n_layers * (job.model.n_layers + 1) + stages.n_moe) + recomputes(plans, stage)
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


def held_stages(job: Job, plans: Plans, index: Ints) -> Stages:
    """The given stages as memory sees them: a balance by compute closes a stage behind its last layer.

    Published peaks of such pipelines are those of the loop as it is written; their times are not.
    """
    if _balances(job):
        return _balanced_stages(job.model, plans, index, passing=1)
    return stages_of(job, plans, index)


def stages_of(job: Job, plans: Plans, index: Ints) -> Stages:
    """Layers of the given stages of every plan."""
    model = job.model
    if _balances(job):
        return _balanced_stages(model, plans, index, passing=0)
    last = plans.pp - 1
    named = (plans.first_layers > 0).astype(np.int64) + (plans.last_layers > 0)
    rest = model.n_layers - plans.first_layers - plans.last_layers
    middle = rest // np.maximum(plans.pp - named, 1)
    first = np.where(plans.first_layers > 0, plans.first_layers, middle)
    final = np.where(plans.last_layers > 0, plans.last_layers, middle)
    n_layers = np.where(index == 0, first, np.where(index == last, final, middle))
    before = np.where(index > 0, first + (index - 1) * middle, 0)
    return Stages(
        index=index,
        n_layers=n_layers,
        n_moe=_moe_layers(model, plans, before, n_layers),
        is_first=index == 0,
        is_last=index == np.where(plans.folds, 0, last),
    )


def mirrored(plans: Plans, index: Ints) -> Ints:
    """The stage of the second copy that a device holds beside its own: p - 1 - i."""
    held: Ints = plans.pp - 1 - index
    return held


def _balances(job: Job) -> bool:
    return framework_named(job.workload.framework).end_stages is EndStages.BALANCED


def _balanced_stages(model: ModelSpec, plans: Plans, index: Ints, *, passing: int) -> Stages:
    """Layers dealt by compute; the projection counts as many as its product takes.

    Source
    ------
    nanotron, src/nanotron/models/base.py, build_model; models/llama.py, get_block_compute_costs.  Its loop
    closes a stage with the layer that passes the share; published runs (benchmarks/data) take as long as
    stages that stop before it.
    """
    parameters = layer_parameters(model, "moe" if model.n_moe_layers else "dense")
    head = model.embedding.vocab_size * model.d_model / (parameters.attention + parameters.mlp)
    share, last = (model.n_layers + head) / plans.pp, plans.pp - 1

    def layers_up_to(stage: Ints) -> Ints:
        fit = np.floor(share * (stage + 1) + ROUNDING) + np.where(stage < 0, 0, passing)
        reached: Ints = np.where(stage >= last, model.n_layers, np.minimum(fit, model.n_layers)).astype(
            np.int64
        )
        return reached

    before = layers_up_to(index - 1)
    n_layers = layers_up_to(index) - before
    return Stages(
        index=index,
        n_layers=n_layers,
        n_moe=_moe_layers(model, plans, before, n_layers),
        is_first=index == 0,
        is_last=index == last,
    )


def leaves_a_stage_empty(model: ModelSpec, n_stages: int) -> bool:
    """Whether that loop gives the last stage nothing: no layer, norm, head, cast or loss."""
    parameters = layer_parameters(model, "moe" if model.n_moe_layers else "dense")
    layer = parameters.attention + parameters.mlp
    weights = [layer] * model.n_layers + [0, model.embedding.vocab_size * model.d_model, 0, 0]
    stage, last_used, so_far = 0, 0, 0
    for weight in weights:
        last_used = stage
        so_far += weight
        stage += so_far * n_stages > sum(weights) * (stage + 1)
    return last_used < n_stages - 1


def _moe_layers(model: ModelSpec, plans: Plans, before: Ints, n_layers: Ints) -> Ints:
    """Expert layers of a stage, over all its chunks."""
    if model.moe is None:
        return np.zeros_like(n_layers)
    so_far = np.concatenate(([0], np.cumsum(model.is_moe_layer)))
    total = np.zeros_like(n_layers)
    for chunk in range(int(plans.vpp.max(initial=1))):
        start = (chunk * model.n_layers + before) // plans.vpp
        up_again = model.n_layers - (before + n_layers) // plans.vpp
        # Stages that only other plans of the batch have lie outside the model.
        start = np.clip(np.where(plans.folds & (chunk == 1), up_again, start), 0, model.n_layers)
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
    # In a V the first stage has the embedding at hand: tied weights need no copy.
    apart = np.where(plans.folds, 1, plans.pp)
    dense += stages.is_last * head_rank_parameters(model, tp, apart, copies_positions=copies)
    return RankParameters(dense=dense, expert=expert)
