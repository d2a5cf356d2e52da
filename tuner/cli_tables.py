"""From flags to a study: the study file's tables, and over them what was asked on the command line."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from search_spaces.documents import read_toml
from search_spaces.errors import InvalidSpec, check
from tuner.campaign import Campaign, refuse_flags, study_from_tables
from tuner.cli_flags import JobFlags
from tuner.cli_job import job_from, space_table, workload_table
from tuner.config import PATH_OPTIONS, StudyConfig
from tuner.presets import preset_path
from tuner.storage import DEFAULT_STORAGE, list_studies, open_storage
from tuner.view import StudyView, load_study

Tables = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Keys of four tables as flags give them; None where a flag was left out."""

    study: Mapping[str, Any]
    objective: Mapping[str, Any]
    runner: Mapping[str, Any]
    budget: Mapping[str, Any]


def study_config(file: Path | None, flags: JobFlags, asked: Asked) -> StudyConfig | Campaign:
    """The study, or the campaign, of a file, of flags, or of both.

    Raises
    ------
    InvalidSpec
        What `config_from_tables` refuses; without a file also a flag of the job that is missing.
    """
    if file is None:
        job_from(flags)  # names the flags that are missing, in the words of the command line
    tables: Tables = read_toml(file) if file else {}
    given_tables = _given(flags, asked)
    refuse_flags(tables, given_tables)
    for name, given in given_tables.items():
        kept = tables.get(name, {})
        if not isinstance(kept, dict):
            raise InvalidSpec(f"[{name}] must be a table of keys", repr(kept))
        tables[name] = _laid_over(name, kept, given)
    folder, where = file.parent if file else Path(), str(file or "the study")
    return study_from_tables(tables, folder=folder, where=where)


def study_file(file: Path | None, preset: str | None) -> Path | None:
    """The study file that was named, or that of a preset.

    Raises
    ------
    InvalidSpec
        Both were given.
    UnknownName
        No preset of this name.
    """
    if preset is None:
        return file
    check(file is None, "tune must have a study file or --preset", f"{file} and --preset {preset}")
    return preset_path(preset)


def _given(flags: JobFlags, asked: Asked) -> dict[str, Tables]:
    """Tables of what was given, without those that are empty."""
    tables = {
        "model": _model(flags),
        "cluster": _cluster(flags),
        "workload": workload_table(flags),
        "space": space_table(flags),
        **{name: _without_none(getattr(asked, name)) for name in ("study", "objective", "runner", "budget")},
    }
    return {name: table for name, table in tables.items() if table}


def _laid_over(name: str, kept: Tables, given: Tables) -> Tables:
    """A model or a cluster that is named replaces the file's; other keys are laid over the file's."""
    if name == "model":
        return given
    if name == "cluster" and len(given.keys() - {"devices"}):
        return {key: value for key, value in kept.items() if key == "devices"} | given
    if isinstance(kept.get("slurm"), dict) and "slurm" in given:
        given = {**given, "slurm": kept["slurm"] | given["slurm"]}
    return kept | given


def _model(flags: JobFlags) -> Tables:
    config = Path(flags.hf_config).absolute() if flags.hf_config else None
    if config and config.is_dir():
        config = config / "config.json"
    return _without_none({"preset": flags.model, "hf_config": str(config) if config else None})


def _cluster(flags: JobFlags) -> Tables:
    name = flags.cluster
    is_file = name is not None and (name.endswith(".toml") or "/" in name)
    where = {"file": str(Path(str(name)).absolute())} if is_file else {"preset": name}
    return _without_none({**where, "devices": flags.devices})


def runner_options(words: Sequence[str] | None, flag: str = "--runner-option") -> Tables | None:
    """`KEY=VALUE` words; a value is read as TOML where it can be, so that numbers are numbers."""
    if words is None:
        return None
    options: Tables = {}
    for word in words:
        key, equals, value = word.partition("=")
        check(bool(equals), f"{flag} must be KEY=VALUE", repr(word))
        try:
            options[key] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = value
    return options


def located_options(options: Tables | None) -> Tables | None:
    """Runner options whose files and folders are seen from here, not from the study file."""
    names = {name for each in PATH_OPTIONS.values() for name in each}
    return options and {
        name: str(Path(text).absolute()) if name in names and isinstance(text, str) and text else text
        for name, text in options.items()
    }


def warm_sources(names: Sequence[str] | None) -> list[str] | None:
    """Studies by name; measurements files by their place, seen from here."""
    if names is None:
        return None
    return [str(Path(name).absolute()) if name.endswith(".csv") else name for name in names]


def _without_none(table: Mapping[str, Any]) -> Tables:
    return {key: value for key, value in table.items() if value is not None}


def overridden(config: StudyConfig, *, budget: Mapping[str, Any], parallel: int | None) -> StudyConfig:
    """A stored study's configuration with other keys of the budget or other trials side by side."""
    machine = _without_none({"parallel": parallel})
    return replace(
        config,
        budget=replace(config.budget, **_without_none(budget)),
        machine=replace(config.machine, **machine),
    )


def storage_or_default(storage: str | None) -> str:
    """The storage that was named, or the default one."""
    return DEFAULT_STORAGE if storage is None else storage


def all_studies(storage: str | None) -> tuple[list[StudyView], list[str]]:
    """Every study of ours in a storage, and the names of the others."""
    opened = open_storage(storage_or_default(storage), create=False)
    views, foreign = [], []
    for name in list_studies(opened):
        try:
            views.append(load_study(name, opened))
        except InvalidSpec:
            foreign.append(name)
    return views, foreign
