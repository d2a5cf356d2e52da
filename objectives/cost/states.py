"""Weights, gradients and optimizer state: the bytes a device holds and the seconds a step spends on them.

    phi      parameters on one device (dense; expert)
    D, D_e   devices that share one dense / expert gradient
    w, g, o  bytes a parameter of weights, gradients, optimizer state (Workload.state)

        stage 0    phi (w + g + o)          stage 2    phi (w + (g + o) / D)
        stage 1    phi (w + g + o / D)      stage 3    phi (w + g + o) / D

DualPipe holds the model twice, on stages i and p - 1 - i: phi is that of both, D counts the devices of both.

Source: Rajbhandari et al. (2020), arXiv:1910.02054, section 5; two copies: DeepSeek-AI (2024),
arXiv:2412.19437, section 3.2.1; expert groups: Singh et al. (2023),
arXiv:2303.06318.
"""

from dataclasses import dataclass

import numpy as np

from objectives.cost import mesh, zero_plus
from objectives.cost.collectives import all_gather_s, all_reduce_s, reduce_scatter_s, send_s
from objectives.cost.kernels import memory_bound_s
from objectives.cost.stages import (
    RankParameters,
    Stages,
    held_stages,
    mirrored,
    rank_parameters,
    representatives,
    stages_of,
)
from objectives.metrics import Job
from search_spaces.cluster import assumed
from search_spaces.framework import framework_named
from search_spaces.parameters import expert_parameters, layer_rank_parameters
from search_spaces.plan import Floats, Ints, Plans
from search_spaces.units import GB

STATE_KNOBS = (
    "tp", "pp", "dp", "cp", "ep", "etp", "vpp", "first_layers", "last_layers", "recompute_stages",
    "zero", "offload_optimizer", "rank_order", "folds", "mirrors", "quantized_weights", "hpz",
    "quantized_gradients", "offload_bucket", "coalesced_buckets", "optimizer_tile",
)  # fmt: skip
STATE_BYTES_KNOBS = (
    "tp", "pp", "dp", "cp", "ep", "etp", "vpp", "first_layers", "last_layers", "recompute_stages", "zero",
    "offload_optimizer", "folds", "mirrors", "quantized_weights", "hpz", "offload_bucket", "optimizer_tile",
)  # fmt: skip

HOST_OPTIMIZER_BYTES_PER_S = assumed(
    25 * GB, "one device's share of a server's memory bandwidth while its cores run Adam", spread=0.5
)
OFFLOAD_BUFFER_BYTES_PER_BUCKET_PARAMETER = 4.0
TILE_OPERATIONS = 12.0  # counted: the cast up, Adam's two moments, its quotient and step, the cast down


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StateBytes:
    """Bytes of training state on one device of each given stage; shape (n_stages, n_plans)."""

    weights_bytes: Floats
    gradients_bytes: Floats
    optimizer_bytes: Floats
    whole_bytes: Floats
    bucket_bytes: Floats
    update_bytes: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StateTimes:
    """Seconds of sharing and updating state on the slowest stage; every array has shape (n_plans,).

    `reduce_s` and `gather_s` are one reduction of all gradients and one gather of all weights, the mean of
    both passes' where they differ (`objectives.cost.zero_plus`); `tie_s` adds the gradients of tied
    embeddings, which the first and the last stage both hold.  `reduced_pieces` is in how many pieces
    gradients arrive where each is updated as it does; 1: the update waits for all.  `visited_s` are those of
    `offload_s` in which the device updates the state that visits it.
    """

    reduce_s: Floats
    gather_s: Floats
    tie_s: Floats
    optimizer_s: Floats
    offload_s: Floats
    visited_s: Floats
    reduced_pieces: Floats


