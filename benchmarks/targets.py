"""The targets of benchmarks/targets.toml with the figures reached."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibrated import Calibrated
from benchmarks.fitting import fit, prior
from benchmarks.rows import Key, Rows
from objectives.validation import Prediction, accuracy, ordered_pairs
from search_spaces.plan import OptimizerSync, Schedule

TABLE = Path(__file__).with_name("targets.toml")
# One factor per operation class: products, attention, what only moves bytes, communication.
CLASSES = {
    "device.sustained_efficiency": 0.3,
    "device.attention_efficiency": 0.5,
    "device.memory_efficiency": 0.3,
    "efficiency": 0.3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A figure to reach; `sources` empty stands for all rows, several for each of them."""

    measure: str
    words: str
    why: str | Mapping[str, str]
    sources: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a figure reaches it."""
        lowest, highest = self.at_least, self.at_most
        return (lowest is None or value >= lowest) and (highest is None or value <= highest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another tool's figure, and which of our rows are the same (none: its rows are not public)."""

    tool: str
    figure: str
    rows: str
    citation: str
    sources: tuple[str, ...] = ()
    measure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """A target on one source, or on all rows; `value` is None where the rows, or the tool, cannot tell."""

    target: Target
    source: str
    value: float | None

    @property
    def why(self) -> str:
        """What is missing, as a sentence."""
        why = self.target.why
        text = why if isinstance(why, str) else why[self.source]
        return text[:1].upper() + text[1:]

    @property
    def is_reached(self) -> bool | None:
        """Whether the target is reached."""
        return None if self.value is None else self.target.holds(self.value)


def read_table(path: Path = TABLE) -> tuple[list[Target], list[Peer]]:
    """Targets and peers of the table."""
    read = tomllib.loads(path.read_text())

    def as_kind(kind: type, row: Mapping[str, Any]) -> Any:
        return kind(**{**row, "sources": tuple(row.get("sources", ()))})

    return (
        [as_kind(Target, row) for row in read["target"]],
        [as_kind(Peer, row) for row in read["peer"]],
    )


def reached(
    targets: Sequence[Target], predictions: Sequence[Prediction], calibrated: Calibrated
) -> list[Reached]:
    """Every target with its figure, a line for each of its sources."""
    return [
        Reached(target=target, source=source, value=measured(target.measure, source, predictions, calibrated))
        for target in targets
        for source in target.sources or ("all",)
    ]


def measured(
    measure: str, source: str, predictions: Sequence[Prediction], calibrated: Calibrated
) -> float | None:
    """One figure of one source (or `all`); None where there is none."""
    own = [each for each in predictions if source in ("all", each.run.labels["source"])]
    if not own:
        return None
    if measure.startswith("calibrated_"):
        return calibrated.figure(source, measure.removeprefix("calibrated_"))
    if measure in MEASURES:
        return MEASURES[measure](own)
    value = getattr(accuracy("source", source, own), measure)
    return None if value is None else float(value)


def memory_max_ape(predictions: Sequence[Prediction]) -> float | None:
    """Largest error of memory of a run that did not fail."""
    weighed = [each for each in predictions if each.run.peak_memory_bytes and not each.run.outcome.is_failure]
    return max((abs(each.memory_error) for each in weighed), default=None)


def schedule_order(predictions: Sequence[Prediction]) -> float | None:
    """Pairs in the right order among runs that differ in their schedule alone."""
    groups: dict[tuple[object, ...], list[Prediction]] = {}
    for each in predictions:
        if each.run.step_s is not None:
            plan = replace(
                each.run.plan,
                schedule=Schedule.ONE_F_ONE_B,
                optimizer_sync=OptimizerSync.BARRIER,
                vpp=1,
                first_layers=0,
                last_layers=0,
            )
            groups.setdefault((id(each.run.job), plan), []).append(each)
    counts = [
        ordered_pairs(
            np.array([each.run.step_s or 0.0 for each in alike]), np.array([each.step_s for each in alike])
        )
        for alike in groups.values()
    ]
    n_pairs = sum(n for _, n in counts)
    return sum(right for right, _ in counts) / n_pairs if n_pairs else None


def class_factors_mean_ape(predictions: Sequence[Prediction]) -> float | None:
    """Mean error after one factor per operation class was fitted to these rows."""
    rows = Rows(each.run for each in predictions)
    if not len(rows):
        return None
    priors = {
        key: prior(key.place, constant.value, width)
        for key, constant in rows.keys().items()
        if (width := _class_width(key))
    }
    found = fit(rows, priors)
    return float(np.mean(np.abs(np.expm1(rows.log_errors(found.values)))))


def _class_width(key: Key) -> float | None:
    """How far a class's factor may lie from its preset, relative; None for another constant."""
    if key.place in CLASSES:
        return CLASSES[key.place]
    is_network = key.place.endswith(".efficiency") and not key.place.startswith("device.")
    return CLASSES["efficiency"] if is_network else None


MEASURES: Mapping[str, Callable[[Sequence[Prediction]], float | None]] = {
    "memory_max_ape": memory_max_ape,
    "schedule_order": schedule_order,
    "class_factors_mean_ape": class_factors_mean_ape,
}
