"""What one line of a log can say, and what a reader of such lines owes."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Convention(StrEnum):
    """What a trainer's TFLOP/s count: the model's own FLOPs, or also those of recomputation."""

    MFU = "MFU"
    HFU = "HFU"


class Disturbance(StrEnum):
    """What makes the time of a step tell something else than the plan's speed."""

    SKIPPED = "skipped by loss scaling"
    VALIDATION = "validation"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFact:
    """A step, or the mean of those since the step line before; None where the line does not say.

    `step` None: the line carries no number.  `clock_s` is a running clock (of the trainer, or of its time
    stamps), from which a step's seconds follow where no line gives them; it ticks every `tick_s`.  Where a
    log has several kinds of step lines, those of the highest `grade` count.
    """

    step: int | None = None
    step_s: float | None = None
    clock_s: float | None = None
    tick_s: float = 0.0
    samples_per_s: float | None = None
    tokens_per_s: float | None = None
    tokens_per_s_per_device: float | None = None
    tflops_per_device: float | None = None
    hardware_tflops_per_device: float | None = None
    loss: float | None = None
    n_skipped: int = 0
    n_nan: int = 0
    peak_bytes: float | None = None
    energy_j_per_device: float | None = None
    grade: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressFact:
    """How far a progress bar is: it numbers step lines that have no number."""

    step: int
    clock_s: float | None = None
    tick_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFact:
    """The most bytes that a device held so far, as its allocator counts them (`kind`)."""

    peak_bytes: float
    kind: str
    rank: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimFact:
    """A setting, and who says so: the launcher's arguments, the engine's configuration, or a step line."""

    source: str
    name: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DisturbanceFact:
    """Something besides training happened, or a step was thrown away."""

    kind: Disturbance


@dataclass(frozen=True, slots=True, kw_only=True)
class SkippedTotalFact:
    """How many steps loss scaling has skipped since the run began."""

    n_skipped: int


Fact = StepFact | ProgressFact | MemoryFact | ClaimFact | DisturbanceFact | SkippedTotalFact


class LogReader(Protocol):
    """A trainer's lines.  Stateless: the facts of a line follow from the line alone.

    `read` gets whole lines only, without colours and without a launcher's rank before them.
    """

    @property
    def name(self) -> str:
        """Its name in the table."""
        ...

    @property
    def convention(self) -> Convention | None:
        """What `tflops_per_device` counts; None where the trainer prints none."""
        ...

    def read(self, text: str) -> Iterable[Fact]:
        """What the line says; nothing for most lines."""
        ...


def number(text: str | None) -> float | None:
    """A number as trainers print it (thousands with commas, nan and inf too), or None."""
    if text is None:
        return None
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None
