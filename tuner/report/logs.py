"""A log's figures as a screen and as a document."""

from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from runners.logs.figures import Expected, LogSummary
from runners.logs.files import LogReading
from search_spaces.cluster_presets import load_cluster
from search_spaces.documents import build
from search_spaces.errors import check
from search_spaces.units import gib
from search_spaces.workload import Workload
from tuner.report.documents import document
from tuner.report.tables import table


def expected(
    *,
    global_batch: int | None,
    seq_len: int | None,
    devices: int | None,
    cluster: str | None,
    precision: str,
) -> Expected:
    """What the flags say about the run."""
    for name, value in (("--global-batch", global_batch), ("--seq-len", seq_len), ("--devices", devices)):
        check(value is None or value > 0, f"{name} must be positive", value)
    table_of = {"global_batch": global_batch or 1, "seq_len": seq_len or 1, "precision": precision}
    workload = build(Workload, table_of, "the run")
    device = load_cluster(cluster, n_devices=1).device if cluster else None
    return Expected(
        global_batch=global_batch,
        seq_len=seq_len,
        n_devices=devices,
        peak_flops_per_s=device.peak(workload.precision) if device else None,
    )


def log_document(reading: LogReading) -> dict[str, Any]:
    """What `read-log --json` prints."""
    summary, finding = reading.summary, reading.finding
    fields = asdict(summary)
    window = fields.pop("window")
    return document(
        "read-log",
        {
            **{name: value for name, value in fields.items() if name != "most_tflops_per_device"},
            "notes": list(summary.notes),
            "refused": list(summary.refused),
            "window": None if window is None else {**window, "spikes": list(window["spikes"])},
            "failure": None
            if finding is None
            else {
                "cause": str(finding.cause),
                "message": finding.message,
                "short_bytes": finding.short_bytes,
            },
        },
    )


def log_screen(reading: LogReading) -> list[RenderableType]:
    """What `read-log` shows a person."""
    summary, finding = reading.summary, reading.finding
    rows = [[name, value] for name, value in _rows(summary) if value]
    parts: list[RenderableType] = [table(["", "~"], rows)]
    parts += [Text(f"note: {note}") for note in summary.notes]
    if finding is not None:
        parts.append(Text(f"failed, {finding.cause}: {finding.message}"))
    parts += [Text(f"refused: {sentence}") for sentence in summary.refused]
    return parts


def _rows(summary: LogSummary) -> list[tuple[str, str]]:
    window = summary.window
    settings = ", ".join(f"{name}={value}" for name, value in summary.settings.items())
    return [
        ("trainer", summary.trainer),
        ("steps", f"{summary.n_steps} of {summary.n_lines} lines, the last is {summary.last_step}"),
        ("window", f"steps {window.first} to {window.last}" if window else ""),
        ("step time", f"{window.step_s:.4g} s, median of {window.n_lines}" if window else ""),
        ("spread", f"{window.spread_s:.2g} s, standard deviation" if window else ""),
        ("tokens/s", f"{summary.tokens_per_s:,.0f}" if summary.tokens_per_s else ""),
        ("TFLOP/s a device", _tflops(summary)),
        ("peak memory", _memory(summary)),
        ("loss", _loss(summary)),
        ("skipped", f"{summary.n_skipped} steps" if summary.n_skipped else ""),
        ("what ran", settings),
    ]


def _tflops(summary: LogSummary) -> str:
    if summary.tflops_per_device is None:
        return ""
    meaning = {"MFU": "model FLOPs", "HFU": "hardware FLOPs, recomputation counted"}
    return f"{summary.tflops_per_device:.1f} ({summary.convention}: {meaning[str(summary.convention)]})"


def _memory(summary: LogSummary) -> str:
    if summary.peak_memory_bytes is None:
        return ""
    return f"{gib(summary.peak_memory_bytes):.2f} GiB {summary.memory_kind}"


def _loss(summary: LogSummary) -> str:
    if summary.first_loss is None:
        return ""
    nan = f", then no number {summary.n_nan_in_a_row} times" if summary.n_nan_in_a_row else ""
    return f"{summary.first_loss:.4g} to {summary.last_loss:.4g}{nan}"
