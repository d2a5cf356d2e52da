"""Copies of the model that see other data: gradients summed, and what is sharded over the copies.

    zero 0    every copy holds everything; buckets after the backward pass, or with overlap_dp while it runs:
              DistributedDataParallel, and in a pipeline each chunk as soon as its last pass is done
    zero 1    gradients are reduce-scattered, each copy updates its part, parameters are all-gathered
    zero 2    FSDP2 that keeps parameters whole between the passes
    zero 3    FSDP2 that gathers parameters for each pass

Every rank's loss is its tokens' share of the step's mean, so that gradients are summed, never averaged.

Source: Rajbhandari et al. (2020), arXiv:1910.02054, section 5; Zhao et al. (2023), arXiv:2304.11277.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from runners.torch_trial.collectives import Group, all_reduce, make_group
from runners.torch_trial.experts import Experts
from runners.torch_trial.layout import Layout
from runners.torch_trial.model import Chunk
from runners.torch_trial.weights import Weight, named_weights

BUCKET_PARAMETERS = 12_500_000  # DistributedDataParallel's 25 MB of 16-bit gradients


def shards_parameters(layout: Layout) -> bool:
    """Whether FSDP holds the parameters."""
    return layout.plan.zero >= 2 and layout.data.size > 1


class Copies:
    """The chunks of one rank among their copies."""

    def __init__(
        self,
        chunks: Sequence[Chunk],
        layout: Layout,
        *,
        compute_dtype: Any,
        is_tied: bool,
        n_replicas: int = 1,
    ) -> None:
        self.layout, self.chunks = layout, list(chunks)
        self.is_tied_over_stages = is_tied and layout.plan.pp > 1
        self.weights = [named_weights(chunk) for chunk in chunks]
        self.meshes = _meshes(layout, chunks[0], n_replicas) if shards_parameters(layout) else None
        self.modules: list[nn.Module] = [self._wrapped(chunk, compute_dtype) for chunk in self.chunks]
        self._started: list[tuple[Any, Sequence[Any], Any]] = []

    def _wrapped(self, chunk: Chunk, compute_dtype: Any) -> nn.Module:
        if shards_parameters(self.layout):
            return _sharded(chunk, self.layout, compute_dtype, self.meshes)
        return _replicated(chunk, self.layout) if self._overlaps() and self.layout.plan.pp == 1 else chunk

    def _overlaps(self) -> bool:
        plan = self.layout.plan
        return plan.zero == 0 and plan.overlap_dp and self.layout.data.size > 1

    def parameters(self) -> Iterable[tuple[Any, Weight]]:
        """Every parameter with what it is."""
        for chunk, weights in zip(self.chunks, self.weights, strict=True):
            for name, parameter in chunk.named_parameters():
                yield parameter, weights[name]

    def accumulating(self, *, is_last: bool) -> AbstractContextManager[Any]:
        """Around the passes of one micro-batch of a model without a pipeline: only the last one reduces."""
        (module,) = self.modules
        if isinstance(module, DistributedDataParallel) and not is_last:
            paused: AbstractContextManager[Any] = module.no_sync()
            return paused
        return nullcontext()

    def start_reduction(self, chunk: int) -> None:
        """In a pipeline that overlaps: sum this chunk's gradients while the others go on."""
        if not self._overlaps():
            return
        for is_expert, group in self._kinds():
            parameters = self._of_kind(is_expert=is_expert, chunks=[chunk])
            _fill_missing(parameters)
            if group.size > 1:
                for bucket in buckets([p.grad for p in parameters]):
                    flat = torch.cat([x.flatten() for x in bucket])
                    work = dist.all_reduce(flat, group=group.handle, async_op=True)
                    self._started.append((work, bucket, flat))

    def reduce(self) -> None:
        """After the step's last backward pass: every rank has the whole gradient of what it holds."""
        _fill_missing([parameter for parameter, _ in self.parameters()])
        for work, bucket, flat in self._started:
            work.wait()
            _lay_back(flat, bucket)
        self._started.clear()
        self._reduce_shares("tp", self.layout.tp)
        self._reduce_shares("kv", self.layout.kv)
        self._reduce_tied()
        if shards_parameters(self.layout) or self.layout.plan.zero == 1:
            return  # FSDP has done it; the sharded optimizer does it
        for is_expert, group in self._kinds():
            if not self._is_reduced(is_expert=is_expert):
                sum_gradients(self._of_kind(is_expert=is_expert, chunks=range(len(self.chunks))), group)

    def _kinds(self) -> tuple[tuple[bool, Group], ...]:
        return (False, self.layout.data), (True, self.layout.expert_data)

    def _of_kind(self, *, is_expert: bool, chunks: Iterable[int]) -> list[Any]:
        return [
            parameter
            for chunk in chunks
            for name, parameter in self.chunks[chunk].named_parameters()
            if self.weights[chunk][name].is_expert is is_expert
        ]

    def _is_reduced(self, *, is_expert: bool) -> bool:
        """By DistributedDataParallel, which leaves experts to us, or since the pipeline's last passes."""
        return self._overlaps() and (self.layout.plan.pp > 1 or not is_expert)

    def _reduce_shares(self, over: str, group: Group) -> None:
        sum_gradients([p for p, weight in self.parameters() if weight.summed_over == over], group)

    def _reduce_tied(self) -> None:
        """The table on the first stage and its copy on the last one have one gradient."""
        copies = [(p, w) for p, w in self.parameters() if w.name == "embedding.table"]
        if len(copies) == 2:
            total = copies[0][0].grad + copies[1][0].grad
            for parameter, _ in copies:
                parameter.grad.copy_(total)
        elif copies and self.is_tied_over_stages:
            sum_gradients([copies[0][0]], self.layout.ends)

    def zero_gradients(self) -> None:
        """Before a step."""
        for module in self.modules:
            for parameter in module.parameters():
                parameter.grad = None


