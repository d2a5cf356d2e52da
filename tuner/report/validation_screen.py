"""What `validate` prints for a person."""

from itertools import groupby

from rich.console import Group, RenderableType

from objectives.validation import Accuracy
from tuner.report.tables import facts, table
from tuner.report.validation_report import ValidationReport
from tuner.report.words import percent, signed_percent

COLUMNS = (
    ">n", ">median", ">mean", ">p90", ">bias", ">order", ">regret", ">in 80 %", ">memory", ">failed",
)  # fmt: skip


def validation_screen(report: ValidationReport) -> RenderableType:
    """Counts, then a table of errors for every way to group the runs."""
    tables: list[RenderableType] = []
    for by, groups in groupby(report.groups, key=lambda group: group.by):
        cells = [[group.name, *accuracy_words(group)] for group in groups]
        tables += ["", table([f"~{by}", *COLUMNS], cells)]
    return Group(facts(summary(report)), *tables, "", facts(LEGEND))


def summary(report: ValidationReport) -> list[tuple[str, str]]:
    """How many rows there were, and what became of them."""
    n_failed = sum(each.run.outcome.is_failure for each in report.predictions)
    n_open = sum(bool(each.run.alternatives) for each in report.predictions)
    used = f"{len(report.predictions)} used: {len(report.timed)} with a step time, {n_failed} failed"
    return [
        ("file", report.name),
        ("rows", f"{report.n_rows}, of which {used}"),
        *([("open", f"{n_open} may mean several plans: their intervals span them all")] if n_open else []),
        ("left out", f"{report.n_left_out} leave something open or contradict their neighbours"),
        ("rejected", f"{len(report.rejected)}, each with line and reason on the error stream"),
    ]


LEGEND = [
    ("median, mean, p90", "of the error of step seconds, predicted against measured, without its sign"),
    ("bias", "median error with its sign: + is predicted too slow"),
    ("order", "pairs of runs of one job whose order is predicted"),
    ("regret", "how much slower than the best the plan predicted best is, mean over jobs"),
    ("in 80 %", "runs whose measured time lies in the stated 80 % interval"),
    ("memory", "median error of peak memory"),
    ("failed", "area under the curve: failed runs told from those that ran by predicted memory"),
]


def accuracy_words(group: Accuracy) -> list[str]:
    """The figures of one group as words, in the order of `COLUMNS`."""
    return [
        str(group.n),
        _percent(group.median_ape),
        _percent(group.mean_ape),
        _percent(group.p90_ape),
        signed_percent(group.bias) if group.bias is not None else "",
        _percent(group.pair_order),
        _percent(group.regret),
        _percent(group.coverage),
        _percent(group.memory_median_ape),
        f"{group.failed_auc:.3f}" if group.failed_auc is not None else "",
    ]


def _percent(share: float | None) -> str:
    return "" if share is None else percent(share)
