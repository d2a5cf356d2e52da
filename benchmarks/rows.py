"""The published rows as the benchmarks use them: trusted runs, priced many times under other constants.

A constant belongs to an owner: a device, a cluster, a trainer, or nature.  Its key says both, so that one
value serves every row of that owner and no row of another.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from objectives.cost.result import Estimate
from objectives.cost.step import estimate
from objectives.measurements import MeasuredRun, read_measurements
from objectives.metrics import Job
from objectives.uncertainty import constants, with_constants
from objectives.validation import jobs_of
from search_spaces.cluster import Constant, Origin
from search_spaces.plan import Floats, Ints, Plans

DATA = Path(__file__).parent / "data" / "measurements.csv"


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """A constant's owner and its place in a job: `h100-80`, `device.sustained_efficiency`."""

    owner: str
    place: str

    def __str__(self) -> str:
        return f"{self.place} of {self.owner}"


def keyed(job: Job) -> dict[Key, Constant]:
    """Every constant of a job with its owner."""
    return {Key(_owner(job, place), place): constant for place, constant in constants(job).items()}


def _owner(job: Job, place: str) -> str:
    match place.partition(".")[0]:
        case "device":
            return job.cluster.device.name
        case "trainer":
            return job.workload.framework
        case "nature":
            return "nature"
    return job.cluster.name


def trusted_runs(path: Path = DATA) -> list[MeasuredRun]:
    """Runs that count by default."""
    return [run for run in read_measurements(path).runs if run.trusted]


@dataclass(frozen=True, slots=True)
class _Group:
    """Runs of one job, priced together."""

    job: Job
    plans: Plans
    index: Ints
    constants: Mapping[Key, Constant]


class Rows:
    """Timed runs; step seconds of all of them under any values of the constants."""

    def __init__(self, runs: Iterable[MeasuredRun]) -> None:
        self.runs = [run for run in runs if run.step_s is not None]
        self.measured_s: Floats = np.array([run.step_s for run in self.runs], dtype=np.float64)
        self.source = np.array([run.labels["source"] for run in self.runs], dtype=np.str_)
        self.groups = [self._group(places) for places in jobs_of(self.runs)]

    def __len__(self) -> int:
        return len(self.runs)

    def _group(self, places: list[int]) -> _Group:
        job = self.runs[places[0]].job
        plans = Plans.of(self.runs[i].plan for i in places)
        return _Group(job, plans, np.array(places), keyed(job))

    def keys(self, *origins: Origin) -> dict[Key, Constant]:
        """Constants of these rows that are of those origins (of all, if none is named)."""
        return {
            key: constant
            for group in self.groups
            for key, constant in group.constants.items()
            if not origins or constant.origin in origins
        }

    def owned_by(self, key: Key) -> Ints:
        """Positions of the rows that a constant touches."""
        touched = [group.index for group in self.groups if key in group.constants]
        return np.concatenate(touched) if touched else np.zeros(0, dtype=np.int64)

    def step_s(
        self, values: Mapping[Key, float], *, only: Key | None = None, start_s: Floats | None = None
    ) -> Floats:
        """Predicted step seconds, shape (n,); with `only`, rows that it does not touch keep `start_s`."""
        step_s = np.zeros(len(self)) if start_s is None else start_s.copy()
        for group in self.groups:
            if only is None or only in group.constants:
                step_s[group.index] = _priced(group, values).step_s
        return step_s

    def estimates(self) -> list[tuple[Ints, Estimate]]:
        """Each job's estimate as it is, with the positions of its rows."""
        return [(group.index, estimate(group.job, group.plans)) for group in self.groups]

    def log_errors(self, values: Mapping[Key, float]) -> Floats:
        """Natural logarithm of predicted over measured; shape (n,)."""
        errors: Floats = np.log(self.step_s(values) / self.measured_s)
        return errors

    def source_weights(self) -> Floats:
        """Weights by which every source counts as the root of its rows: 1 / sqrt(n of the source)."""
        names, inverse, counts = np.unique(self.source, return_inverse=True, return_counts=True)
        del names
        weights: Floats = 1 / np.sqrt(counts[inverse])
        return weights


def _priced(group: _Group, values: Mapping[Key, float]) -> Estimate:
    changed = {
        key.place: replace(group.constants[key], value=value)
        for key, value in values.items()
        if key in group.constants and value != group.constants[key].value
    }
    job = with_constants(group.job, changed) if changed else group.job
    return estimate(job, group.plans)


def thinned(runs: Sequence[MeasuredRun], most: int, seed: int = 0) -> list[MeasuredRun]:
    """At most so many runs of each source, drawn evenly; the order stays."""
    rng = np.random.default_rng(seed)
    by_source: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        by_source.setdefault(run.labels["source"], []).append(i)
    kept = [
        places if len(places) <= most else rng.choice(places, most, replace=False)
        for places in by_source.values()
    ]
    return [runs[i] for i in sorted(int(i) for places in kept for i in places)]
