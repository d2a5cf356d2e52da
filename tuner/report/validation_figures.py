"""The pictures of a validation as plotly figures."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from objectives.validation import Prediction
from search_spaces.units import gib
from tuner.report.figures import MUTED, Figure, layout
from tuner.report.validation_report import ValidationReport
from tuner.report.words import plan_words

PALETTE = (
    "#2563eb", "#f59e0b", "#0d9488", "#dc2626", "#7c3aed", "#65a30d", "#db2777", "#0891b2", "#92400e",
    "#475569",
)  # fmt: skip
AIR, WIDEST_ERROR, BIN = 1.15, 1.0, 0.05


def colours(report: ValidationReport) -> dict[str, str]:
    """A colour for every source, largest source first; the last colour serves all that are left."""
    sources = [group.name for group in report.groups if group.by == "source" and group.n]
    return {name: PALETTE[min(i, len(PALETTE) - 1)] for i, name in enumerate(sources)}


def key(report: ValidationReport) -> list[tuple[str, str]]:
    """Each colour and the sources it stands for."""
    names: dict[str, list[str]] = {}
    for name, colour in colours(report).items():
        names.setdefault(colour, []).append(name)
    return [(colour, ", ".join(sources)) for colour, sources in names.items()]


def step_times(report: ValidationReport) -> Figure:
    """Predicted over measured seconds, both axes logarithmic."""
    return _agreement(
        report.timed,
        colours(report),
        lambda each: (each.run.step_s or 0.0, each.step_s),
        ("step time (s), measured", "step time (s), predicted"),
    )


def memory(report: ValidationReport) -> Figure:
    """Predicted over measured peak memory, both axes logarithmic."""
    sources = list(colours(report))
    sources += sorted({each.run.labels["source"] for each in report.weighed} - set(sources))
    palette = {name: PALETTE[min(i, len(PALETTE) - 1)] for i, name in enumerate(sources)}
    return _agreement(
        report.weighed,
        palette,
        lambda each: (gib(each.run.peak_memory_bytes or 0.0), gib(each.peak_memory_bytes)),
        ("peak memory (GiB), measured", "peak memory (GiB), predicted"),
    )


def errors(report: ValidationReport) -> Figure:
    """A histogram of signed errors for each source; what lies beyond the ends is drawn at them."""
    data = [
        dict(
            type="histogram",
            name=name,
            x=[max(-WIDEST_ERROR, min(each.error, WIDEST_ERROR)) for each in _of(report.timed, name)],
            xbins=dict(start=-WIDEST_ERROR - BIN / 2, end=WIDEST_ERROR + BIN / 2, size=BIN),
            histnorm="probability",
            opacity=0.55,
            marker=dict(color=colour),
            hovertemplate=f"{escape(name)} %{{x}}: %{{y:.2f}}<extra></extra>",
        )
        for name, colour in colours(report).items()
    ]
    frame = layout("predicted over measured, less one", "share of the source's runs", barmode="overlay")
    return dict(data=data, layout=frame)


def _agreement(
    predictions: Sequence[Prediction],
    palette: dict[str, str],
    values: Callable[[Prediction], tuple[float, float]],
    titles: tuple[str, str],
) -> Figure:
    """Points around the line on which prediction and measurement agree."""
    pairs = [value for each in predictions for value in values(each) if value > 0]
    ends = [min(pairs) / AIR, max(pairs) * AIR]
    band = dict(
        type="scatter", mode="lines", fill="toself", fillcolor="rgba(148,163,184,0.18)", line=dict(width=0),
        x=[ends[0], ends[1], ends[1], ends[0]],
        y=[0.9 * ends[0], 0.9 * ends[1], 1.1 * ends[1], 1.1 * ends[0]],
        hoverinfo="skip",
    )  # fmt: skip
    line = dict(type="scatter", mode="lines", x=ends, y=ends, line=dict(color=MUTED, dash="dot"))
    data: list[dict[str, Any]] = [band, line | dict(hoverinfo="skip")]
    data += [_points(_of(predictions, name), name, colour, values) for name, colour in palette.items()]
    frame = layout(*titles, xaxis=dict(type="log"), yaxis=dict(type="log"), height=560)
    return dict(data=data, layout=frame)


def _of(predictions: Sequence[Prediction], source: str) -> list[Prediction]:
    return [each for each in predictions if each.run.labels["source"] == source]


def _points(
    predictions: Sequence[Prediction],
    name: str,
    colour: str,
    values: Callable[[Prediction], tuple[float, float]],
) -> dict[str, Any]:
    pairs = [values(each) for each in predictions]
    return dict(
        type="scatter",
        mode="markers",
        name=name,
        x=[measured for measured, _ in pairs],
        y=[predicted for _, predicted in pairs],
        text=[
            escape(f"{each.run.id}: {each.run.job.model.name}, {plan_words(each.run.plan)}")
            for each in predictions
        ],
        marker=dict(color=colour, size=6, opacity=0.6),
        hovertemplate="%{text}<br>measured %{x:.4g}, predicted %{y:.4g}<extra></extra>",
    )
