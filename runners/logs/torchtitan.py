"""Lines of torchtitan 0.3.0.

Source: torchtitan/components/metrics.py, `MetricsProcessor.log` and `log_validation`; torchtitan/trainer.py
(batch and sequence length); torchtitan/components/checkpointer; torchtitan/tools/logging.py (the time stamp).
`tps` are tokens/s of one device; the TFLOP/s are model FLOPs after PaLM, full attention, no recomputation.
No line has the seconds of a step: they follow from the time stamps, to the millisecond, so that a wrong
batch cannot change them.  `memory` is what the allocator reserved.
"""

import re
from collections.abc import Iterable, Iterator
from datetime import datetime

from runners.logs.facts import (
    ClaimFact,
    Convention,
    Disturbance,
    DisturbanceFact,
    Fact,
    StepFact,
    number,
)
from search_spaces.units import GIB, MS

_STAMP = re.compile(r"\[titan\] (?P<stamp>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - ")
_STEP = re.compile(
    r"(?<!validate )\bstep: +(?P<step>\d+)  +loss: +(?P<loss>[-\d.naif]+)  +grad_norm: +\S+  +"
    r"memory: +(?P<peak>[\d.]+)GiB\([\d.]+%\)  +tps: (?P<tps>[\d,]+)  +tflops: (?P<tflops>[\d.,]+)  +mfu: "
)
_CHECKPOINT = re.compile(r" - Saving (?:the|a full|a model only) checkpoint")
_BATCH = re.compile(
    r"\blocal batch size (?P<local>\d+), global batch size (?P<global>\d+), "
    r"(?:gradient accumulation steps (?P<accumulation>\d+), )?sequence length (?P<seq_len>\d+)"
)


class TorchtitanLog:
    """The reader `torchtitan`."""

    name = "torchtitan"
    convention: Convention | None = Convention.MFU

    def read(self, text: str) -> Iterable[Fact]:
        """Facts of one line."""
        if "tps: " in text and (match := _STEP.search(text)):
            yield StepFact(
                step=int(match["step"]),
                clock_s=_clock_s(text),
                tick_s=MS,
                tokens_per_s_per_device=number(match["tps"]),
                tflops_per_device=number(match["tflops"]),
                loss=number(match["loss"]),
                peak_bytes=float(match["peak"]) * GIB,
            )
        elif "local batch size " in text and (match := _BATCH.search(text)):
            yield from _claims(match)
        elif "validate step: " in text:
            yield DisturbanceFact(kind=Disturbance.VALIDATION)
        elif _CHECKPOINT.search(text):
            yield DisturbanceFact(kind=Disturbance.CHECKPOINT)


def _claims(match: re.Match[str]) -> Iterator[Fact]:
    for name, group in (("global_batch", "global"), ("seq_len", "seq_len")):
        yield ClaimFact(source="trainer", name=name, value=int(match[group]))


def _clock_s(text: str) -> float | None:
    match = _STAMP.search(text)
    return datetime.strptime(match["stamp"], "%Y-%m-%d %H:%M:%S,%f").timestamp() if match else None
