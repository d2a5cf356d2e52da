"""How quickly learning pays on published runs, whether it harms, and whether its intervals are honest.

    python benchmarks/learning.py                    every table below; some minutes
    python benchmarks/learning.py --seeds 5          fewer draws
    python benchmarks/learning.py --write FILE       and write them

curves          errors on the other rows after 10, 40 and 160 random rows of one source
held out        a whole model, size, device count or tensor-parallel degree that learning never sees
small to large  learned on runs of at most 64 devices, asked for those of 256 and more
tried again     one run of each plan that was run more than once is learned from, the others asked for
floor           how far runs of one plan differ, and the order that knowing every plan's mean would give

Order is the share of pairs foreseen: of one job; those of one job that differ by more than runs of one plan
do (NOISE); of all rows held back.

Preset is the model as it ships; its constants were fitted to these sources among others (docs/accuracy.md
says what is in-sample).  Every draw follows from its seed.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from scipy.special import ndtr

from benchmarks.accuracy import NONE, markdown, percent
from benchmarks.rows import DATA, trusted_runs
from objectives.calibration import timed_steps
from objectives.measurements import MeasuredRun
from objectives.validation import INTERVAL_COVERAGE, ordered_pairs
from search_spaces.plan import Bools, Floats, Ints
from tuner.learned import Forecast, LearnedModel, Priced

MULTI_NODE, SINGLE_NODE = ("vtrain-multi", "playbook"), ("vtrain-single",)
SCALED = ("dgxc", "internevo")  # further sources with jobs on many device counts
N_ROWS, N_SEEDS, N_DRAWS = (10, 40, 160), 20, 5
MOST_ROWS = 300  # a held-out group is predicted from so many of the others: more cost time and change little
SMALL, LARGE = 64, 256
NOISE = 0.03  # median difference of two runs of one plan, of all sources that repeat plans (table "floor")
FEWEST_HELD, FEWEST_KEPT, ONE_POINT = 8, 20, 0.01


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Timed runs of one source, priced; `job_codes` tells which can be compared."""

    name: str
    runs: Sequence[MeasuredRun]
    priced: Priced
    job_codes: Ints

    @classmethod
    def of(cls, name: str, runs: Sequence[MeasuredRun], label: str = "source") -> "Source":
        """The timed runs with that label."""
        own = [run for run in runs if run.labels[label] == name and run.step_s is not None]
        codes = {key: i for i, key in enumerate(dict.fromkeys(id(run.job) for run in own))}
        return cls(
            name=name,
            runs=own,
            priced=Priced.of(timed_steps(own)),
            job_codes=np.array([codes[id(run.job)] for run in own]),
        )

    def labels(self, by: str) -> list[str]:
        """What rows are held out together."""
        named = {
            "model": [run.job.model.name for run in self.runs],
            "size": [f"{run.job.model.n_layers} x {run.job.model.d_model}" for run in self.runs],
            "devices": [str(run.job.cluster.n_devices) for run in self.runs],
            "tp": [str(run.plan.tp) for run in self.runs],
        }
        return named[by]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Median errors, shares of pairs in order (of one job, beyond noise, of all) and of runs in the 80 %."""

    n: int
    preset: float
    calibrated: float
    learned: float
    order: float
    order_beyond: float
    order_all: float
    covered: float

    def cells(self) -> list[str]:
        """As a row of a table."""
        errors = [percent(value) for value in (self.preset, self.calibrated, self.learned)]
        all_orders = (self.order, self.order_beyond, self.order_all)
        orders = [NONE if np.isnan(value) else percent(value) for value in all_orders]
        return [f"{self.n:,}", *errors, *orders, percent(self.covered, 0)]


def figures(source: Source, held: Ints, forecast: Forecast) -> Figures:
    """What a forecast of the held rows is worth."""
    linear = source.priced.linear
    measured, preset = linear.measured[held], linear.start[held]
    left = measured - forecast.log_s
    return Figures(
        n=len(held),
        preset=median_error(measured - preset),
        calibrated=median_error(measured - forecast.calibrated_log_s),
        learned=median_error(left),
        order=pair_order(measured, forecast.log_s, source.job_codes[held]),
        order_beyond=order_beyond(measured, forecast.log_s, source.job_codes[held], NOISE),
        order_all=pair_order(measured, forecast.log_s, np.zeros(len(held))),
        covered=float(np.mean(forecast.covers(measured, INTERVAL_COVERAGE))),
    )


def median_error(left: Floats) -> float:
    """Median of |predicted / measured - 1| from ln(measured / predicted)."""
    return float(np.median(np.abs(np.expm1(-left))))


def pair_order(measured: Floats, expected: Floats, jobs: Ints) -> float:
    """Share of the pairs of one job whose order is foreseen; equal measurements make no pair."""
    counts = [ordered_pairs(measured[jobs == job], expected[jobs == job]) for job in np.unique(jobs)]
    n = sum(each for _, each in counts)
    return sum(right for right, _ in counts) / n if n else float("nan")


def order_beyond(measured: Floats, expected: Floats, jobs: Ints, least: float) -> float:
    """The same for natural logarithms, of pairs that differ by more than `least`; ties count half."""
    first, second = np.triu_indices(len(measured), 1)
    gap, said = measured[first] - measured[second], expected[first] - expected[second]
    counts = (jobs[first] == jobs[second]) & (np.abs(gap) > least)
    right = np.where(said == 0, 0.5, gap * said > 0)
    return float(np.mean(right[counts])) if counts.any() else float("nan")


def asked(source: Source, kept: Ints, held: Ints) -> Figures:
    """Learn from some rows, predict others."""
    model = LearnedModel.of(source.priced.take(kept))
    return figures(source, held, model.forecast(source.priced.take(held)))


def curves(source: Source, n_seeds: int) -> Iterator[list[str]]:
    """Means over the seeds after each number of rows."""
    for n_rows in N_ROWS:
        if len(source.runs) < 1.5 * n_rows:
            continue
        found = []
        for seed in range(n_seeds):
            order = np.random.default_rng(seed).permutation(len(source.runs))
            found.append(asked(source, np.sort(order[:n_rows]), np.sort(order[n_rows:])))
        yield [source.name, str(n_rows), *mean_of(found).cells(), spread_of(found)]


def mean_of(found: Sequence[Figures]) -> Figures:
    """Means of several draws."""
    names = ("preset", "calibrated", "learned", "order", "order_beyond", "order_all", "covered")
    means = {name: float(np.nanmean([getattr(each, name) for each in found])) for name in names}
    return Figures(n=found[0].n, **means)


def spread_of(found: Sequence[Figures]) -> str:
    """Quartiles of the error over the draws."""
    low, high = np.quantile([each.learned for each in found], [0.25, 0.75])
    return f"{percent(float(low))} to {percent(float(high))}"


def held_out(source: Source) -> Iterator[list[str]]:
    """One row a group; the last cell says where the residual did harm."""
    for by in ("model", "size", "devices", "tp"):
        labels = np.array(source.labels(by))
        for name in np.unique(labels):
            is_held = labels == name
            if is_held.sum() < FEWEST_HELD or (~is_held).sum() < FEWEST_KEPT:
                continue
            found = asked(source, thinned(~is_held), np.flatnonzero(is_held))
            harm = found.learned - found.calibrated
            yield [source.name, by, str(name), *found.cells(), "**harm**" if harm > ONE_POINT else "no"]


def thinned(kept: Bools) -> Ints:
    """At most `MOST_ROWS` of the rows, drawn evenly."""
    rows = np.flatnonzero(kept)
    if len(rows) > MOST_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MOST_ROWS, replace=False))
    return rows


def small_to_large(sources: Sequence[Source]) -> Iterator[list[str]]:
    """Learned on a machine's small runs, asked for its large ones."""
    for source in sources:
        devices = np.array([run.job.cluster.n_devices for run in source.runs])
        small, large = thinned(devices <= SMALL), np.flatnonzero(devices >= LARGE)
        if len(small) < FEWEST_HELD or len(large) < FEWEST_HELD:
            continue
        model = LearnedModel.of(source.priced.take(small))
        forecast = model.forecast(source.priced.take(large))
        yield [source.name, str(len(small)), *figures(source, large, forecast).cells()]


