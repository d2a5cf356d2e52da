"""Lines of DeepSpeed's engine 0.19.8, whatever program drives it.

Source: deepspeed/utils/timer.py, `ThroughputTimer.stop` (samples/s of the last step, of which the first two
are not timed) and `SynchronizedWallClockTimer.log` (wall_clock_breakdown); deepspeed/runtime/pipe/engine.py,
`train_batch`; deepspeed/runtime/engine.py, `_report_progress`; deepspeed/runtime/fp16/loss_scaler.py;
deepspeed/runtime/config.py, `print` (the configuration that the engine obeys).  Releases before 0.9 print
`SamplesPerSec=` only.  From 0.18 on the engine logs at level WARNING: without `--log_level info`, or
wall_clock_breakdown, it prints no step lines at all.  It prints no TFLOP/s outside its profiler.
"""

import re
from collections.abc import Iterable, Iterator

from runners.logs.facts import (
    ClaimFact,
    Convention,
    Disturbance,
    DisturbanceFact,
    Fact,
    MemoryFact,
    SkippedTotalFact,
    StepFact,
    number,
)
from search_spaces.units import GIB

_THROUGHPUT = re.compile(
    r"\bepoch=\d+/micro_step=\d+/global_step=(?P<step>\d+), "
    r"(?:RunningAvgSamplesPerSec=[-\d.einf]+, )?(?:Curr)?SamplesPerSec=(?P<samples>[\d.e+-]+)(?:, "
    r"MemAllocated=[\d.]+GB, MaxMemAllocated=(?P<peak>[\d.]+)GB)?"
)
_BREAKDOWN = re.compile(
    r"\btime \(ms\) \| fwd: (?P<fwd>[\d.]+) \| bwd: (?P<bwd>[\d.]+) .*\| step: (?P<step>[\d.]+)\s*$"
)
_PIPELINE = re.compile(
    r"\bsteps: (?P<step>\d+) loss: (?P<loss>[-\d.naif]+) .*?iter time \(s\): (?P<step_s>[\d.]+) "
    r"samples/sec: (?P<samples>[\d.]+)"
)
_PROGRESS = re.compile(r"\bstep=\d+, skipped=(?P<skipped>\d+), lr=")
_OVERFLOW = re.compile(
    r"(?:.*\] )?\[deepspeed\] (?:fp16 dynamic loss scale )?OVERFLOW! (?:Rank \d+ )?Skipping step"
)
_MEMORY = re.compile(r"\s*MA [\d.]+ GB\s+Max_MA (?P<peak>[\d.]+) GB\s+CA ")
_SETTING = re.compile(
    r"(?:^|\s)(?P<name>train_batch_size|train_micro_batch_size_per_gpu|gradient_accumulation_steps)"
    r" \.* (?P<value>\d+)\s*$"
)
# The user's own JSON, one key a line.
_JSON = re.compile(
    r'\s*"(?P<name>train_batch_size|train_micro_batch_size_per_gpu|gradient_accumulation_steps)":\s*'
    r"(?P<value>\d+),?\s*$"
)
_NAMES = {
    "train_batch_size": "global_batch",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "accumulation",
}


class DeepSpeedLog:
    """The reader `deepspeed`."""

    name = "deepspeed"
    convention: Convention | None = None

    def read(self, text: str) -> Iterable[Fact]:
        """Facts of one line."""
        return engine_facts(text)


def engine_facts(text: str) -> Iterator[Fact]:
    """What a line of the engine says."""
    if "OVERFLOW!" in text and _OVERFLOW.match(text):
        yield DisturbanceFact(kind=Disturbance.SKIPPED)
    elif "skipped=" in text and (match := _PROGRESS.search(text)):
        yield SkippedTotalFact(n_skipped=int(match["skipped"]))
    elif "Max_MA " in text and (match := _MEMORY.match(text)):
        yield MemoryFact(peak_bytes=float(match["peak"]) * GIB, kind="allocated", rank=0)
    elif "train_" in text or "gradient_accumulation_steps" in text:
        yield from _settings(text)
    else:
        yield from _steps(text)


def _settings(text: str) -> Iterator[Fact]:
    for source, match in (("engine", _SETTING.search(text)), ("engine's JSON", _JSON.match(text))):
        if match:
            yield ClaimFact(source=source, name=_NAMES[match["name"]], value=int(match["value"]))


def _steps(text: str) -> Iterator[Fact]:
    if "SamplesPerSec=" in text and (match := _THROUGHPUT.search(text)):
        peak = number(match["peak"])
        yield StepFact(
            step=int(match["step"]),
            samples_per_s=number(match["samples"]),
            peak_bytes=peak * GIB if peak else None,
            grade=1,
        )
    elif "iter time (s):" in text and (match := _PIPELINE.search(text)):
        yield StepFact(
            step=int(match["step"]),
            step_s=number(match["step_s"]),
            samples_per_s=number(match["samples"]),
            loss=number(match["loss"]),
            grade=2,
        )
    elif "time (ms) | fwd: " in text and (match := _BREAKDOWN.search(text)):
        # `bwd` holds its reduction and `step` the optimizer; the micro-steps are summed.
        yield StepFact(step_s=sum(float(match[part]) for part in ("fwd", "bwd", "step")) / 1000)
