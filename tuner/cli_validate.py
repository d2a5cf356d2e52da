"""The verb that compares the cost model with measured runs."""

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli_flags import JsonFlag
from tuner.cli_output import check_writable, show, show_json, tell, write_page

ANSWER_IS_NO = 1
MOST_TOLD = 200  # rejected rows on a screen; the document and the page have all
Runs = Annotated[
    Path, typer.Argument(metavar="RUNS.csv", help="Measured runs; benchmarks/data says which columns.")
]
ClusterFlag = Annotated[
    str | None,
    typer.Option("--cluster", metavar="PRESET|FILE", help="One machine for every row, whatever they say."),
]
HtmlFlag = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Also write a page of plots and tables.")
]
AllFlag = Annotated[
    bool,
    typer.Option("--all", help="Also rows that leave something open or that contradict their neighbours."),
]


def validate(
    runs: Runs,
    *,
    cluster: ClusterFlag = None,
    every: AllFlag = False,
    html: HtmlFlag = None,
    json: JsonFlag = False,
) -> None:
    """Predict measured runs; show the errors by source, accelerator, model kind, parallelism and trainer."""
    from tuner.report import validation_report, validation_screen

    target = check_writable(html) if html else None
    report = validation_report.validation_report(runs, cluster=cluster, every=every)
    for row in report.rejected[:MOST_TOLD]:
        tell(f"{runs.name}, line {row.line}: {row.reason}")
    if len(report.rejected) > MOST_TOLD:
        tell(f"and {len(report.rejected) - MOST_TOLD:,} more rejected rows, which --json and --html list")
    if target:
        from tuner.report import validation_page

        write_page(target, validation_page.page(report))
    if json:
        show_json(validation_report.validation_document(report))
    else:
        show(validation_screen.validation_screen(report))
    if not report.predictions:
        tell("no row can be compared with a prediction")
        raise typer.Exit(ANSWER_IS_NO)
