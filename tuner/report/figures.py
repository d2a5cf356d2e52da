"""The pictures of a report as plotly figures: plain dicts of data and layout."""

from collections.abc import Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import Any

import numpy as np

from objectives.cost.result import StageProfile
from objectives.cost.step import estimate
from objectives.metrics import METRICS, Metric
from search_spaces.plan import Plans
from search_spaces.units import gib
from tuner.report.content import Importance, StudyReport, TrialRow, best_so_far, pareto_front
from tuner.report.parts import MEMORY_PARTS, TIME_PARTS, Part, memory_by_part, time_by_part

Figure = dict[str, Any]

INK, MUTED, GRID = "#0f172a", "#64748b", "#e2e8f0"
OBSERVED, PREDICTED, BEST, FAILED = "#2563eb", "#94a3b8", "#0d9488", "#dc2626"
EVALUATOR_COLOURS = ("#2563eb", "#f59e0b")
BAR_PX, LINE_PX, LABEL_WIDTH = 20, 14, 46
AIR = 1.04  # what an axis leaves free around its points


def layout(x_title: str, y_title: str, **more: Any) -> dict[str, Any]:
    """What all pictures share; legends are drawn by the page, where they can wrap."""
    axis = dict(
        gridcolor=GRID, zeroline=False, automargin=True, linecolor=GRID, ticks="outside", tickcolor=GRID
    )
    base = dict(
        font=dict(family="system-ui, sans-serif", size=13, color=INK),
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin=dict(l=8, r=16, t=16, b=8),
        showlegend=False,
        hovermode="closest",
        hoverlabel=dict(align="left"),
        height=380,
    )
    axes = dict(
        xaxis={**axis, "title": dict(text=x_title, standoff=8)},
        yaxis={**axis, "title": dict(text=y_title, standoff=8)},
    )
    for name in ("xaxis", "yaxis"):
        axes[name] |= more.pop(name, {})
    return base | axes | more


def axis_title(metric: Metric, origin: str) -> str:
    """`step time (s), simulated`."""
    return f"{metric.name.replace('_', ' ')} ({metric.unit}), {origin}"


def history(report: StudyReport) -> Figure:
    """Every trial's first value in order, the best so far, and the failures along the bottom."""
    rows, metric = report.complete, report.metrics[0]
    numbers = [row.number for row in rows]
    data = [
        _points(numbers, [row.values[0] for row in rows], rows, colour=OBSERVED),
        dict(
            type="scatter",
            mode="lines",
            line=dict(shape="hv", color=BEST, width=2),
            x=numbers,
            y=best_so_far(rows, metric),
            hovertemplate="best so far %{y:.4g}<extra></extra>",
        ),
    ]
    if report.failures:
        data.append(_failure_marks(report.failures))
    titles = layout("trial", axis_title(metric, report.origin), yaxis2=_strip(), xaxis=_whole_numbers(report))
    return dict(data=data, layout=titles)


