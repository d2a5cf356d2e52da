"""The samplers' race: how many trials each engine needs, on the very same tables, seeds and budget.

    python benchmarks/race.py [--arenas replay,groups,hidden,real] [--engines meshtune,tpe,...]
                              [--seeds 5] [--machines 4] [--trials 100] [--quick] [--write] [--from FILE]

Arenas are described in race_arenas.py, engines in race_engines.py.  Of each table all outcomes are known, so
regret is exact: by what share the best plan tried so far is slower than the best that runs.  Each table of
real runs is searched `--seeds` times by engines that draw; `--machines` are the hidden machines of each
described job, a seed each.  The slow engines (gp, smac) search the first machine of each job and every
`--slow-every`-th table of real runs once, for at most `--slow-trials`.  Results go to FILE by `--write FILE`
(or to data/race.csv), and are printed again by `--from FILE`.
"""

import argparse
import logging
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import optuna
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from benchmarks.race_arenas import (
    HIDDEN_JOBS,
    N_ROWS,
    Case,
    cases_across_groups,
    hidden_cases,
    real_cases,
    replay_cases,
)
from benchmarks.race_engines import ENGINES, SEEDLESS, SLOW, is_found, make_engine, study_of
from benchmarks.race_feasibility import feasibility_report
from benchmarks.race_table import Search, measures, read, report, write

RESULTS = Path(__file__).parent / "data" / "race.csv"
ARENAS = ("replay", "groups", "hidden", "real")
QUICK_JOBS = (0,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Tables that one process makes and searches: an arena of real runs, or machines of one described job."""

    arena: str
    job: int = 0
    machines: tuple[int, ...] = ()

    def cases(self, n_rows: int) -> Iterable[Case]:
        """The tables."""
        real: dict[str, Callable[[], list[Case]]] = {
            "replay": replay_cases, "groups": cases_across_groups, "real": real_cases,
        }  # fmt: skip
        if self.arena in real:
            return real[self.arena]()
        return hidden_cases(HIDDEN_JOBS[self.job], self.machines, n_rows)


def tasks(arenas: Sequence[str], machines: int, jobs: Sequence[int]) -> list[Task]:
    """The race's; those of the hidden machines, which are simulated first, take longest."""
    hidden = [Task(arena="hidden", job=job, machines=tuple(range(machines))) for job in reversed(jobs)]
    return [*(hidden if "hidden" in arenas else []), *(Task(arena=a) for a in arenas if a != "hidden")]


def search(case: Case, engine: str, seed: int, n_trials: int) -> Search:
    """One engine on one table, until it has the best of it."""
    sampler = make_engine(engine, candidates=case.table, seed=seed, job=case.job)
    rows, ask_s = study_of(sampler, case.outcomes, n_trials, until=partial(is_found, case.step_s))
    regret = np.minimum.accumulate(case.step_s[rows]) / case.step_s.min() - 1.0
    found: dict[str, Any] = measures(regret)
    return Search(
        arena=case.arena,
        case=case.name,
        held_out=case.held_out,
        seed=seed,
        engine=engine,
        n_plans=len(case.table),
        n_trials=len(rows),
        n_failed=int(np.isinf(case.step_s[rows]).sum()),
        ask_s=float(np.median(ask_s)),
        **found,
    )


def run(task: Task, given: argparse.Namespace) -> list[Search]:
    """All searches of a task; of each table by every engine in turn."""
    quieten()
    done: list[Search] = []
    with threadpool_limits(1):
        for place, case in enumerate(task.cases(given.rows)):
            for engine in given.engines:
                done += _searches(case, engine, place, given)
    return done


def _searches(case: Case, engine: str, place: int, given: argparse.Namespace) -> list[Search]:
    """On a hidden machine one search by each engine, seeded as the machine; on a real table one a seed."""
    n_trials = given.slow_trials if engine in SLOW else given.trials
    if engine in SLOW and (case.seed if case.arena == "hidden" else place % given.slow_every):
        return []
    is_once = case.arena == "hidden" or engine in SLOW or engine in SEEDLESS
    seeds = [case.seed] if is_once else range(given.seeds)
    return [search(case, engine, seed, n_trials) for seed in seeds]


def quieten() -> None:
    """Nothing but the table is printed."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")


def race(given: argparse.Namespace) -> list[Search]:
    """All searches, in any order."""
    planned = tasks(given.arenas, given.machines, QUICK_JOBS if given.quick else range(len(HIDDEN_JOBS)))
    began = time.monotonic()
    done: list[Search] = []
    with multiprocessing.get_context("spawn").Pool(given.processes, maxtasksperchild=1) as pool:
        for i, found in enumerate(pool.imap_unordered(partial(run, given=given), planned)):
            done += found
            print(
                f"{i + 1} of {len(planned)} after {time.monotonic() - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return done


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def words(known: Sequence[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            given = text.split(",")
            if unknown := [each for each in given if each not in known]:
                raise argparse.ArgumentTypeError(f"must be of {', '.join(known)}; got {unknown[0]!r}")
            return given

        return parse

    parser.add_argument("--arenas", type=words(ARENAS), default=list(ARENAS))
    parser.add_argument("--engines", type=words(ENGINES), default=list(ENGINES))
    parser.add_argument("--seeds", type=int, default=5, help="searches of a table of real runs")
    parser.add_argument("--machines", type=int, default=4, help="hidden machines of each described job")
    parser.add_argument("--rows", type=int, default=N_ROWS, help="plans of a hidden machine's table")
    parser.add_argument("--trials", type=int, default=100, help="the most of a search")
    parser.add_argument("--slow-trials", type=int, default=40, help="the most of a search by gp or smac")
    parser.add_argument("--slow-every", type=int, default=4, help="which tables of real runs they search")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a smoke run: one described job, one machine")
    parser.add_argument("--write", type=Path, nargs="?", const=RESULTS, help="keep the results there")
    parser.add_argument(
        "--from", dest="kept", type=Path, nargs="?", const=RESULTS, help="print these results"
    )
    given = parser.parse_args(argv)
    if given.quick:
        given.machines, given.seeds, given.trials, given.slow_trials = 1, 1, 30, 12
        given.rows = min(given.rows, 60)
    return given


def main(argv: Sequence[str] | None = None) -> None:
    given = arguments(argv)
    quieten()
    searches = read(given.kept) if given.kept else race(given)
    if given.write and not given.kept:
        write(searches, given.write)
    print(report(sorted(searches, key=lambda each: ARENAS.index(each.arena)), ENGINES))
    if not given.kept:
        print(f"\n{feasibility_report(replay_cases(), 1 if given.quick else 5)}")


if __name__ == "__main__":
    main()
