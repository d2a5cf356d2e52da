"""What a prediction is measured against: one utilisation for everything, and the rows' own noise.

trivial    t = model FLOPs / (devices * peak * u),  u the median utilisation of an accelerator and dtype,
           every source with the same weight
noise      |t_a / t_b - 1| of two rows that publish the same plan of the same job
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from objectives.measurements import MeasuredRun
from objectives.validation import jobs_of
from search_spaces.plan import Floats, Plan


@dataclass(frozen=True, slots=True)
class Trivial:
    """Errors of the trivial predictor, shape (n_runs,); NaN where no other source has such runs."""

    seen: Floats
    unseen: Floats


def trivial(runs: Sequence[MeasuredRun]) -> Trivial:
    """Signed errors of timed runs, the utilisation taken from all of them, and from other sources alone."""
    utilisation = np.array([float(run.job.mfu(np.array([run.step_s]))[0]) for run in runs])
    names = [f"{run.labels['accelerator']} {run.labels['precision']}" for run in runs]
    kinds = np.array(names, dtype=np.str_)
    sources = np.array([run.labels["source"] for run in runs], dtype=np.str_)
    seen, unseen = np.full(len(runs), np.nan), np.full(len(runs), np.nan)
    for kind in set(kinds):
        alike = kinds == kind
        seen[alike] = utilisation[alike] / _median(utilisation[alike], sources[alike]) - 1
        for source in set(sources[alike]):
            own, others = alike & (sources == source), alike & (sources != source)
            if np.any(others):
                unseen[own] = utilisation[own] / _median(utilisation[others], sources[others]) - 1
    return Trivial(seen, unseen)


def _median(values: Floats, sources: NDArray[np.str_]) -> float:
    """Median in which every source weighs the same."""
    _, inverse, counts = np.unique(sources, return_inverse=True, return_counts=True)
    order = np.argsort(values)
    reached = np.cumsum((1 / counts[inverse])[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


@dataclass(frozen=True, slots=True)
class Noise:
    """Differences of rows that publish the same plan twice."""

    n_pairs: int
    median: float
    largest: float


def noise_floor(runs: Sequence[MeasuredRun]) -> Noise | None:
    """How far two rows of the same plan lie apart; None where no plan was published twice."""
    differences: list[float] = []
    for places in jobs_of(runs):
        again: dict[Plan, list[float]] = {}
        for i in places:
            again.setdefault(runs[i].plan, []).append(runs[i].step_s or 0.0)
        differences += [
            max(pair) / min(pair) - 1 for alike in again.values() for pair in combinations(alike, 2)
        ]
    if not differences:
        return None
    return Noise(len(differences), float(np.median(differences)), float(np.max(differences)))
