"""One micro-batch through a pipeline stage: seconds by part, and what its worst stage needs.

    F  forward     B_i  backward to the input (with recomputation)     W  backward to the weights

A stage takes as long as its layers, its part of the ends (embedding, head) and the communication that shows.
"""

from dataclasses import dataclass, fields

import numpy as np

from objectives.cost import chunks, mesh, zero_plus
from objectives.cost.activations import boundary_bytes
from objectives.cost.collectives import all_gather_s, send_s
from objectives.cost.dispatch import routing_operations
from objectives.cost.factored import factored
from objectives.cost.kernels import BLOCK_SCALED, activation_precision, entry_bytes, gemm_s, memory_bound_s
from objectives.cost.layers import LayerCost, layer_cost
from objectives.cost.stages import (
    Stages,
    mirrored,
    rank_parameters,
    recomputes,
    representatives,
    stages_of,
)
from objectives.cost.tokens import sequence_shards, tokens_per_device
from objectives.metrics import Job
from search_spaces.framework import framework_named
from search_spaces.plan import Bools, Floats, Ints, Plans, Recompute
from search_spaces.workload import CudaGraphs

TIE = 1e-9
PASS_KNOBS = (
    "tp", "pp", "dp", "cp", "ep", "etp", "vpp", "micro_batch", "first_layers", "last_layers",
    "recompute_every", "cp_kind", "recompute", "recompute_modules", "rank_order", "sequence_parallel",
    "overlap_tp", "overlap_ep", "deduplicate_ep", "hierarchical_ep", "dispatch", "recompute_stages",
    "migrate_every", "expert_tokens", "keep_received", "folds", "mirrors", "quantized_weights", "hpz",
    "quantized_gradients", "sequence_chunk", "offload_sequence", "offload_checkpoints",
)  # fmt: skip
LAYER_KNOBS = (
    "tp", "pp", "dp", "cp", "ep", "etp", "micro_batch", "cp_kind", "rank_order", "sequence_parallel",
    "overlap_tp", "overlap_ep", "deduplicate_ep", "hierarchical_ep", "dispatch", "migrate_every",
    "recompute_modules", "expert_tokens", "sequence_chunk",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StagePass:
    """One micro-batch through given stages; every array has shape (n_stages, n_plans).

    Compute is without communication; `recompute_s` is everything done again, its communication included;
    `host_forward_s` and `host_backward_s` are waits for the host's memory.
    """

    forward_s: Floats
    backward_input_s: Floats
    backward_weight_s: Floats
    recompute_s: Floats
    tp_comm_s: Floats
    cp_comm_s: Floats
    ep_comm_s: Floats
    tp_forward_s: Floats
    cp_forward_s: Floats
    ep_forward_s: Floats
    launch_forward_s: Floats
    launch_backward_s: Floats
    host_forward_s: Floats
    host_backward_s: Floats

    @property
    def compute_s(self) -> Floats:
        """Both passes' computation, nothing twice."""
        return self.forward_s + self.backward_input_s + self.backward_weight_s

    @property
    def forward_comm_s(self) -> Floats:
        """Exposed communication of the forward pass."""
        return self.tp_forward_s + self.cp_forward_s + self.ep_forward_s

    @property
    def full_forward_s(self) -> Floats:
        """F: forward computation, its exposed communication, and waiting for the host."""
        return self.forward_s + self.forward_comm_s + self.launch_forward_s + self.host_forward_s

    @property
    def full_backward_input_s(self) -> Floats:
        """B_i: backward computation, recomputation, exposed communication, and half of the waiting."""
        comm = self.tp_comm_s + self.cp_comm_s + self.ep_comm_s - self.forward_comm_s
        waits = self.launch_backward_s / 2 + self.host_backward_s
        return self.backward_input_s + self.recompute_s + comm + waits

    @property
    def full_backward_weight_s(self) -> Floats:
        """W: computation and the other half of the waiting; a product's two gradients are as many operations.

        All of it in B_i, a schedule that splits the backward pass would gain from a slower device.
        """
        return self.backward_weight_s + self.launch_backward_s / 2

    @property
    def total_s(self) -> Floats:
        """F + B_i + W."""
        return self.full_forward_s + self.full_backward_input_s + self.full_backward_weight_s


def stage_pass(job: Job, plans: Plans, stages: Stages) -> StagePass:
    """Seconds of one micro-batch through each of the given stages."""
    n_predict = stages.is_last * job.model.n_predict_layers
    n_layers = stages.n_layers + n_predict
    total = _layers_cost(job, plans, stages, n_predict)
    head_s, head_comm_s = _head(job, plans)
    heads = stages.is_last + n_predict
    ends_s = heads * head_s + n_predict * _predict_projection_s(job, plans)
    embedding_comm_s = stages.is_first * _embedding_comm(job, plans)
    again_s = _recomputation_s(plans, total, n_layers)
    redoes = recomputes(plans, stages.index) if plans.recompute_stages.any() else np.True_
    again_s = again_s * redoes
    forward_comm = total.tp_forward_s + total.cp_forward_s + total.ep_forward_s
    forward_comm = forward_comm + heads * head_comm_s + embedding_comm_s
    backward_comm = total.tp_backward_s + total.cp_backward_s + total.ep_backward_s
    backward_comm = backward_comm + heads * head_comm_s + embedding_comm_s
    backward_s = total.backward_input_s + total.backward_weight_s + 2 * ends_s + again_s + backward_comm
    accumulation_s = _accumulation_s(job, plans, stages)
    backward_s = backward_s + accumulation_s
    converts = _conversions_s(job, plans, stages)
    host_forward, host_backward = _host_waits_s(job, plans, total, n_layers)
    device_s = (total.forward_s + ends_s + forward_comm, backward_s)
    of_kinds = (n_layers, stages.n_moe + n_predict)
    launch_forward, launch_backward = _launch(job, plans, of_kinds, device_s, redoes)
    return StagePass(
        forward_s=total.forward_s + ends_s + converts[0],
        backward_input_s=total.backward_input_s + ends_s + converts[1],
        backward_weight_s=total.backward_weight_s + ends_s + accumulation_s,
        recompute_s=again_s,
        tp_comm_s=total.tp_forward_s + total.tp_backward_s + 2 * (heads * head_comm_s + embedding_comm_s),
        cp_comm_s=total.cp_forward_s + total.cp_backward_s,
        ep_comm_s=total.ep_forward_s + total.ep_backward_s,
        tp_forward_s=total.tp_forward_s + heads * head_comm_s + embedding_comm_s,
        cp_forward_s=total.cp_forward_s,
        ep_forward_s=total.ep_forward_s,
        launch_forward_s=launch_forward,
        launch_backward_s=launch_backward,
        host_forward_s=host_forward,
        host_backward_s=host_backward,
    )


def _conversions_s(job: Job, plans: Plans, stages: Stages) -> tuple[Floats, Floats]:
    """Seconds of making and reading what ZeRO++ sends in fewer bits."""
    if not (plans.quantized_weights.any() or plans.quantized_gradients.any()):
        return np.zeros(stages.index.shape), np.zeros(stages.index.shape)
    return zero_plus.conversions_s(job, plans, rank_parameters(job, plans, stages))


def _host_waits_s(job: Job, plans: Plans, total: LayerCost, n_layers: Ints) -> tuple[Floats, Floats]:
    """Seconds that checkpoints and chunks on the host show."""
    if not chunks.waits_for_host(plans):
        return np.zeros(n_layers.shape), np.zeros(n_layers.shape)
    return chunks.host_waits_s(job, plans, total, n_layers, boundary_bytes(job, plans))


def _accumulation_s(job: Job, plans: Plans, stages: Stages) -> Floats:
    """Seconds of adding one micro-batch's gradients to the sum, where the weight product does not do it."""
    moved = job.trainer.accumulation_bytes.value
    if not moved:
        return np.zeros(stages.index.shape)
    return memory_bound_s(job, moved * rank_parameters(job, plans, stages).total)


def _launch(
    job: Job,
    plans: Plans,
    n_layers: tuple[Ints, Ints],
    device_s: tuple[Floats, Floats],
    redoes: Bools | np.bool_,
) -> tuple[Floats, Floats]:
    """Seconds in which the device does not work because of its operations' number, forward and backward.

        max(operations * seconds to issue one - the device's own seconds, operations * seconds to start one)

    Issuing runs ahead of the device, so only a pass whose operations are many and small waits for its host;
    every kernel starts and drains.  A host that waits for every kernel issues each while nothing runs, and so
    does a processor that is its own host: operations * seconds to issue one.
    `n_layers` counts all layers, and those of experts: each expert of a device costs operations of its own.
    A graph of the layers' static parts leaves only the experts', one of the whole step none.
    """
    trainer, graphs = job.trainer, job.workload.cuda_graphs
    if graphs is CudaGraphs.STEP:
        return 0 * device_s[0], 0 * device_s[1]
    one = job.cluster.device.kernel_launch_s.value
    per_layer = trainer.operations_per_layer.value + trainer.tp_operations.value * (plans.tp > 1)
    graphed = graphs is CudaGraphs.LAYERS
    forward = n_layers[0] * per_layer * (not graphed)
    if chunks.is_chunked(plans):
        u = chunks.n_chunks(job, plans)
        forward = forward * u + n_layers[0] * u * (u - 1) / 2
    if job.model.moe is not None:
        forward = forward + n_layers[1] * (job.model.moe.n_experts / plans.ep) * _expert_operations(job)
        if plans.dispatch.any():
            forward = forward + n_layers[1] * routing_operations(plans)
    host_s = one * (forward + n_layers[0] * _peer_operations(job, plans))
    again = redoes * plans.is_recompute(Recompute.FULL) / plans.recompute_every
    backward = trainer.backward_operations.value + again
    if job.cluster.device.is_host:
        return host_s + 0 * device_s[0], backward * host_s + 0 * device_s[1]
    start_s = forward * (job.nature.kernel_start_s.value + one * job.workload.launch_blocking)
    return (
        np.maximum(host_s - device_s[0], start_s),
        np.maximum(backward * host_s - device_s[1], backward * start_s),
    )


def _peer_operations(job: Job, plans: Plans) -> Floats:
    """Operations' time for which the hosts of a tensor-parallel group hold each other up in one layer: t w.

    Only beside a pipeline that leaves the node and blocks the host: w is then what one rank's delay costs.
    Published runs of such a trainer take 7, 12, 20 and 44 ms a layer and micro-batch on 2, 4, 8 and 16 ranks,
    whatever the model and the micro-batch, and 4 ms with the pipeline inside the node (benchmarks/data).
    """
    blocks = (plans.tp > 1) & (mesh.pp_tier(job.cluster, plans) > 0) & (plans.pp > 1)
    return np.where(blocks, plans.tp * job.trainer.peer_operations.value, 0.0)


def _expert_operations(job: Job) -> float:
    """Operations that an expert adds to a forward pass; scales of blocks are laid out expert by expert."""
    trainer = job.trainer
    by_block = job.workload.precision in BLOCK_SCALED
    return trainer.expert_operations.value + trainer.block_scale_operations.value * by_block


def _layer_cost(job: Job, plans: Plans, kind: str) -> LayerCost:
    return factored(plans, LAYER_KNOBS, lambda rows: layer_cost(job, rows, kind))


def _layers_cost(job: Job, plans: Plans, stages: Stages, n_predict: Ints) -> LayerCost:
    """All layers of each stage; a prediction module holds one more, of the kind that the model ends with."""
    n_dense, n_moe = stages.n_layers - stages.n_moe, stages.n_moe + n_predict
    if job.model.moe is None:
        return _layers(_layer_cost(job, plans, "dense"), n_dense + n_predict)
    dense = _layers(_layer_cost(job, plans, "dense"), n_dense)
    return _add(dense, _layers(_layer_cost(job, plans, "moe"), n_moe))


def _layers(layer: LayerCost, n: Ints) -> LayerCost:
    return LayerCost(**{field.name: n * getattr(layer, field.name) for field in fields(LayerCost)})


def _add(a: LayerCost, b: LayerCost) -> LayerCost:
    return LayerCost(**{f.name: getattr(a, f.name) + getattr(b, f.name) for f in fields(LayerCost)})


def _head(job: Job, plans: Plans) -> tuple[Floats, Floats]:
    """Seconds of the output projection and loss, once in each of F, B_i, W; and of their gather."""
    h = float(job.model.d_model)
    tokens = tokens_per_device(job, plans)
    columns = np.ceil(job.model.embedding.vocab_size / plans.tp)
    product = gemm_s(job, tokens, columns, h, precision=activation_precision(job.workload.precision))
    gather = all_gather_s(
        job.cluster,
        plans.tp,
        mesh.tp_members(job.cluster, plans),
        entry_bytes(job.workload.precision) * tokens * h,
    )
    moved = tokens * columns * job.trainer.logits_bytes.value
    return product + memory_bound_s(job, moved / 3), gather


def _predict_projection_s(job: Job, plans: Plans) -> Floats:
    """Seconds of a prediction module's projection from 2h to h."""
    h = float(job.model.d_model)
    tokens, columns = tokens_per_device(job, plans), np.ceil(h / plans.tp)
    return gemm_s(job, tokens, columns, 2 * h)


def _embedding_comm(job: Job, plans: Plans) -> Floats:
    """Seconds of the vocabulary-parallel embedding's reduction, once each way."""
    message = entry_bytes(job.workload.precision) * tokens_per_device(job, plans) * job.model.d_model
    return all_gather_s(job.cluster, plans.tp, mesh.tp_members(job.cluster, plans), message)


def send_message_s(job: Job, plans: Plans) -> Floats:
    """Seconds of handing one layer's input to the next stage.

    Where the framework splits messages, each tensor-parallel rank sends its part and the receivers gather
    them; sequence parallelism leaves nothing to split.

    Source
    ------
    Narayanan et al. (2021), arXiv:2104.04473, section 4.1 (scatter/gather).
    """
    boundary = boundary_bytes(job, plans)
    tier = mesh.pp_tier(job.cluster, plans)
    host_s = job.trainer.message_operations.value * job.cluster.device.kernel_launch_s.value
    if not framework_named(job.workload.framework).splits_messages:
        return send_s(job.cluster, tier, boundary) + host_s
    parts = plans.tp / sequence_shards(plans)
    members = mesh.tp_members(job.cluster, plans)
    gather_s = all_gather_s(job.cluster, plans.tp, members, np.where(parts > 1, boundary, 0.0))
    return send_s(job.cluster, tier, boundary / parts) + gather_s + host_s


def _recomputation_s(plans: Plans, total: LayerCost, layers: Ints) -> Floats:
    """Seconds done again: every r-th layer's forward pass, or the attention cores and the named modules.

    Where what all-reduces and all-to-alls brought is kept, no such exchange is repeated.

    Source
    ------
    Singh et al. (2023), arXiv:2303.06318, communication-aware checkpointing.
    """
    share = np.ceil(layers / plans.recompute_every) / np.maximum(layers, 1)
    brought = total.tp_forward_s + total.ep_forward_s
    if plans.keep_received.any():
        brought = brought * ~plans.keep_received
    forward = total.forward_s + brought + total.cp_forward_s
    again: Floats = share * plans.is_recompute(Recompute.FULL) * forward
    again = again + plans.is_recompute(Recompute.SELECTIVE) * total.core_forward_s
    return again + ~plans.is_recompute(Recompute.FULL) * total.modules_forward_s


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassTable:
    """What a pipeline needs of its passes; every array has shape (n_plans,).

    The worst stage is the one with the longest F + B; its parts are those a step is made of, or, where
    devices take turns on a core, so that one uses what another leaves, the mean over the stages.
    `all_stages_s` sums F + B over the stages, `others_forward_s` F over all but the worst; `fillable_s` sums
    W + min(F, W) over all but the worst, `fillable_h2_s` min(3 W, 2 F + W, F + B): what ZB-H1 and ZB-H2 fill
    of their bubbles.  Of two copies of the model (DualPipe) a device runs each with half the micro-batches.
    `host_s` are waits for the host's memory, None where no plan has any.
    """

    compute_s: Floats
    recompute_s: Floats
    tp_comm_s: Floats
    cp_comm_s: Floats
    ep_comm_s: Floats
    launch_s: Floats
    worst_s: Floats
    forward_s: Floats
    backward_s: Floats
    weight_s: Floats
    all_stages_s: Floats
    others_forward_s: Floats
    fillable_s: Floats
    fillable_h2_s: Floats
    send_s: Floats
    host_s: Floats | None = None


def pass_table(job: Job, plans: Plans) -> PassTable:
    """Passes of the representative stages, reduced to what the pipeline's closed forms use."""
    bounds = representatives(job, plans)
    stages = stages_of(job, plans, bounds.index)
    alone = stage_pass(job, plans, stages)
    passes = _with_mirrored(job, plans, stages, alone)
    total = passes.total_s
    # Of stages that tie, as waiting for the host makes them, the first: rounding must not choose.
    worst = np.argmax(total >= total.max(axis=0) * (1 - TIE), axis=0)[None]

    def of_worst(part: Floats) -> Floats:
        picked: Floats = np.take_along_axis(part, worst, axis=0)[0]
        return picked

    def of_step(part: Floats) -> Floats:
        taken: Floats = np.sum(bounds.weight * part, axis=0) / np.sum(bounds.weight, axis=0)
        return of_worst(part) if job.cluster.turns == 1 else taken

    def of_others(part: Floats) -> Floats:
        summed: Floats = np.sum(bounds.weight * part, axis=0) - of_worst(part)
        return summed

    weight_pass, forward = passes.full_backward_weight_s, passes.full_forward_s
    fillable = weight_pass + np.minimum(weight_pass, forward)
    fillable_h2 = np.minimum(weight_pass + 2 * np.minimum(weight_pass, forward), total)
    return PassTable(
        compute_s=of_step(passes.compute_s),
        recompute_s=of_step(passes.recompute_s),
        tp_comm_s=of_step(passes.tp_comm_s),
        cp_comm_s=of_step(passes.cp_comm_s),
        ep_comm_s=of_step(passes.ep_comm_s),
        launch_s=of_step(passes.launch_forward_s + passes.launch_backward_s),
        worst_s=of_worst(total),
        forward_s=of_worst(passes.full_forward_s),
        backward_s=of_worst(passes.full_backward_input_s + passes.full_backward_weight_s),
        weight_s=of_worst(weight_pass),
        all_stages_s=np.sum(bounds.weight * total, axis=0),
        others_forward_s=of_others(forward),
        fillable_s=of_others(fillable),
        fillable_h2_s=of_others(fillable_h2),
        send_s=send_message_s(job, plans),
        host_s=of_step(passes.host_forward_s + passes.host_backward_s)
        if chunks.waits_for_host(plans)
        else None,
    )


def _with_mirrored(job: Job, plans: Plans, stages: Stages, alone: StagePass) -> StagePass:
    """Mean passes of a device: half of its micro-batches run stage p - 1 - i where a plan has two copies."""
    if not plans.mirrors.any():
        return alone
    other = stage_pass(job, plans, stages_of(job, plans, mirrored(plans, stages.index)))
    share = 0.5 * plans.mirrors

    def mean(name: str) -> Floats:
        both: Floats = (1 - share) * getattr(alone, name) + share * getattr(other, name)
        return both

    return StagePass(**{field.name: mean(field.name) for field in fields(StagePass)})
