"""How many plans a second the cost model prices, with full breakdown, on one core.

    estimate      plans already in memory, in the order of enumeration and shuffled
    rank          enumerate the whole legal space of a job, price what could be kept, keep the best 10,000
    linear        seconds for 1, 2, 4 ... million plans: cost per plan must stay level
    memory        ten million plans priced by chunks: peak resident bytes

Run it with: python benchmarks/bench_plans.py
"""

import os
import platform
import resource
import sys
import time
from itertools import islice
from pathlib import Path

# One core: the threads that a linear-algebra library may start would make the figure say something else.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from rich.console import Console
from rich.table import Table

from objectives.cost.step import estimate_chunk
from objectives.metrics import Job
from objectives.ranking import rank
from search_spaces.cluster_presets import load_cluster
from search_spaces.model_presets import load_model
from search_spaces.plan import Plans
from search_spaces.space import SearchSpace, SpaceSpec
from search_spaces.units import MIB, MILLION, gib
from search_spaces.workload import Workload

JOBS = {
    "GPT-3 175B on 1,024 A100": ("gpt3-175b", "dgx-a100", 1024, 1536, 2048),
    "Megatron 1T on 3,072 A100": ("megatron-1t", "selene", 3072, 3072, 2048),
    "Llama-3 70B on 512 H100": ("llama-3-70b", "dgx-h100", 512, 1024, 8192),
    "DeepSeek-V3 on 2,048 H800": ("deepseek-v3", "h800-pod", 2048, 15360, 4096),
}
TEN_MILLION = 10 * int(MILLION)


def job_named(name: str) -> Job:
    """One of the benchmark's jobs."""
    model, cluster, devices, batch, seq_len = JOBS[name]
    return Job(
        model=load_model(model),
        cluster=load_cluster(cluster, devices),
        workload=Workload(seq_len=seq_len, global_batch=batch),
    )


def chunks(job: Job, most: int | None = None) -> list[Plans]:
    """The legal space, or its first pieces."""
    return list(islice(SearchSpace(job.model, job.cluster, job.workload, SpaceSpec()).chunks(), most))


def seconds_to_price(job: Job, pieces: list[Plans], repeats: int = 3) -> float:
    """Best of some repeats, results dropped piece by piece."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        for piece in pieces:
            estimate_chunk(job, piece)
        best = min(best, time.perf_counter() - start)
    return best


def bench_estimate(console: Console) -> None:
    """Plans per second by job, enumerated and shuffled."""
    table = Table(title="estimate: million plans/s on one core, full breakdown")
    for heading in ("job", "plans", "as enumerated", "shuffled"):
        table.add_column(heading, justify="left" if heading == "job" else "right")
    for name in JOBS:
        job, rng = job_named(name), np.random.default_rng(0)
        pieces = chunks(job, 16)
        everything = Plans.concatenate(pieces)
        mixed = everything.take(rng.permutation(len(everything)))
        shuffled = [mixed.take(slice(i, i + 32768)) for i in range(0, len(mixed), 32768)]
        n = len(everything)
        rates = [n / seconds_to_price(job, part) / MILLION for part in (pieces, shuffled)]
        table.add_row(name, f"{n:,}", *(f"{rate:.2f}" for rate in rates))
    console.print(table)


def bench_rank(console: Console) -> None:
    """Whole spaces: seconds from nothing to the best plans."""
    table = Table(title="rank: the whole legal space, enumerated and priced")
    for heading in ("job", "combinations", "legal plans", "in full", "seconds", "million plans/s"):
        table.add_column(heading, justify="left" if heading == "job" else "right")
    for name in JOBS:
        job = job_named(name)
        start = time.perf_counter()
        ledger = rank(job, SpaceSpec()).ledger
        seconds = time.perf_counter() - start
        legal = ledger.too_large + ledger.feasible
        rate = legal / seconds / MILLION
        counts = (f"{n:,}" for n in (ledger.enumerated, legal, ledger.priced))
        table.add_row(name, *counts, f"{seconds:.2f}", f"{rate:.2f}")
    console.print(table)


def bench_linear(console: Console) -> None:
    """Cost per plan over growing tables, and the memory of ten million."""
    job = job_named("Llama-3 70B on 512 H100")
    pieces = chunks(job)
    table = Table(title="linear: time for growing numbers of plans (pieces reused)")
    for heading in ("plans", "seconds", "ns per plan"):
        table.add_column(heading, justify="right")
    for n in (int(MILLION), 2 * int(MILLION), 4 * int(MILLION), TEN_MILLION):
        start, done, i = time.perf_counter(), 0, 0
        while done < n:
            estimate_chunk(job, pieces[i % len(pieces)])
            done += len(pieces[i % len(pieces)])
            i += 1
        seconds = time.perf_counter() - start
        table.add_row(f"{done:,}", f"{seconds:.2f}", f"{seconds / done * 1000 * MILLION:.0f}")
    console.print(table)


def peak_bytes() -> float:
    """Peak resident bytes of this process."""
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib * MIB / 1024


def main() -> None:
    """Print all tables; memory first, while nothing else has raised the peak."""
    console = Console(width=110)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    console.print(f"{machine}, Python {platform.python_version()}, NumPy {np.__version__}")
    ledger = rank(job_named("DeepSeek-V3 on 2,048 H800"), SpaceSpec()).ledger
    n = ledger.too_large + ledger.feasible
    console.print(
        f"memory: {n:,} plans enumerated and priced with a peak of {gib(peak_bytes()):.2f} GiB resident\n"
    )
    bench_rank(console)
    bench_estimate(console)
    bench_linear(console)


if __name__ == "__main__":
    main()
