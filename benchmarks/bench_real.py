"""The analytic model and the tuner against every plan of a space, really run on one machine.

    python benchmarks/bench_real.py [RUNS.csv] [--seeds 20] [--fit]

For each job (a model on so many processes) the model's error with the cluster that `meshtune calibrate`
measured, no row seen before; the same after a calibration on ten of the rows, on the others; and how many
trials a study takes until it has a plan within 3 % of the best of all, its trials replayed from the table.
`--fit` prints what the trainer's habits (search_spaces/habits.py) would be if fitted to the rows.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import optuna

from benchmarks.fitting import fit, prior
from benchmarks.race_engines import study_of
from benchmarks.rows import Rows
from objectives.calibration import after_rows
from objectives.cost.step import estimate
from objectives.measurements import MeasuredRun, read_measurements
from objectives.metrics import Job
from objectives.outcome import Outcome
from objectives.ranking import Candidates
from objectives.validation import Accuracy, Prediction, accuracy, predict
from runners.replay import ReplayRunner
from search_spaces.plan import Ints, Plan, Plans
from tuner.samplers import make_sampler

TABLE = Path(__file__).parent / "data" / "local" / "runs.csv"
NEAR, TRIALS, SEEDS = 0.03, 10, 20
N_ROWS = 10
QUIET_SHARE = 0.7
ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Search:
    """A study's searches of one job, one a seed: trials until a plan within `NEAR` of the best was tried."""

    job: str
    n_plans: int
    n_near: int
    trials: Ints

    @property
    def share_in_time(self) -> float:
        """Searches that take at most `TRIALS` trials."""
        return float(np.mean(self.trials <= TRIALS))


def runs_of(path: Path) -> list[MeasuredRun]:
    """Rows that count."""
    return [run for run in read_measurements(path).runs if run.trusted]


def processor_share(path: Path) -> float:
    """Of the processor's time, how much the runs had while they stepped; the median over the rows.

    What a pipeline leaves idle lowers it too; far below 1 in most rows, others used the machine.
    """
    with path.open(newline="") as file:
        found = [(float(row["step_time_s"] or 0), json.loads(row["extra"])) for row in csv.DictReader(file)]
    shares = [
        extra["busy_s"] / (step_s * min(int(extra["cores"]), _n_threads(extra)))
        for step_s, extra in found
        if step_s and "busy_s" in extra and "cores" in extra
    ]
    return float(np.median(shares)) if shares else float("nan")


def _n_threads(extra: dict[str, Any]) -> int:
    """Threads of all processes of a run."""
    return int(extra["n_threads"]) * Plan.parse(extra["plan"]).world_size


def job_name(run: MeasuredRun) -> str:
    """A model on so many processes."""
    return f"{run.job.model.name} on {run.job.cluster.n_devices}"


def by_job(runs: Sequence[MeasuredRun]) -> dict[str, list[MeasuredRun]]:
    """Runs of each job, by its name."""
    jobs: dict[str, list[MeasuredRun]] = {}
    for run in runs:
        jobs.setdefault(job_name(run), []).append(run)
    return jobs


def errors(predictions: Sequence[Prediction]) -> list[Accuracy]:
    """Figures of all runs, then of each job's and of each kind of parallelism."""
    groups: dict[tuple[str, str], list[Prediction]] = {}
    for each in predictions:
        groups.setdefault(("job", job_name(each.run)), []).append(each)
    for each in predictions:
        groups.setdefault(("parallelism", each.run.labels["parallelism"]), []).append(each)
    return [
        accuracy(ALL, ALL, predictions),
        *(accuracy(by, name, group) for (by, name), group in sorted(groups.items())),
    ]


def search(name: str, runs: Sequence[MeasuredRun], path: Path, n_seeds: int) -> Search:
    """One search a seed, over the plans of a job in the order that the model predicts."""
    job, table, outcomes = recorded(runs, path)
    step_s = np.array([getattr(outcome, "step_s", np.inf) for outcome in outcomes])
    near = step_s <= (1 + NEAR) * step_s.min()
    trials = []
    for seed in range(n_seeds):
        sampler = make_sampler("meshtune", candidates=table, metrics=("step_time",), seed=seed, job=job)
        rows, _ = study_of(sampler, outcomes, len(table), until=lambda row: bool(near[row]))
        trials.append(len(rows))
    return Search(job=name, n_plans=len(table), n_near=int(near.sum()), trials=np.array(trials))


