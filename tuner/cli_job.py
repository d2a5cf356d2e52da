"""From flags to specs: the job that was named and the space that was narrowed."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from objectives.metrics import Job
from search_spaces.documents import read_toml
from search_spaces.errors import InvalidSpec, UnknownName, check
from search_spaces.framework import FRAMEWORKS
from search_spaces.knobs import asked_choices
from search_spaces.plan import Plan
from search_spaces.space import SearchSpace, SpaceSpec
from search_spaces.workload import Precision
from tuner.api import describe_job, read_plan
from tuner.cli_flags import JobFlags


def job_from(flags: JobFlags) -> Job:
    """The job of the flags; one that is missing is named.

    Raises
    ------
    InvalidSpec
        A flag is missing, two contradict each other, or a value is refused.
    """
    check(
        flags.model is None or flags.hf_config is None,
        "a model must be named once, by --model or by --hf-config",
        f"--model {flags.model} --hf-config {flags.hf_config}",
    )
    needed = {
        "--model or --hf-config": flags.hf_config if flags.model is None else flags.model,
        "--cluster": flags.cluster,
        "--devices": flags.devices,
        "--global-batch": flags.global_batch,
        "--seq-len": flags.seq_len,
    }
    missing = [name for name, value in needed.items() if value in (None, "")]
    if missing:
        raise InvalidSpec(f"the job must be described by {', '.join(needed)}", f"no {', no '.join(missing)}")
    return describe_job(
        model=Path(flags.hf_config) if flags.hf_config else str(flags.model),
        cluster=str(flags.cluster),
        devices=flags.devices,
        **workload_table(flags),
    )


def workload_table(flags: JobFlags) -> dict[str, Any]:
    """The workload's fields that were given."""
    _check_known("--precision", flags.precision, Precision)
    _check_known("--framework", flags.framework, FRAMEWORKS)
    names = ("global_batch", "seq_len", "precision", "framework")
    return {name: value for name in names if (value := getattr(flags, name)) is not None}


def _check_known(flag: str, value: str | None, known: Iterable[str]) -> None:
    """Refuse a word that is none of those known, in the words of the command line."""
    names = [str(each) for each in known]
    if value is not None and value not in names:
        raise UnknownName(flag, value, names)


def space_from(flags: JobFlags) -> SpaceSpec:
    """The space file's knobs, and over them what `--set` says."""
    return SpaceSpec.of(space_table(flags))


def plan_from(flags: JobFlags, job: Job, text: str) -> Plan:
    """The plan of `--plan`, which `--space` and `--set` must allow where they were given.

    Raises
    ------
    InvalidSpec
        A plan that cannot be read, is not legal, or lies outside the narrowed space.
    """
    plan = read_plan(job, text)
    if flags.space is not None or flags.set_:
        space = SearchSpace(job.model, job.cluster, job.workload, space_from(flags))
        check(space.holds(plan), "--plan must lie in the space that --space and --set leave", plan.key)
    return plan


def space_table(flags: JobFlags) -> dict[str, Any]:
    """The same as the table a study file would hold."""
    check(flags.space != "", "--space must name a file", "''")
    table = _space_file(Path(flags.space)) if flags.space else {}
    return table | {name: list(asked_choices(name, values)) for name, values in settings(flags.set_ or ())}


def _space_file(path: Path) -> dict[str, Any]:
    """A file of knobs, alone or in the [space] table of a study file."""
    table = read_toml(path)
    inner = table.get("space", table)
    return inner if isinstance(inner, dict) else table


def settings(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """`tp=1,2,4` words as knobs and their values."""
    named: dict[str, list[str]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        check(bool(equals) and bool(values), "--set must be KNOB=VALUE,VALUE", repr(word))
        check(name not in named, "--set must name each knob once", repr(name))
        named[name] = [value.strip() for value in values.split(",")]
    return list(named.items())
