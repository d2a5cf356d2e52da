"""Figures of a log: what is expected of it, and what it says in the end."""

from dataclasses import dataclass, field

from runners.logs.facts import Convention
from runners.logs.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What is known of the run beforehand, to hold the log against; None where it is not.

    `peak_flops_per_s` is one device's dense peak in the run's precision, `model_flops_per_step` without
    recomputation.
    """

    global_batch: int | None = None
    micro_batch: int | None = None
    seq_len: int | None = None
    n_devices: int | None = None
    tp: int | None = None
    pp: int | None = None
    peak_flops_per_s: float | None = None
    model_flops_per_step: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSummary:
    """The window of a log and its figures (None where the log does not say), or why there are none.

    `tflops_per_device` counts as `convention` says, `most_tflops_per_device` is the highest counting.
    `energy_j_per_device` are the joules of a step that the trainer read of its devices' counters.
    `settings` are what the log states was run.  `notes` say how the figures came about; with any sentence in
    `refused` they must not be used.
    """

    trainer: str
    n_lines: int
    n_steps: int
    last_step: int
    window: Window | None
    tokens_per_s: float | None = None
    tokens_per_s_per_device: float | None = None
    tflops_per_device: float | None = None
    most_tflops_per_device: float | None = None
    convention: Convention | None = None
    peak_memory_bytes: float | None = None
    memory_kind: str = ""
    energy_j_per_device: float | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    n_skipped: int = 0
    n_nan_in_a_row: int = 0
    settings: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
