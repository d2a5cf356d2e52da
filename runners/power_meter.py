"""Joules that a device or this machine's processors have drawn, by the counters that the system lets us read.

    NVML    nvmlDeviceGetTotalEnergyConsumption: millijoules of one NVIDIA device since its driver was loaded
    RAPL    /sys/class/powercap/intel-rapl:N/energy_uj: microjoules of one package, anew from a limit on

A counter that is not there, or may not be read (RAPL is root's on most systems), is no measurement: None.

Source: NVIDIA, NVML reference manual; Linux, Documentation/power/powercap/powercap.rst.
"""

import contextlib
import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"
MICRO, MILLI = 1e-6, 1e-3
_PACKAGE = re.compile(r"intel-rapl:\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Counters in joules by name, and after how many joules each starts anew (0: never)."""

    joules: Mapping[str, float]
    wraps_at: Mapping[str, float] = field(default_factory=dict)


def spent_j(before: Reading | None, after: Reading | None) -> float | None:
    """Joules between two readings; None where a counter is missing."""
    if before is None or after is None or before.joules.keys() != after.joules.keys():
        return None
    total = 0.0
    for name, begun in before.joules.items():
        drawn = after.joules[name] - begun
        total += drawn if drawn >= 0 else drawn + after.wraps_at.get(name, 0.0)
    return total if total > 0 else None


def read_processors(root: Path = POWERCAP) -> Reading | None:
    """Counters of all packages of this machine; None where one cannot be read."""
    joules, wraps = {}, {}
    try:
        for path in sorted(root.iterdir()):
            if _PACKAGE.fullmatch(path.name):
                joules[path.name] = float((path / "energy_uj").read_text()) * MICRO
                wraps[path.name] = float((path / "max_energy_range_uj").read_text()) * MICRO
    except (OSError, ValueError):
        return None
    return Reading(joules=joules, wraps_at=wraps) if joules else None


def read_nvidia(uuid: str, library: str = NVML) -> Reading | None:
    """The counter of one NVIDIA device, by its UUID (`GPU-...`); None where there is no driver to ask."""
    with contextlib.suppress(OSError, AttributeError):
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2() != 0:
            return None
        handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        found = nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle))
        if found == 0 and nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) == 0:
            return Reading(joules={uuid: millijoules.value * MILLI})
    return None
