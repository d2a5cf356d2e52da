"""A plan as a folder: the launcher's files, scripts that start them, the plan, what is left to fill in."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from objectives.metrics import Job
from runners.launchers import load_launcher
from runners.launchers.base import Launch, Options, check_exportable, n_microbatches
from runners.launchers.folder import MANIFEST, write_folder
from runners.launchers.scripts import (
    ACCOUNT_PLACEHOLDER,
    job_script,
    power_script,
    run_script,
    train_script,
)
from runners.launchers.sites import site_of
from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.plan import Plan

SCHEMA, VERSION = "meshtune.export", 1
README = "README.txt"


class Scheduler(StrEnum):
    """Who starts the processes."""

    SLURM = "slurm"
    TORCHRUN = "torchrun"
    BOTH = "both"


def export(
    job: Job, plan: Plan, launcher: str, scheduler: str, out_dir: Path, options: Options
) -> list[Path]:
    """Write everything needed to launch a plan; returns the files.

    Raises
    ------
    UnknownName
        No such launcher or scheduler.
    CannotExport
        The launcher lacks a knob that the plan uses; all of them are named.
    InvalidSpec
        The plan is not the job's (devices, batch), an option cannot be written, or the folder cannot be.
    """
    return write_folder(out_dir, export_files(job, plan, launcher, scheduler, options))


def export_files(job: Job, plan: Plan, launcher: str, scheduler: str, options: Options) -> dict[str, str]:
    """The same as texts by file name."""
    known = [str(each) for each in Scheduler]
    if scheduler not in known:
        raise UnknownName("scheduler", scheduler, known)
    chosen, job = load_launcher(launcher), job.of_plan(plan)
    check_exportable(job, plan, chosen)
    launch = chosen.launch(job, plan, options)
    title = (
        f"{job.model.name} on {job.cluster.n_devices} devices of {job.cluster.name}, {launcher}: {plan.key}"
    )
    files = {**launch.files, "train.sh": train_script(launch, options, job.cluster)}
    if scheduler != Scheduler.SLURM:
        files["run.sh"] = run_script(title, job.cluster)
    if scheduler != Scheduler.TORCHRUN:
        files["job.sbatch"] = job_script(title, options, job.cluster)
    if plan.power_cap_w:
        files["power.sh"] = power_script(plan.power_cap_w, job.cluster)
    files[README] = _readme(title, launch, options, (job, plan), files)
    files[MANIFEST] = _manifest(job, plan, launcher, options, [*files, MANIFEST])
    return files


def _power_notes(plan: Plan) -> list[str]:
    """A power limit is the site's to set: no training program does."""
    watts = plan.power_cap_w
    words = f"power_cap_w={watts}: no trainer sets it; power.sh does, with the driver's tool, and undoes it"
    return [f"{words} (nvidia-smi -pl {watts}, or rocm-smi --setpoweroverdrive)."] if watts else []


def _readme(
    title: str, launch: Launch, options: Options, of: tuple[Job, Plan], files: Mapping[str, str]
) -> str:
    job, plan = of
    fill_in = list(launch.fill_in)
    if "job.sbatch" in files and options.account is None:
        must = (
            f"the job is refused with {ACCOUNT_PLACEHOLDER}"
            if site_of(job.cluster.name).needs_account
            else "if asked for"
        )
        fill_in.append(f"#SBATCH --account in job.sbatch: your project ({must})")
    if options.setup_script is None:
        fill_in.append("modules or the virtual environment: load them before, or at the top of train.sh")
    starts = {
        "power.sh": "sudo bash power.sh       (first, on every node; afterwards: sudo bash power.sh reset)",
        "job.sbatch": "sbatch job.sbatch        (in this folder)",
        "run.sh": "bash run.sh              (torchrun)",
    }
    parts = [
        title,
        _section("To start", [text for name, text in starts.items() if name in files]),
        _section("To fill in", fill_in),
        _section("To know", [*launch.notes, *_power_notes(plan)]),
        f"{MANIFEST} holds the plan, the model, the cluster and the workload that it was made for.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(head: str, lines: Any) -> str:
    return "\n".join([f"{head}:", *(f"  - {line}" for line in lines)]) if lines else ""


def _manifest(job: Job, plan: Plan, launcher: str, options: Options, files: list[str]) -> str:
    document = {
        "schema": SCHEMA,
        "version": VERSION,
        "launcher": launcher,
        "plan": {"key": plan.key, **_plain(plan)},
        "n_microbatches": n_microbatches(job, plan),
        "model": _plain(job.model),
        "cluster": _plain(job.cluster),
        "workload": _plain(job.workload),
        "predicted": _plain(options.predicted),
        "provenance": _plain(options.provenance),
        "files": files,
    }
    return json.dumps(document, indent=2) + "\n"


def _plain(value: Any) -> Any:
    """Specs as the objects, lists, texts and numbers of JSON.

    Raises
    ------
    InvalidSpec
        A number that is not finite.
    """
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidSpec("an exported number must be finite", str(value))
    return value if isinstance(value, str | int | float | None) else str(value)