def repeated(source: Source) -> list[Ints]:
    """Rows of one plan of one job, for each that was run more than once."""
    places: dict[object, list[int]] = {}
    for i, (job, run) in enumerate(zip(source.job_codes, source.runs, strict=True)):
        places.setdefault((int(job), run.plan), []).append(i)
    return [np.array(each) for each in places.values() if len(each) > 1]


def tried_again(source: Source) -> Iterator[list[str]]:
    """One run of each repeated plan, by chance, is learned from, with all plans run once; means of draws."""
    groups, found = repeated(source), []
    for seed in range(N_DRAWS if groups else 0):
        rng = np.random.default_rng(seed)
        held = np.sort(np.concatenate([rng.permutation(rows)[1:] for rows in groups]))
        kept = np.setdiff1d(np.arange(len(source.runs)), held)
        found.append(asked(source, kept, held))
    if found:
        yield [source.name, str(len(source.runs) - found[0].n), *mean_of(found).cells()]


def floor(source: Source) -> Iterator[list[str]]:
    """Differences of runs of one plan; where none was run twice, `NOISE` stands for them."""
    measured = source.priced.linear.measured
    pairs = [np.abs(np.subtract.outer(measured[rows], measured[rows])) for rows in repeated(source)]
    gaps = np.concatenate([np.zeros(0), *(each[np.triu_indices(len(each), 1)] for each in pairs)])
    usual = float(np.median(gaps)) if len(gaps) else NOISE
    first, second = np.triu_indices(len(measured), 1)
    same = source.job_codes[first] == source.job_codes[second]
    apart = np.abs(measured[first] - measured[second])[same]
    # The median of |N(0, 2 s^2)| is 0.954 s; a pair is in order with chance Phi(its true gap / (s sqrt 2)).
    best = float(np.mean(ndtr(apart / (usual / 0.954 * np.sqrt(2)))))
    high = percent(float(np.quantile(gaps, 0.9))) if len(gaps) else NONE
    yield [source.name, str(len(gaps)), percent(usual), high, percent(best)]


