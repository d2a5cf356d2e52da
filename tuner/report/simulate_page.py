"""One simulated step as an HTML file that needs no network: figures, timeline, seconds and bytes by rank."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files

import numpy as np

from objectives.simulator.trace import step_spans
from search_spaces.units import gib
from tuner.report.page import card, legend, section
from tuner.report.parts import MEMORY_PARTS, TIME_PARTS, time_by_part
from tuner.report.rank_screen import job_lines
from tuner.report.simulate_screen import (
    exposed_words,
    peak_lines,
    peak_parts,
    shown_ranks,
    spread_lines,
    why_lines,
)  # fmt: skip
from tuner.report.timeline_picture import BYTES, close_up, kinds_drawn, timeline_svg
from tuner.report.words import gibibytes, percent, plan_words, seconds, signed_percent
from tuner.second_opinion import Simulation


def page(simulation: Simulation) -> str:
    """The whole document."""
    title = f"{simulation.job.model.name}: {plan_words(simulation.plan)}"
    lines = "".join(f"<p class=lead>{escape(text)}</p>" for _, text in job_lines(simulation.job))
    body = [
        f"<h1>{escape(title)}</h1>{lines}",
        _cards(simulation),
        f"<p>Plan: <code>{escape(simulation.plan.key)}</code></p>",
        '<div class="grid">',
        _timeline(simulation),
        _times(simulation),
        _ranks(simulation),
        _notes(simulation),
        "</div>",
    ]
    style = files("tuner.report").joinpath("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · Meshtune</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}\n</main>\n</body>\n</html>\n"
    )


def _cards(simulation: Simulation) -> str:
    step, closed_s = simulation.step, float(simulation.closed_form.step_s[0])
    cards = [
        card(seconds(step.step_s), "step, simulated"),
        card(
            seconds(closed_s),
            f"closed form; simulated {signed_percent(simulation.difference)}".replace(
                " %", "\N{NO-BREAK SPACE}%"
            ),
        ),
        card(percent(max(step.makespan_bubble_fraction, 0.0)), "bubble where a barrier closes the step"),
        card(percent(max(step.span_bubble_fraction, 0.0)), "bubble where steps interlock, worst rank"),
        card(gibibytes(step.peak_memory_bytes), f"peak memory, rank {step.memory.peak_rank}"),
    ]
    return f'<div class="cards">{"".join(cards)}</div>'


def _timeline(simulation: Simulation) -> str:
    step = simulation.step
    spans = step_spans(step)
    entries = [*kinds_drawn(spans), (BYTES, f"memory, up to {gib(step.peak_memory_bytes):.1f} GiB (line)")]
    note = "A row a pipeline rank. Numbers are micro-batches; point at a box for its times."
    parts = [legend(entries), timeline_svg(spans, memory=step.memory)]
    if n_readable := close_up(spans):
        parts += ["<p class=note>Both ends, closer</p>", timeline_svg(spans, most_spans=n_readable)]
    return section("Timeline", note, *parts, wide=True)


def _times(simulation: Simulation) -> str:
    closed, step = time_by_part(simulation.closed_form.time, 0), simulation.step
    rows = []
    for name, part in TIME_PARTS.items():
        mine = step.parts_s.get(name, np.zeros(1))
        if closed[name] > 0 or mine.any():
            values = (closed[name], float(mine.mean()), float(mine.min()), float(mine.max()))
            rows.append([part.label, *map(seconds, values)])
    rows.append(["step", seconds(sum(closed.values())), seconds(step.makespan_s), "", ""])
    head = ["part", "closed form", "simulated, mean", "least", "most"]
    note = "Seconds of one step; least and most are of the ranks."
    return section("Where the step goes", note, _table(head, rows, words=(0,)), wide=True)


def _ranks(simulation: Simulation) -> str:
    step = simulation.step
    names = [name for name in TIME_PARTS if name in step.parts_s and step.parts_s[name].any()]
    held = [peak_parts(simulation, rank) for rank in range(len(step.memory.peak_bytes))]
    kept = [name for name in MEMORY_PARTS if any(each[name] > 0 for each in held)]
    head = ["rank", *(TIME_PARTS[name].label for name in names), "peak at"]
    head += ["peak memory", *(MEMORY_PARTS[name].label for name in kept)]
    rows = [
        [
            str(rank),
            *(seconds(float(step.parts_s[name][rank])) for name in names),
            seconds(float(step.memory.peak_at_s[rank])),
            gibibytes(float(step.memory.peak_bytes[rank])),
            *(gibibytes(held[rank][name]) for name in kept),
        ]
        for rank in shown_ranks(len(held), 64)
    ]
    return section("Seconds and bytes of every rank", "", _table(head, rows), wide=True)


def _notes(simulation: Simulation) -> str:
    lines = [("exposed", exposed_words(simulation)), *spread_lines(simulation.seeds_s)]
    lines += [*peak_lines(simulation), *why_lines(simulation)]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in lines)
    note = "Simulated by the event-driven engine; no part of it was measured."
    return section("What to know", note, f"<dl>{items}</dl>", wide=True)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = ()) -> str:
    def cells(tag: str, texts: Sequence[str]) -> str:
        kinds = ("" if i in words else ' class="number"' for i in range(len(texts)))
        return "".join(
            f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, texts, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'
