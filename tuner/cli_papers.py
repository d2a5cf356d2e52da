"""The verb papers: published figures beside ours."""

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli_flags import JsonFlag
from tuner.cli_output import check_writable, show, show_json, write_page

Name = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="One system, all its figures.", show_default=False)
]
WriteFlag = Annotated[
    Path | None, typer.Option("--write", metavar="FILE.md", help="Write all figures as one Markdown page.")
]


def papers(name: Name = None, *, write: WriteFlag = None, json: JsonFlag = False) -> None:
    """Systems of the founding papers: their published figures beside ours, and the misses."""
    from tuner.papers import load_paper, load_papers
    from tuner.report import papers as pages

    target = check_writable(write) if write else None
    found = [(paper, paper.figures()) for paper in ([load_paper(name)] if name else load_papers())]
    if json:
        rows = [pages.paper_row(*each) for each in found]
        show_json({"schema": "meshtune.papers", "version": 1, "papers": rows})
    else:
        show(pages.papers_screen(found))
    if target:
        write_page(target, pages.papers_page(found))
