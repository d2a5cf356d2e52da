"""The fitted constants again, from the published rows: what they would be, how sure, and without whom.

    constants    present and refitted value of every constant of origin `fitted`, and its spread
    left out     each source's error when none of its rows were fitted to
    intervals    the spreads of the formulas (objectives/uncertainty.py) that make 80 % intervals hold 80 %

Nothing is written but benchmarks/left_out.json, which docs/accuracy.md shows.  A constant that only one
source shows falls back to its prior when that source is left out.  A prior is what one would assume without
any row: an unknown trainer's habit, or the figures of PRIORS.

    python benchmarks/fit_constants.py [--rows 60] [--steps 6] [--skip left-out,intervals]
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from benchmarks.fitting import Fit, Prior, fit, prior
from benchmarks.rows import Key, Rows, thinned, trusted_runs
from objectives.cost.result import StepTime
from objectives.uncertainty import FORMULA_SPREAD, PART_SPREADS, constants_variance
from objectives.validation import INTERVAL_COVERAGE, INTERVAL_Z
from search_spaces.cluster import Constant, Origin
from search_spaces.habits import ASSUMED_HABITS
from search_spaces.plan import Floats

LEFT_OUT = Path(__file__).parent / "left_out.json"
# What one would assume of a device, a network and of nature without a run: value and relative width.
PRIORS: Mapping[str, tuple[float, float]] = {
    "device.gemm_efficiency": (0.85, 0.1),
    "device.sustained_efficiency": (0.9, 0.1),
    "device.attention_efficiency": (0.6, 0.25),
    "device.memory_efficiency": (0.8, 0.15),
    "device.kernel_launch_s": (10e-6, 0.7),
    "latency_s": (5e-6, 1.0),
    "efficiency": (0.8, 0.15),
    "step_fixed_s": (0.02, 1.0),
    "straggler_per_log2": (0.01, 1.0),
    "nature.tile_start_depth": (128.0, 0.7),
    "nature.wave_exponent": (0.7, 0.4),
    "nature.fp8_share": (0.8, 0.15),
    "nature.score_traffic_bytes": (12.0, 0.5),
}
LEAST_WIDTH = 0.3
UNSEEN = 1e-4  # what a spread costs that no row asks for: it goes to nothing
# Parts whose share of a step may widen its interval; what is left is arithmetic.
PARTS = tuple(field.name for field in fields(StepTime) if field.name not in ("compute_s", "recompute_s"))


def prior_of(key: Key, constant: Constant) -> tuple[Prior, bool]:
    """What is believed of a constant without its rows, and whether anybody said so.

    A constant that the tables above do not know is believed as it is, which leaks what was fitted.
    """
    field = key.place.rpartition(".")[2]
    if key.place.startswith("trainer.") and (habit := getattr(ASSUMED_HABITS, field, None)):
        belief = prior(key.place, habit.value, max(habit.spread, LEAST_WIDTH), constant.value)
        return belief, habit.origin is not Origin.FITTED
    known = PRIORS.get(key.place) or PRIORS.get(field)
    if known:
        return prior(key.place, *known), True
    return prior(key.place, constant.value or 0.1, max(constant.spread, LEAST_WIDTH)), False


def priors_of(rows: Rows) -> dict[Key, Prior]:
    """A prior for every fitted constant of the rows."""
    return {key: prior_of(key, constant)[0] for key, constant in sorted(rows.keys(Origin.FITTED).items())}


def constants_table(rows: Rows, found: Fit) -> Table:
    """Present and refitted values; a star marks a prior that nobody stated."""
    table = Table(title=f"fitted constants, refitted on {len(rows)} rows of {len(set(rows.source))} sources")
    for heading in ("owner", "constant", "prior", "present", "refitted", "spread", "rows"):
        table.add_column(heading, justify="left" if heading in ("owner", "constant") else "right")
    for key, constant in sorted(rows.keys(Origin.FITTED).items()):
        belief, stated = prior_of(key, constant)
        table.add_row(
            key.owner,
            key.place,
            f"{belief.centre:.3g}{'' if stated else '*'}",
            f"{constant.value:.3g}",
            f"{found.values[key]:.3g}",
            f"{found.spread[key] * belief.width:.2g}{'' if belief.most else ' rel.'}",
            str(len(rows.owned_by(key))),
        )
    return table


def medians(rows: Rows, values: Mapping[Key, float]) -> dict[str, tuple[int, float, float, float]]:
    """Of each source: rows, median and 90th percentile of the error, its median with sign."""
    errors = np.expm1(rows.log_errors(values))
    figures: dict[str, tuple[int, float, float, float]] = {}
    for name in sorted(set(rows.source)):
        own = errors[rows.source == name]
        size = np.abs(own)
        middle, high, bias = np.median(size), np.quantile(size, 0.9), np.median(own)
        figures[name] = (len(own), float(middle), float(high), float(bias))
    return figures


def left_out(
    everything: Rows, thin: Rows, priors: Mapping[Key, Prior], found: Fit, n_steps: int
) -> tuple[list[dict[str, object]], Floats]:
    """Each source's figures when its rows were not fitted to, and every row's logarithmic error so."""
    present, refitted = medians(everything, {}), medians(everything, found.values)
    figures, errors = [], np.zeros(len(everything))
    for name in present:
        others = Rows(run for run in thin.runs if run.labels["source"] != name)
        without = fit(others, priors, start=found.values, most_steps=n_steps, with_spread=False)
        fallen = {key: priors[key].value(0.0) for key in priors if key not in without.values}
        held = Rows(run for run in everything.runs if run.labels["source"] == name)
        values = without.values | fallen
        errors[everything.source == name] = held.log_errors(values)
        n, median, p90, bias = medians(held, values)[name]
        figures.append({
            "source": name, "rows": n, "present": round(present[name][1], 4),
            "refitted": round(refitted[name][1], 4), "left_out": round(median, 4),
            "left_out_p90": round(p90, 4), "left_out_bias": round(bias, 4),
            "constants_at_their_prior": len([key for key in fallen if len(held.owned_by(key))]),
        })  # fmt: skip
    return figures, errors


def left_out_table(figures: Sequence[Mapping[str, object]]) -> Table:
    """The figures of `left_out`."""
    table = Table(
        title="median error by source: constants as they are, refitted, and fitted without the source"
    )
    names = ("source", "rows", "present", "refitted", "left_out", "left_out_p90", "left_out_bias")
    for heading in (*names, "constants_at_their_prior"):
        table.add_column(heading.replace("_", " "), justify="left" if heading == "source" else "right")
    for row in figures:
        shares = [f"{float(str(row[name])) * 100:.1f} %" for name in names[2:]]
        fallen = str(row["constants_at_their_prior"])
        table.add_row(str(row["source"]), str(row["rows"]), *shares, fallen)
    return table


class Intervals:
    """What decides whether a row lies in its interval: its error, its constants' part, its shares of time."""

    def __init__(self, rows: Rows, errors: Floats) -> None:
        self.rows, self.errors = rows, errors
        self.constants = np.zeros(len(rows))
        self.shares = np.zeros((len(rows), 1 + len(PARTS)))
        self.shares[:, 0] = 1.0
        for group, (index, priced) in zip(rows.groups, rows.estimates(), strict=True):
            self.constants[index] = constants_variance(group.job, group.plans, priced.step_s)
            for k, part in enumerate(PARTS, start=1):
                self.shares[index, k] = getattr(priced.time, part) / priced.step_s

    def half_widths(self, spreads: Floats) -> Floats:
        """Half the interval, z sigma, of every row under those spreads of the formulas."""
        widths: Floats = INTERVAL_Z * np.sqrt(self.constants + (self.shares**2) @ spreads**2)
        return widths

    def score(self, spreads: Floats) -> float:
        """The interval score, least where the intervals hold as often as they say.

        Source
        ------
        Gneiting and Raftery (2007), doi:10.1198/016214506000001437, equation 43.
        """
        half = self.half_widths(spreads)
        beyond = np.maximum(np.abs(self.errors) - half, 0)
        weights = self.rows.source_weights()
        score = np.sum(weights * (2 * half + 2 / (1 - INTERVAL_COVERAGE) * beyond)) / np.sum(weights)
        return float(score + UNSEEN * np.sum(spreads))

    def fitted(self) -> Floats:
        """Spreads, the arithmetic's first, that make the score least."""
        start = np.full(1 + len(PARTS), 0.1)
        bounds = [(0.01, 0.5), *[(0.0, 3.0)] * len(PARTS)]
        found = minimize(self.score, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300})
        polished = minimize(self.score, found.x, method="Powell", bounds=bounds, options={"maxiter": 20})
        spreads: Floats = polished.x
        return np.where(spreads < 0.02, 0.0, spreads)

    def coverage(self, spreads: Floats) -> dict[str, float]:
        """Share of rows in their intervals, of all and by source."""
        held = np.abs(self.errors) <= self.half_widths(spreads)
        named = {
            name: float(np.mean(held[self.rows.source == name])) for name in sorted(set(self.rows.source))
        }
        return {"all": float(np.mean(held))} | named


