"""What `calibrate` prints for a person after it measured this machine."""

from collections.abc import Iterable, Sequence
from statistics import median

from rich.console import Group, RenderableType

from runners.probes.fits import Figure
from runners.probes.predictions import Comparison
from tuner.probing import ProbeReport
from tuner.report.probe_report import overlap_words
from tuner.report.tables import facts, table
from tuner.report.words import percent, seconds, signed_percent

FIGURES = ("measured", ">before", ">now", ">spread", ">probes")
COMPARISONS = ("~formula of", ">probes", ">shortest", ">error", ">longest", ">error", ">before", ">now")


def probe_screen(report: ProbeReport) -> RenderableType:
    """Every number that was measured, the formulas against the probes, and what stays open."""
    parts: list[RenderableType] = [facts(_summary(report)), ""]
    parts += [table(FIGURES, [_figure_cells(each) for each in report.fitted.figures]), ""]
    if report.comparisons:
        title = "the cost model's formulas against the probes; last, the middle error before and now"
        parts += [table(COMPARISONS, list(_comparison_rows(report.comparisons)), title=title), ""]
    parts += [facts(_open_questions(report))]
    return Group(*parts)


def _summary(report: ProbeReport) -> list[tuple[str, str]]:
    facts_ = report.facts
    what = "processes" if facts_.on_cpu else "devices"
    return [
        ("machine", facts_.words()),
        ("at once", f"{report.n_ranks} {what}"),
        ("probes", f"{len(report.file.results)} of {len(report.cases)}, kept in {report.file.path}"),
        ("ended", str(report.ended)),
    ]


def _figure_cells(each: Figure) -> list[str]:
    before = f"{each.before:.4g}" if each.before else "none"
    return [each.name, before, f"{each.after.value:.4g}", percent(each.after.spread), str(each.n_probes)]


def _comparison_rows(comparisons: Sequence[Comparison]) -> Iterable[list[str]]:
    """A row for each group: its shortest and longest probe, and the error of the middle one."""
    for group in dict.fromkeys(each.group for each in comparisons):
        ordered = sorted(
            (each for each in comparisons if each.group == group), key=lambda each: each.measured_s
        )
        shortest, longest = ordered[0], ordered[-1]
        yield [
            group,
            str(len(ordered)),
            seconds(shortest.measured_s),
            signed_percent(shortest.error),
            seconds(longest.measured_s),
            signed_percent(longest.error),
            percent(median(abs(each.error_before) for each in ordered)),
            percent(median(abs(each.error) for each in ordered)),
        ]


def _open_questions(report: ProbeReport) -> list[tuple[str, str]]:
    fitted, n_missing = report.fitted, len(report.missing)
    rows = [("side by side", words) for words in overlap_words(report)]
    if report.n_ranks == 1:
        rows.append(("not measured", "collectives and overlap: they need two devices (--devices 2)"))
    rows += [("not measured", f"{name} ({why})") for name, why in fitted.not_measured.items()]
    if n_missing:
        rows.append(("not reached", f"{n_missing} probes; the same command goes on with them"))
    rows += [("no result", f"{key}: {why}") for key, why in report.file.failed.items()]
    rows += [("note", remark) for remark in fitted.remarks]
    return rows
