"""Any other trainer: it prints one JSON object a step, `{"step": 7, "step_s": 1.25}`.

Keys beside `step` and `step_s`: loss, tokens_per_s, tokens_per_s_per_device, samples_per_s,
tflops_per_device (the model's FLOPs), hardware_tflops_per_device (recomputation too), peak_memory_bytes,
n_skipped; `global_batch`, `micro_batch` and `seq_len` state what was really run.
"""

import json
from collections.abc import Iterable
from typing import Any

from runners.logs.facts import ClaimFact, Convention, Fact, StepFact

_NUMBERS = (
    "step_s", "loss", "tokens_per_s", "tokens_per_s_per_device", "samples_per_s", "tflops_per_device",
    "hardware_tflops_per_device",
)  # fmt: skip
_CLAIMS = ("global_batch", "micro_batch", "seq_len")


class JsonLinesLog:
    """The reader `json-lines`."""

    name = "json-lines"
    convention: Convention | None = Convention.MFU

    def read(self, text: str) -> Iterable[Fact]:
        """Facts of one line."""
        text = text.strip()
        if not (text.startswith("{") and text.endswith("}")):
            return
        try:
            items = json.loads(text)
        except (ValueError, RecursionError):
            return
        step = items.get("step")
        if not isinstance(step, int) or _number(items.get("step_s")) is None:
            return
        yield StepFact(
            step=step,
            peak_bytes=_number(items.get("peak_memory_bytes")),
            n_skipped=int(_number(items.get("n_skipped")) or 0),
            **_numbers(items),
        )
        for name in _CLAIMS:
            if isinstance(items.get(name), int):
                yield ClaimFact(source="step line", name=name, value=items[name])


def _numbers(items: dict[str, Any]) -> dict[str, Any]:
    return {name: _number(items.get(name)) for name in _NUMBERS}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
