"""Samplers side by side on simulated hidden clusters: regret by trials, and seconds an ask.

    python benchmarks/sampler_race.py [--seeds 10] [--trials 40] [--rows 200] [--hidden 0.4]

Every sampler sees the same candidate table, the same hidden machine per seed, and the same outcomes per plan.
Regret: by what share the best plan tried so far is slower than the best of the whole table on that machine,
noise-free.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import optuna

from objectives.metrics import Job
from objectives.outcome import Measured, Outcome, outcome_to_dict
from objectives.ranking import Candidates, rank
from runners.simulated import SimulatedRunner
from search_spaces.cluster_presets import load_cluster
from search_spaces.model_presets import load_model
from search_spaces.plan import Floats
from search_spaces.space import SpaceSpec
from search_spaces.workload import Workload
from tuner.samplers import SAMPLERS, make_sampler
from tuner.samplers.candidates import CandidateSampler
from tuner.tell import constraints_of, state_of, values_of

CHECKPOINTS = (5, 10, 20, 40)
METRICS = ("step_time",)
NOISE = 0.01
Runs = dict[str, list[Any]]
JOBS = {
    "llama-3-8b on 64 H100": ("llama-3-8b", "dgx-h100", 64, 128, 8192),
    "llama-3-70b on 128 H100": ("llama-3-70b", "dgx-h100", 128, 128, 8192),
    "mixtral-8x7b on 128 H100": ("mixtral-8x7b", "dgx-h100", 128, 512, 4096),
}


def described(name: str) -> Job:
    model, cluster, devices, global_batch, seq_len = JOBS[name]
    workload = Workload(seq_len=seq_len, global_batch=global_batch)
    return Job(model=load_model(model), cluster=load_cluster(cluster, devices), workload=workload)


def thinned(table: Candidates, n_rows: int) -> Candidates:
    """Rows from the whole ranking, denser at its top; few enough to simulate every one."""
    return table.take(np.unique(np.geomspace(1, len(table), n_rows).astype(np.int64)) - 1)


def truth(job: Job, table: Candidates, seed: int, hidden: float) -> tuple[Floats, list[Outcome]]:
    """Noise-free step seconds of the table on one hidden machine, and the noisy outcomes that trials see."""
    runner = SimulatedRunner(job, seed=seed, hidden=hidden, noise=0.0, straggler_probability=0.0, n_steps=1)
    exact = runner.run(table.plans)
    factors = np.exp(NOISE * np.random.default_rng(seed).standard_normal(len(table)))
    noisy = [
        replace(outcome, step_s=outcome.step_s * factor) if isinstance(outcome, Measured) else outcome
        for outcome, factor in zip(exact, factors, strict=True)
    ]
    return np.array([o.step_s if isinstance(o, Measured) else np.inf for o in exact]), noisy


def study_of(
    sampler: CandidateSampler,
    outcomes: list[Outcome],
    n_trials: int,
    *,
    until: Callable[[int], bool] = lambda row: False,
) -> tuple[list[int], list[float]]:
    """Rows tried, up to the first that is what is wanted, and seconds of each ask."""
    study, rows, ask_s = optuna.create_study(sampler=sampler), [], []
    for _ in range(min(n_trials, len(sampler.table))):
        start = time.perf_counter()
        trial = study.ask(fixed_distributions=sampler.table.distributions)
        ask_s.append(time.perf_counter() - start)
        rows.append(sampler.table.row_of(trial.params))
        tell(study, trial, outcomes[rows[-1]], sampler.job)
        if until(rows[-1]):
            break
    return rows, ask_s


def tell(study: optuna.Study, trial: optuna.Trial, outcome: Outcome, job: Job) -> None:
    trial.set_user_attr("outcome", outcome_to_dict(outcome))
    for constraint, value in constraints_of(outcome, job).items():
        trial.set_constraint(constraint, value)
    measured = isinstance(outcome, Measured)
    study.tell(trial, values_of(outcome, job, METRICS) if measured else None, state=state_of(outcome))


def race(
    job: Job, table: Candidates, names: list[str], options: argparse.Namespace
) -> tuple[Runs, Runs, Runs]:
    """Regret after each trial, (n_seeds, n_trials) a sampler; failures; median seconds an ask."""
    regrets, failures, seconds = ({name: [] for name in names} for _ in range(3))
    for seed in range(options.seeds):
        step_s, outcomes = truth(job, table, seed, options.hidden)
        for name in names:
            sampler = make_sampler(name, candidates=table, metrics=METRICS, seed=seed, job=job)
            rows, ask_s = study_of(sampler, outcomes, options.trials)
            best = np.minimum.accumulate(step_s[rows])
            regrets[name].append(best / step_s.min() - 1.0)
            failures[name].append(np.isinf(step_s[rows]).mean())
            seconds[name].append(np.median(ask_s))
    return regrets, failures, seconds


def cell(values: Floats) -> str:
    return " / ".join(f"{100 * q:5.1f}" for q in np.quantile(values, [0.5, 0.9], method="higher"))


def print_table(title: str, regrets: Runs, failures: Runs, seconds: Runs) -> None:
    points = [n for n in CHECKPOINTS if n <= len(next(iter(regrets.values()))[0])]
    print(f"\n{title}: regret in %, median / 90th percentile")
    print(
        f"{'sampler':12}" + "".join(f"{f'after {n}':>16}" for n in points) + f"{'failed %':>10}{'ms/ask':>8}"
    )
    for name, runs in regrets.items():
        columns = np.array(runs)
        cells = "".join(f"{cell(columns[:, n - 1]):>16}" for n in points)
        print(f"{name:12}{cells}{100 * np.mean(failures[name]):10.1f}{1000 * np.median(seconds[name]):8.1f}")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--hidden", type=float, default=0.4)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    return parser.parse_args()


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    chosen = options()
    for title in JOBS:
        job = described(title)
        table = thinned(rank(job, SpaceSpec()).candidates, chosen.rows)
        print_table(
            f"{title}, {len(table)} candidates", *race(job, table, chosen.samplers.split(","), chosen)
        )


if __name__ == "__main__":
    main()
