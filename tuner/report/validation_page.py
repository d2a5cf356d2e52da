"""A validation as one HTML file in the reports' style: predicted against measured, as plots and tables."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby

from objectives.validation import Accuracy
from tuner.report import validation_figures as figures
from tuner.report.page import card, html_document, legend, plot, section
from tuner.report.validation_report import ValidationReport
from tuner.report.validation_screen import COLUMNS, LEGEND, accuracy_words, summary
from tuner.report.words import percent, plan_words, seconds, signed_percent

WORST_SHOWN = 40


def page(report: ValidationReport) -> str:
    """The whole document."""
    body = [f"<h1>Predicted against measured: {escape(report.name)}</h1>", _lead(report), _cards(report)]
    return html_document(report.name, "\n".join([*body, '<div class="grid">', *_sections(report), "</div>"]))


def _lead(report: ValidationReport) -> str:
    return "".join(f"<p class=lead>{escape(f'{name}: {words}')}</p>" for name, words in summary(report)[1:])


def _cards(report: ValidationReport) -> str:
    if not report.timed:
        return ""
    whole = report.groups[0]
    labels = [
        (whole.median_ape, "median error of step time"),
        (whole.mean_ape, "mean error"),
        (whole.pair_order, "pairs of plans in the right order"),
        (whole.regret, "regret of the plan predicted best"),
        (whole.coverage, "of runs in the stated 80 % interval"),
        (whole.memory_median_ape, "median error of peak memory"),
    ]
    cards = (card(percent(share), label) for share, label in labels if share is not None)
    return f'<div class="cards">{"".join(cards)}</div>'


def _sections(report: ValidationReport) -> Iterable[str]:
    if report.timed:
        note = "A point is a run; on the dotted line they agree. The grey band is ±10 %."
        colours = legend(figures.key(report))
        yield section("Step time", note, colours, plot(figures.step_times(report)), wide=True)
        note = "Share of each source's runs by signed error; + is predicted too slow."
        yield section("Errors", note, colours, plot(figures.errors(report)), wide=True)
    if report.weighed:
        note = "Peak memory of the fullest device. The grey band is ±10 %."
        yield section("Memory", note, plot(figures.memory(report)), wide=True)
    for by, groups in groupby(report.groups, key=lambda group: group.by):
        yield section(f"By {by}" if by != "all" else "All runs", "", _groups(by, list(groups)), wide=True)
    yield section("What the columns say", "", _legend(), wide=True)
    yield section("Largest misses", "What the row leaves open stands beside it.", _worst(report), wide=True)
    if report.rejected:
        rows = [[str(row.line), row.id, row.reason] for row in report.rejected]
        yield section(
            "Rejected rows", "The rest is used.", _table(["line", "id", "reason"], rows, (0,)), wide=True
        )


def _groups(by: str, groups: Sequence[Accuracy]) -> str:
    head = [by, *(column.lstrip(">") for column in COLUMNS)]
    rows = [[group.name, *accuracy_words(group)] for group in groups]
    return _table(head, rows, range(1, len(head)))


def _legend() -> str:
    return "<dl>" + "".join(f"<dt>{escape(a)}</dt><dd>{escape(b)}</dd>" for a, b in LEGEND) + "</dl>"


def _worst(report: ValidationReport) -> str:
    worst = sorted(report.timed, key=lambda each: -abs(each.error))[:WORST_SHOWN]
    rows = [
        [
            each.run.id,
            f"{each.run.job.model.name}, {each.run.plan.world_size} {each.run.labels['accelerator']}",
            plan_words(each.run.plan),
            seconds(each.run.step_s or 0.0),
            seconds(each.step_s),
            signed_percent(each.error),
            "; ".join(each.run.notes),
        ]
        for each in worst
    ]
    return _table(["id", "job", "plan", "measured", "predicted", "error", "open"], rows, (3, 4, 5))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int]) -> str:
    right = set(numbers)
    marks = [' class="number"' if i in right else "" for i in range(len(head))]
    top = "".join(f"<th{mark}>{escape(text)}</th>" for mark, text in zip(marks, head, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{mark}>{escape(text)}</td>" for mark, text in zip(marks, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
