"""What a log says in the end: figures of its window, what was really run, and why a figure is refused.

tokens/s = global_batch * seq_len / step_s
share of the peak = TFLOP/s of a device / its dense peak        MFU or HFU, as the trainer counts
"""

import math
import statistics
from collections.abc import Callable, Sequence

from runners.logs.account import Account, StepRecord
from runners.logs.facts import Convention, StepFact
from runners.logs.figures import Expected, LogSummary
from runners.logs.refusals import refusals_of
from runners.logs.window import WARMUP_STEPS, TimedStep, Window, coarse_joined, window_of

_COARSE_TICK_S = 0.5


def summary_of(account: Account, expected: Expected, *, warmup_steps: int = WARMUP_STEPS) -> LogSummary:
    """The figures of a log, held against what is expected."""
    timed = timed_steps(account, expected)
    window = window_of(timed, warmup_steps=warmup_steps)
    inside = _inside(account.records, window)
    model, hardware = _both_tflops(inside)
    claimed = _both_tflops(inside or [record.fact for record in account.records])
    peak_bytes, kind = _peak(account)
    summary = LogSummary(
        trainer=account.reader.name,
        n_lines=account.n_lines,
        n_steps=account.n_steps_seen,
        last_step=account.last_step,
        window=window,
        tokens_per_s=_tokens_per_s(account, expected, window, inside),
        tokens_per_s_per_device=_median(inside, lambda fact: fact.tokens_per_s_per_device),
        tflops_per_device=hardware if model is None else model,
        most_tflops_per_device=max((each for each in claimed if each is not None), default=None),
        convention=_convention(account, model, hardware),
        peak_memory_bytes=peak_bytes,
        memory_kind=kind,
        energy_j_per_device=_median(inside, lambda fact: fact.energy_j_per_device),
        first_loss=account.first_loss,
        last_loss=account.last_loss,
        n_skipped=account.n_skipped,
        n_nan_in_a_row=account.n_nan_in_a_row,
        settings={
            name: next(iter(said.values()))
            for name, said in account.claims.items()
            if len(set(said.values())) == 1
        },
        notes=_notes(account, window),
    )
    refused = refusals_of(account, timed, summary, expected)
    return LogSummary(
        **{name: getattr(summary, name) for name in LogSummary.__slots__} | {"refused": refused}
    )


def timed_steps(account: Account, expected: Expected) -> list[TimedStep]:
    """The log's step lines with their seconds, from whatever tells them."""
    timed, before = [], None
    for record in account.records:
        step_s = _step_s(record, before, account, expected)
        n_steps = record.step - before.step if before else record.step
        if step_s is not None and 0 < step_s < math.inf and n_steps > 0:
            timed.append(
                TimedStep(
                    step=record.step,
                    n_steps=n_steps,
                    step_s=step_s,
                    disturbed_by=frozenset(record.disturbed_by),
                )
            )
        before = record
    tick_s = max((record.fact.tick_s for record in account.records), default=0.0)
    by_clock = all(record.fact.step_s is None for record in account.records)
    return coarse_joined(timed, tick_s) if by_clock and tick_s >= _COARSE_TICK_S else timed


def _step_s(
    record: StepRecord, before: StepRecord | None, account: Account, expected: Expected
) -> float | None:
    fact = record.fact
    if fact.step_s is not None:
        return fact.step_s
    if fact.clock_s is not None:
        if before is None or before.fact.clock_s is None or record.step == before.step:
            return None
        return (fact.clock_s - before.fact.clock_s) / (record.step - before.step)
    batch = _setting(account, expected, "global_batch")
    if fact.samples_per_s and batch:
        return batch / fact.samples_per_s
    seq_len = _setting(account, expected, "seq_len")
    if fact.tokens_per_s_per_device and batch and seq_len and expected.n_devices:
        return batch * seq_len / (fact.tokens_per_s_per_device * expected.n_devices)
    return None


def _setting(account: Account, expected: Expected, name: str) -> int | None:
    """What the log says was run, before what was to be run."""
    said = account.claims.get(name)
    value: int | None = next(iter(said.values())) if said else getattr(expected, name)
    return value


def _inside(records: Sequence[StepRecord], window: Window | None) -> list[StepFact]:
    if window is None:
        return []
    return [record.fact for record in records if window.first <= record.step <= window.last]


def _median(facts: Sequence[StepFact], read: Callable[[StepFact], float | None]) -> float | None:
    values = [value for fact in facts if (value := read(fact)) is not None and math.isfinite(value)]
    return statistics.median(values) if values else None


def _tokens_per_s(
    account: Account, expected: Expected, window: Window | None, inside: Sequence[StepFact]
) -> float | None:
    said = _median(inside, lambda fact: fact.tokens_per_s)
    batch, seq_len = (_setting(account, expected, name) for name in ("global_batch", "seq_len"))
    if said is not None or window is None or batch is None or seq_len is None:
        return said
    return batch * seq_len / window.step_s


def _both_tflops(facts: Sequence[StepFact]) -> tuple[float | None, float | None]:
    """Medians of the two countings: model FLOPs, and with recomputation."""
    return (
        _median(facts, lambda fact: fact.tflops_per_device),
        _median(facts, lambda fact: fact.hardware_tflops_per_device),
    )


def _convention(account: Account, model: float | None, hardware: float | None) -> Convention | None:
    if model is not None:
        return Convention.MFU
    return Convention.HFU if hardware is not None else account.reader.convention


def _peak(account: Account) -> tuple[float | None, str]:
    """Reserved before allocated: what the allocator holds, no other allocation can have."""
    for kind in ("reserved", "allocated"):
        if kind in account.memory:
            return account.memory[kind].peak_bytes, kind
    said = (record.fact.peak_bytes for record in account.records)
    peaks = [peak for peak in said if peak is not None and 0 < peak < math.inf]
    kind = "allocated" if account.reader.name == "deepspeed" else "reserved"
    return (max(peaks), kind) if peaks else (None, "")


def _notes(account: Account, window: Window | None) -> tuple[str, ...]:
    found = []
    if window is not None:
        found.append(
            f"steps {window.first} to {window.last}: the longest undisturbed stretch without its warm-up"
        )
    if window is not None and window.spikes:
        found.append(f"spikes at steps {', '.join(map(str, window.spikes))}")
    if account.n_skipped and window is not None:
        found.append(f"{account.n_skipped} steps skipped by loss scaling, outside the window")
    if account.n_restarts:
        found.append(f"the run began again {account.n_restarts} times; the last run counts")
    return tuple(found)
