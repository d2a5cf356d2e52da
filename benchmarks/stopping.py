"""Is "another plan is better by 2 % with probability p" true as often as it says?

    python benchmarks/stopping.py [--clusters 24] [--trials 16] [--rows 120] [--better-by 0.02]

After every trial of a study the stated probability is set against whether an untried plan really was better
than the best measured one by more than that.  Arenas: hidden clusters of the simulator, which differ from
their description as benchmarks/fidelities.py says, and published groups of nearly exhaustive measured runs,
failures included, where the truth is the measurement.  Brier: mean of (stated - true)²; "base" is what always
stating the arena's own frequency would have, so below it the statements tell studies apart.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import optuna

from benchmarks.fidelities import JOBS, METRICS, Machine, described, tell, thinned
from benchmarks.rows import trusted_runs
from objectives.cost.step import estimate
from objectives.measurements import MeasuredRun
from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Measured, Outcome, OutcomeOrigin
from objectives.ranking import Candidates, rank
from runners.simulated import SimulatedRunner
from search_spaces.plan import Floats, Plans
from search_spaces.space import SpaceSpec
from tuner.samplers.model_based import MeshtuneSampler

FEWEST_PLANS = 20
BINS = (0.0, 0.1, 0.3, 0.6, 0.9, 1.0001)


@dataclass(frozen=True, kw_only=True, eq=False)
class Arena:
    """One study's candidates, what a trial of each shows, and its true seconds; infinite where it fails."""

    job: Job
    table: Candidates
    outcomes: Sequence[Outcome]
    step_s: Floats


def hidden_arenas(n: int, n_rows: int) -> Iterator[Arena]:
    """Hidden clusters, the jobs in turn; seeds from 1,000 on, on which nothing was chosen."""
    tables = {name: thinned(rank(described(name), SpaceSpec()).candidates, n_rows) for name in JOBS}
    for i in range(n):
        name = list(JOBS)[i % len(JOBS)]
        job, table, seed = described(name), tables[name], 1000 + i
        options = dict(seed=seed, hidden=0.4, noise=0.0, straggler_probability=0.0, n_steps=1)
        machine = Machine(runner=SimulatedRunner(job, **options), seed=seed, start_s=0.0)
        exact = [machine.exact_s(plan, None) for plan in table.plans]
        step_s = np.array([each.step_s if isinstance(each, Measured) else np.inf for each in exact])
        shown = [machine.shown(outcome, row) for row, outcome in enumerate(exact)]
        yield Arena(job=job, table=table, outcomes=shown, step_s=step_s)


def replay_arenas() -> Iterator[Arena]:
    """Published groups: the same job on the same machine, at least so many plans."""
    groups: dict[int, dict[str, MeasuredRun]] = {}
    for run in trusted_runs():
        groups.setdefault(id(run.job), {}).setdefault(run.plan.key, run)
    for runs in groups.values():
        measured = [run for run in runs.values() if run.step_s is not None]
        if len(measured) >= FEWEST_PLANS:
            yield recorded(list(runs.values()))


def recorded(runs: Sequence[MeasuredRun]) -> Arena:
    """The runs of one group as an arena."""
    job, plans = runs[0].job, Plans.of([run.plan for run in runs])
    priced = estimate(job, plans)
    order = np.argsort(priced.step_s, kind="stable")
    table = Candidates(plans=plans, estimate=priced, score=priced.step_s).take(order)
    peaks = priced.peak_memory_bytes
    outcomes = [shown(runs[i], float(peaks[i])) for i in order]
    step_s = np.array([each.step_s if isinstance(each, Measured) else np.inf for each in outcomes])
    return Arena(job=job, table=table, outcomes=outcomes, step_s=step_s)


def shown(run: MeasuredRun, predicted_bytes: float) -> Outcome:
    """A published run as a trial's outcome; a peak that nobody recorded is the predicted one."""
    if run.step_s is None:
        return Failed(cause=Cause.OUT_OF_MEMORY, message="as recorded", origin=OutcomeOrigin.MEASURED)
    limit = run.job.cluster.device.memory_bytes
    peak = run.peak_memory_bytes or min(predicted_bytes, limit)
    return Measured(
        step_s=run.step_s, step_spread_s=0.0, peak_memory_bytes=peak, origin=OutcomeOrigin.MEASURED
    )


def forecasts(arena: Arena, seed: int, n_trials: int, better_by: float) -> list[tuple[float, bool, int]]:
    """(stated, true, trials so far) after each trial of one study."""
    sampler = MeshtuneSampler(arena.table, metrics=METRICS, seed=seed, job=arena.job)
    study, rows, found = optuna.create_study(sampler=sampler), [], []
    for n in range(1, min(n_trials, len(arena.table) - 1) + 1):
        trial = study.ask(fixed_distributions=sampler.table.distributions)
        rows.append(sampler.table.row_of(trial.params))
        tell(study, trial, arena.outcomes[rows[-1]], arena.job, is_full=True)
        worth = sampler.worth(study, better_by)
        if worth is None:
            continue
        tried = [(arena.outcomes[row].step_s, row) for row in rows if np.isfinite(arena.step_s[row])]
        untried = np.delete(arena.step_s, rows)
        gain = 1.0 - untried.min() / arena.step_s[min(tried)[1]]
        found.append((worth.probability, bool(gain > better_by), n))
    return found


def print_table(title: str, found: Sequence[tuple[float, bool, int]]) -> None:
    stated, true, n = (np.array(column, dtype=np.float64) for column in zip(*found, strict=True))
    base = true.mean()
    print(f"\n{title}: {len(found)} statements; stated {stated.mean():.2f} in the mean, true {base:.2f};"
          f" Brier {((stated - true) ** 2).mean():.3f}, base {base * (1 - base):.3f}")  # fmt: skip
    print(f"{'stated':>14}{'statements':>12}{'mean stated':>13}{'true':>8}")
    for low, high in pairwise(BINS):
        among = (stated >= low) & (stated < high)
        if among.any():
            print(f"{f'{low:.1f} to {min(high, 1.0):.1f}':>14}{among.sum():12}"
                  f"{stated[among].mean():13.2f}{true[among].mean():8.2f}")  # fmt: skip
    print(f"{'trials so far':>14}{'statements':>12}{'mean stated':>13}{'true':>8}")
    for low, high in ((1, 4), (5, 8), (9, 16), (17, 400)):
        among = (n >= low) & (n <= high)
        if among.any():
            print(f"{f'{low} to {high}':>14}{among.sum():12}{stated[among].mean():13.2f}"
                  f"{true[among].mean():8.2f}")  # fmt: skip


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clusters", type=int, default=24)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--better-by", type=float, default=0.02)
    given = parser.parse_args()
    arenas = {
        "hidden clusters": hidden_arenas(given.clusters, given.rows),
        "replayed groups": replay_arenas(),
    }
    for title, several in arenas.items():
        found, n = [], 0
        for n, arena in enumerate(several, start=1):
            found += forecasts(arena, n, given.trials, given.better_by)
        print_table(f"{title} ({n})", found)


if __name__ == "__main__":
    main()
