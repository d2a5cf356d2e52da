"""What `validate` found, as data and as its JSON document."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from objectives.measurements import RejectedRow, read_measurements
from objectives.validation import Accuracy, Prediction, accuracies, predict
from tuner.report.documents import document


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationReport:
    """A measurements file, its predictions, and the figures of every group.

    `n_left_out` counts sound rows that leave something open or contradict their neighbours.
    """

    name: str
    n_rows: int
    n_left_out: int
    rejected: tuple[RejectedRow, ...]
    predictions: tuple[Prediction, ...]
    groups: tuple[Accuracy, ...]

    @property
    def timed(self) -> list[Prediction]:
        """Predictions of runs that have a step time."""
        return [each for each in self.predictions if each.run.step_s is not None]

    @property
    def weighed(self) -> list[Prediction]:
        """Predictions of runs that have a peak of memory and did not fail."""
        return [
            each
            for each in self.predictions
            if each.run.peak_memory_bytes and not each.run.outcome.is_failure
        ]


def validation_report(path: Path, *, cluster: str | None = None, every: bool = False) -> ValidationReport:
    """Read a measurements file and predict its runs; `every` includes those that are not trusted."""
    found = read_measurements(path, cluster=cluster)
    used = [run for run in found.runs if every or run.trusted]
    predictions = predict(used)
    return ValidationReport(
        name=path.name,
        n_rows=found.n_rows,
        n_left_out=len(found.runs) - len(used),
        rejected=found.rejected,
        predictions=tuple(predictions),
        groups=tuple(accuracies(predictions)),
    )


def validation_document(report: ValidationReport) -> dict[str, Any]:
    """What `validate --json` prints; errors are fractions."""
    body = {
        "rows": report.n_rows,
        "used": len(report.predictions),
        "left_out": report.n_left_out,
        "rejected": [asdict(row) for row in report.rejected],
        "groups": [asdict(group) for group in report.groups],
        "predictions": [_prediction(each) for each in report.predictions],
    }
    return document("validate", body)


def _prediction(each: Prediction) -> dict[str, Any]:
    """One run; `step_time_s` and `peak_memory_bytes` are measured, null where the row has none.

    `readings` counts the plans that the row may mean; the interval spans those of all.
    """
    return {
        "id": each.run.id,
        "outcome": str(each.run.outcome),
        "step_time_s": each.run.step_s,
        "predicted_s": each.step_s,
        "interval_s": [each.low_s, each.high_s],
        "peak_memory_bytes": each.run.peak_memory_bytes,
        "predicted_bytes": each.peak_memory_bytes,
        "notes": list(each.run.notes),
        "readings": 1 + len(each.run.alternatives),
    }
