"""A timeline as one compact SVG: a row a rank, colours by kind, idle time as the row's bare background.

Micro-batch numbers stand where they fit.  A timeline with too many spans for one picture is drawn at its two
ends, warm-up and cool-down, with the steady middle cut out; of many ranks evenly spaced ones are drawn.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from types import MappingProxyType

import numpy as np

from objectives.simulator.memory import RankMemory
from objectives.simulator.step_graph import Activity, Stream
from objectives.simulator.trace import Spans, span_name, words_of
from search_spaces.plan import Bools, Floats
from search_spaces.units import gib
from tuner.report.words import seconds

COLOURS: Mapping[Activity, str] = MappingProxyType({
    Activity.FORWARD: "#2563eb", Activity.BACKWARD: "#0d9488",
    Activity.BACKWARD_INPUT: "#0d9488", Activity.BACKWARD_WEIGHT: "#84a315",
    Activity.FORWARD_BACKWARD: "#2563eb",
    Activity.TENSOR_COLLECTIVE: "#ea580c", Activity.CONTEXT_COLLECTIVE: "#f59e0b",
    Activity.EXPERT_COLLECTIVE: "#dc2626", Activity.SEND: "#fb7185",
    Activity.REDUCE: "#b45309", Activity.GATHER: "#d97706", Activity.TIE: "#92400e",
    Activity.OPTIMIZER: "#7c3aed", Activity.OFFLOAD: "#5eead4", Activity.FIXED: "#475569",
})  # fmt: skip
LABELS: Mapping[Activity, str] = MappingProxyType({
    Activity.FORWARD: "forward (F)", Activity.BACKWARD: "backward (B)",
    Activity.BACKWARD_INPUT: "backward to the input (Bi)",
    Activity.BACKWARD_WEIGHT: "backward to the weights (W)",
    Activity.FORWARD_BACKWARD: "forward over backward, run as one (F&B)",
})  # fmt: skip
IDLE, MUTED, LINE, BYTES = "#e8edf3", "#64748b", "#cbd5e1", "#7c3aed"
WIDTH, GUTTER, MARGIN, GAP = 1120.0, 58.0, 12.0, 34.0
MOST_SPANS = 6_000  # drawn in one picture: about a megabyte of SVG
MOST_ROWS = 64
MOST_READABLE = 64  # passes of a row whose numbers can be read
FEW_ROWS = 16  # drawn of a timeline that has to be cut
LETTER_WIDTH = 5.6
LIGHTER = 0.42  # how much of the second chunk's colour is white
STRIP, MEMORY_HEIGHT = 6.0, 16.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of time and where on the picture it lies."""

    start_s: float
    end_s: float
    left: float
    width: float

    def x(self, at_s: Floats) -> Floats:
        """Places of moments, those outside at the window's edges."""
        share = (np.clip(at_s, self.start_s, self.end_s) - self.start_s) / (self.end_s - self.start_s)
        return np.asarray(self.left + share * self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Ranks that are drawn, and the height of what a row shows: passes, communication, memory."""

    ranks: tuple[int, ...]
    passes: float
    strip: float
    memory: float

    @property
    def pitch(self) -> float:
        """From one row to the next."""
        return self.passes + self.strip + self.memory + 3.0

    def top(self, place: int) -> float:
        """Where a row begins."""
        return 6.0 + place * self.pitch

    @property
    def bottom(self) -> float:
        """Where the rows end."""
        return self.top(len(self.ranks))


def timeline_svg(spans: Spans, *, memory: RankMemory | None = None, most_spans: int = MOST_SPANS) -> str:
    """The whole picture; with `memory` a line of bytes under every row, all to one scale.

    Of more than `most_spans` only the two ends are drawn.
    """
    rows = _rows(spans, has_memory=memory is not None, most_spans=most_spans)
    windows = _windows(spans, rows, most_spans)
    height = rows.bottom + 30.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:.1f}" width="100%" '
        'font-family="system-ui, sans-serif" role="img" aria-label="timeline of the pipeline">',
        *_frames(rows, windows),
    ]
    for window in windows:
        parts += [*_spans_in(spans, rows, window), *_axis(rows, window)]
        if memory is not None:
            parts += _memory_lines(memory, rows, window)
    parts += _cut_mark(windows, rows)
    return "\n".join([*parts, "</svg>"])


def kinds_drawn(spans: Spans) -> list[tuple[str, str]]:
    """Colours and labels of the kinds that a timeline has, for its legend; idle time last."""
    kinds = [Activity(kind) for kind in np.unique(spans.kind[spans.finish_s > spans.start_s]).tolist()]
    entries = [(COLOURS[kind], LABELS.get(kind, words_of(kind))) for kind in kinds]
    if spans.chunk.max(initial=0) > 0:
        entries.append((_lighter(COLOURS[Activity.FORWARD]), "second and further chunks are lighter"))
    return [*entries, (IDLE, "idle (bubble)")]


def close_up(spans: Spans) -> int:
    """How many spans a picture of both ends may hold to show single passes; 0 where the whole one does."""
    passes = _whole_passes(spans)
    if len(passes) <= spans.n_ranks * MOST_READABLE:
        return 0
    return round(min(spans.n_ranks, FEW_ROWS) * MOST_READABLE * len(spans) / len(passes))


def _rows(spans: Spans, *, has_memory: bool, most_spans: int) -> Rows:
    most = MOST_ROWS if len(spans) <= most_spans else FEW_ROWS
    n = min(spans.n_ranks, most)
    ranks = np.unique(np.rint(np.linspace(0, spans.n_ranks - 1, n)).astype(int)).tolist()
    passes = 24.0 if n <= 8 else 18.0 if n <= 24 else 11.0
    beside = bool(np.any((spans.stream != Stream.COMPUTE) & (spans.finish_s > spans.start_s)))
    return Rows(ranks=tuple(ranks), passes=passes, strip=STRIP * beside, memory=MEMORY_HEIGHT * has_memory)


def _windows(spans: Spans, rows: Rows, most_spans: int) -> list[Window]:
    """All of the time, or its two ends; each end is long enough to show warm-up and steady state."""
    end_s, whole = max(spans.end_s, 1e-12), WIDTH - GUTTER - MARGIN
    n_drawn = int(np.isin(spans.rank, rows.ranks).sum())
    if n_drawn <= most_spans:
        return [Window(start_s=0.0, end_s=end_s, left=GUTTER, width=whole)]
    piece_s, width = end_s * most_spans / n_drawn / 2, (whole - GAP) / 2
    return [
        Window(start_s=0.0, end_s=piece_s, left=GUTTER, width=width),
        Window(start_s=end_s - piece_s, end_s=end_s, left=GUTTER + width + GAP, width=width),
    ]


def _frames(rows: Rows, windows: Sequence[Window]) -> Iterable[str]:
    """Names of the ranks, and the background that shows where nothing runs."""
    for place, rank in enumerate(rows.ranks):
        middle = rows.top(place) + rows.passes / 2 + 3.5
        yield _words(f"rank {rank}", GUTTER - 8, middle, anchor="end", size=10.5)
        yield from (_rect(w.left, rows.top(place), w.width, rows.passes, IDLE) for w in windows)


def _spans_in(spans: Spans, rows: Rows, window: Window) -> Iterable[str]:
    is_seen = (spans.finish_s > window.start_s) & (spans.start_s < window.end_s)
    is_seen &= np.isin(spans.rank, rows.ranks) & (spans.finish_s > spans.start_s)
    seen = spans.take(is_seen)
    for drawn, draw in ((seen, _span), (_whole_passes(seen), _numbers)):
        left, right = window.x(drawn.start_s), window.x(drawn.finish_s)
        place = np.searchsorted(rows.ranks, drawn.rank)
        for at in range(len(drawn)):
            yield draw(
                drawn, at, rows, rows.top(int(place[at])), float(left[at]), float(right[at] - left[at])
            )


def _whole_passes(spans: Spans) -> Spans:
    """The passes, pieces of one that follow each other joined: what a number stands on."""
    passes = spans.take((spans.stream == Stream.COMPUTE) & (spans.kind <= Activity.FORWARD_BACKWARD))
    passes = passes.take(np.lexsort((passes.start_s, passes.rank)))
    names = ("rank", "kind", "microbatch", "chunk")
    pass_of = np.stack([getattr(passes, name) for name in names])
    is_first = np.append(True, (pass_of[:, 1:] != pass_of[:, :-1]).any(axis=0))[: len(passes)]
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], len(passes))[: len(first)] - 1
    return replace(passes.take(first), finish_s=passes.finish_s[last])


def _span(spans: Spans, at: int, rows: Rows, top: float, left: float, width: float) -> str:
    kind, chunk = Activity(int(spans.kind[at])), int(spans.chunk[at])
    title = f"{span_name(spans, at)}{_where(spans, at)}: {_times(spans, at)}"
    if int(spans.stream[at]) != Stream.COMPUTE:
        box = _box(left, top + rows.passes, width, rows.strip - 1, COLOURS[kind], chunk)
    elif kind is Activity.FORWARD_BACKWARD:
        half = rows.passes / 2
        box = _box(left, top, width, half, COLOURS[Activity.FORWARD], chunk)
        box += _box(left, top + half, width, half, COLOURS[Activity.BACKWARD], int(spans.with_chunk[at]))
    else:
        box = _box(left, top, width, rows.passes, COLOURS[kind], chunk)
    return f"<g><title>{escape(title)}</title>{box}</g>"


def _numbers(spans: Spans, at: int, rows: Rows, top: float, left: float, width: float) -> str:
    """The micro-batch of a pass, both of F&B, where they fit."""
    if spans.kind[at] != Activity.FORWARD_BACKWARD:
        return _number(int(spans.microbatch[at]), left, width, top + rows.passes / 2, rows.passes)
    half = rows.passes / 2
    return _number(int(spans.microbatch[at]), left, width, top + half / 2, half) + _number(
        int(spans.with_microbatch[at]), left, width, top + 1.5 * half, half
    )


def _box(left: float, top: float, width: float, height: float, colour: str, chunk: int) -> str:
    inner = max(width - 0.6, 0.25) if width > 2 else max(width, 0.25)  # a hair of background parts neighbours
    return _rect(left, top, inner, height, _lighter(colour) if chunk > 0 else colour)


def _rect(left: float, top: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{left:.2f}" y="{top:.1f}" width="{width:.2f}" height="{height:g}" fill="{fill}"/>'


def _words(text: str, x: float, y: float, *, anchor: str, size: float, fill: str = MUTED) -> str:
    place = f'x="{x:.2f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="{size:g}" fill="{fill}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{LINE}"/>'


def _number(value: int, left: float, width: float, middle: float, height: float) -> str:
    text, size = str(value), min(10.0, height - 1.5)
    if value < 0 or width < LETTER_WIDTH * len(text) + 1.5 or size < 7:
        return ""
    return _words(text, left + width / 2, middle + size * 0.36, anchor="middle", size=size, fill="white")


def _where(spans: Spans, at: int) -> str:
    chunk, stage = int(spans.chunk[at]), int(spans.stage[at])
    return (f", chunk {chunk}" if chunk > 0 else "") + (f", stage {stage}" if stage >= 0 else "")


def _times(spans: Spans, at: int) -> str:
    start_s, finish_s = float(spans.start_s[at]), float(spans.finish_s[at])
    return f"{seconds(finish_s - start_s)} from {seconds(start_s)}"


def _lighter(colour: str) -> str:
    mixed = (round(int(colour[i : i + 2], 16) * (1 - LIGHTER) + 255 * LIGHTER) for i in (1, 3, 5))
    return "#" + "".join(f"{each:02x}" for each in mixed)


def _axis(rows: Rows, window: Window) -> Iterable[str]:
    y, right = rows.bottom + 2, window.left + window.width
    yield _line(window.left, y, right, y)
    for at_s in ticks(window.start_s, window.end_s):
        x = float(window.x(np.asarray(at_s)))
        anchor = "start" if x < window.left + 12 else "end" if x > right - 20 else "middle"
        yield _line(x, y, x, y + 4)
        yield _words(seconds(at_s), x, y + 15, anchor=anchor, size=10)


def ticks(start: float, end: float, most: int = 7) -> list[float]:
    """Round numbers within a stretch, at most so many."""
    raw = (end - start) / most
    power = 10.0 ** np.floor(np.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))
    first, last = int(np.ceil(start / step - 1e-9)), int(np.floor(end / step + 1e-9))
    return [float(n * step) for n in range(first, last + 1)]


def _memory_lines(memory: RankMemory, rows: Rows, window: Window) -> Iterable[str]:
    most = float(memory.peak_bytes.max())
    for place, rank in enumerate(rows.ranks):
        at_s, n_bytes = memory.over_time(rank)
        within = _staircase(np.append(0.0, at_s), np.append(memory.constant_bytes[rank], n_bytes), window)
        if within is None:
            continue
        base = rows.top(place) + rows.passes + rows.strip + rows.memory
        points = _points(window.x(within[0]), base - within[1] / most * (rows.memory - 2))
        title = f"<title>rank {rank}: at most {gib(float(memory.peak_bytes[rank])):.1f} GiB</title>"
        yield f'<polyline points="{points}" fill="none" stroke="{BYTES}" stroke-width="1">{title}</polyline>'


def _staircase(at_s: Floats, values: Floats, window: Window) -> tuple[Floats, Floats] | None:
    """Corners of the stairs inside a window."""
    inside: Bools = (at_s >= window.start_s) & (at_s <= window.end_s)
    if not inside.any():
        return None
    x: Floats = np.repeat(at_s[inside], 2)[1:]
    y: Floats = np.repeat(values[inside], 2)[:-1]
    return np.append(x, window.end_s), np.append(y, y[-1])


def _points(x: Floats, y: Floats) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def _cut_mark(windows: Sequence[Window], rows: Rows) -> list[str]:
    if len(windows) == 1:
        return []
    first, last = windows
    cut = f"{seconds(last.start_s - first.end_s)} not drawn"
    x, y = first.left + first.width + GAP / 2, rows.bottom / 2
    turned = _words(cut, x, y, anchor="middle", size=11)
    return [f'<g transform="rotate(-90 {x:.1f} {y:.1f})">{turned}</g>']
