"""The verb that writes launch files."""

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli_flags import JobFlags, JsonFlag, PlanFlag, StorageFlag, job_flags
from tuner.cli_output import check_writable_folder, show_json, show_lines, tell

Name = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="The study whose plan to write.", show_default=False)
]
To = Annotated[str, typer.Option("--to", metavar="LAUNCHER", help="See `meshtune launchers`.")]
SchedulerFlag = Annotated[
    str, typer.Option("--scheduler", metavar="NAME", help="Batch scripts for slurm, torchrun or both.")
]
Out = Annotated[
    Path | None,
    typer.Option("-o", "--out", metavar="DIR", help="Folder to write; LAUNCHER-launch if not given."),
]
Trial = Annotated[
    int | None, typer.Option("--trial", metavar="N", min=0, help="This trial's plan instead of the best one.")
]
Option = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="KEY=VALUE",
        help="account, partition, time_limit, data_path, ...; may be repeated.",
    ),
]


@job_flags
def export(  # noqa: PLR0913 - a verb's flags are its parameters
    flags: JobFlags,
    name: Name = None,
    *,
    to: To,
    plan: PlanFlag = None,
    trial: Trial = None,
    scheduler: SchedulerFlag = "both",
    out: Out = None,
    option: Option = None,
    storage: StorageFlag = None,
    json: JsonFlag = False,
) -> None:
    """Write the launch files of a study's best plan, of one of its trials, or of any plan."""
    from tuner import cli_plan
    from tuner.api import export as write
    from tuner.report.documents import document

    chosen = cli_plan.chosen_plan(flags, name=name, plan=plan, trial=trial, storage=storage)
    options = cli_plan.launch_options(option or (), chosen)
    folder = check_writable_folder(out or Path(f"{to}-launch"))
    files = write(chosen.job, chosen.plan, to, scheduler=scheduler, out_dir=folder, options=options)
    tell(f"plan: {chosen.plan.key}")
    if json:
        show_json(
            document(
                "export", {"launcher": to, "plan": chosen.plan.key, "files": [str(each) for each in files]}
            )
        )
    else:
        show_lines(map(str, files))
