"""What a calibration on a few rows brings on the others: the figure that tells whether to trust it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from objectives.calibration.fit import Calibration, calibrate, calibrated_cluster
from objectives.calibration.parameters import TimedStep
from objectives.measurements import MeasuredRun
from objectives.validation import Accuracy, Prediction, accuracy, predict
from search_spaces.plan import Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AfterRows:
    """Errors on the other rows of one source and accelerator, before and after a calibration on a few.

    Rows are drawn once for every seed; the figures are of all draws together.  `errors` are those after the
    calibration, predicted over measured less one, shape (n_held x n_seeds,).
    """

    source: str
    accelerator: str
    n_fitted: int
    n_held: int
    before: Accuracy
    after: Accuracy
    errors: Floats


def after_rows(
    runs: Sequence[MeasuredRun], n_rows: int = 10, seeds: Sequence[int] = (0, 1, 2)
) -> list[AfterRows]:
    """What a calibration on `n_rows` rows brings, for every source and accelerator with half as many more."""
    groups: dict[tuple[str, str], list[MeasuredRun]] = {}
    for run in runs:
        if run.step_s is not None:
            groups.setdefault((run.labels["source"], run.labels["accelerator"]), []).append(run)
    large = {name: group for name, group in groups.items() if len(group) > n_rows + n_rows // 2}
    return [_after(name, group, n_rows, seeds) for name, group in large.items()]


def timed_steps(runs: Sequence[MeasuredRun]) -> list[TimedStep]:
    """The runs that have a step time as evidence for a calibration."""
    return [
        TimedStep(job=run.job, plan=run.plan, step_s=run.step_s) for run in runs if run.step_s is not None
    ]


def calibrated_runs(runs: Sequence[MeasuredRun], calibration: Calibration) -> list[MeasuredRun]:
    """The runs with their machines calibrated; runs of one job share one still."""
    jobs = {id(run.job): run.job for run in runs}
    there = {
        key: replace(job, cluster=calibrated_cluster(job.cluster, calibration)) for key, job in jobs.items()
    }
    return [replace(run, job=there[id(run.job)]) for run in runs]


def _after(
    name: tuple[str, str], runs: Sequence[MeasuredRun], n_rows: int, seeds: Sequence[int]
) -> AfterRows:
    preset = predict(runs)
    before: list[Prediction] = []
    after: list[Prediction] = []
    for seed in seeds:
        drawn = np.random.default_rng(seed).permutation(len(runs))
        calibration = calibrate(timed_steps([runs[i] for i in sorted(drawn[:n_rows])]))
        held = sorted(drawn[n_rows:])
        before += _of_one_draw([preset[i] for i in held])
        after += predict(calibrated_runs([runs[i] for i in held], calibration))
    label = " ".join(name)
    return AfterRows(
        source=name[0],
        accelerator=name[1],
        n_fitted=n_rows,
        n_held=len(runs) - n_rows,
        before=accuracy("before", label, before),
        after=accuracy("after", label, after),
        errors=np.array([each.error for each in after]),
    )


def _of_one_draw(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions with jobs of their own, so that they are compared with those of the same draw only."""
    jobs = {id(each.run.job): replace(each.run.job) for each in predictions}
    return [replace(each, run=replace(each.run, job=jobs[id(each.run.job)])) for each in predictions]
