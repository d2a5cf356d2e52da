"""The cost model against measured runs: a prediction for each, and figures of error for groups of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from objectives.cost.reserve import FRAGMENTATION, device_bytes
from objectives.cost.step import estimate, stage_profile
from objectives.measurements import MeasuredRun
from objectives.measurements.tables import MemoryKind, MemoryStage
from objectives.metrics import Job
from objectives.ranking import memory_limit_bytes
from objectives.uncertainty import step_sigma
from search_spaces.plan import Bools, Floats, Plan, Plans

INTERVAL_COVERAGE, INTERVAL_Z = 0.8, 1.2816


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What the model says of one run; the interval should hold with 80 %.

    `printed_bytes` is the peak as the run's trainer counts it: live tensors, blocks, or the whole device, of
    the fullest device or of the first stage's.
    """

    run: MeasuredRun
    step_s: float
    low_s: float
    high_s: float
    peak_memory_bytes: float
    printed_bytes: float

    @property
    def error(self) -> float:
        """Predicted over measured step seconds, less one."""
        assert self.run.step_s is not None
        return self.step_s / self.run.step_s - 1

    @property
    def memory_error(self) -> float:
        """Predicted over measured peak bytes, less one; both count the same."""
        assert self.run.peak_memory_bytes is not None
        return self.printed_bytes / self.run.peak_memory_bytes - 1

    @property
    def is_covered(self) -> bool:
        """Whether the measured time lies in the interval."""
        assert self.run.step_s is not None
        return self.low_s <= self.run.step_s <= self.high_s

    @property
    def memory_share(self) -> float:
        """Predicted peak over what a device has; beyond all measure where no trainer can run the plan."""
        if self.run.impossible:
            return float("inf")
        return self.peak_memory_bytes / self.run.job.cluster.device.memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Figures of error of one group of runs, as fractions; None where the group cannot tell.

    `bias` is the median signed error.  `pair_order` is the share of pairs of comparable runs (of one job)
    whose order is predicted; `regret` is how much slower than the best the plan is that is predicted best of
    those predicted to fit, the mean over jobs.  `failed_auc` is the chance that a failed run is given more
    memory than one that ran.
    """

    by: str
    name: str
    n: int
    median_ape: float | None
    mean_ape: float | None
    p90_ape: float | None
    bias: float | None
    pair_order: float | None
    regret: float | None
    coverage: float | None
    n_memory: int
    memory_mean_ape: float | None
    memory_median_ape: float | None
    n_failed: int
    failed_auc: float | None


def predict(runs: Sequence[MeasuredRun]) -> list[Prediction]:
    """A prediction for every run, in order; what is of one job is priced together.

    Where a run may mean several plans or jobs, the interval spans all their intervals.  The prediction is
    that of the one taken; where nothing makes it the likelier, the geometric mean of the extremes.
    """
    readings = [[(run.job, run.plan), *run.alternatives] for run in runs]
    stages = [run.memory_stage for run, each in zip(runs, readings, strict=True) for _ in each]
    priced = _price([reading for each in readings for reading in each], stages)
    starts = np.cumsum([0, *(len(each) for each in readings)])
    return [
        _prediction(run, priced[:, start:end])
        for run, start, end in zip(runs, starts[:-1], starts[1:], strict=True)
    ]


def _price(readings: Sequence[tuple[Job, Plan]], stages: Sequence[MemoryStage]) -> Floats:
    """Step seconds, a factor for their interval, peak, live and device bytes; shape (5, n_readings).

    The peak is the fullest device's; live and device bytes are those of the device that is printed.
    """
    priced = np.zeros((5, len(readings)))
    for places in _by_job([job for job, _ in readings]):
        job, plans = readings[places[0]][0], Plans.of(readings[i][1] for i in places)
        found = estimate(job, plans)
        step_s = found.step_s
        factor = np.exp(INTERVAL_Z * step_sigma(job, plans, found))
        memory = found.memory
        priced[:3, places] = step_s, factor, memory.total_bytes
        priced[3:, places] = memory.allocated_bytes, device_bytes(job, memory)
        for place, peak_stage in zip(places, found.peak_stage, strict=True):
            if peak_stage and stages[place] is MemoryStage.FIRST:
                memory = stage_profile(job, readings[place][1]).memory
                priced[3:, place] = memory.allocated_bytes[0], device_bytes(job, memory)[0]
    return priced


def _prediction(run: MeasuredRun, priced: Floats) -> Prediction:
    step_s, factor, memory, allocated, device = priced
    counted = {
        MemoryKind.ALLOCATED: allocated,
        MemoryKind.RESERVED: allocated * (1 + FRAGMENTATION.value),
        MemoryKind.DEVICE: device,
    }
    printed = counted[run.memory_kind]
    return Prediction(
        run=run,
        step_s=_middle(step_s) if run.undecided else float(step_s[0]),
        low_s=float(np.min(step_s / factor)),
        high_s=float(np.max(step_s * factor)),
        peak_memory_bytes=_middle(memory) if run.undecided else float(memory[0]),
        printed_bytes=_middle(printed) if run.undecided else float(printed[0]),
    )


def _middle(values: Floats) -> float:
    """Geometric mean of the extremes."""
    return float(np.sqrt(np.min(values) * np.max(values)))


def jobs_of(runs: Sequence[MeasuredRun]) -> list[list[int]]:
    """Positions of the runs of each job: these differ in their plan only, and can be compared."""
    return _by_job([run.job for run in runs])


def _by_job(jobs: Sequence[Job]) -> list[list[int]]:
    places: dict[int, list[int]] = {}
    for i, job in enumerate(jobs):
        places.setdefault(id(job), []).append(i)
    return list(places.values())


def accuracies(predictions: Sequence[Prediction]) -> list[Accuracy]:
    """Figures for all runs, for every value of every label, largest group first."""
    groups = [accuracy("all", "all", predictions)] if predictions else []
    labels = predictions[0].run.labels if predictions else ()
    for label in labels:
        names = {each.run.labels[label] for each in predictions}
        found = [
            accuracy(label, name, [each for each in predictions if each.run.labels[label] == name])
            for name in names
        ]
        groups += sorted(found, key=lambda group: (-group.n, group.name))
    return groups


def accuracy(by: str, name: str, predictions: Sequence[Prediction]) -> Accuracy:
    """Figures of one group."""
    timed = [each for each in predictions if each.run.step_s is not None]
    weighed = [each for each in predictions if each.run.peak_memory_bytes and not each.run.outcome.is_failure]
    failed = [each for each in predictions if each.run.outcome.is_failure]
    errors = np.array([each.error for each in timed])
    memory_errors = np.abs([each.memory_error for each in weighed])
    return Accuracy(
        by=by,
        name=name,
        n=len(timed),
        median_ape=_quantile(np.abs(errors), 0.5),
        mean_ape=_mean(np.abs(errors)),
        p90_ape=_quantile(np.abs(errors), 0.9),
        bias=_quantile(errors, 0.5),
        pair_order=_pair_order(timed),
        regret=_regret(timed),
        coverage=_mean(np.array([each.is_covered for each in timed], dtype=float)),
        n_memory=len(weighed),
        memory_mean_ape=_mean(memory_errors),
        memory_median_ape=_quantile(memory_errors, 0.5),
        n_failed=len(failed),
        failed_auc=area_under_curve(
            np.array([each.memory_share for each in failed]),
            np.array([each.memory_share for each in timed]),
        ),
    )


def _pair_order(timed: Sequence[Prediction]) -> float | None:
    counts = [ordered_pairs(was, said) for was, said, _ in _comparable(timed)]
    n_pairs = sum(n for _, n in counts)
    return sum(right for right, _ in counts) / n_pairs if n_pairs else None


def _regret(timed: Sequence[Prediction]) -> float | None:
    """Mean over jobs; plans that `rank` would not offer, for they would not fit, are not picked."""
    return _mean(np.array([regret(was, said, fits) for was, said, fits in _comparable(timed)]))


def _comparable(timed: Sequence[Prediction]) -> Iterable[tuple[Floats, Floats, Bools]]:
    """Measured and predicted seconds of each job's plans, and which fit; of a plan run again the median."""
    for places in jobs_of([each.run for each in timed]):
        again: dict[Plan, list[Prediction]] = {}
        for i in places:
            again.setdefault(timed[i].run.plan, []).append(timed[i])
        if len(again) > 1:
            measured = [np.median([each.run.step_s or 0.0 for each in alike]) for alike in again.values()]
            limit = memory_limit_bytes(timed[places[0]].run.job)
            yield (
                np.array(measured),
                np.array([alike[0].step_s for alike in again.values()]),
                np.array([alike[0].peak_memory_bytes <= limit for alike in again.values()]),
            )