def _whole_numbers(report: StudyReport) -> dict[str, Any]:
    """An axis of trials, with room for the marks of the first and the last one."""
    last = max(row.number for row in report.trials)
    return dict(range=[-0.5, last + 0.5], tick0=0, dtick=max(1, -(-last // 8)))


def _strip() -> dict[str, Any]:
    """A second y axis without marks, for what has a place in time but no value."""
    return dict(overlaying="y", range=[0, 1], visible=False, fixedrange=True)


def _failure_marks(rows: Sequence[TrialRow]) -> dict[str, Any]:
    texts = [f"{escape(row.words)}<br>{escape(row.failed.cause)}" for row in rows if row.failed]
    return dict(
        type="scatter",
        mode="markers",
        yaxis="y2",
        x=[row.number for row in rows],
        y=[0.03] * len(rows),
        text=texts,
        marker=dict(symbol="x", color=FAILED, size=8),
        hovertemplate="trial %{x}: %{text}<extra></extra>",
    )


def _points(
    x: Sequence[float], y: Sequence[float], rows: Sequence[TrialRow], *, colour: str
) -> dict[str, Any]:
    return dict(
        type="scatter",
        mode="markers",
        x=list(x),
        y=list(y),
        text=[f"trial {row.number}: {escape(row.words)}" for row in rows],
        marker=dict(color=colour, size=8, line=dict(color="white", width=1)),
        hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
    )


def predicted_against_observed(report: StudyReport) -> Figure:
    """Predicted step seconds over observed ones; on the line they agree."""
    rows = report.complete
    observed = [row.measured.step_s for row in rows if row.measured]
    predicted = [row.predicted_s for row in rows]
    ends = [min(observed + predicted) / AIR, max(observed + predicted) * AIR]
    band = dict(
        type="scatter",
        mode="lines",
        fill="toself",
        fillcolor="rgba(148,163,184,0.18)",
        line=dict(width=0),
        x=[ends[0], ends[1], ends[1], ends[0]],
        y=[0.9 * ends[0], 0.9 * ends[1], 1.1 * ends[1], 1.1 * ends[0]],
        hoverinfo="skip",
    )
    line = dict(
        type="scatter", mode="lines", x=ends, y=ends, line=dict(color=MUTED, dash="dot"), hoverinfo="skip"
    )
    titles = layout(f"step time (s), {report.origin}", "step time (s), predicted")
    return dict(data=[band, line, _points(observed, predicted, rows, colour=OBSERVED)], layout=titles)


def pareto(report: StudyReport) -> Figure:
    """The first two objectives against each other; a single objective against peak memory."""
    rows = report.complete
    metrics, points = pareto_points(report)
    front = pareto_front(points, [metric.goal for metric in metrics])
    line = dict(
        type="scatter",
        mode="lines+markers",
        x=points[front, 0].tolist(),
        y=points[front, 1].tolist(),
        line=dict(color=BEST, width=2),
        marker=dict(color=BEST, size=10),
        hoverinfo="skip",
    )
    titles = layout(*(_in_gib(axis_title(metric, report.origin)) for metric in metrics))
    return dict(
        data=[line, _points(points[:, 0].tolist(), points[:, 1].tolist(), rows, colour=OBSERVED)],
        layout=titles,
    )


def pareto_points(report: StudyReport) -> tuple[list[Metric], Any]:
    """Two metrics and their values, shape (n_complete, 2); bytes as GiB."""
    metrics = list(report.metrics[:2])
    columns = [[row.values[i] for row in report.complete] for i in range(len(metrics))]
    if len(metrics) == 1:
        metrics.append(METRICS["peak_memory"])
        columns.append([row.measured.peak_memory_bytes for row in report.complete if row.measured])
    scaled = [
        gib(np.array(column)) if metric.name == "peak_memory" else np.array(column)  # type: ignore[arg-type]
        for metric, column in zip(metrics, columns, strict=True)
    ]
    return metrics, np.stack(scaled, axis=1)


def _in_gib(title: str) -> str:
    return title.replace("(bytes)", "(GiB)")


def time_breakdown(report: StudyReport, n: int = 8) -> Figure:
    """Where the step of the best plans goes as predicted, with the observed time as a mark."""
    known = [(row, row.ran) for row in report.ranked if row.ran is not None][:n]
    rows = [row for row, _ in known]
    times = [estimate(job, Plans.of([plan])).time for _, (job, plan) in known]
    parts = [time_by_part(each, 0) for each in times]
    places = list(range(len(rows)))
    data = stacked(TIME_PARTS, parts, places, horizontal=True, unit="s")
    data.append(
        dict(
            type="scatter",
            mode="markers",
            x=[row.measured.step_s for row in rows if row.measured],
            y=places,
            marker=dict(symbol="diamond", size=10, color=INK, line=dict(color="white", width=1)),
            hovertemplate=f"{report.origin} %{{x:.4g}} s<extra></extra>",
        )
    )
    labels = [
        _bar_label(f"{row.number}: {row.words}", place) for row, place in zip(rows, places, strict=True)
    ]
    n_lines = max(2, *(label["text"].count("<br>") + 1 for label in labels))
    slot_px = BAR_PX + LINE_PX * n_lines + 10
    frame = layout(
        "seconds of one step",
        "",
        yaxis=dict(visible=False, autorange="reversed"),
        barmode="stack",
        bargap=1 - BAR_PX / slot_px,
        annotations=labels,
        margin=dict(l=8, r=16, t=LINE_PX * n_lines - 12, b=8),
        height=slot_px * len(rows) + LINE_PX * n_lines + 52,
    )
    return dict(data=data, layout=frame)


def _bar_label(text: str, place: int) -> dict[str, Any]:
    return dict(
        x=0,
        y=place,
        xanchor="left",
        yanchor="bottom",
        yshift=9,
        showarrow=False,
        align="left",
        text="<br>".join(escape(line) for line in wrap(text, LABEL_WIDTH, break_on_hyphens=False)),
        font=dict(size=11, color=MUTED),
    )


def stacked(
    parts: Mapping[str, Part],
    rows: Sequence[Mapping[str, float]],
    places: Sequence[int],
    *,
    horizontal: bool,
    unit: str,
) -> list[dict[str, Any]]:
    """One bar series a part; parts that are zero everywhere are left out."""
    along, across = ("x", "y") if horizontal else ("y", "x")
    return [
        {
            "type": "bar",
            "orientation": "h" if horizontal else "v",
            across: list(places),
            along: [row[name] for row in rows],
            "name": part.label,
            "marker": dict(color=part.colour),
            "hovertemplate": f"{part.label} %{{{along}:.4g}} {unit}<extra></extra>",
        }
        for name, part in parts.items()
        if any(row[name] > 0 for row in rows)
    ]


def stage_memory(profile: StageProfile, limit_bytes: float) -> Figure:
    """Memory of each pipeline stage by part, under the line of what a device has."""
    stages = list(range(len(profile.n_layers)))
    rows = [{name: gib(value) for name, value in memory_by_part(profile.memory, i).items()} for i in stages]
    data = stacked(MEMORY_PARTS, rows, stages, horizontal=False, unit="GiB")
    limit = gib(limit_bytes)
    line = dict(
        type="line", xref="paper", x0=0, x1=1, y0=limit, y1=limit, line=dict(color=FAILED, dash="dash")
    )
    label = dict(
        xref="paper", x=1, y=limit, xanchor="right", yanchor="bottom", showarrow=False,
        text=f"device memory {limit:.1f} GiB", font=dict(color=FAILED, size=12),
        bgcolor="rgba(255,255,255,0.9)",
    )  # fmt: skip
    frame = layout(
        "pipeline stage",
        "GiB, predicted",
        barmode="stack",
        bargap=0.35 if len(stages) > 2 else 0.7,
        shapes=[line],
        annotations=[label],
        xaxis=dict(tickmode="array", tickvals=stages) if len(stages) <= 16 else {},
        yaxis=dict(range=[0, 1.1 * max(limit, gib(float(profile.memory.total_bytes.max())))]),
    )
    return dict(data=data, layout=frame)


def importance(evaluated: Sequence[Importance]) -> Figure:
    """Share of each knob by each evaluator, the most important on top."""
    knobs = sorted(evaluated[0].shares, key=lambda knob: -max(one.shares.get(knob, 0.0) for one in evaluated))
    data = [
        dict(
            type="bar",
            orientation="h",
            y=knobs,
            x=[one.shares.get(knob, 0.0) for knob in knobs],
            name=one.evaluator,
            marker=dict(color=colour),
            hovertemplate=f"{one.evaluator}: %{{y}} %{{x:.2f}}<extra></extra>",
        )
        for one, colour in zip(evaluated, EVALUATOR_COLOURS, strict=False)
    ]
    frame = layout(
        "share of the variation explained",
        "",
        barmode="group",
        height=34 * len(knobs) + 90,
        yaxis=dict(autorange="reversed"),
    )
    return dict(data=data, layout=frame)
