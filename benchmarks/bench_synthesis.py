"""How much better than the named schedules an order made for its costs is, and how long it takes to find.

    random     uneven pipelines: the share that beats the best named schedule which fits the same memory, and
               quartiles of the gain (1 - step / that of the best named one)
    by memory  the same by how much memory there is, in micro-batches a rank, as a multiple of the ranks
    size       seconds for growing pipelines, and how far from what no order can go below

Seconds of F, B_i and W are uniform between 0.5 and 1.5 in every stage, messages between 0 and 0.2,
activations between 0.8 and 1.2 a chunk: unevenness that is assumed, not measured.

Run it with: python benchmarks/bench_synthesis.py
"""

import os
import platform
import sys
import time
from collections.abc import Iterable
from pathlib import Path

# One core: the threads that a linear-algebra library may start would make the figure say something else.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich.console import Console
from rich.table import Table

from objectives.simulator.schedules import Release
from objectives.simulator.synthesis import Placement, StageCosts, Synthesis, synthesize
from objectives.simulator.timeline import PassTimes
from search_spaces.plan import OptimizerSync

N_CASES = 200
BETTER = 1e-6  # a gain above rounding
MEMORY = (0.5, 0.75, 1.0, 1.5, 2.0)
SIZES = ((4, 16), (8, 32), (16, 64), (16, 256), (32, 512), (64, 1600))


def uneven(rng: np.random.Generator, p: int, v: int) -> StageCosts:
    """Costs of a random pipeline."""
    forward_s, input_s, weight_s = rng.uniform(0.5, 1.5, (3, p, v))
    times = PassTimes(
        forward_s=forward_s, backward_input_s=input_s, backward_weight_s=weight_s,
        send_s=rng.uniform(0, 0.2, p),
    )  # fmt: skip
    return StageCosts(times=times, activation_bytes=rng.uniform(0.8, 1.2, (p, v)), release=Release.AT_WEIGHT)


def solved(seed: int, placement: Placement, sync: OptimizerSync, memory: float | None = None) -> Synthesis:
    """One random case; memory in multiples of one micro-batch for each rank, drawn unless told."""
    rng = np.random.default_rng(seed)
    v = 2 if placement is Placement.V_SHAPE else 1
    p = int(rng.integers(2, 9))
    m = int(rng.integers(p, 4 * p + 1))
    costs = uneven(rng, p, v)
    drawn = rng.uniform(0.5, 2)
    limit = np.maximum(
        costs.activation_bytes.sum(axis=1), (drawn if memory is None else memory) * 1.2 * p * v
    )
    return synthesize(costs, m, memory_limit_bytes=limit, sync=sync, placement=placement)


def gain_row(results: Iterable[Synthesis]) -> list[str]:
    """Cases with a named schedule that fits, the share that is better, or best for sure, and quartiles."""
    results = [each for each in results if each.gain is not None]
    gains = np.array([each.gain for each in results])
    at_floor = np.array([each.figure_s <= each.floor_s * (1 + BETTER) for each in results])
    quartiles = [f"{100 * max(0.0, each):.1f} %" for each in np.quantile(gains, [0.25, 0.5, 0.75, 1.0])]
    is_better = gains > BETTER
    return [f"{len(gains)}", f"{np.mean(is_better):.0%}", f"{np.mean(is_better | at_floor):.0%}", *quartiles]


def gain_table(title: str) -> Table:
    """Headings; at the floor nothing could be better."""
    table = Table(title=title)
    for heading in (
        "case",
        "cases",
        "better",
        "better or at the floor",
        "1st quartile",
        "median",
        "3rd",
        "most",
    ):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    return table


def bench_random(console: Console) -> None:
    table = gain_table(f"random: {N_CASES} uneven pipelines of 2 to 8 ranks, m from p to 4 p")
    start = time.perf_counter()
    for placement in Placement:
        for sync in OptimizerSync:
            results = [solved(seed, placement, sync) for seed in range(N_CASES)]
            table.add_row(f"{placement}, {sync}", *gain_row(results))
    seconds = (time.perf_counter() - start) / (4 * N_CASES)
    console.print(table)
    console.print(f"{seconds:.2f} s a case\n")


def bench_memory(console: Console) -> None:
    table = gain_table("by memory: multiples of 1.2 p micro-batches, round-robin and barrier, 50 cases each")
    for memory in MEMORY:
        results = [solved(seed, Placement.ROUND_ROBIN, OptimizerSync.BARRIER, memory) for seed in range(50)]
        table.add_row(f"{memory:g}", *gain_row(results))
    console.print(table)


def bench_size(console: Console) -> None:
    table = Table(title="size: one chunk a rank, memory for 1.2 p micro-batches, barrier")
    for heading in ("ranks", "micro-batches", "seconds", "gain", "best named", "above the floor"):
        table.add_column(heading, justify="right")
    for p, m in SIZES:
        costs = uneven(np.random.default_rng(p), p, 1)
        start = time.perf_counter()
        result = synthesize(costs, m, memory_limit_bytes=1.2 * p)
        seconds = time.perf_counter() - start
        gain = "" if result.gain is None else f"{100 * result.gain:.2f} %"
        above = f"{100 * max(0.0, result.figure_s / result.floor_s - 1):.2f} %"
        table.add_row(f"{p}", f"{m:,}", f"{seconds:.1f}", gain, str(result.best_named), above)
    console.print(table)


def main() -> None:
    """Print all tables; the first case, with what is compiled once, is told apart."""
    console = Console(width=110)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    console.print(f"{machine}, Python {platform.python_version()}, NumPy {np.__version__}")
    start = time.perf_counter()
    solved(0, Placement.ROUND_ROBIN, OptimizerSync.BARRIER)
    console.print(f"first case, compiled or loaded from the cache: {time.perf_counter() - start:.1f} s\n")
    bench_random(console)
    bench_memory(console)
    bench_size(console)


if __name__ == "__main__":
    main()
