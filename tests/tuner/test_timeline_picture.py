"""The picture of a timeline: boxes where passes run, background where none does, numbers where they fit."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from objectives.simulator.memory import rank_memory
from objectives.simulator.schedules import program
from objectives.simulator.step_graph import Activity
from objectives.simulator.timeline import PassTimes, simulate
from tests.objectives.spans import pass_spans
from tuner.report.timeline_picture import (
    COLOURS,
    GUTTER,
    IDLE,
    MARGIN,
    WIDTH,
    close_up,
    kinds_drawn,
    ticks,
    timeline_svg,
)  # fmt: skip

SVG = "{http://www.w3.org/2000/svg}"


def timeline(schedule, p, m, v=1):
    passes = program(schedule, p, m, v)
    each = np.full((passes.n_ranks, passes.n_chunks), 0.01 / passes.n_chunks)
    return simulate(
        passes,
        PassTimes(forward_s=each, backward_input_s=each, backward_weight_s=each, send_s=np.zeros(p)),
    )


def drawn(ran, **options):
    return ElementTree.fromstring(timeline_svg(pass_spans(ran), **options))


def boxes(svg):
    """Every box of a span: left, top, width, height, colour."""
    names = ("x", "y", "width", "height")
    return [
        (*(float(rect.get(name)) for name in names), rect.get("fill"))
        for group in svg.iter(f"{SVG}g")
        for rect in group.iter(f"{SVG}rect")
    ]


def backgrounds(svg):
    return [rect for rect in svg.findall(f"{SVG}rect") if rect.get("fill") == IDLE]


def numbers(svg):
    return [text.text for text in svg.iter(f"{SVG}text") if text.get("fill") == "white"]


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b", "zb-h1"])
def test_a_row_shows_as_much_idle_time_as_there_is(schedule):
    ran = timeline(schedule, 4, 8)
    svg = drawn(ran)
    tops = sorted({top for _, top, *_ in boxes(svg)})
    assert len(tops) == len(backgrounds(svg)) == 4
    for rank, top in enumerate(tops):
        covered = sum(width for _, y, width, *_ in boxes(svg) if y == top) / (WIDTH - GUTTER - MARGIN)
        # A hair of 0.6 of 1,050 units is left between neighbours: 24 of them are 1.4 %.
        assert covered == pytest.approx(ran.busy_s[rank] / ran.makespan_s, abs=0.02)


def test_1f1b_warms_up_in_a_staircase_and_ends_in_one():
    svg = drawn(timeline("1f1b", 4, 8))
    rows = sorted({top for _, top, *_ in boxes(svg)})
    first = [min(left for left, y, *_ in boxes(svg) if y == top) for top in rows]
    last = [max(left + width for left, y, width, *_ in boxes(svg) if y == top) for top in rows]
    assert first == sorted(first)
    assert last == sorted(last, reverse=True)
    warm_up = [sum(c == COLOURS[Activity.FORWARD] for *_, c in _before_backward(svg, top)) for top in rows]
    assert warm_up == [4, 3, 2, 1]


def _before_backward(svg, top):
    mine = sorted(box for box in boxes(svg) if box[1] == top)
    first = next(i for i, box in enumerate(mine) if box[4] == COLOURS[Activity.BACKWARD])
    return mine[:first]


def test_every_micro_batch_has_its_number():
    shown = numbers(drawn(timeline("1f1b", 2, 4)))
    assert sorted(shown) == sorted(str(j) for j in range(4) for _ in range(4))


def test_a_pass_of_two_halves_shows_both_numbers():
    ran = timeline("dualpipe", 4, 8, 2)
    n_pairs = int((ran.program.kind == Activity.FORWARD_BACKWARD).sum())
    assert n_pairs > 0
    assert len(boxes(drawn(ran))) == len(ran.program) + n_pairs
    assert len(numbers(drawn(ran))) == len(ran.program) + n_pairs


def test_a_long_timeline_is_drawn_at_its_ends():
    ran = timeline("1f1b", 64, 400)
    svg = drawn(ran)
    assert len(boxes(svg)) < 8_000
    assert len(backgrounds(svg)) == 2 * 16
    words = " ".join(text.text for text in svg.iter(f"{SVG}text"))
    assert "not drawn" in words
    assert {"rank 0", "rank 63"} <= {text.text for text in svg.iter(f"{SVG}text")}


def test_only_a_crowded_timeline_gets_a_close_up():
    assert close_up(pass_spans(timeline("1f1b", 4, 8))) == 0
    assert close_up(pass_spans(timeline("1f1b", 4, 128))) == 4 * 64


def test_memory_is_a_line_a_rank():
    ran = timeline("1f1b", 4, 8)
    memory = rank_memory(ran, np.full((4, 1), 2.0**30))
    lines = drawn(ran, memory=memory).findall(f"{SVG}polyline")
    heights = [
        max(ys) - min(ys)
        for line in lines
        for ys in [[float(point.split(",")[1]) for point in line.get("points").split()]]
    ]
    # 1F1B keeps 4, 3, 2, 1 micro-batches, and the highest line has 14 units.
    assert heights == pytest.approx([14.0, 10.5, 7.0, 3.5], abs=0.11)


def test_the_legend_names_what_is_there():
    labels = [label for _, label in kinds_drawn(pass_spans(timeline("interleaved", 4, 8, 2)))]
    assert labels == ["forward (F)", "backward (B)", "second and further chunks are lighter", "idle (bubble)"]


@pytest.mark.parametrize("end", [0.0031, 1.0, 7.3, 4989.0])
def test_ticks_are_few_and_round(end):
    found = ticks(0.0, end)
    assert 2 <= len(found) <= 8
    assert found[0] == 0.0
    assert all(re.fullmatch(r"[125]", f"{step:.0e}"[0]) for step in np.diff(found))