def grouped(runs: Sequence[MeasuredRun], sources: Mapping[str, Source]) -> list[Source]:
    """Each source that has both kinds of runs, then all sources of one accelerator together."""
    accelerators = dict.fromkeys(run.labels["accelerator"] for run in runs)
    machines = [
        Source.of(name, runs, "accelerator") for name in ("A100-80", "H100-80") if name in accelerators
    ]
    return [*sources.values(), *machines]


CURVES = (
    "source",
    "rows",
    "on",
    "preset",
    "calibrated",
    "learned",
    "order",
    "beyond noise",
    "of all",
    "in 80 %",
    "quartiles",
)
HELD = (
    "source",
    "held out",
    "which",
    "rows",
    "preset",
    "calibrated",
    "learned",
    "order",
    "beyond noise",
    "of all",
    "in 80 %",
    "harm",
)
LARGER = ("source", "learned from", "on", *HELD[4:-1])
FLOOR = ("source", "pairs of runs of one plan", "median difference", "90 %", "best order of one job")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=N_SEEDS, help="draws of each number of rows")
    parser.add_argument("--write", type=Path, help="write the tables there")
    given = parser.parse_args()
    runs = trusted_runs(DATA)
    sources = {name: Source.of(name, runs) for name in dict.fromkeys([*MULTI_NODE, *SINGLE_NODE, *SCALED])}
    drawn = [row for name in (*MULTI_NODE, *SINGLE_NODE) for row in curves(sources[name], given.seeds)]
    tables = [
        "## After random rows\n\n" + markdown(CURVES, drawn),
        "## Groups held out\n\n"
        + markdown(HELD, [row for each in sources.values() for row in held_out(each)], 3),
        "## Small tells large\n\n" + markdown(LARGER, small_to_large(grouped(runs, sources))),
        "## Tried again\n\n"
        + markdown(LARGER, [row for each in sources.values() for row in tried_again(each)]),
        "## Floor\n\n" + markdown(FLOOR, [row for each in sources.values() for row in floor(each)]),
    ]
    text = "\n\n".join(tables) + "\n"
    if given.write:
        given.write.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
