"""Lines of nanotron 0.4 and later.

Source: src/nanotron/trainer.py, `train_step_logs`; src/nanotron/logging/base.py, `human_format` and
`log_memory`.  Every number has three digits, so a step's seconds are good to half a percent.
`model_tflops_per_gpu` counts the model's FLOPs, `hardware_tflops_per_gpu` (before 2025) recomputation too.
"""

import re
from collections.abc import Iterable, Iterator

from runners.logs.facts import (
    Convention,
    Disturbance,
    DisturbanceFact,
    Fact,
    MemoryFact,
    StepFact,
)
from search_spaces.units import BILLION, KILO, MIB, MILLION

_STEP = re.compile(r"\biteration: (?P<step>\d+) / \d+ \| ")
_ITEM = re.compile(r"(?P<name>\w+): (?P<value>[-\d.einfa]+)(?P<size>[KMBTPE]?)(?= \||\s*$)")
_MEMORY = re.compile(
    r"Memory usage: [\d.]+MiB\. Peak allocated:? [\d.]+MiB\. Peak reserved: (?P<peak>[\d.]+)MiB"
)
_SIZES = {
    "": 1.0, "K": KILO, "M": MILLION, "B": BILLION,
    "T": KILO * BILLION, "P": MILLION * BILLION, "E": BILLION * BILLION,
}  # fmt: skip
_STEP_MS = ("time_per_iteration_ms", "elapsed_time_per_iteration_ms")


class NanotronLog:
    """The reader `nanotron`."""

    name = "nanotron"
    convention: Convention | None = Convention.MFU

    def read(self, text: str) -> Iterable[Fact]:
        """Facts of one line."""
        if "iteration: " in text and (match := _STEP.search(text)):
            yield from _step(int(match["step"]), text[match.end() :])
        elif "Peak reserved: " in text and (match := _MEMORY.search(text)):
            yield MemoryFact(peak_bytes=float(match["peak"]) * MIB, kind="reserved", rank=0)
        elif "Saving checkpoint at " in text:
            yield DisturbanceFact(kind=Disturbance.CHECKPOINT)
        elif "[Validation]" in text or "validation_loss: " in text:
            yield DisturbanceFact(kind=Disturbance.VALIDATION)


def _step(step: int, text: str) -> Iterator[Fact]:
    items = {match["name"]: _amount(match) for match in _ITEM.finditer(text)}
    step_ms = next((items[name] for name in _STEP_MS if name in items), None)
    if step_ms is None:
        return
    yield StepFact(
        step=step,
        step_s=step_ms / 1000,
        tokens_per_s=items.get("tokens_per_sec"),
        tokens_per_s_per_device=items.get("tokens_per_sec_per_gpu"),
        tflops_per_device=items.get("model_tflops_per_gpu"),
        hardware_tflops_per_device=items.get("hardware_tflops_per_gpu"),
        loss=items.get("lm_loss"),
        peak_bytes=items.get("cuda_max_memory_reserved"),
    )


def _amount(match: re.Match[str]) -> float:
    try:
        return float(match["value"]) * _SIZES[match["size"]]
    except ValueError:
        return float("nan")
