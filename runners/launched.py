"""A launcher's files as a short trial on this machine: few steps, every step logged, nothing else done."""

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from objectives.metrics import Job
from runners.launchers import load_launcher
from runners.launchers.base import Options
from runners.launchers.export import Scheduler, export_files
from search_spaces.documents import build
from search_spaces.errors import CannotExport, check, suggest_keys
from search_spaces.plan import Plan
from search_spaces.workload import Precision

LAUNCHER_READERS: Mapping[str, str] = MappingProxyType(
    {
        "megatron-lm": "megatron-lm",
        "deepspeed": "megatron-deepspeed",
        "x-moe": "megatron-deepspeed",
        "torchtitan": "torchtitan",
        "llm-foundry": "composer",
        "axonn": "json-lines",
    }
)
# Every step a line, at once; the launchers' own arguments already turn validation off.
_EXTRA = {"torchtitan": ("--metrics.log_freq", "1")}
# A search for the loss scale from 2^32 down would skip every step of a short trial.
# DeepSpeed begins at 65536 by itself.
_FP16_EXTRA = {"megatron-lm": ("--initial-loss-scale", "65536")}
_OURS = ("predicted", "provenance", "train_steps")


def check_launcher(job: Job, launcher: str, options: Mapping[str, Any], *, one_node: bool = True) -> None:
    """Refuse a launcher or options that no trial could use.

    Raises
    ------
    UnknownName
        No such launcher, or no such option.
    InvalidSpec
        The job has several nodes: run.sh starts the processes of `one_node`.
    """
    load_launcher(launcher)
    n_nodes = job.cluster.n_nodes
    hint = "use --executor slurm, or give the command yourself, with srun or mpirun in it"
    check(
        n_nodes == 1 or not one_node,
        "the option launcher needs a job of one node",
        f"{n_nodes} nodes",
        hint=hint,
    )
    known = [each.name for each in fields(Options) if each.name not in _OURS]
    suggest_keys("launcher_options", options, known)
    build(Options, dict(options), "launcher_options")


def launched_files(
    job: Job, plan: Plan, launcher: str, options: Mapping[str, Any], n_steps: int
) -> dict[str, str]:
    """The launcher's files by name; `bash run.sh` starts them.

    Raises
    ------
    CannotExport
        The launcher cannot express the plan, or the plan limits power, which a trial cannot.
    """
    if plan.power_cap_w:
        given = f"power_cap_w={plan.power_cap_w}: only root sets it"
        raise CannotExport("a launcher's trial must be able to set what its plan says", given)
    chosen = build(Options, dict(options), "launcher_options")
    extra: tuple[str, ...] = _EXTRA.get(launcher, ())
    if job.workload.precision is Precision.FP16:
        extra += _FP16_EXTRA.get(launcher, ())
    table = {
        each.name: getattr(chosen, each.name)
        for each in fields(Options)
        if each.name not in ("train_steps", "extra")
    }
    asked = Options(**table, train_steps=n_steps, extra=(*extra, *chosen.extra))
    return export_files(job, plan, launcher, Scheduler.TORCHRUN, asked)
