"""The verb that finds a cluster's constants: measured on this machine, or fitted to runs measured before."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuner.cli_flags import JsonFlag, StorageFlag
from tuner.cli_output import check_writable, err, show, show_json, tell, write_page

if TYPE_CHECKING:
    from tuner.report.calibration_report import CalibrationReport

ANSWER_IS_NO = 1
MEASURE, FIT = "Measuring this machine", "Fitting to runs"
From = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="RUNS.csv",
        help="Measured runs to fit to; benchmarks/data says which columns.",
        rich_help_panel=FIT,
    ),
]
FromStudy = Annotated[
    list[str] | None,
    typer.Option(
        "--from-study",
        metavar="NAME",
        help="A study whose measured trials to fit to; may be repeated.",
        rich_help_panel=FIT,
    ),
]
FromRates = Annotated[
    Path | None,
    typer.Option(
        "--from-rates",
        metavar="RATES.csv",
        help="Rates measured on --cluster, kernel by kernel; docs/cluster-file.md says which columns.",
        rich_help_panel=FIT,
    ),
]
MostFlag = Annotated[
    int | None,
    typer.Option(
        "--most-devices", metavar="N", help="Only runs on so many devices or fewer.", rich_help_panel=FIT
    ),
]
ClusterFlag = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="PRESET|FILE",
        help="The machine as it is known; if not given, what the rows agree on, or what the system reports.",
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="FILE.toml", help="The cluster file to write.")]
AllFlag = Annotated[
    bool,
    typer.Option(
        "--all",
        help="Also rows that leave something open or that contradict their neighbours.",
        rich_help_panel=FIT,
    ),
]
BudgetFlag = Annotated[
    float | None,
    typer.Option(
        metavar="S", help="Seconds that measuring may take; 120 if not given.", rich_help_panel=MEASURE
    ),
]
DevicesFlag = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Devices that work at once; all accelerators, or a process for each core, if not given.",
        rich_help_panel=MEASURE,
    ),
]
OnFlag = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="cpu|cuda",
        help="What to measure; accelerators, if there are any, if not given.",
        rich_help_panel=MEASURE,
    ),
]
FreshFlag = Annotated[
    bool, typer.Option("--fresh", help="Forget probes kept from before.", rich_help_panel=MEASURE)
]


def calibrate(  # noqa: PLR0913 - a parameter for each flag
    *,
    out: Out,
    runs: From = None,
    cluster: ClusterFlag = None,
    from_study: FromStudy = None,
    from_rates: FromRates = None,
    storage: StorageFlag = None,
    every: AllFlag = False,
    most_devices: MostFlag = None,
    budget_s: BudgetFlag = None,
    devices: DevicesFlag = None,
    on: OnFlag = None,
    fresh: FreshFlag = False,
    json: JsonFlag = False,
) -> None:
    """Measure this machine, or fit its constants to runs (--from, --from-study); write a cluster file."""
    from search_spaces.errors import check

    check(not (runs and from_study), "calibrate must fit to one of --from and --from-study", "both")
    if from_rates is not None:
        check(
            not (runs or from_study), "with --from-rates nothing else is fitted to", "--from or --from-study"
        )
        _of_rates(from_rates, cluster, check_writable(_check_name(out)), json=json)
        return
    check(bool(from_study) or storage is None, "--storage must come with --from-study", storage)
    if from_study:
        check(not every, "--all must come with --from", "--from-study", hint="leave it out")
    if runs is None and not from_study:
        check(not every, "--all must come with --from", "measuring this machine", hint="add --from RUNS.csv")
        check(most_devices is None, "--most-devices must come with --from or --from-study", most_devices)
        target = check_writable(_check_name(out))
        flags = {"budget_s": budget_s, "n_devices": devices, "kind": on, "cluster": cluster, "fresh": fresh}
        _measure(target, {name: value for name, value in flags.items() if value is not None}, json=json)
        return
    given = {"--budget-s": budget_s, "--devices": devices, "--on": on, "--fresh": fresh or None}
    asked = [flag for flag, value in given.items() if value is not None]
    check(most_devices is None or most_devices > 0, "--most-devices must be positive", most_devices)
    check(
        not asked,
        f"with {'--from' if runs else '--from-study'} nothing is measured",
        ", ".join(asked),
        hint="leave out one of them",
    )
    target = check_writable(_check_name(out))
    if runs:
        report = _of_file(runs, cluster=cluster, every=every, name=out.stem, most_devices=most_devices)
    else:
        report = _of_studies(
            from_study or [], storage, cluster=cluster, name=out.stem, most_devices=most_devices
        )
    _show(report, target, json=json)


def _of_file(runs: Path, **asked: Any) -> "CalibrationReport":
    from tuner.report.calibration_report import calibration_report

    return calibration_report(runs, **asked)


def _of_studies(names: list[str], storage: str | None, **asked: Any) -> "CalibrationReport":
    from tuner.cli_tables import storage_or_default
    from tuner.report.calibration_report import studies_report
    from tuner.storage import open_storage
    from tuner.view import load_study

    opened = open_storage(storage_or_default(storage), create=False)
    return studies_report([load_study(name, opened) for name in dict.fromkeys(names)], **asked)


def _show(report: "CalibrationReport", out: Path, *, json: bool) -> None:
    from search_spaces.cluster_file import cluster_toml
    from tuner.report import calibration_report, calibration_screen

    for row in report.rejected:
        tell(f"{report.name}, line {row.line}: {row.reason}")
    for why, n in report.left_out.items():
        tell(f"left out: {n} rows: {why}")
    write_page(out, cluster_toml(report.cluster))
    if json:
        show_json(calibration_report.calibration_document(report, out))
    else:
        show(calibration_screen.calibration_screen(report))
    if not report.calibration.helped:
        tell(f"no fit predicts runs held back better: {out} holds {report.preset.name} as it was")
        raise typer.Exit(ANSWER_IS_NO)


def _of_rates(rates: Path, cluster: str | None, target: Path, *, json: bool) -> None:
    from search_spaces.errors import check
    from tuner.probing import fit_rates
    from tuner.report import probe_report, probe_screen

    check(
        cluster is not None, "--from-rates must come with --cluster", "none", hint="name the machine measured"
    )
    report = fit_rates(rates, cluster or "", target.stem)
    write_page(target, probe_report.probe_toml(report))
    if json:
        show_json(probe_report.probe_document(report, target))
    else:
        show(probe_screen.probe_screen(report))


def _check_name(out: Path) -> Path:
    from tuner.report.calibration_report import check_name

    return check_name(out)


def _measure(target: Path, flags: dict[str, Any], *, json: bool) -> None:
    from runners.probes.crew import Interrupted
    from runners.probes.record import beside
    from runners.probes.session import Ended
    from tuner.interrupts import interruptible
    from tuner.probe_progress import showing_probes
    from tuner.probing import Wanted, probe
    from tuner.report import probe_report, probe_screen

    wanted = Wanted(out=target, **flags)
    try:
        with interruptible() as stopped, showing_probes(err()) as on_step:
            report = probe(wanted, stopped=stopped, on_step=on_step)
    except Interrupted:
        kept = beside(target)
        tell(
            f"what was measured is kept in {kept}; the same command goes on"
            if kept.exists()
            else "nothing kept"
        )
        raise KeyboardInterrupt from None
    if report is None:  # another rank of an allocation writes
        return
    write_page(target, probe_report.probe_toml(report))
    if json:
        show_json(probe_report.probe_document(report, target))
    else:
        show(probe_screen.probe_screen(report))
    if report.ended is Ended.LOST:
        tell(f"the ranks were lost: {target} holds what was measured until then")
        raise typer.Exit(ANSWER_IS_NO)
