"""A study as one HTML file that needs no network: plotly.js once, data inline, all foreign text escaped."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from importlib.resources import files

from objectives.cost.step import stage_profile
from search_spaces.fidelity import Fidelity
from search_spaces.units import gib
from tuner.insight.content import Insight
from tuner.report import figures
from tuner.report.content import StudyReport, TrialRow, accuracy
from tuner.report.figures import Figure
from tuner.report.insight_screen import insight_html
from tuner.report.parts import MEMORY_PARTS, TIME_PARTS, Part
from tuner.report.proxies import proxy_lines
from tuner.report.rank_screen import job_lines
from tuner.report.study_screen import SHOWN, column_name, value_cell
from tuner.report.words import gibibytes, number_of, percent, seconds, signed_percent, worth_words

BEST_PLANS_SHOWN = 8
DRAW = """
for (const holder of document.querySelectorAll(".plot")) {
  const figure = JSON.parse(holder.nextElementSibling.textContent);
  Plotly.newPlot(holder, figure.data, figure.layout, {responsive: true, displayModeBar: false});
}
"""


def page(report: StudyReport, insight: Insight | None = None) -> str:
    """The whole document, with what would change the answer where that was asked for."""
    sections = [*_sections(report), *_insight(insight), _provenance(report)]
    body = "\n".join([_head(report), _cards(report), '<div class="grid">', *sections, "</div>"])
    return html_document(report.name, body)


def html_document(title: str, body: str) -> str:
    """One self-contained file in the reports' style, its pictures drawn when it opens."""
    style = files("tuner.report").joinpath("page.css").read_text(encoding="utf-8")
    script = files("plotly").joinpath("package_data", "plotly.min.js").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · Meshtune</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n"
        f"<script>{script}</script>\n<script>{DRAW}</script>\n</body>\n</html>\n"
    )


def _head(report: StudyReport) -> str:
    lines = "".join(f"<p class=lead>{escape(text)}</p>" for _, text in job_lines(report.job))
    return f"<h1>{escape(report.name)}</h1>\n{lines}"


def _cards(report: StudyReport) -> str:
    cards = [card(str(len(report.trials)), f"trials: {report.states or 'none yet'}")]
    best = report.best
    if best and best.measured:
        measured, limit = best.measured, report.job.cluster.device.memory_bytes
        cards = [
            card(
                seconds(measured.step_s),
                f"best step, {measured.origin}; predicted {seconds(best.predicted_s)}",
            ),
            card(f"{best.tokens_per_s_per_device:,.0f}", "tokens/s/device"),
            card(percent(best.mfu or 0.0), f"MFU of the dense {report.job.workload.precision} peak"),
            *_objective_cards(report, best),
            card(gibibytes(measured.peak_memory_bytes), f"peak memory of {gib(limit):.1f} GiB"),
            *cards,
        ]
    plan = f"<p>Best plan: <code>{escape(best.plan.key)}</code></p>" if best else ""
    plan += f"<p>What ran is smaller: {escape(best.proxy_words)}.</p>" if best and best.proxy_words else ""
    plan += "".join(f"<p>{name.capitalize()}: {escape(words)}.</p>" for name, words in proxy_lines(report))
    plan += f"<p>More trials: {escape(worth_words(report.worth))}.</p>" if report.worth else ""
    return f'<div class="cards">{"".join(cards)}</div>\n{plan}'


def _objective_cards(report: StudyReport, best: TrialRow) -> list[str]:
    """Metrics that the study asked for, and that no other card has."""
    pairs = zip(report.metrics, best.values, strict=True)
    return [
        card(value_cell(metric, value), f"{column_name(metric)}, {report.origin}")
        for metric, value in pairs
        if metric.name not in (*SHOWN, "tokens_per_s_per_device")
    ]


def card(value: str, label: str) -> str:
    """A figure and what it is."""
    return f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _sections(report: StudyReport) -> Iterable[str]:
    if report.complete:
        yield history_section(report)
        yield agreement_section(report)
        yield _breakdown(report)
        yield _pareto(report)
        yield _memory(report)
    else:
        yield section(
            "No trial has run yet", "Pictures appear with the first trial that ends well.", wide=True
        )
    yield _importance(report)
    yield _trials(report)


def _insight(insight: Insight | None) -> Iterable[str]:
    for title, note, content in insight_html(insight) if insight else ():
        yield section(title, note, content, wide=True)


def section(title: str, note: str, *parts: str, wide: bool = False) -> str:
    """A titled box; the parts are HTML, title and note plain text."""
    kind = ' class="wide"' if wide else ""
    note = note.replace(" %", "\N{NO-BREAK SPACE}%")
    return (
        f"<section{kind}><h2>{escape(title)}</h2><p class=note>{escape(note)}</p>{''.join(parts)}</section>"
    )


def plot(figure: Figure) -> str:
    """A picture's place and, beside it, its data; `<` is escaped so that no text can end the script."""
    data = json.dumps(figure, allow_nan=False).replace("<", "\\u003c")
    height = figure["layout"]["height"]
    return (
        f'<div class="plot" style="height:{height}px"></div><script type="application/json">{data}</script>'
    )


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """Names and what they stand for, as HTML."""
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)


def html_table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of plain texts; columns that begin with `>` are numbers."""
    names = list(columns)
    heads = [f"<th{_number(name.startswith('>'))}>{escape(name.lstrip('>'))}</th>" for name in names]
    body = [
        "".join(
            _cell(text, "number" if name.startswith(">") else "")
            for name, text in zip(names, row, strict=True)
        )
        for row in rows
    ]
    lines = "".join(f"<tr>{cells}</tr>" for cells in body)
    head = f"<thead><tr>{''.join(heads)}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{lines}</tbody></table></div>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Colours and what they mean."""
    items = (f'<li><i style="background:{colour}"></i>{escape(label)}</li>' for colour, label in entries)
    return f'<ul class="legend">{"".join(items)}</ul>'


