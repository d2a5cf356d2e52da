"""What each rank's process does: join the others, train some steps, tell what they took.

    step seconds = from a barrier to the end of the slowest rank's update

The median is over the steps behind the warm-up; a step above SPIKE times the median is counted as a spike.
"""

import contextlib
import gc
import math
import os
import resource
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
import torch.distributed.fsdp
import torch.distributed.pipelining
import torch.distributed.tensor

from runners.power_meter import Reading, read_nvidia, read_processors, spent_j
from runners.torch_trial.communication import Communication, profiled
from runners.torch_trial.fake import peak_bytes
from runners.torch_trial.ranks import At, Broken, Tell
from runners.torch_trial.train import Setting, Trainer
from runners.torch_trial.verdict import OUT_OF_MEMORY_WORDS
from search_spaces.units import KIB

BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
_DISK = ("No space left on device", "Disk quota exceeded", "File too large")  # ENOSPC, EDQUOT, EFBIG
_COLLECTIVE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "gloo",
    "NCCL",
    "Timed out",
    "Broken pipe",
)


class NanLoss(ArithmeticError):
    """The loss is not a finite number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """How long a rank trains and under which limits (0: none)."""

    setting: Setting
    n_steps: int
    n_warmup: int
    n_threads: int
    silence_s: float
    memory_limit_bytes: float = 0.0
    profiles: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """One rank's figures: seconds of every step with the warm-up, losses, and its peak bytes by source.

    `busy_s` are the seconds of each step in which the processor worked for the rank, exchanges included: on a
    machine that others use a step takes longer than that.  `joined_s` is when it had met the others, on the
    clock that all processes share; `communication` is of one more step behind the others, where it was asked
    for.  `energy_j` are the joules of its device, or in rank 0 of all processors, over the steps behind the
    warm-up; None where nothing tells.
    """

    steps_s: tuple[float, ...]
    busy_s: tuple[float, ...]
    losses: tuple[float, ...]
    peak_bytes: dict[str, float]
    build_s: float
    joined_s: float
    communication: Communication | None = None
    energy_j: float | None = None


def prepare() -> None:
    """Once in the process that ranks are forked from: what is loaded is shared, and not looked at again."""
    gc.collect()
    gc.freeze()


def train(orders: Orders, rank: int, tell: Tell, *, folder: Path) -> Findings:
    """One rank's trial.

    Raises
    ------
    NanLoss
        The loss is not finite.
    """
    started_s = time.perf_counter()
    setting = orders.setting
    torch.set_num_threads(orders.n_threads)
    _join(setting, rank, folder, timeout_s=1.5 * orders.silence_s)
    joined_s = time.monotonic()
    _limit_memory(orders.memory_limit_bytes)
    tell(At(place="build"))
    trainer = Trainer(setting, rank, scratch=folder)
    build_s = time.perf_counter() - started_s
    steps_s, busy_s, losses = [], [], []
    _forget_peak(setting.device)
    n_steps = orders.n_warmup + orders.n_steps
    begun = None
    for step in range(n_steps):
        if step == orders.n_warmup:
            begun = _read_energy(setting.device, rank)
        tell(At(place=f"step {step + 1}", step=step))
        step_s, worked_s, loss = _step(trainer, step)
        steps_s.append(step_s)
        busy_s.append(worked_s)
        losses.append(loss)
        if not math.isfinite(loss):
            raise NanLoss(f"the loss of step {step + 1} is {loss}")
    energy_j = spent_j(begun, _read_energy(setting.device, rank))
    peaks = _peak_bytes(setting.device)
    communication = None
    if orders.profiles:
        tell(At(place="the profiled step", step=n_steps))
        tokens, targets = trainer.data(n_steps)
        dist.barrier()
        communication = profiled(lambda: _passes(trainer, tokens, targets)[0], setting.device)
    return Findings(
        steps_s=tuple(steps_s),
        busy_s=tuple(busy_s),
        losses=tuple(losses),
        peak_bytes=peaks,
        build_s=build_s,
        joined_s=joined_s,
        communication=communication,
        energy_j=energy_j,
    )


def _read_energy(device: str, rank: int) -> Reading | None:
    """A rank's own accelerator; processors, which all ranks share, by rank 0 alone."""
    if device == "cuda":
        return read_nvidia(f"GPU-{torch.cuda.get_device_properties(rank).uuid}")
    return read_processors() if rank == 0 else None


