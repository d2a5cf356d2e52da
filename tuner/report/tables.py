"""One look for all terminal tables."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

NUMBERS, WRAPPED, CUT = ">", "~", "…"


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, title: str = "") -> Table:
    """A table; the first letter of a column says how it behaves.

    `>` ranges numbers right; `~` wraps on a narrow screen; `…` is cut there; no other column ever shrinks.
    """
    cut = [column.startswith(CUT) for column in columns]
    cells = [[_cell(cell, cut=no_wrap) for cell, no_wrap in zip(row, cut, strict=True)] for row in rows]
    grid = Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        header_style="bold",
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for i, column in enumerate(columns):
        _add_column(grid, column, max((row[i].cell_len for row in cells), default=0))
    for row in cells:
        grid.add_row(*row)
    return grid


def _cell(cell: str | Text, *, cut: bool) -> Text:
    text = cell if isinstance(cell, Text) else Text(cell)
    if cut:
        text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _add_column(grid: Table, column: str, widest: int) -> None:
    label = _cell(column.lstrip(NUMBERS + WRAPPED + CUT), cut=column.startswith(CUT))
    elastic = column.startswith((WRAPPED, CUT))
    grid.add_column(
        label,
        justify="right" if column.startswith(NUMBERS) else "left",
        no_wrap=not elastic,  # what must not wrap is never shrunk in favour of what may
        overflow="fold",
        min_width=None if elastic else max(widest, label.cell_len),
    )


def facts(rows: Iterable[tuple[str, str]], *, title: str = "") -> Group:
    """Names and their values, one a line, under an optional title."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(Text(name), Text(value))
    return Group(Text(title, style="bold"), grid) if title else Group(grid)


def bar(share: float, width: int = 24) -> str:
    """A bar of blocks, an eighth of a cell fine."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
