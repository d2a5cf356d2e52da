"""What each effect of the cost model contributes: switch it off, and see how predictions move from the runs.

    constants   the value at which an effect is gone: no launch cost, no latency, links at their full rate
    parts       a part of the step left out, though nothing else moves
    formulas    a formula replaced by the simplest one: flat collectives, equal stages, one product of experts
    memory      a trainer's habit of holding more than the arithmetic's least taken away

An effect is worth its place where the error rises without it.  `rescaled` is the error after one factor for
each accelerator and trainer took up what one number can: what is left is the shape that only the effect
explains.  Every source counts the same, so that the largest table does not decide.  Memory is judged by the
median error of printed peaks, and by how well failed runs are told from those that ran.

    python benchmarks/ablation.py
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.rows import Key, Rows, trusted_runs
from objectives.cost import activations, collectives, kernels, layers, memory, pipeline, states
from objectives.cost.result import StepTime
from objectives.measurements import MeasuredRun
from objectives.measurements.tables import MemoryStage
from objectives.validation import Accuracy, accuracy, jobs_of, ordered_pairs, predict, regret
from search_spaces.framework import FrameworkProfile
from search_spaces.memory_habits import FRUGAL, MemoryHabits
from search_spaces.plan import Floats, Plan
from search_spaces.units import HOUR_S

# The value at which an effect is gone, by the place or by the last word of the constant's name.
GONE: Mapping[str, tuple[str, float]] = {
    "nature.wave_exponent": ("waves of tiles", 0.0),
    "nature.tile_start_depth": ("a tile's start and end", 0.0),
    "nature.fp8_share": ("casts of fp8", 1.0),
    "nature.score_traffic_bytes": ("scores of unfused attention", 0.0),
    "device.kernel_launch_s": ("host launch cost", 0.0),
    "device.gemm_efficiency": ("products below their peak", 1.0),
    "device.sustained_efficiency": ("products slower inside a step", 1.0),
    "device.attention_efficiency": ("attention below its peak", 1.0),
    "device.memory_efficiency": ("memory below its bandwidth", 1.0),
    "trainer.traffic": ("more bytes than fused kernels move", 1.0),
    "trainer.attention": ("a trainer's own attention kernel", 1.0),
    "latency_s": ("latency of a hop", 0.0),
    "efficiency": ("links below their rate", 1.0),
    "step_fixed_s": ("fixed seconds of a step", 0.0),
    "straggler_per_log2": ("stragglers", 0.0),
}
# Constants not named above go by the end of their name: a share of a rate is whole, anything else is none.
WHOLE = ("efficiency", "share", "attention", "rate")
UNTIMED = ("memory_reserve_bytes", "device_hour_price")
NOTHING = 0.0005  # a change of error below this is none
Predict = Callable[[], Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Errors and choices of one set of predictions, every source counting the same; sources by name."""

    error: float
    rescaled: float
    order: float
    regret: float
    by_source: Mapping[str, float]


