"""What `explain` prints for a person, and its part of the HTML report."""

from collections.abc import Iterable
from html import escape

from rich.console import Group, RenderableType
from rich.text import Text

from tuner.insight.content import Insight
from tuner.report.insight_tables import Block, blocks, head
from tuner.report.tables import CUT, NUMBERS, WRAPPED, facts, table


def insight_screen(insight: Insight) -> RenderableType:
    """The study, then a table for each thing that it can say."""
    parts: list[RenderableType] = [facts(head(insight))]
    for block in blocks(insight):
        parts += ["", Text(block.title, style="bold"), Text(block.note, style="dim")]
        if block.rows:
            parts.append(table(block.columns, block.rows))
    return Group(*parts)


def insight_html(insight: Insight) -> Iterable[tuple[str, str, str]]:
    """Title, note and table of every block; the tables are HTML, all words escaped."""
    if insight.missing:
        yield "What would change the answer", insight.missing, ""
    for block in blocks(insight):
        if block.title != "knob importance":  # the report draws it
            yield block.title.capitalize(), f"{block.note}.", _table(block) if block.rows else ""


def _table(block: Block) -> str:
    numbers = [column.startswith(NUMBERS) for column in block.columns]
    kind = [' class="number"' if is_number else "" for is_number in numbers]
    names = [column.lstrip(NUMBERS + WRAPPED + CUT) for column in block.columns]
    cells = "".join(f"<th{k}>{escape(name)}</th>" for k, name in zip(kind, names, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kind, row, strict=True)) + "</tr>"
        for row in block.rows
    )
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>'