def state_bytes(job: Job, plans: Plans, parameters: RankParameters, stages: Stages) -> StateBytes:
    """Bytes of weights, gradients, optimizer state, layers that ZeRO holds whole, and reduction buckets.

    Stage 3 gathers two layers at a time: the one that runs and the one prefetched; from stage 2 on the layer
    that runs has its gradients whole, and in a pipeline all layers have, until the step's end.  Overlapped
    reduction fills one bucket while another travels.
    The trainer's 16-bit gradients beside accumulated ones, and a bucket it always fills, count as whole.
    """
    state, zero = job.workload.training_state, plans.zero
    sharded = _sharded(plans, parameters)
    weights = np.where(zero >= 3, sharded, parameters.total) * state.weight_bytes
    if int(plans.hpz.max(initial=1)) > 1:
        weights = weights + zero_plus.second_shard_bytes(job, plans, parameters.total)
    gradients = np.where(plans.reduces_every_pass, sharded, parameters.total) * state.gradient_bytes
    optimizer = np.where(zero >= 1, sharded, parameters.total) * state.optimizer_bytes
    per_layer = parameters.total / np.maximum(stages.n_layers, 1) / (1 + plans.mirrors)
    profile = framework_named(job.workload.framework)
    bucket_parameters = np.minimum(profile.bucket_parameters, parameters.total)
    one_bucket = bucket_parameters * state.gradient_bytes
    fixed = profile.memory.fixed_bucket
    owned = np.where(zero >= 1, sharded, parameters.total)
    offloaded = _offload_buffer_bytes(job, plans, owned, bucket_parameters)
    whole = np.where(zero >= 3, 2 * per_layer * state.weight_bytes, 0.0)
    whole += np.where(plans.reduces_every_pass, per_layer * state.gradient_bytes, 0.0)
    whole += np.where(zero >= 1, fixed * one_bucket, 0.0)
    whole += parameters.total * profile.memory.passing_gradient_bytes
    if profile.memory.layer_gradient_bytes:
        whole += profile.memory.layer_gradient_bytes * _running_parameters(job, plans, stages)
    updated = owned * ~plans.offload_optimizer
    if plans.optimizer_tile.any():
        updated = np.where(plans.optimizer_tile > 0, np.minimum(updated, plans.optimizer_tile), updated)
    return StateBytes(
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=np.where(plans.offload_optimizer, offloaded, optimizer),
        whole_bytes=whole,
        bucket_bytes=np.where(zero >= 1, 2 - fixed, 2) * one_bucket,
        update_bytes=updated * profile.memory.step_bytes,
    )


def visiting_bucket(job: Job, plans: Plans) -> Ints:
    """Parameters whose offloaded state visits the device at a time; 0: the host updates them."""
    own = framework_named(job.workload.framework).update.offload_bucket
    return np.where(plans.offload_bucket > 0, plans.offload_bucket, own) * plans.offload_optimizer


def _offload_buffer_bytes(job: Job, plans: Plans, owned: Floats, bucket: Floats) -> Floats:
    """What an offloaded optimizer keeps on the device: a bucket's gradients in fp32, or its whole state.

        host's update    4 bytes x the bucket that is reduced
        device's         (g_32 + master + moments) x the bucket: all of 16 bytes with Adam

    With 16-bit weights and gradients a device then holds 4 phi + 16 b bytes in place of 20 phi.

    Source
    ------
    Singh and Bhatele (2021), arXiv:2110.13005, section on memory; axonn/optim.py, CPUAdam: four fp32 buffers.
    """
    on_host = bucket * OFFLOAD_BUFFER_BYTES_PER_BUCKET_PARAMETER
    visiting = visiting_bucket(job, plans)
    if not visiting.any():
        return on_host
    gradient_bytes = OFFLOAD_BUFFER_BYTES_PER_BUCKET_PARAMETER
    held = np.minimum(visiting, owned) * (job.workload.training_state.kept_bytes + gradient_bytes)
    return np.where(visiting > 0, held, on_host)


def _running_parameters(job: Job, plans: Plans, stages: Stages) -> Floats:
    """Parameters of one layer, one expert in it, and of the output layer where the stage has it."""
    model, tp = job.model, plans.tp
    layer: Floats = layer_rank_parameters(model, tp).astype(np.float64)
    if model.moe is not None:
        routed = layer_rank_parameters(model, tp, "moe") + expert_parameters(model) / plans.etp
        layer = np.where(stages.n_moe > 0, routed, layer)
    return layer + stages.is_last * np.ceil(model.embedding.vocab_size / tp) * model.d_model


def _sharded(plans: Plans, parameters: RankParameters) -> Floats:
    """Parameters on one device once split over the devices that share them."""
    copies = 1 + plans.mirrors
    return parameters.dense / (copies * plans.dp * plans.cp) + parameters.expert / (copies * plans.edp)