class Judge:
    """The runs, and which of them can be compared."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.sources = sorted({str(name) for name in rows.source})
        self.kinds = np.array(
            [f"{run.labels['accelerator']} {run.labels['framework']}" for run in rows.runs], dtype=np.str_
        )
        self.comparable = list(self._comparable())

    def _comparable(self) -> Iterator[tuple[str, list[list[int]]]]:
        for places in jobs_of(self.rows.runs):
            again: dict[Plan, list[int]] = {}
            for i in places:
                again.setdefault(self.rows.runs[i].plan, []).append(i)
            if len(again) > 1:
                yield str(self.rows.source[places[0]]), list(again.values())

    def figures(self, step_s: Floats) -> Figures:
        """The figures of these predicted seconds."""
        errors = np.log(step_s / self.rows.measured_s)
        rescaled = errors.copy()
        for kind in np.unique(self.kinds):
            rescaled[self.kinds == kind] -= np.median(errors[self.kinds == kind])
        by_source = self._by_source(errors)
        order, choice = self._choices(step_s)
        return Figures(
            error=float(np.mean(list(by_source.values()))),
            rescaled=float(np.mean(list(self._by_source(rescaled).values()))),
            order=order,
            regret=choice,
            by_source=by_source,
        )

    def _by_source(self, errors: Floats) -> dict[str, float]:
        return {name: float(np.mean(np.abs(errors[self.rows.source == name]))) for name in self.sources}

    def _choices(self, step_s: Floats) -> tuple[float, float]:
        """Pair order and regret, the mean over sources of the mean over their jobs."""
        orders: dict[str, list[float]] = {}
        regrets: dict[str, list[float]] = {}
        for source, alike in self.comparable:
            measured = np.array([np.median(self.rows.measured_s[again]) for again in alike])
            predicted = np.array([step_s[again[0]] for again in alike])
            right, n_pairs = ordered_pairs(measured, predicted)
            orders.setdefault(source, []).append(right / max(n_pairs, 1))
            regrets.setdefault(source, []).append(regret(measured, predicted))
        return _mean_of_means(orders), _mean_of_means(regrets)


def _mean_of_means(by_source: Mapping[str, Sequence[float]]) -> float:
    return float(np.mean([np.mean(values) for values in by_source.values()])) if by_source else 0.0


def constant_effects(rows: Rows) -> Iterator[tuple[str, Predict]]:
    """One effect for every constant of the rows that has seconds to give."""
    places: dict[str, list[Key]] = {}
    for key in sorted(rows.keys()):
        name = key.place if key.place in GONE else key.place.rpartition(".")[2]
        if name in GONE or key.place.partition(".")[0] in ("device", "trainer", "nature"):
            places.setdefault(name if name in GONE else key.place, []).append(key)
    for place, keys in places.items():
        if place.rpartition(".")[2] in UNTIMED:
            continue
        words, value = GONE.get(place, (place, 1.0 if place.endswith(WHOLE) else 0.0))
        yield f"{words} = {value:g}" if place == words else words, _with(rows, keys, value)
        if place.endswith("overlap"):
            yield f"{place} = 1", _with(rows, keys, 1.0)


def _with(rows: Rows, keys: Sequence[Key], value: float) -> Predict:
    return lambda: rows.step_s(dict.fromkeys(keys, value))


def part_effects(rows: Rows) -> Iterator[tuple[str, Predict]]:
    """Each part of the step left out."""

    def without(part: str) -> Floats:
        step_s = np.zeros(len(rows))
        for index, priced in rows.estimates():
            step_s[index] = priced.step_s - getattr(priced.time, part)
        return step_s

    for field in fields(StepTime)[1:]:
        yield f"part {field.name}", lambda part=field.name: without(part)  # type: ignore[misc]


@contextmanager
def replaced(module: Any, name: str, formula: Callable[..., Any]) -> Iterator[None]:
    """A module's formula replaced for a while; `formula` takes the old one first."""
    old = getattr(module, name)
    setattr(module, name, lambda *given, **named: formula(old, *given, **named))
    try:
        yield
    finally:
        setattr(module, name, old)


def _outermost_tier_alone(old: Any, cluster: Any, members: Floats) -> Iterator[Any]:
    """Every ring as if each device were alone in its node: the flat model of a collective."""
    spans = list(old(cluster, members))
    done = np.zeros(members[0].shape, dtype=bool)
    for tier, inner, outer in reversed(spans):
        is_outermost = (outer > inner) & ~done
        yield tier, np.ones_like(outer), np.where(is_outermost, outer, 1.0)
        done |= is_outermost


def _equal_stages(old: Any, plans: Any, n_microbatches: Any, passes: Any) -> Floats:
    everywhere = replace(passes, all_stages_s=plans.pp * passes.worst_s)
    bubble: Floats = old(plans, n_microbatches, everywhere)
    return bubble


def _one_product(_: Any, job: Any, rows: Floats, columns: Floats, depth: Any, groups: Floats) -> Floats:
    return kernels.gemm_s(job, rows * groups, columns, depth)


FORMULAS: Mapping[str, tuple[Any, str, Callable[..., Any]]] = {
    "hierarchy of collectives (flat instead)": (collectives, "_spans", _outermost_tier_alone),
    "trees beside rings": (collectives, "tree_line", lambda old, *given: _never(old(*given))),
    "unequal stages": (pipeline, "bubble_s", _equal_stages),
    "grouped products of experts (one instead)": (layers, "grouped_gemm_s", _one_product),
}


def _never(line: Any) -> Any:
    return replace(line, latency_s=line.latency_s + HOUR_S)


def formula_effects(rows: Rows) -> Iterator[tuple[str, Predict]]:
    """Each formula replaced by the simplest one."""

    def with_formula(module: Any, name: str, formula: Callable[..., Any]) -> Floats:
        with replaced(module, name, formula):
            return rows.step_s({})

    for words, (module, name, formula) in FORMULAS.items():
        yield words, lambda m=module, n=name, f=formula: with_formula(m, n, f)  # type: ignore[misc]


def even_experts(rows: Rows) -> Floats:
    """Experts that get the same number of tokens each."""
    even = [
        replace(run, job=replace(run.job, workload=replace(run.job.workload, expert_imbalance=1.0)))
        if run.job.model.moe
        else run
        for run in rows.runs
    ]
    return Rows(even).step_s({})