def _step(trainer: Trainer, step: int) -> tuple[float, float, float]:
    """Seconds of one step, those in which the processor worked for it, and the loss."""
    tokens, targets = trainer.data(step)
    dist.barrier()
    begun_s = time.process_time()
    step_s, share = _passes(trainer, tokens, targets)
    return step_s, time.process_time() - begun_s, trainer.whole_loss(share)


def _passes(trainer: Trainer, tokens: Any, targets: Any) -> tuple[float, Any]:
    """Seconds of all passes and the update, and this rank's share of the loss."""
    begun_s = time.perf_counter()
    share = trainer.gradients(tokens, targets)
    trainer.update()
    _wait_for_device(trainer.setting.device)
    return time.perf_counter() - begun_s, share


def count_on_fake_tensors(setting: Setting, rank: int, folder: Path) -> dict[str, float]:
    """Peak bytes of a rank by kind, without its tensors; in a process of its own."""
    torch.set_num_threads(1)
    return peak_bytes(setting, rank, folder)


def _join(setting: Setting, rank: int, folder: Path, *, timeout_s: float) -> None:
    """Meet the other ranks at a file: no port that could be taken, none that could be left open."""
    world = setting.plan.world_size
    if setting.device == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        BACKENDS[setting.device],
        store=dist.FileStore(str(folder / "store"), world),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=timeout_s),
    )


def explain(error: BaseException) -> Broken:
    """The kind of trouble that an exception is, and its first line."""
    words = (str(error).strip().splitlines() or [""])[0]
    message = f"{type(error).__name__}: {words}"[:300]
    if isinstance(error, NanLoss):
        return Broken(kind="nan loss", message=words)
    text = _chain(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        each in text for each in OUT_OF_MEMORY_WORDS
    ):
        return Broken(kind="out of memory", message=message)
    if any(each in text for each in _DISK):
        return Broken(kind="disk", message=message)
    if isinstance(error, dist.DistError) or any(each in text for each in _COLLECTIVE):
        return Broken(kind="collective", message=message)
    return Broken(kind="error", message=message)


def _chain(error: BaseException | None) -> str:
    """The words of an exception and of those that it came from."""
    words = []
    while error is not None:
        words.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(words)


def _limit_memory(limit_bytes: float) -> None:
    """So many bytes beyond what the process has: above them allocations fail, as on a full device."""
    if limit_bytes:
        pages = int(Path("/proc/self/statm").read_text().split()[5])  # data and stack
        held = pages * os.sysconf("SC_PAGE_SIZE")
        most = held + int(limit_bytes)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _forget_peak(device: str) -> None:
    """Begin the peak anew, behind what building the model took."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak resident set size


def _peak_bytes(device: str) -> dict[str, float]:
    """Peak bytes by who counts them."""
    peaks = {"resident": _peak_resident_bytes()}
    if device == "cuda":
        peaks["allocated"] = float(torch.cuda.max_memory_allocated())
        peaks["reserved"] = float(torch.cuda.max_memory_reserved())
    return peaks


def _peak_resident_bytes() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * KIB
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * KIB


def _wait_for_device(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def device_count() -> int:
    """CUDA or ROCm devices, found without starting a driver context, which would forbid to fork."""
    return int(torch.cuda.device_count())


def device_name(device: str) -> str:
    """What the ranks compute on."""
    return str(torch.cuda.get_device_name(0)) if device == "cuda" else "cpu"


def versions() -> dict[str, Any]:
    """What a figure may depend on."""
    return {"torch": str(torch.__version__)}
