"""Peak bytes of a rank counted on fake tensors: they have shapes and no memory, exchanges have no peer.

What torch's own tracker counts is the same on fake tensors as on real ones.  What differs from the run:
tokens go evenly to the experts, because a router without values sends them nowhere; gradients that
DistributedDataParallel would overlap are summed after the step; tensors that wait to be sent to another
stage are gone at once; what gloo copies for itself (a reduce-scatter's input) and allocators' rounding are
left out.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType
from torch.distributed.pipelining.stage import InferenceMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from runners.torch_trial.data import shards_parameters
from runners.torch_trial.train import Setting, Trainer

N_STEPS = 2  # the first one makes the optimizer's state
_KINDS = {
    "weights": (_MemRefType.PARAM, _MemRefType.BUFFER),
    "gradients": (_MemRefType.GRAD,),
    "optimizer": (_MemRefType.OPT,),
    "activations": (_MemRefType.ACT,),
    "other": (_MemRefType.TEMP, _MemRefType.OTH),
}


class _NoModules:
    """In place of torch's tracker of modules, whose hooks halved backward passes refuse."""

    @property
    def is_bw(self) -> bool:
        """Whether a backward pass runs."""
        return bool(torch._C._current_graph_task_id() != -1)

    def register_user_hooks(self, *_: Any) -> None:
        """None."""

    def clear_user_hooks(self) -> None:
        """None."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _Tracker(MemTracker):
    """Counts by kind, but not by module: the passes of several micro-batches may be under way in one."""

    def __init__(self) -> None:
        super().__init__()
        self._mod_tracker = _NoModules()

    def follow(self, trainer: Trainer) -> None:
        """Count what exists already, and gradients as such."""
        for module in trainer.copies.modules:
            self._track_module_params_and_buffers(module, install_grad_hooks=True)
        weights = {id(parameter) for parameter, _ in trainer.copies.parameters()}
        for group in trainer.optimizer.adam.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in weights:  # an fp32 copy
                    self._update_and_maybe_create_winfos(parameter, _MemRefType.OPT)


def peak_bytes(setting: Setting, rank: int, scratch: Path) -> dict[str, float]:
    """Peak of a rank, "total" and by kind at that moment; this process must be in no group of ranks yet."""
    plan = replace(setting.plan, overlap_dp=False)
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=plan.world_size)
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainer = Trainer(replace(setting, plan=plan, compiles=False), rank, scratch=scratch)
        if trainer.pipeline:
            trainer.pipeline.schedule._warmup_p2p = _agree_at_once
        if shards_parameters(
            trainer.layout
        ):  # the fused update of sharded fake tensors makes copies of them all
            for group in trainer.optimizer.adam.param_groups:
                group.update(fused=False, foreach=False)
        return count(trainer)


def count(trainer: Trainer) -> dict[str, float]:
    """Peak bytes while a trainer does some steps, on fake tensors or real ones."""
    tracker = _Tracker()
    tracker.follow(trainer)
    with tracker:
        for step in range(N_STEPS):
            trainer.gradients(*trainer.data(step))
            trainer.update()
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    by_kind = {name: float(sum(peak[kind] for kind in kinds)) for name, kinds in _KINDS.items()}
    return {"total": float(peak["Total"]), **by_kind}


def _agree_at_once(stages: Sequence[Any], *_: Any) -> None:
    """Instead of torch's vote among the stages on how shapes are known, which needs values."""
    for stage in stages:
        stage._inference_mode = InferenceMode.STATIC
