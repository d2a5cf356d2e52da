"""Seconds that one step's exchanges take, as torch's profiler sees them on this rank.

    total = length of the union of all exchanges' intervals, waiting for the other ranks included

On the CPU an exchange is gloo's work, from its start to its end; on a device the kernel of NCCL or RCCL.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch.profiler import ProfilerActivity, profile

from search_spaces.units import US

_CPU_PREFIX, _DEVICE_PREFIX = "gloo:", "nccl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Communication:
    """One rank's step under the profiler: its seconds, those with an exchange under way, and of each kind."""

    step_s: float
    total_s: float
    by_kind_s: dict[str, float]


def profiled(step: Callable[[], float], device: str) -> Communication:
    """Do a step, which answers with its seconds, under the profiler."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=kinds) as profiler:
        step_s = step()
    found = [(_kind(event.name), event.time_range) for event in profiler.events() if _is_exchange(event)]
    by_kind = Counter[str]()
    for kind, interval in found:
        by_kind[kind] += (interval.end - interval.start) * US
    total_s = union_length((each.start, each.end) for _, each in found) * US
    return Communication(step_s=step_s, total_s=total_s, by_kind_s=dict(by_kind))


def _is_exchange(event: Any) -> bool:
    """Kernels of a device are told from the host's calls of the same name by where they ran."""
    if event.name.startswith(_CPU_PREFIX):
        return True
    return _DEVICE_PREFIX in event.name.lower() and event.device_type.name == "CUDA"


def _kind(name: str) -> str:
    """`all_reduce` of `gloo:all_reduce`, `AllReduce` of `ncclDevKernel_AllReduce_Sum_f32_RING_LL(...)`."""
    if name.startswith(_CPU_PREFIX):
        return name.removeprefix(_CPU_PREFIX)
    return (name.partition("(")[0].split("_")[1:2] or [name])[0]


def union_length(intervals: Iterable[tuple[float, float]]) -> float:
    """How much of the line is covered by at least one of the intervals."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        covered += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return covered
