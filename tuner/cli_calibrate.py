"""The verb that fits a cluster's constants to measured runs."""

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli_flags import JsonFlag
from tuner.cli_output import check_writable, show, show_json, tell, write_page

ANSWER_IS_NO = 1
From = Annotated[
    Path,
    typer.Option("--from", metavar="RUNS.csv", help="Measured runs; benchmarks/data says which columns."),
]
ClusterFlag = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="PRESET|FILE",
        help="The machine they ran on; if not given, what the rows agree on.",
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="FILE.toml", help="The cluster file to write.")]
AllFlag = Annotated[
    bool,
    typer.Option("--all", help="Also rows that leave something open or that contradict their neighbours."),
]


def calibrate(
    *, runs: From, out: Out, cluster: ClusterFlag = None, every: AllFlag = False, json: JsonFlag = False
) -> None:
    """Fit a cluster's constants to measured runs; write a cluster file, say what the runs leave open."""
    from search_spaces.cluster_file import cluster_toml
    from tuner.report import calibration_report, calibration_screen

    target = check_writable(calibration_report.check_name(out))
    report = calibration_report.calibration_report(runs, cluster=cluster, every=every, name=out.stem)
    for row in report.rejected:
        tell(f"{runs.name}, line {row.line}: {row.reason}")
    for why, n in report.left_out.items():
        tell(f"left out: {n} rows: {why}")
    write_page(target, cluster_toml(report.cluster))
    if json:
        show_json(calibration_report.calibration_document(report, target))
    else:
        show(calibration_screen.calibration_screen(report))
    if not report.calibration.helped:
        tell(f"no fit predicts runs held back better: {out} holds {report.preset.name} as it was")
        raise typer.Exit(ANSWER_IS_NO)
