"""What `calibrate` found, as data and as its JSON document."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from objectives.calibration import (
    CalibratedConstant,
    Calibration,
    calibrate,
    calibrated_cluster,
    timed_steps,
)
from objectives.measurements import MeasuredRun, Measurements, RejectedRow, RunOutcome, read_measurements
from objectives.outcome import Measured
from search_spaces.cluster import ClusterSpec
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec, check
from tuner.ran import what_ran
from tuner.report.documents import document
from tuner.view import StudyView, TrialRecord

MOST_NAMES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """A measurements file, the machine before (`preset`) and after (`cluster`), and the fit between them.

    `used` are the runs of the fit, in its order; `left_out` says how many sound rows had no part in it, and
    why.
    """

    name: str
    n_rows: int
    rejected: tuple[RejectedRow, ...]
    left_out: dict[str, int]
    used: tuple[MeasuredRun, ...]
    preset: ClusterSpec
    cluster: ClusterSpec
    calibration: Calibration

    @property
    def outliers(self) -> list[tuple[MeasuredRun, float]]:
        """Runs that lie far from the others, each with the seconds that the fit predicts."""
        residuals = self.calibration.residuals
        return [
            (self.used[i], (self.used[i].step_s or 0.0) * math.exp(-residuals[i]))
            for i in self.calibration.outliers
        ]


def check_name(out: Path) -> Path:
    """The path of a cluster file, or an error where `--cluster` would not take it for a file."""
    check(out.suffix == ".toml", "the output must be a .toml file, which --cluster can read", out)
    return out


def calibration_report(
    path: Path, *, cluster: str | None, every: bool, name: str, most_devices: int | None = None
) -> CalibrationReport:
    """Read a measurements file and fit the machine that its runs used; `name` is what to call the result.

    Runs on more than `most_devices` have no part in it: whether few devices tell of many can be tried so.

    Raises
    ------
    InvalidSpec
        The file cannot be read, its rows do not agree on a machine and none is named, or too few can be used.
    """
    return _report(
        Given(name=path.name, found=read_measurements(path, cluster=cluster)),
        cluster=cluster,
        every=every,
        name=name,
        most_devices=most_devices,
    )


def studies_report(
    views: Sequence[StudyView], *, cluster: str | None, name: str, most_devices: int | None = None
) -> CalibrationReport:
    """Fit the machine that studies' trials ran on; the rest as in `calibration_report`.

    Raises
    ------
    InvalidSpec
        The studies do not agree on a machine and none is named, or they have too few measured trials.
    """
    runs = [
        run for view in views for run in trials_as_runs(view, load_cluster(cluster, 1) if cluster else None)
    ]
    found = Measurements(n_rows=len(runs), runs=tuple(runs), rejected=())
    given = Given(name=", ".join(view.name for view in views), found=found)
    return _report(given, cluster=cluster, every=False, name=name, most_devices=most_devices)


def trials_as_runs(view: StudyView, machine: ClusterSpec | None) -> list[MeasuredRun]:
    """The finished trials of a study as measured runs by number; on another machine, if one is given."""
    return [_as_run(view, trial, machine) for trial in view.finished if trial.plan is not None]


def _as_run(view: StudyView, trial: TrialRecord, machine: ClusterSpec | None) -> MeasuredRun:
    job, plan = what_ran(view, trial)
    if machine:
        job = replace(job, cluster=machine.with_devices(job.cluster.n_devices))
    is_measured = isinstance(trial.outcome, Measured)
    return MeasuredRun(
        id=f"{view.name} trial {trial.number}",
        line=trial.number,
        job=job,
        plan=plan,
        outcome=RunOutcome.OK if is_measured else RunOutcome.FAILED,
        step_s=trial.outcome.step_s if isinstance(trial.outcome, Measured) else None,
        peak_memory_bytes=trial.outcome.peak_memory_bytes if isinstance(trial.outcome, Measured) else None,
        labels={"accelerator": view.inputs.cluster.device.name},
        trusted=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Runs to fit, and what they are called."""

    name: str
    found: Measurements