def intervals_table(intervals: Intervals, spreads: Floats) -> Table:
    """Coverage with the present spreads of the formulas and with the refitted ones."""
    present = np.array([FORMULA_SPREAD, *(PART_SPREADS.get(part, 0.0) for part in PARTS)])
    table = Table(title="runs in their 80 % interval", caption=spread_words(spreads))
    for heading in ("source", "present", "refitted"):
        table.add_column(heading, justify="left" if heading == "source" else "right")
    after = intervals.coverage(spreads)
    for name, before in intervals.coverage(present).items():
        table.add_row(name, f"{before * 100:.0f} %", f"{after[name] * 100:.0f} %")
    return table


def spread_words(spreads: Floats) -> str:
    """The spreads as objectives/uncertainty.py has them."""
    parts = {part: round(float(x), 2) for part, x in zip(PARTS, spreads[1:], strict=True) if x}
    return f"FORMULA_SPREAD = {spreads[0]:.2f}, PART_SPREADS = {parts}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=60, help="rows of a source that a fit sees at most")
    parser.add_argument("--steps", type=int, default=6, help="evaluations of the first fit")
    parser.add_argument("--skip", default="", help="left-out, intervals")
    asked, console = parser.parse_args(), Console(width=120)
    everything = Rows(trusted_runs())
    thin = Rows(thinned(everything.runs, asked.rows))
    priors = priors_of(thin)
    start = {key: constant.value for key, constant in thin.keys(Origin.FITTED).items()}
    found = fit(thin, priors, start=start, most_steps=asked.steps)
    console.print(constants_table(thin, found))
    if "left-out" not in asked.skip:
        figures, _ = left_out(everything, thin, priors, found, max(asked.steps // 2, 2))
        LEFT_OUT.write_text(json.dumps(figures, indent=1) + "\n")
        console.print(left_out_table(figures))
    if "intervals" not in asked.skip:
        intervals = Intervals(everything, everything.log_errors({}))
        console.print(intervals_table(intervals, intervals.fitted()))


if __name__ == "__main__":
    main()