def ordered_pairs(measured: Floats, predicted: Floats) -> tuple[float, int]:
    """Pairs in the right order, and pairs in all; equal measurements make no pair, equal predictions half."""
    differs = np.triu(measured[:, None] != measured[None, :])
    agreement = np.sign(measured[:, None] - measured) * np.sign(predicted[:, None] - predicted)
    return float(np.sum((agreement[differs] + 1) / 2)), int(np.sum(differs))


def regret(measured: Floats, predicted: Floats, fits: Bools | None = None) -> float:
    """How much slower than the fastest the run is that is predicted to be the fastest of those that fit."""
    if fits is not None and fits.any():
        predicted = np.where(fits, predicted, np.inf)
    return float(measured[np.argmin(predicted)] / np.min(measured) - 1)


def area_under_curve(positive: Floats, negative: Floats) -> float | None:
    """Chance that a positive scores above a negative (a tie counts half); None without both.

    Source
    ------
    Hanley and McNeil (1982), Radiology 143, 29-36: the area under the curve is Wilcoxon's statistic.
    """
    if not len(positive) or not len(negative):
        return None
    ordered = np.sort(negative)
    below, up_to = (np.searchsorted(ordered, positive, side=side) for side in ("left", "right"))
    return float(np.mean((below + up_to) / 2) / len(negative))


def _mean(values: Floats) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _quantile(values: Floats, share: float) -> float | None:
    return float(np.quantile(values, share)) if len(values) else None
