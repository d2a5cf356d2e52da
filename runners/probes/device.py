"""The device that a rank measures: a core's share of this machine, or one accelerator."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import torch

from runners.probes.cases import Facts
from runners.probes.timing import Clock

FORMATS: Mapping[str, Any] = MappingProxyType(
    {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
)
FIRST_WITH_FP8 = (8, 9)  # compute capability that torch._scaled_mm asks for
FIRST_WITH_BF16 = (8, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Where tensors go, how to wait for its work, and the clock; a test brings its own of each."""

    kind: str
    where: Any
    synchronize: Callable[[], None]
    clock: Clock = time.perf_counter

    @property
    def main_format(self) -> Any:
        """The format of tensors whose arithmetic does not matter."""
        return torch.float32 if self.kind == "cpu" else torch.bfloat16

    def random(self, *shape: int, format_: str | None = None) -> Any:
        """A tensor of normal numbers; constant ones would spare the device power and be too fast."""
        dtype = FORMATS[format_] if format_ else self.main_format
        return torch.randn(*shape, device=self.where, dtype=torch.float32).to(dtype)


def open_device(kind: str, local_rank: int) -> Device:
    """The device of the rank of that number on its node."""
    if kind == "cpu":
        return Device(kind="cpu", where=torch.device("cpu"), synchronize=_nothing_to_wait_for)
    torch.cuda.set_device(local_rank)
    return Device(kind=kind, where=torch.device("cuda", local_rank), synchronize=torch.cuda.synchronize)


def facts(wanted: str | None) -> dict[str, Any]:
    """What this machine is; accelerators are preferred unless processors are wanted.

    ROCm answers as CUDA does.
    """
    kind = wanted or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        return {"error": "torch finds no accelerator"}
    n_cores = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else 0
    n_cores = n_cores or psutil.cpu_count() or 1
    found = _cpu_facts(n_cores) if kind == "cpu" else _accelerator_facts(n_cores)
    return asdict(found)


def reserve_bytes(device: Device) -> float:
    """Memory that is gone before any tensor: the process with its libraries, or the context and its own."""
    if device.kind == "cpu":
        return float(psutil.Process().memory_info().rss)
    free, total = torch.cuda.mem_get_info()
    return float(total - free - torch.cuda.memory_reserved())


def _cpu_facts(n_cores: int) -> Facts:
    return Facts(
        kind="cpu",
        device=processor_name(),
        torch=str(torch.__version__),
        formats=("fp32", "bf16", "fp16"),
        memory_bytes=float(psutil.virtual_memory().total),
        n_multiprocessors=1,
        n_devices=n_cores,
        n_cores=n_cores,
    )


def _accelerator_facts(n_cores: int) -> Facts:
    from_driver = _properties()
    return Facts(
        kind="cuda",
        device=str(from_driver.name),
        torch=str(torch.__version__),
        formats=accelerator_formats((int(from_driver.major), int(from_driver.minor))),
        memory_bytes=float(from_driver.total_memory),
        n_multiprocessors=int(from_driver.multi_processor_count),
        n_devices=_n_accelerators(),
        n_cores=n_cores,
    )


def accelerator_formats(capability: tuple[int, int]) -> tuple[str, ...]:
    """Formats that a generation's products take."""
    bf16 = ("bf16",) if capability >= FIRST_WITH_BF16 else ()
    fp8 = ("fp8",) if capability >= FIRST_WITH_FP8 and hasattr(torch, "_scaled_mm") else ()
    return (*bf16, "fp16", "fp32", *fp8)


def processor_name() -> str:
    """The processor as the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "processor"


def _properties() -> Any:
    return torch.cuda.get_device_properties(torch.cuda.current_device())


def _n_accelerators() -> int:
    return int(torch.cuda.device_count())


def _nothing_to_wait_for() -> None:
    pass
