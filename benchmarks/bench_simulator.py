"""How fast the engine is on one core, and what its compilation costs.

    plain      schedules written out, wired and clocked: operations a second, wiring included
    1T         64 stages, 1,600 micro-batches (the Frontier study's 1T model on 3,072 devices)
    linear     the same schedule with ever more micro-batches: cost per operation must stay level
    sharing    a plan's step in pieces: collectives, messages and buckets that share links and slow passes
    compile    seconds of the first call, with an empty cache and with a full one, in processes of their own

Run it with: python benchmarks/bench_simulator.py
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# One core: the threads that a linear-algebra library may start would make the figure say something else.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich.console import Console
from rich.table import Table

from objectives.metrics import Job
from objectives.simulator.program import Program
from objectives.simulator.schedules import program
from objectives.simulator.step import PLAIN, StepOptions, StepSimulator, simulate_step
from objectives.simulator.timeline import PassTimes, clock, pass_s, simulate, wire
from search_spaces.cluster_presets import load_cluster
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Schedule
from search_spaces.units import MILLION
from search_spaces.workload import Workload

ROOT = Path(__file__).parents[1]
P, M = 64, 1600
DETAILS = {
    "passes": PLAIN,
    "pieces, 1 group": StepOptions(n_groups=1),
    "pieces, 4 groups": StepOptions(),
}
FIRST_CALL = """
import sys, time
import numpy as np
sys.path.insert(0, {root!r})
from objectives.simulator.schedules import program
from objectives.simulator.timeline import PassTimes, clock, pass_s, wire
plan, ones = program("1f1b", 2, 4), np.ones((2, 1))
times = PassTimes(forward_s=ones, backward_input_s=ones, backward_weight_s=ones, send_s=np.zeros(2))
wiring, seconds = wire(plan), pass_s(plan, times)
for by_events in (False, True):
    start = time.perf_counter()
    clock(wiring, seconds, times.send_s, by_events=by_events)
    print(time.perf_counter() - start)
"""


def best_s(work: Callable[[], object], repeats: int = 5) -> float:
    """Least seconds of some repeats, after one to warm up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def times_of(plan: Program) -> PassTimes:
    """Uneven passes and short messages."""
    seconds = np.random.default_rng(0).uniform(0.9, 1.1, (3, plan.n_ranks, plan.n_chunks))
    return PassTimes(
        forward_s=seconds[0], backward_input_s=seconds[1], backward_weight_s=seconds[2],
        send_s=np.full(plan.n_ranks, 0.01),
    )  # fmt: skip


def table(title: str, *headings: str) -> Table:
    """A table whose first column is words."""
    found = Table(title=title)
    for at, heading in enumerate(headings):
        found.add_column(heading, justify="right" if at else "left")
    return found


def bench_plain(console: Console) -> None:
    """Every named schedule of the large pipeline, from its columns to its timeline."""
    title = f"plain schedules: {P} stages, {M:,} micro-batches"
    found = table(
        title, "schedule", "operations", "write s", "wire and clock s", "million ops/s", "by events"
    )
    for schedule in Schedule:
        v = 2 if schedule is Schedule.INTERLEAVED else 1
        start = time.perf_counter()
        plan = program(schedule, P, M, v)
        written_s, times = time.perf_counter() - start, times_of(plan)
        seconds = best_s(lambda plan=plan, times=times: simulate(plan, times))
        events_s = best_s(
            lambda plan=plan, times=times: clock(
                wire(plan), pass_s(plan, times), times.send_s, by_events=True
            ),
            2,
        )
        rates = [f"{len(plan) / each / MILLION:.1f}" for each in (seconds, events_s)]
        found.add_row(schedule, f"{len(plan):,}", f"{written_s:.3f}", f"{seconds:.3f}", *rates)
    console.print(found)


def bench_linear(console: Console) -> None:
    """Nanoseconds an operation as the schedule grows."""
    found = table("linear: ZB-H1 on 64 stages", "micro-batches", "operations", "seconds", "ns per operation")
    for m in (400, 1600, 6400, 25600):
        plan = program(Schedule.ZB_H1, P, m)
        times = times_of(plan)
        seconds = best_s(lambda plan=plan, times=times: simulate(plan, times), 3)
        found.add_row(
            f"{m:,}", f"{len(plan):,}", f"{seconds:.3f}", f"{seconds / len(plan) * 1000 * MILLION:.0f}"
        )
    console.print(found)


def frontier_1t() -> tuple[Job, Plan]:
    """The study's 1T model on 3,072 devices."""
    job = Job(
        model=load_model("frontier-1t"),
        cluster=load_cluster("frontier", 3072),
        workload=Workload(seq_len=2048, global_batch=9600, framework="deepspeed"),
    )
    return job, Plan.parse("tp=8 pp=64 dp=6 micro_batch=1 zero=1 recompute=full")


def bench_steps(console: Console) -> None:
    """Whole steps: passes, and pieces that share links and slow each other."""
    job, plan = frontier_1t()
    title = "the 1T model on 3,072 devices: one step"
    found = table(title, "detail", "tasks", "seconds", "of which engine and wiring", "million tasks/s")
    for name, options in DETAILS.items():
        whole_s = best_s(lambda options=options: simulate_step(job, plan, options), 2)
        simulator = StepSimulator(job, plan, options)
        engine_s = best_s(lambda simulator=simulator: simulator.seconds(0), 2)
        n = len(simulator.step(0).activities)
        found.add_row(name, f"{n:,}", f"{whole_s:.2f}", f"{engine_s:.2f}", f"{n / engine_s / MILLION:.1f}")
    console.print(found)


def bench_compile(console: Console) -> None:
    """First calls in fresh processes; the second process finds the first one's compiled code."""
    found = table("first call, Numba's import included", "cache", "sweep s", "event loop s")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("empty", "full"):
            command = [sys.executable, "-c", FIRST_CALL.format(root=str(ROOT))]
            environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
            answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            found.add_row(name, *(f"{float(line):.2f}" for line in answer.stdout.split()))
    console.print(found)


def main() -> None:
    """Print all tables."""
    console = Console(width=120)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    console.print(f"{machine}, Python {platform.python_version()}, NumPy {np.__version__}")
    bench_compile(console)
    bench_plain(console)
    bench_linear(console)
    bench_steps(console)


if __name__ == "__main__":
    main()
