"""The study file: one TOML document that says what to tune, on what, and for how long.

    [study]      name, storage, sampler, seed, prior, warm_start, warm_storage,
                 fidelities, proxy_layers, proxy_devices
    [model]      preset | hf_config | the fields of ModelSpec
    [cluster]    preset | file | the fields of a cluster file; devices
    [workload]   seq_len, global_batch, and the other fields of Workload
    [space]      knob = [values it may take]
    [objective]  metric = "step_time", or a list for a Pareto front
    [runner]     kind, options, time_limit_s; parallel, executor, address, slurm
    [budget]     trials, hours, device_hours, stop_below, better_by

Only [model], [cluster] and [workload] are needed.  The command line builds the same tables from its flags.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runners.slurm.choice import Slurm
from search_spaces.cluster import ClusterSpec
from search_spaces.cluster_presets import cluster_from_table, load_cluster
from search_spaces.documents import build, read_toml
from search_spaces.errors import InvalidSpec, check, suggest_keys
from search_spaces.fidelity import PROXY_LAYERS, Fidelities, Fidelity
from search_spaces.hf_config import load_hf_config
from search_spaces.model import ModelSpec
from search_spaces.model_presets import load_model
from search_spaces.space import SpaceSpec
from search_spaces.workload import Workload
from tuner.budget import Budget
from tuner.inputs import RunnerChoice, StudyInputs, plain
from tuner.storage import DEFAULT_STORAGE, storage_place

TABLES = ("study", "model", "cluster", "workload", "space", "objective", "runner", "budget")
NEEDED = ("model", "cluster", "workload")
# Options of runners that name a file or a folder.
PATH_OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"command": ("working_folder", "trials_folder"), "replay": ("path",), "torch": ("schedule_file",)}
)


class ExecutorKind(StrEnum):
    """Who runs trials side by side."""

    RAY = "ray"
    IN_PROCESS = "in-process"
    SLURM = "slurm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where trials run, maybe elsewhere at each resume; `address` joins a Ray cluster, else one starts.

    `resources` are what one trial reserves of Ray, by name, `bundles` times, packed onto few nodes;
    `slurm` is what it gets of Slurm.
    """

    parallel: int = 2
    executor: ExecutorKind = ExecutorKind.RAY
    address: str | None = None
    resources: Mapping[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    bundles: int = 1
    slurm: Slurm = field(default_factory=Slurm)

    def __post_init__(self) -> None:
        check(self.parallel > 0, "[runner] parallel must be a positive number of trials", self.parallel)
        check(
            self.address is None or self.executor is ExecutorKind.RAY,
            "[runner] address needs executor = ray",
            self.executor,
        )
        amounts = bool(self.resources) and all(0 < each < float("inf") for each in self.resources.values())
        check(amounts, "[runner] resources must name positive, finite amounts", dict(self.resources))
        check(self.bundles > 0, "[runner] bundles must be a positive number", self.bundles)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyConfig:
    """One study: its name and storage, its inputs, where it runs and how long.

    `warm_storage` holds the studies that it starts from, if its own does not; asked once, and not kept.
    """

    name: str
    inputs: StudyInputs
    storage: str = DEFAULT_STORAGE
    machine: Machine = field(default_factory=Machine)
    budget: Budget = field(default_factory=Budget)
    warm_storage: str | None = None

    def __post_init__(self) -> None:
        check(bool(self.name.strip()), "[study] name must not be empty", repr(self.name))
        storage_place(self.storage)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTable:
    """The study file's `[study]`."""

    name: str | None = None
    storage: str = DEFAULT_STORAGE
    sampler: str = "meshtune"
    seed: int = 0
    prior: str = "analytic"
    warm_start: tuple[str, ...] = ()
    warm_storage: str | None = None
    fidelities: tuple[Fidelity, ...] = (Fidelity.FULL,)
    proxy_layers: int = PROXY_LAYERS
    proxy_devices: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _RunnerTable:
    kind: str = "simulated"
    options: dict[str, Any] = field(default_factory=dict)
    time_limit_s: float | None = None
    parallel: int = 2
    executor: ExecutorKind = ExecutorKind.RAY
    address: str | None = None
    resources: dict[str, float] = field(default_factory=lambda: {"CPU": 1.0})
    bundles: int = 1
    slurm: Slurm = field(default_factory=Slurm)


def read_config(path: Path) -> StudyConfig:
    """The study that a TOML file describes; files that it names lie beside it.

    Raises
    ------
    InvalidSpec
        A file that cannot be read, an unknown key (the nearest is suggested), or a value that cannot be.
    """
    return config_from_tables(read_toml(path), folder=path.parent, where=str(path))


def config_from_tables(tables: Mapping[str, Any], *, folder: Path, where: str = "the study") -> StudyConfig:
    """A study from the tables of a document; relative files are looked up in the folder."""
    suggest_keys(where, tables, TABLES)
    for name in NEEDED:
        check(name in tables, f"{where} must have the table [{name}]", "none")
    for name, table in tables.items():
        check(isinstance(table, Mapping), f"[{name}] must be a table of keys", repr(table))
    plain(dict(tables))  # a number that is not finite is refused here, with its place
    study = build(StudyTable, _table(tables, "study"), "[study]")
    inputs = _inputs(tables, study, folder)
    return StudyConfig(
        name=study.name if study.name is not None else default_name(inputs),
        storage=study.storage,
        inputs=inputs,
        warm_storage=study.warm_storage,
        machine=_machine(tables, folder),
        budget=build(Budget, _table(tables, "budget"), "[budget]"),
    )


def default_name(inputs: StudyInputs) -> str:
    """`llama-3-70b-512xdgx-h100`: the study's name where none is given."""
    return f"{inputs.model.name}-{inputs.cluster.n_devices}x{inputs.cluster.name}"


def model_from_table(table: Mapping[str, Any], folder: Path) -> ModelSpec:
    """[model]: a preset, a Hugging Face config, or the fields themselves."""
    _only_one(table, ("preset", "hf_config"), "[model]")
    if "preset" in table:
        return load_model(_text(table, "preset", "[model]"))
    if "hf_config" in table:
        path = folder / Path(_text(table, "hf_config", "[model]")).expanduser()
        return load_hf_config(path / "config.json" if path.is_dir() else path)
    check("n_layers" in table, "[model] must have preset, hf_config, or the model's own fields", _keys(table))
    return build(ModelSpec, {"name": "inline", "source": "the study file", **table}, "[model]")


def cluster_from_config(table: Mapping[str, Any], folder: Path) -> ClusterSpec:
    """[cluster]: a preset, a file, or the fields themselves; and how many devices."""
    _only_one(table, ("preset", "file"), "[cluster]")
    must = "[cluster] must say how many devices the job has"
    check("devices" in table, must, "no key devices", hint="devices = 512")
    devices = table["devices"]
    check(
        isinstance(devices, int) and not isinstance(devices, bool) and devices > 0,
        "[cluster] devices must be a positive whole number",
        repr(devices),
    )
    if "preset" in table:
        return load_cluster(_text(table, "preset", "[cluster]"), devices)
    if "file" in table:
        path = folder / Path(_text(table, "file", "[cluster]")).expanduser()
        return load_cluster(str(path.absolute()), devices)
    check("tiers" in table, "[cluster] must have preset, file, or the machine's own fields", _keys(table))
    machine = {key: value for key, value in table.items() if key != "devices"}
    return cluster_from_table(
        {"name": "inline", "source": "the study file", **machine}, "[cluster]"
    ).with_devices(devices)


def metrics_from_table(table: Mapping[str, Any]) -> tuple[str, ...]:
    """[objective]: one metric, or a list for a Pareto front."""
    suggest_keys("[objective]", table, ["metric"])
    metric = table.get("metric", "step_time")
    names = [metric] if isinstance(metric, str) else metric
    check(
        isinstance(names, list | tuple) and all(isinstance(name, str) for name in names),
        "[objective] metric must be a name or a list of names",
        repr(metric),
    )
    return tuple(names)


def _inputs(tables: Mapping[str, Any], study: StudyTable, folder: Path) -> StudyInputs:
    runner = build(_RunnerTable, _table(tables, "runner"), "[runner]")
    return StudyInputs(
        model=model_from_table(tables["model"], folder),
        cluster=cluster_from_config(tables["cluster"], folder),
        workload=build(Workload, _table(tables, "workload"), "[workload]"),
        space=SpaceSpec.of(_table(tables, "space")),
        objective=metrics_from_table(_table(tables, "objective")),
        runner=RunnerChoice(
            kind=runner.kind, options=_located(runner, folder), time_limit_s=runner.time_limit_s
        ),
        sampler=study.sampler,
        seed=study.seed,
        prior=study.prior,
        warm_start=tuple(_warm_source(name, folder) for name in study.warm_start),
        fidelities=Fidelities(kinds=study.fidelities, layers=study.proxy_layers, devices=study.proxy_devices),
    )


def _warm_source(name: str, folder: Path) -> str:
    """A study's name as it is; a measurements file beside the study file."""
    return str((folder / Path(name).expanduser()).absolute()) if name.endswith(".csv") else name


def _located(runner: _RunnerTable, folder: Path) -> dict[str, Any]:
    """The options, with files and folders where any worker finds them: beside the study file."""
    starts = runner.kind == "command" and "command" in runner.options
    given = {"working_folder": ".", **runner.options} if starts else runner.options
    texts = {name: given[name] for name in PATH_OPTIONS.get(runner.kind, ()) if name in given}
    for name, text in texts.items():
        check(isinstance(text, str), f"[runner] options of {runner.kind}: {name} must be text", repr(text))
    return {**given, **{name: str((folder / text).absolute()) for name, text in texts.items() if text}}


def _machine(tables: Mapping[str, Any], folder: Path) -> Machine:
    runner = build(_RunnerTable, _table(tables, "runner"), "[runner]")
    machine = Machine(**{each.name: getattr(runner, each.name) for each in fields(Machine)})
    if machine.executor is not ExecutorKind.SLURM:
        return machine
    script = machine.slurm.setup_script
    return replace(
        machine,
        slurm=replace(
            machine.slurm,
            folder=str((folder / machine.slurm.folder).absolute()),
            setup_script=str((folder / script).absolute()) if script else "",
        ),
    )


def _table(tables: Mapping[str, Any], name: str) -> dict[str, Any]:
    return dict(tables.get(name, {}))


def _only_one(table: Mapping[str, Any], sources: tuple[str, ...], where: str) -> None:
    given = [name for name in sources if name in table]
    if len(given) > 1:
        raise InvalidSpec(f"{where} must have one of {', '.join(sources)}", " and ".join(given))
    others = {"[model]": set(), "[cluster]": {"devices"}}[where]
    if given:
        suggest_keys(where, table, [*given, *others])


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    check(isinstance(table[key], str), f"{where} {key} must be text", repr(table[key]))
    return str(table[key])


def _keys(table: Mapping[str, Any]) -> str:
    return ", ".join(table) or "no key"
