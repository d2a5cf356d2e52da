"""What `calibrate` prints for a person."""

from rich.console import Group, RenderableType

from objectives.calibration import CalibratedConstant
from search_spaces.cluster import Constant
from tuner.report.calibration_report import CalibrationReport
from tuner.report.tables import facts, table
from tuner.report.words import percent, seconds, signed_percent

CONSTANTS = ("constant", ">before", ">after", ">change", ">spread before", ">after", "determined")
MOST_OUTLIERS = 20
OUTLIERS = (">line", "~id", ">measured", ">predicted", ">error")


def calibration_screen(report: CalibrationReport) -> RenderableType:
    """Errors before and after, every constant, and what the runs leave open."""
    calibration = report.calibration
    parts: list[RenderableType] = [facts(_summary(report)), ""]
    parts += [table(CONSTANTS, [_constant_cells(each) for each in calibration.constants]), ""]
    parts += [facts(_open_questions(report))]
    if report.outliers:
        n, rows = len(report.outliers), _outlier_rows(report)
        more = f": {n}, the farthest {len(rows)}" if n > len(rows) else ""
        parts += ["", table(OUTLIERS, rows, title=f"runs far from the others{more}")]
    return Group(*parts)


def _summary(report: CalibrationReport) -> list[tuple[str, str]]:
    calibration, held = report.calibration, report.calibration.held_back
    cluster, machine = report.cluster, report.preset
    return [
        ("file", f"{report.name}: {report.n_rows} rows, {len(report.used)} used"),
        ("cluster", f"{cluster.name}, from {machine.name} with {machine.device.name}"),
        ("runs held back", f"in {held.n_folds} parts, each priced by a fit to the others"),
        ("median error", f"{percent(held.preset_median_error)} -> {percent(held.fitted_median_error)}"),
        ("mean error", f"{percent(held.preset_mean_error)} -> {percent(held.fitted_mean_error)}"),
        ("kept of the fit", f"{calibration.shrink:.0%}, the share that predicts runs held back best"),
        ("scatter", f"{percent(calibration.scatter)} of the runs around the formulas"),
        *_held_up(report),
    ]


def _held_up(report: CalibrationReport) -> list[tuple[str, str]]:
    """Runs set apart because something made their messages wait."""
    waits = report.calibration.hold_ups
    if waits is None:
        return []
    words = f"{waits.n_runs} runs, set apart: each message between their stages waits {seconds(waits.wait_s)}"
    return [("held up", words)]


def _constant_cells(each: CalibratedConstant) -> list[str]:
    return [
        each.name,
        _value(each.preset),
        _value(each.fitted),
        signed_percent(each.factor - 1),
        percent(each.preset.spread),
        percent(each.fitted.spread),
        "yes" if each.is_determined else "no",
    ]


def _value(constant: Constant) -> str:
    return f"{constant.value:.4g}"


def _open_questions(report: CalibrationReport) -> list[tuple[str, str]]:
    """What the runs could not tell."""
    calibration = report.calibration
    little = [each.name for each in calibration.constants if not each.is_determined]
    pairs = [f"{first} and {second} ({value:+.2f})" for first, second, value in calibration.correlated]
    return [
        ("not determined", ", ".join(little) or "none"),
        ("without effect", ", ".join(calibration.unfelt) or "none"),
        ("told apart badly", ", ".join(pairs) or "none"),
    ]


def _outlier_rows(report: CalibrationReport) -> list[list[str]]:
    """The farthest of them, farthest first."""
    ratios = [(run, predicted_s, predicted_s / (run.step_s or 1.0)) for run, predicted_s in report.outliers]
    farthest = sorted(ratios, key=lambda each: -max(each[2], 1 / each[2]))[:MOST_OUTLIERS]
    return [
        [str(run.line), run.id, seconds(run.step_s or 0.0), seconds(predicted_s), signed_percent(ratio - 1)]
        for run, predicted_s, ratio in farthest
    ]