def held_parameters(job: Job, plans: Plans, stages: Stages) -> RankParameters:
    """Parameters on one device of each stage, those of the second copy included where a plan has one."""
    own = rank_parameters(job, plans, stages)
    if not plans.mirrors.any():
        return own
    other = rank_parameters(job, plans, stages_of(job, plans, mirrored(plans, stages.index)))
    return RankParameters(
        dense=own.dense + plans.mirrors * other.dense, expert=own.expert + plans.mirrors * other.expert
    )


def held_states(job: Job, plans: Plans) -> StateBytes:
    """State of the representative stages; arrays of shape (n_representatives, n_plans)."""
    stages = held_stages(job, plans, representatives(job, plans).index)
    return state_bytes(job, plans, held_parameters(job, plans, stages), stages)


def state_times(job: Job, plans: Plans) -> StateTimes:
    """Seconds of the stages that share and update their state the longest."""
    stages = stages_of(job, plans, representatives(job, plans).index)
    parameters = held_parameters(job, plans, stages)
    fullest = np.argmax(parameters.total, axis=0)[None]
    dense = np.take_along_axis(parameters.dense, fullest, axis=0)[0]
    expert = np.take_along_axis(parameters.expert, fullest, axis=0)[0]
    one = RankParameters(dense=dense, expert=expert)
    sharing = _slowest_sharing_s(job, plans, parameters, one, np.max(stages.n_layers, axis=0))
    owned = np.where(plans.zero >= 1, _sharded(plans, parameters), parameters.total)
    update = _update_s(job, plans, np.max(owned, axis=0), np.max(stages.n_layers, axis=0))
    return StateTimes(
        reduce_s=sharing.reduce_s,
        gather_s=(sharing.gather_s + sharing.gather_again_s) / 2,
        tie_s=tie_s(job, plans) + _copies_s(job, plans, one),
        optimizer_s=update.on_device_s,
        offload_s=update.offloaded_s,
        visited_s=update.visited_s,
        reduced_pieces=reduced_pieces(job, plans, one.total),
    )