def _report(
    given: Given, *, cluster: str | None, every: bool, name: str, most_devices: int | None
) -> CalibrationReport:
    found = given.found
    used, left_out = _usable(found.runs, every=every, device=_device(cluster), most_devices=most_devices)
    if not used:
        reasons = "; ".join(f"{n} rows: {why}" for why, n in left_out.items()) or "every row is rejected"
        raise InvalidSpec(
            f"{given.name} must hold measured runs of the machine", f"none that can be used; {reasons}"
        )
    preset = load_cluster(cluster, 1) if cluster else _agreed(used)
    calibration = calibrate(timed_steps(used), source=f"{len(used)} runs of {given.name}")
    fitted = calibrated_cluster(preset, calibration)
    source = f"{preset.source}; calibrated with {len(used)} runs of {given.name}"
    return CalibrationReport(
        name=given.name,
        n_rows=found.n_rows,
        rejected=found.rejected,
        left_out=left_out,
        used=tuple(used),
        preset=preset,
        cluster=replace(fitted, name=name, source=source if calibration.helped else preset.source),
        calibration=calibration,
    )


def calibration_document(report: CalibrationReport, out: Path) -> dict[str, Any]:
    """What `calibrate --json` prints; errors and spreads are fractions."""
    calibration = report.calibration
    body = {
        "cluster": report.preset.name,
        "file": str(out),
        "rows": report.n_rows,
        "used": len(report.used),
        "left_out": report.left_out,
        "rejected": [asdict(row) for row in report.rejected],
        "helped": calibration.helped,
        "kept_share": calibration.shrink,
        "scatter": calibration.scatter,
        "held_back": asdict(calibration.held_back),
        "constants": [_constant(each) for each in calibration.constants],
        "undetermined": calibration.undetermined,
        "correlated": [
            {"first": first, "second": second, "correlation": value}
            for first, second, value in calibration.correlated
        ],
        "held_up": _held_up(report),
        "outliers": [
            {"id": run.id, "line": run.line, "step_time_s": run.step_s, "predicted_s": predicted_s}
            for run, predicted_s in report.outliers
        ],
    }
    return document("calibrate", body)


def _held_up(report: CalibrationReport) -> dict[str, Any] | None:
    """Runs whose messages wait for something, and how long each message does; null: none."""
    calibration = report.calibration
    if calibration.hold_ups is None:
        return None
    lines = [report.used[i].line for i in calibration.held_up]
    return {"wait_s": calibration.hold_ups.wait_s, "lines": lines}


def _constant(each: CalibratedConstant) -> dict[str, Any]:
    before, after = asdict(each.preset), asdict(each.fitted)
    return {"name": each.name, "before": before, "after": after, "determined": each.is_determined}


def _device(cluster: str | None) -> str | None:
    return load_cluster(cluster, 1).device.name if cluster else None


def _usable(
    runs: Sequence[MeasuredRun], *, every: bool, device: str | None, most_devices: int | None
) -> tuple[list[MeasuredRun], dict[str, int]]:
    """Runs to fit, and how many others there are by what keeps them out."""
    most = most_devices or max((run.job.cluster.n_devices for run in runs), default=0)
    reasons = [
        f"more than {most} devices"
        if run.job.cluster.n_devices > most
        else _reason(run, every=every, device=device)
        for run in runs
    ]
    used = [run for run, reason in zip(runs, reasons, strict=True) if not reason]
    return used, dict(Counter(reason for reason in reasons if reason))


def _reason(run: MeasuredRun, *, every: bool, device: str | None) -> str:
    accelerator = run.labels["accelerator"]
    if run.step_s is None:
        return "no step time"
    if device and accelerator and accelerator.lower() != device.lower():
        return f"accelerator {accelerator}, not {device}"
    if not run.trusted and not every:
        return "something left open, or a contradiction to its neighbours (--all takes them)"
    return ""


def _agreed(runs: Sequence[MeasuredRun]) -> ClusterSpec:
    """The one machine that all runs used."""
    machines: list[ClusterSpec] = []
    for cluster in {id(run.job.cluster): run.job.cluster for run in runs}.values():
        machine = cluster.with_devices(1)
        if machine not in machines:
            machines.append(machine)
    if len(machines) > 1:
        names = [f"{machine.name} with {machine.device.name}" for machine in machines]
        listed = ", ".join(list(dict.fromkeys(names))[:MOST_NAMES])
        raise InvalidSpec(
            "the rows must agree on their machine",
            f"{len(machines)} machines: {listed}",
            hint="name one with --cluster; it stands for every row with its accelerator",
        )
    return machines[0]