def _fill_missing(parameters: Iterable[Any]) -> None:
    """A parameter that this step did not use has a gradient of zero, as its copies may have another."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def sum_gradients(parameters: Sequence[Any], group: Group) -> None:
    """Add the gradients of all ranks, a bucket at a time."""
    if group.size == 1 or not parameters:
        return
    for bucket in buckets([local(p.grad) for p in parameters]):
        flat = torch.cat([x.flatten() for x in bucket])
        all_reduce(flat, group)
        _lay_back(flat, bucket)


def _lay_back(flat: Any, bucket: Sequence[Any]) -> None:
    for x, part in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
        x.copy_(part.view_as(x))


def buckets(tensors: Sequence[Any]) -> list[list[Any]]:
    """Runs of tensors with at most BUCKET_PARAMETERS entries, or one tensor."""
    runs: list[list[Any]] = []
    room = 0
    for x in tensors:
        if x.numel() > room or not runs:
            runs.append([])
            room = BUCKET_PARAMETERS
        runs[-1].append(x)
        room -= x.numel()
    return runs


def local(x: Any) -> Any:
    """The rank's own part of a sharded tensor, or the tensor itself."""
    return x.to_local() if isinstance(x, DTensor) else x


def _replicated(chunk: Chunk, layout: Layout) -> nn.Module:
    """DistributedDataParallel over the dense parameters; the experts' copies are others and come after it.

    It averages; a factor on the gradients it sees would be one more pass over them, so its hook sums.
    """
    experts = [name for name, weight in named_weights(chunk).items() if weight.is_expert]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
        chunk, [*experts, "places", "rotation"]
    )
    module = DistributedDataParallel(
        chunk, process_group=layout.data.handle, broadcast_buffers=False, gradient_as_bucket_view=True
    )
    module.register_comm_hook(layout.data.handle, _sum_bucket)
    return module


def _sum_bucket(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    future = dist.all_reduce(bucket.buffer(), group=group, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Meshes:
    """The ranks over which FSDP cuts dense parameters, and experts."""

    dense: DeviceMesh
    expert: DeviceMesh


def _meshes(layout: Layout, chunk: Chunk, n_replicas: int) -> Meshes:
    """With several replicas dense parameters are cut within each of them and copied over them (HSDP)."""
    kind, groups = chunk.places.device.type, _replicas(layout, n_replicas)
    with (
        unset_fake_temporarily()
    ):  # a mesh is made of real numbers, also where memory is counted on fake ones
        dense = (
            DeviceMesh.from_group(layout.data.handle, kind)
            if n_replicas == 1
            else DeviceMesh.from_group(
                [group.handle for group in groups],
                kind,
                mesh=torch.tensor(layout.data.ranks).view(n_replicas, -1),
                mesh_dim_names=("replicas", "shards"),
            )
        )
        return Meshes(dense=dense, expert=DeviceMesh.from_group(layout.expert_data.handle, kind))


def _replicas(layout: Layout, n_replicas: int) -> tuple[Group, ...]:
    """The ranks with this one's part in every replica, and the ranks of its own replica."""
    if n_replicas == 1:
        return ()
    ranks, n = layout.data.ranks, layout.data.size // n_replicas
    replica, place = divmod(layout.data.index, n)
    across, within = ranks[place::n], ranks[replica * n : (replica + 1) * n]
    return tuple(make_group(each, layout.rank, also_alone=True) for each in (across, within))


def _sharded(chunk: Chunk, layout: Layout, compute_dtype: Any, meshes: Meshes | None) -> nn.Module:
    """FSDP2, a group of parameters for each layer, the experts over their own copies."""
    assert meshes is not None
    plan, dense, expert = layout.plan, meshes.dense, meshes.expert
    options: dict[str, Any] = dict(
        reshard_after_forward=plan.zero == 3,
        mp_policy=MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32),
    )
    n = layout.expert_data.size
    for layer in chunk.layers:
        for part in layer.modules():
            if isinstance(part, Experts):
                fully_shard(part, mesh=expert, shard_placement_fn=lambda p: _even_dim(p, n), **options)
        fully_shard(layer, mesh=dense, **options)
    fully_shard(chunk, mesh=dense, **options)
    for part in chunk.modules():
        if isinstance(part, FSDPModule):
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
    return chunk


def _even_dim(parameter: Any, n: int) -> Shard | None:
    """The dim to cut experts along: one that divides evenly, else the first, padded."""
    even = [dim for dim, size in enumerate(parameter.shape) if size % n == 0]
    return Shard(even[0]) if even else None