def reduced_pieces(job: Job, plans: Plans, n_parameters: Floats) -> Floats:
    """Pieces in which so many gradients arrive, where each is updated as it does: phi / (k b); else 1.

    k coalesced buckets of b parameters each travel at a time.

    Source
    ------
    axonn/optim.py, CPUAdam.step: all-reduces are issued in pieces of coalescing_factor buckets, and each
    bucket's update waits for its piece alone.
    """
    if not plans.coalesced_buckets.any():
        return np.ones(len(plans))
    piece = np.maximum(plans.coalesced_buckets * visiting_bucket(job, plans), 1)
    pieces: Floats = np.where(plans.coalesced_buckets > 0, np.ceil(n_parameters / piece), 1.0)
    return np.maximum(pieces, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageSharing:
    """Seconds in which each device of a stage shares and updates its state once; shape (n_stages,).

    `gather_again_s` is a gather before a backward pass.  `copies_s` adds up the gradients of two copies of
    the model.
    """

    reduce_s: Floats
    gather_s: Floats
    gather_again_s: Floats
    optimizer_s: Floats
    offload_s: Floats
    copies_s: Floats


def stage_sharing(job: Job, plans: Plans, parameters: RankParameters, n_layers: Ints) -> StageSharing:
    """The same for stages, each given as a row of plans with its own parameters and layers."""
    sharing = _sharing_s(job, plans, parameters, n_layers)
    owned = np.where(plans.zero >= 1, _sharded(plans, parameters), parameters.total)
    update = _update_s(job, plans, owned, n_layers)
    return StageSharing(
        reduce_s=sharing.reduce_s, gather_s=sharing.gather_s, gather_again_s=sharing.gather_again_s,
        optimizer_s=update.on_device_s, offload_s=update.offloaded_s,
        copies_s=_copies_s(job, plans, parameters),
    )  # fmt: skip


def _slowest_sharing_s(
    job: Job, plans: Plans, parameters: RankParameters, fullest: RankParameters, n_layers: Ints
) -> zero_plus.SharingTimes:
    """The longest reduction and gathers of all stages.

    The fullest stage's, unless stages differ in their share of experts: those travel over fewer devices, so
    one with fewer parameters may take longer.
    """
    if job.model.n_moe_layers in (0, job.model.n_layers):
        return _sharing_s(job, plans, fullest, n_layers)
    of_stages = [
        _sharing_s(job, plans, RankParameters(dense=dense, expert=expert), n_layers)
        for dense, expert in zip(parameters.dense, parameters.expert, strict=True)
    ]
    return zero_plus.SharingTimes(
        reduce_s=np.max([each.reduce_s for each in of_stages], axis=0),
        gather_s=np.max([each.gather_s for each in of_stages], axis=0),
        gather_again_s=np.max([each.gather_again_s for each in of_stages], axis=0),
    )


def _sharing_s(job: Job, plans: Plans, parameters: RankParameters, n_layers: Ints) -> zero_plus.SharingTimes:
    """Seconds of one gradient reduction, and of one weight gather before each pass.

    Gradients are all-reduced bucket by bucket, or reduce-scattered from stage 1 on.  Dense parameters go over
    dp x cp, routed experts over edp; one after the other.  Where a trainer shards by layers, each layer's
    travel by themselves from stage 2 on, those outside of layers as one more.
    """
    cluster, state = job.cluster, job.workload.training_state
    profile = framework_named(job.workload.framework)
    reduce_s, gather_s = np.zeros(len(plans)), np.zeros(len(plans))
    groups = (
        (parameters.dense, plans.dp * plans.cp, mesh.dp_members(cluster, plans)),
        (parameters.expert, plans.edp, mesh.edp_members(cluster, plans)),
    )
    pieces = np.where(plans.zero >= 2, n_layers + 1, 1) if profile.shards_by_layer else np.ones(len(plans))
    share = job.trainer.layer_share_operations
    issue_s = share.value * job.cluster.device.kernel_launch_s.value if share is not None else 0.0
    in_update = reduced_pieces(job, plans, parameters.total)
    for held, n, members in groups:
        gradients, weights = held * state.gradient_bytes, held * state.weight_bytes
        buckets = np.maximum(held / profile.bucket_parameters, 1.0)
        if plans.coalesced_buckets.any():
            buckets = np.where(plans.coalesced_buckets > 0, in_update, buckets)
            pieces = np.where(plans.coalesced_buckets > 0, in_update, pieces)
        whole = buckets * all_reduce_s(cluster, n, members, gradients / buckets)
        apart_s = (pieces > 1) * (n > 1) * (held > 0) * pieces * issue_s
        scattered = pieces * reduce_scatter_s(cluster, n, members, gradients / pieces) + apart_s
        reduce_s += np.where(plans.zero == 0, whole, scattered)
        gather_s += pieces * all_gather_s(cluster, n, members, weights / pieces) + apart_s
    plain = zero_plus.SharingTimes(reduce_s=reduce_s, gather_s=gather_s, gather_again_s=gather_s)
    return _in_fewer_bits(job, plans, parameters, plain) if zero_plus.is_asked(plans) else plain


def _in_fewer_bits(
    job: Job, plans: Plans, parameters: RankParameters, plain: zero_plus.SharingTimes
) -> zero_plus.SharingTimes:
    """The plain times, or where a plan moves fewer bits or nearer weights, those."""
    dense, expert = (
        zero_plus.sharing_times(job, plans, group) for group in zero_plus.sharing_groups(plans, parameters)
    )
    again_s = dense.gather_again_s + expert.gather_again_s
    near, bits = plans.hpz > 1, plans.quantized_weights
    return zero_plus.SharingTimes(
        reduce_s=np.where(plans.quantized_gradients, dense.reduce_s + expert.reduce_s, plain.reduce_s),
        gather_s=np.where(bits, dense.gather_s + expert.gather_s, plain.gather_s),
        gather_again_s=np.where(bits | near, again_s, plain.gather_again_s),
    )


def tie_s(job: Job, plans: Plans) -> Floats:
    """Seconds of the all-reduce of tied embeddings' gradients: V h / t, between the first and the last stage.

    Source
    ------
    Shoeybi et al. (2019), arXiv:1909.08053, section 3; Megatron-LM's embedding group.
    """
    embedding = job.model.embedding
    if not embedding.tied:
        return np.zeros(len(plans))
    width = embedding.width or job.model.d_model
    apart = (plans.pp > 1) & ~plans.folds
    entries = np.ceil(embedding.vocab_size / plans.tp) * width * apart
    return send_s(
        job.cluster, mesh.pp_tier(job.cluster, plans), entries * job.workload.training_state.gradient_bytes
    )


def _copies_s(job: Job, plans: Plans, parameters: RankParameters) -> Floats:
    """Seconds of adding up the gradients of two copies: what a device reduced, with its mirror image.

    Source
    ------
    DeepSeek-AI (2024), arXiv:2412.19437, section 3.2.1: rank i and rank p - 1 - i hold the same parameters.
    """
    if not plans.mirrors.any():
        return np.zeros(len(plans))
    replicas = np.where(plans.zero >= 1, plans.dp * plans.cp, 1)
    expert_replicas = np.where(plans.zero >= 1, plans.edp, 1)
    entries = parameters.dense / replicas + parameters.expert / expert_replicas
    gradients = plans.mirrors * entries * job.workload.training_state.gradient_bytes
    return send_s(job.cluster, mesh.pp_tier(job.cluster, plans), gradients)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Update:
    """Seconds of the optimizer on the device; of an offloaded one; and of the device's own work in these."""

    on_device_s: Floats
    offloaded_s: Floats
    visited_s: Floats


def _update_s(job: Job, plans: Plans, owned: Floats, n_layers: Ints) -> _Update:
    """Seconds of the optimizer on the device; and of an offloaded one, its transfers included.

        update reads and writes o bytes, reads g, writes w, per parameter it owns

    Offloaded, the host updates and gets gradients and gives weights; or, bucket by bucket, master weights and
    moments come to the device and go back, one after the other.
    `owned` is that of the stage whose devices own the most: the step waits for it.
    Assumes an update that is bound by memory, wherever it runs; in tiles, each issues its operations.

    Source
    ------
    Ren et al. (2021), arXiv:2101.06840, section 4 (host); axonn/optim.py, CPUAdam.step (buckets); Singh et
    al. (2023), arXiv:2303.06318, tiled optimizer.
    """
    state = job.workload.training_state
    moved = owned * (2 * state.optimizer_bytes + state.gradient_bytes + state.weight_bytes)
    on_device = memory_bound_s(job, moved)
    transfer = (
        owned * (state.gradient_bytes + state.weight_bytes) / job.cluster.device.host_bandwidth_bytes_per_s
    )
    on_host = transfer + moved / HOST_OPTIMIZER_BYTES_PER_S.value
    visiting, visited = visiting_bucket(job, plans), np.zeros(len(plans))
    if visiting.any():
        visited = np.where(visiting > 0, on_device, 0.0)
        there_and_back = owned * 2 * state.kept_bytes / job.cluster.device.host_bandwidth_bytes_per_s
        on_host = np.where(visiting > 0, there_and_back + on_device, on_host)
    if plans.optimizer_tile.any():
        on_device = np.maximum(on_device, tiles_issue_s(job, plans, owned))
    copies = _shard_s(job, plans, n_layers)
    return _Update(
        on_device_s=np.where(plans.offload_optimizer, 0.0, on_device + copies),
        offloaded_s=np.where(plans.offload_optimizer, on_host + copies, 0.0),
        visited_s=visited,
    )


def tiles_issue_s(job: Job, plans: Plans, owned: Floats) -> Floats:
    """Host seconds of issuing an update's operations tile by tile; 0 where all parameters are one."""
    tiles = np.ceil(owned / np.maximum(plans.optimizer_tile, 1)) * (plans.optimizer_tile > 0)
    issue_s: Floats = tiles * TILE_OPERATIONS * job.cluster.device.kernel_launch_s.value
    return issue_s


def _shard_s(job: Job, plans: Plans, n_layers: Ints) -> Floats:
    """Host seconds of copying a stage's parameters into one piece per replica and back, where a trainer does.

        operations per layer and replica * layers * D * seconds to issue one

    Source
    ------
    nanotron, src/nanotron/distributed.py, reduce_scatter_coalesced, all_gather_coalesced: loops over ranks.
    """
    operations = job.trainer.shard_operations.value * n_layers * plans.dp
    seconds: Floats = (plans.zero >= 1) * (plans.dp > 1) * operations
    return seconds * job.cluster.device.kernel_launch_s.value


def deepspeed_bytes_after_step(n_parameters: Floats, dp: Floats) -> Floats:
    """Bytes DeepSpeed's fp16 ZeRO-1 keeps between steps: phi (2 + 14 / D).

    Weights whole; fp32 master, two moments and the averaged fp16 gradient sharded.

    Source
    ------
    Log gpt175b_megatron_16N of the Frontier study (23,361 MiB on a middle stage at D = 2).
    """
    return n_parameters * (2 + 14 / dp)