def _part_legend(table: Mapping[str, Part], figure: Figure) -> str:
    drawn = {trace.get("name") for trace in figure["data"]}
    return legend((part.colour, part.label) for part in table.values() if part.label in drawn)


def history_section(report: StudyReport) -> str:
    """Every trial in order, the best so far, and failures."""
    entries = [(figures.OBSERVED, "trial"), (figures.BEST, "best so far")]
    if report.failures:
        entries.append((figures.FAILED, "failed (along the bottom)"))
    note = f"Values are {report.origin}."
    return section("History", note, legend(entries), plot(figures.history(report)))


def agreement_section(report: StudyReport) -> str:
    """Predicted against observed seconds of the trials that ran."""
    figures_of_error = accuracy(report.complete)
    note = ""
    if figures_of_error:
        order = figures_of_error.pair_order
        ordered = f", {percent(order)} of pairs in the right order" if order is not None else ""
        note = (
            f"{number_of(figures_of_error.n, 'trial')}: median error {percent(figures_of_error.median_ape)}, "
            f"mean {signed_percent(figures_of_error.bias)}{ordered}. The grey band is ±10 %."
        )
    return section(
        f"Predicted against {report.origin}", note, plot(figures.predicted_against_observed(report))
    )


def _breakdown(report: StudyReport) -> str:
    figure = figures.time_breakdown(report, BEST_PLANS_SHOWN)
    note = f"Best first, by number of trial. Bars: predicted, by part. Diamond: {report.origin}."
    return section("Where the step goes", note, _part_legend(TIME_PARTS, figure), plot(figure), wide=True)


def _pareto(report: StudyReport) -> str:
    metrics, _ = figures.pareto_points(report)
    names = " and ".join(metric.name.replace("_", " ") for metric in metrics)
    note = f"{names}, {report.origin}; no trial beats one on the green line in both."
    return section("Pareto front", note, plot(figures.pareto(report)))


def _memory(report: StudyReport) -> str:
    best = report.best
    if best is None:
        return ""
    profile = stage_profile(report.job, best.plan)
    figure = figures.stage_memory(profile, report.job.cluster.device.memory_bytes)
    note = f"Predicted for the best plan, trial {best.number}."
    return section("Memory by pipeline stage", note, _part_legend(MEMORY_PARTS, figure), plot(figure))


def _importance(report: StudyReport) -> str:
    drawn = [one for one in report.importance if one.shares]
    reasons = [f"{one.evaluator} skipped: {one.skipped}." for one in report.importance if one.skipped]
    note = " ".join(["Which knobs moved the first objective over the trials that ran.", *reasons])
    if not drawn:
        return section("Knob importance", note, wide=True)
    colours = legend(
        (colour, one.evaluator) for one, colour in zip(drawn, figures.EVALUATOR_COLOURS, strict=False)
    )
    return section("Knob importance", note, colours, plot(figures.importance(drawn)), wide=True)


def _trials(report: StudyReport) -> str:
    head = ["#", "plan", "state", "predicted", report.origin, "error", "MFU", "peak memory", "outcome"]
    numbers = {0, 3, 4, 5, 6, 7}
    note = "Failures with their cause and the log's last lines."
    note += " A proxy's seconds, MFU and bytes are its own, not the plan's." if report.any_smaller else ""
    cells = "".join(f"<th{_number(i in numbers)}>{escape(text)}</th>" for i, text in enumerate(head))
    rows = "".join(_trial(row, is_best=row is report.best) for row in report.trials)
    table = f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>'
    return section("Trials", note, table, wide=True)


def _number(is_number: bool) -> str:
    return ' class="number"' if is_number else ""


def _trial(row: TrialRow, *, is_best: bool) -> str:
    measured = row.measured
    cells = [
        _cell(str(row.number), "number"),
        _cell(row.words, "plan"),
        _cell(row.state if row.fidelity is Fidelity.FULL else f"{row.state}, {row.fidelity}"),
        _cell(seconds(row.predicted_s), "number"),
        _cell(seconds(measured.step_s) if measured else "", "number"),
        _cell(signed_percent(row.error) if row.error is not None else "", "number"),
        _cell(percent(row.mfu) if row.mfu is not None else "", "number"),
        _cell(gibibytes(measured.peak_memory_bytes if measured else row.predicted_bytes), "number"),
        f'<td class="outcome">{_outcome(row)}</td>',
    ]
    return f"<tr{' class=best' if is_best else ''}>{''.join(cells)}</tr>"


def _cell(text: str, kind: str = "") -> str:
    return f"<td class={kind}>{escape(text)}</td>" if kind else f"<td>{escape(text)}</td>"


def _outcome(row: TrialRow) -> str:
    if row.measured:
        smaller = f"{escape(row.proxy_words)}; " if row.proxy_words else ""
        return f"{smaller}± {seconds(row.measured.step_spread_s)}" + _log(row.measured.log_tail)
    if row.failed:
        text = f'<span class="failed">{escape(row.failed.cause)}</span>: {escape(row.failed.message)}'
        return text + _log(row.failed.log_tail)
    return ""


def _log(tail: str) -> str:
    return f"<details><summary>log</summary><pre>{escape(tail)}</pre></details>" if tail.strip() else ""


def _provenance(report: StudyReport) -> str:
    rows = definitions(report.provenance)
    note = "What predicted figures start from is said with the sampler; what a number rests on, beside it."
    return section("Provenance", note, f"<dl>{rows}</dl>", wide=True)
