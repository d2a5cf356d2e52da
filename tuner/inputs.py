"""What a study was created from, stored in the study itself: enough to resume it from the storage alone.

    StudyInputs  ->  {part: document}, a fingerprint of each part  ->  user attributes of the Optuna study

A study goes on only with the inputs it was created from: figures of two different jobs in one study would
compare what cannot be compared.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from optuna.study import StudyDirection

from objectives.metrics import Job, metric_named
from runners.protocol import RUNNERS, RunnerRecipe
from search_spaces.cluster import ClusterSpec
from search_spaces.documents import build
from search_spaces.errors import InvalidSpec, StudyChanged, UnknownName, check
from search_spaces.fidelity import PROXY_LAYERS, Fidelities, Fidelity
from search_spaces.model import ModelSpec
from search_spaces.space import SpaceSpec
from search_spaces.workload import Workload

SCHEMA = "meshtune.study"
SCHEMA_VERSION = 1
INPUTS_ATTRIBUTE = "meshtune_inputs"
PARTS = (
    "model", "cluster", "workload", "space", "objective", "runner", "sampler", "seed", "prior",
    "warm_start", "fidelities",
)  # fmt: skip
SINCE: Mapping[str, Any] = {
    "prior": "analytic",
    "warm_start": [],
    "fidelities": {"kinds": ["full"], "layers": PROXY_LAYERS, "devices": 0},
}  # parts that came later, and what studies without them have
MOST_CHANGES = 4
# Runners that keep the time limit themselves, and the seconds they may need for it beyond their grace.
TIME_KEEPERS = ("command",)
TIME_KEEPER_S = 30.0
PRIORS = ("analytic", "simulated")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerChoice:
    """Which runner tries the plans, with its options, and the seconds after which a trial is given up."""

    kind: str = "simulated"
    options: Mapping[str, Any] = field(default_factory=dict)
    time_limit_s: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in RUNNERS:
            raise UnknownName("runner", self.kind, RUNNERS)
        must = "[runner] time_limit_s must be positive and finite"
        check(self.time_limit_s is None or 0 < self.time_limit_s < float("inf"), must, self.time_limit_s)

    @property
    def all_options(self) -> Mapping[str, Any]:
        """The options, and for a runner that ends its trials itself the limit too."""
        if self.kind in TIME_KEEPERS and self.time_limit_s is not None:
            return {"time_limit_s": self.time_limit_s, **self.options}
        return self.options

    @property
    def outer_limit_s(self) -> float | None:
        """When an executor ends a trial: later than a runner that says itself what its trial did last."""
        if self.kind in TIME_KEEPERS and self.time_limit_s is not None:
            return self.time_limit_s + float(self.options.get("grace_s", 10.0)) + TIME_KEEPER_S
        return self.time_limit_s


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyInputs:
    """All that decides what a study's figures mean; `objective` names a metric, or several (Pareto).

    `prior` is what the sampler expects before any trial: closed forms, or the engine's times.  `warm_start`
    names the studies whose trials correct the closed forms (`tuner.warm`).  `fidelities` are the kinds of
    trials that it may have.
    """

    model: ModelSpec
    cluster: ClusterSpec
    workload: Workload
    space: SpaceSpec
    objective: tuple[str, ...] = ("step_time",)
    runner: RunnerChoice = field(default_factory=RunnerChoice)
    sampler: str = "meshtune"
    seed: int = 0
    prior: str = "analytic"
    warm_start: tuple[str, ...] = ()
    fidelities: Fidelities = field(default_factory=Fidelities)

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise UnknownName("prior", self.prior, PRIORS)
        check(bool(self.objective), "[objective] metric must name at least one metric", "none")
        for name in self.objective:
            metric_named(name)
        batches = len(self.space.narrowed.get("n_microbatches", ())) > 1
        check(
            not (batches and "step_time" in self.objective),
            "the objective of a study of several n_microbatches must compare steps of any size",
            "step_time",
            hint="ask for tokens_per_s_per_device, mfu or hfu",
        )
        check(
            len(set(self.objective)) == len(self.objective),
            "[objective] metric must name each metric once",
            ", ".join(self.objective),
        )
        must = "[objective] metric must name peak_memory or max_seq_len, which rest on the same measurement"
        check(not {"peak_memory", "max_seq_len"} <= set(self.objective), must, "both")
        both = self.warm_start and self.prior != PRIORS[0]
        must = "a warm start corrects the analytic prior, so prior must be analytic"
        check(not both, must, self.prior, hint="leave out the prior or the warm start")
        twice = len(set(self.warm_start)) < len(self.warm_start)
        check(not twice, "[study] warm_start must name each study once", ", ".join(self.warm_start))
        check(self.seed >= 0, "[study] seed must not be negative", self.seed)
        if self.fidelities.proxies:
            self._check_fidelities()

    def _check_fidelities(self) -> None:
        """Whether proxies would be smaller than the job, and somebody could choose and run them."""
        given, hint = self.fidelities, "leave out [study] fidelities"
        must = "fidelities need the sampler meshtune, which alone knows what a proxy tells of its plan"
        check(self.sampler == "meshtune", must, self.sampler, hint=hint)
        must = "fidelities need one metric in [objective]"
        check(len(self.objective) == 1, must, ", ".join(self.objective), hint=hint)
        must = f"fidelities need a runner that can run smaller jobs, which {self.runner.kind} cannot"
        check(self.recipe.scales, must, self.runner.kind, hint="simulated, torch and analytic can")
        must = "fidelities take the place of the torch runner's option proxy"
        check(not self.runner.options.get("proxy"), must, "both", hint="leave out one of them")
        if Fidelity.FEW_LAYERS in given.kinds:
            must = f"[study] proxy_layers must be below the model's {self.model.n_layers} layers"
            check(given.layers < self.model.n_layers, must, given.layers)
        if Fidelity.FEW_DEVICES in given.kinds:
            must = f"[study] proxy_devices must be below the job's {self.cluster.n_devices} devices"
            devices = given.devices_of(self.cluster)
            check(devices < self.cluster.n_devices, must, devices, hint="proxy_devices = N sets them")

    @property
    def job(self) -> Job:
        """Model, cluster and workload."""
        return Job(model=self.model, cluster=self.cluster, workload=self.workload)

    @property
    def recipe(self) -> RunnerRecipe:
        """How an executor builds the runner."""
        return RunnerRecipe(kind=self.runner.kind, job=self.job, options=self.runner.all_options)


def plain(value: Any) -> Any:
    """A spec as what JSON can hold; a number that is not finite is refused with its place."""
    return _plain(value, "")


def _plain(value: Any, place: str) -> Any:
    if is_dataclass(value):
        pairs: Any = ((each.name, getattr(value, each.name)) for each in fields(value))
    elif isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{i}]") for i, item in enumerate(value)]
    else:
        check(
            not isinstance(value, float) or math.isfinite(value),
            f"{place or 'a number'} must be finite",
            value,
        )
        return value
    return {str(key): _plain(item, f"{place}.{key}".lstrip(".")) for key, item in pairs}


def inputs_to_document(inputs: StudyInputs) -> dict[str, Any]:
    """The inputs as one JSON-ready document with schema, versions and a fingerprint for each part."""
    table = plain(inputs)
    # Once around, so that 80 and 80.0 in a float's place have one spelling and one fingerprint.
    parts = plain(build(StudyInputs, table, "the study's inputs"))
    return {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "versions": versions(),
        "fingerprints": {part: fingerprint(parts[part]) for part in PARTS},
        "inputs": parts,
    }


def inputs_from_document(document: Any, name: str) -> StudyInputs:
    """The inputs of the study of that name.

    Raises
    ------
    InvalidSpec
        The study is not one of ours, or was written by a later Meshtune.
    """
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        hint = "choose another name with --name; Meshtune leaves this study alone"
        raise InvalidSpec(
            f"study {name!r} must be one that Meshtune created", "a study of another program", hint=hint
        )
    if document.get("version") != SCHEMA_VERSION:
        given = f"version {document.get('version')!r}, written by Meshtune {_writer(document)}"
        hint = "resume it with the Meshtune that wrote it"
        raise InvalidSpec(f"study {name!r} must have schema version {SCHEMA_VERSION}", given, hint=hint)
    try:
        return build(StudyInputs, document.get("inputs", {}), f"study {name!r}")
    except InvalidSpec as error:
        given = f"{error.must}, written by Meshtune {_writer(document)}"
        hint = "resume it with the Meshtune that wrote it, or start a new study with --name"
        must = f"study {name!r} must be one that this Meshtune can read"
        raise InvalidSpec(must, given, hint=hint) from None


def refuse_changes(stored: Mapping[str, Any], given: StudyInputs, name: str) -> None:
    """Raise `StudyChanged` if the given inputs are not those of the stored document.

    A field that an older Meshtune did not write stands for its neutral value, as when the study is read.
    """
    older = {part: fingerprint(value) for part, value in SINCE.items()}
    now, before = inputs_to_document(given), {**older, **stored.get("fingerprints", {})}
    parts = [part for part in PARTS if before.get(part) != now["fingerprints"][part]]
    if not parts:
        return
    read = plain(inputs_from_document(stored, name))
    found = {part: differences(read[part], now["inputs"][part], part) for part in parts}
    parts, changes = [part for part in parts if found[part]], [each for part in parts for each in found[part]]
    if not changes:
        return
    listed = "; ".join(changes[:MOST_CHANGES])
    more = f"; and {len(changes) - MOST_CHANGES} more" if len(changes) > MOST_CHANGES else ""
    raise StudyChanged(
        f"study {name!r} must be resumed with the inputs it was created from",
        f"another {', '.join(parts)}: {listed}{more}",
        hint="resume it as it is, or start a new study with --name",
    )


def differences(before: Any, now: Any, place: str) -> list[str]:
    """Each leaf that differs, as `workload.global_batch was 1024, now 512`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = list(dict.fromkeys([*before, *now]))
        return [line for key in keys for line in differences(before.get(key), now.get(key), f"{place}.{key}")]
    return [] if before == now else [f"{place} was {_short(before)}, now {_short(now)}"]


def fingerprint(part: Any) -> str:
    """Sixteen hexadecimal digits that two equal parts share."""
    text = json.dumps(part, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of what a figure may depend on."""
    return {name: _version(name) for name in ("meshtune", "optuna", "ray", "numpy", "scikit-learn")}


def directions(objective: Sequence[str]) -> list[StudyDirection]:
    """Optuna's directions of the metrics."""
    return [StudyDirection[metric_named(name).goal.name] for name in objective]


def _writer(document: Mapping[str, Any]) -> str:
    return str((document.get("versions") or {}).get("meshtune", "of an unknown version"))


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # a checkout that runs without being installed
        return "not installed"


def _short(value: Any, width: int = 60) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= width else text[: width - 3] + "..."