def table_of(rows: Rows) -> Table:
    """Every effect with the change of the figures without it, the largest first."""
    judge, whole_s = Judge(rows), rows.step_s({})
    whole = judge.figures(whole_s)
    title = f"mean error {whole.error:.3f}, rescaled {whole.rescaled:.3f}, order {whole.order:.3f}, "
    table = Table(title=f"{title}regret {whole.regret:.3f} (logarithms; every source counts the same)")
    for heading in ("without", "rows", "error", "rescaled", "order", "regret", "most, least"):
        table.add_column(heading, justify="left" if heading in ("without", "most, least") else "right")
    effects = [
        *constant_effects(rows), *part_effects(rows), *formula_effects(rows),
        ("imbalance of experts", lambda: even_experts(rows)),
    ]  # fmt: skip
    lines = [line for words, predict in effects if (line := _line(words, predict, judge, whole, whole_s))]
    for _, cells in sorted(lines, key=lambda pair: -pair[0]):
        table.add_row(*cells)
    return table


def _line(
    words: str, predict: Predict, judge: Judge, whole: Figures, whole_s: Floats
) -> tuple[float, tuple[str, ...]] | None:
    """One effect's changes; None where it moves no row."""
    step_s = predict()
    moved = np.abs(step_s / whole_s - 1) > 1e-6
    if not np.any(moved):
        return None
    off = judge.figures(step_s)
    changes = {name: off.by_source[name] - whole.by_source[name] for name in judge.sources}
    ordered = sorted(changes, key=lambda name: -changes[name])
    extremes = ", ".join(f"{name} {changes[name]:+.3f}" for name in (ordered[0], ordered[-1]))
    error, rescaled = off.error - whole.error, off.rescaled - whole.rescaled
    is_nothing = max(abs(error), abs(rescaled)) < NOTHING
    line = (
        words, str(int(np.sum(moved))), f"{error:+.3f}", f"{rescaled:+.3f}",
        f"{off.order - whole.order:+.3f}", f"{off.regret - whole.regret:+.3f}",
        "nothing" if is_nothing else extremes,
    )  # fmt: skip
    return error, line


def memory_accuracies(runs: Sequence[MeasuredRun], without: str = "") -> dict[str, Accuracy]:
    """Figures by source that states memory, one of `MemoryHabits`' fields as if no trainer had it."""

    def frugal(old: Callable[[str], FrameworkProfile], name: str) -> FrameworkProfile:
        profile = old(name)
        return replace(profile, memory=replace(profile.memory, **{without: getattr(FRUGAL, without)}))

    with ExitStack() as stack:
        for module in (activations, states, memory) if without else ():
            stack.enter_context(replaced(module, "framework_named", frugal))
        predictions = predict(runs)
    names = sorted({run.labels["source"] for run in runs if run.peak_memory_bytes})
    by_source = {
        name: accuracy("source", name, [each for each in predictions if each.run.labels["source"] == name])
        for name in names
    }
    return {name: found for name, found in by_source.items() if found.n_memory}


def memory_table(runs: Sequence[MeasuredRun]) -> Table:
    """Every habit with the change of each source's median error of memory, and of its failures' area."""
    stating = {run.labels["source"] for run in runs if run.peak_memory_bytes}
    runs = [run for run in runs if run.labels["source"] in stating]
    whole = memory_accuracies(runs)
    table = Table(title="median error of memory; change of it, and of the area of failures, without a habit")
    for heading in ("without", *whole):
        table.add_column(heading, justify="left" if heading == "without" else "right")
    table.add_row("nothing", *(_memory_cell(found, None) for found in whole.values()))
    of_fullest = [replace(run, memory_stage=MemoryStage.FULLEST) for run in runs]
    effects = [("the printing device's own stage", memory_accuracies(of_fullest))]
    effects += [(field.name, memory_accuracies(runs, field.name)) for field in fields(MemoryHabits)]
    for words, off in effects:
        table.add_row(words, *(_memory_cell(off[name], found) for name, found in whole.items()))
    return table


def _memory_cell(found: Accuracy, whole: Accuracy | None) -> str:
    """An error and an area, or what they have changed by."""
    figures = [(found.memory_median_ape, whole and whole.memory_median_ape)]
    figures += [(found.failed_auc, whole and whole.failed_auc)]
    return ", ".join(
        f"{now:.3f}" if before is None else f"{now - before:+.4f}"
        for now, before in figures
        if now is not None
    )


def main() -> None:
    runs, console = trusted_runs(), Console(width=140)
    console.print(table_of(Rows(runs)))
    console.print(memory_table(runs))


if __name__ == "__main__":
    main()