def recorded(runs: Sequence[MeasuredRun], path: Path) -> tuple[Job, Candidates, list[Outcome]]:
    job = runs[0].job
    plans = Plans.of({run.plan.key: run.plan for run in runs}.values())
    priced = estimate(job, plans)
    table = Candidates(plans=plans, estimate=priced, score=priced.step_s)
    table = table.take(np.argsort(priced.step_s, kind="stable"))
    return job, table, list(ReplayRunner(job, path=str(path)).run(table.plans))


def refitted(runs: Sequence[MeasuredRun]) -> dict[str, tuple[float, float]]:
    """Each habit of the rows' trainer: its value now, and fitted to them, the machine as it was measured."""
    rows = Rows(runs)
    framework = runs[0].job.workload.framework
    now = {
        key: constant for key, constant in rows.keys().items() if key.owner == framework and constant.value
    }
    priors = {key: prior(key.place, each.value, each.spread) for key, each in now.items()}
    found = fit(rows, priors, with_spread=False)
    return {key.place: (now[key].value, value) for key, value in found.values.items()}


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _print_errors(title: str, groups: Sequence[Accuracy]) -> None:
    print(f"\n{title}")
    print(
        f"{'':28}{'n':>5}{'failed':>8}{'median':>9}{'mean':>9}{'90th':>9}{'bias':>9}{'order':>9}{'regret':>9}"
    )
    for group in groups:
        cells = (group.median_ape, group.mean_ape, group.p90_ape, group.bias, group.pair_order, group.regret)
        figures = "".join(f"{_percent(each):>9}" for each in cells)
        print(f"{group.name:28}{group.n:5}{group.n_failed:8}{figures}")


def _print_searches(searches: Sequence[Search]) -> None:
    print(f"\ntrials until a plan within {NEAR:.0%} of the best was tried, {len(searches[0].trials)} seeds")
    print(f"{'':28}{'plans':>7}{'so near':>9}{'median':>8}{'90th':>6}{'most':>6}{f'in {TRIALS}':>9}")
    for each in searches:
        high = np.quantile(each.trials, 0.9, method="higher")
        print(
            f"{each.job:28}{each.n_plans:7}{each.n_near:9}{np.median(each.trials):8.0f}{high:6}"
            f"{each.trials.max():6}{_percent(each.share_in_time):>9}"
        )


def _after_words(group: Any) -> str:
    before, after = group.before, group.after
    return (
        f"{group.source} {group.accelerator}: median {_percent(before.median_ape)} before, "
        f"{_percent(after.median_ape)} after; order {_percent(before.pair_order)}, "
        f"{_percent(after.pair_order)} ({group.n_held} rows held back, three draws)"
    )


def main() -> None:
    """Print the tables."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="?", type=Path, default=TABLE)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--fit", action="store_true", help="fit the trainer's habits to the rows")
    asked = parser.parse_args()
    runs = runs_of(asked.runs)
    share = processor_share(asked.runs)
    print(f"{len(runs)} runs, which had {_percent(share)} of the processor while they stepped")
    if share < QUIET_SHARE:
        print("others used the machine: the seconds are theirs too, and no model can foresee them")
    _print_errors("the model as calibrated by probes, against every run", errors(predict(runs)))
    print(f"\nafter a calibration on {N_ROWS} of the rows, on the others")
    for group in after_rows(runs, N_ROWS):
        print(_after_words(group))
    if asked.fit:
        print("\nhabits of the trainer, now and fitted to these rows")
        for place, (now, then) in refitted(runs).items():
            print(f"{place:36}{now:10.4g}{then:10.4g}")
    _print_searches([search(name, own, asked.runs, asked.seeds) for name, own in by_job(runs).items()])


if __name__ == "__main__":
    main()
