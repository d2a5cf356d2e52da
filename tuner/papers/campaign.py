"""Asynchronous campaigns: a node queue, trials side by side, one campaign from another's table.

The campaigns' own results (which graph networks they found) are of another kind of model; what is compared
here is the pattern: the driver's queue, and that a table saves trials.
"""

from dataclasses import dataclass

import numpy as np

from objectives.metrics import Job
from objectives.outcome import Measured
from objectives.ranking import Candidates, rank
from runners.node_pool import NodePool
from runners.simulated import SimulatedRunner
from search_spaces.cluster_presets import load_cluster
from search_spaces.model_presets import load_model
from search_spaces.plan import Plans
from search_spaces.space import SpaceSpec
from search_spaces.workload import Workload
from tuner.papers.figure import Figure, Kind, Paper, Provenance, figure_of
from tuner.warm import Evidence, PastStudy, learned_candidates

NAME = "campaign"
TABLES = "HydraGNN campaigns with DeepHyper: one table starts the next"
SOURCE = "the tuning driver of arXiv:2312.12705 (DeepHyper, a queue of nodes)"
ALLOCATION, A_TRIAL, DEVICES_A_NODE, DEVICES_A_WORKER = 8, 4, 8, 32
SEEDS = (1, 4, 5)
N_FIRST, N_SECOND, HIDDEN, NEAR = 16, 30, 0.3, 1.01
SPACE = {"cp": 1, "overlap_dp": True, "recompute": ["none", "full"]}


def side_by_side(n_nodes: int, per_trial: int) -> int:
    """Trials that a pool of nodes runs at the same time."""
    pool, n = NodePool(n_nodes), 0
    while pool.take("trial", per_trial):
        n += 1
    return n


def job(model: str, n_devices: int) -> Job:
    """One family's job."""
    workload = Workload(seq_len=4096, global_batch=128, framework="megatron-lm")
    return Job(model=load_model(model), cluster=load_cluster("alps", n_devices), workload=workload)


def measured_steps(of: Job, plans: Plans, seed: int) -> list[float]:
    """Step seconds of plans on one hidden machine; not a number where a plan failed."""
    outcomes = SimulatedRunner(of, seed=seed, hidden=HIDDEN, straggler_probability=0.0).run(plans)
    return [each.step_s if isinstance(each, Measured) else np.nan for each in outcomes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Trials until a plan within a per cent of the best, and the median error of predicted step seconds."""

    trials: int
    error: float


def start_of(candidates: Candidates, seconds: dict[str, float]) -> Start:
    """How well a campaign starts that tries its table's plans in their order."""
    keys = candidates.plans.keys()
    truth = np.array([seconds.get(key, np.nan) for key in keys])
    best = np.nanmin(truth)
    ran = truth[np.isfinite(truth)]
    errors = np.abs(candidates.estimate.step_s / truth - 1)
    return Start(trials=1 + int(np.argmax(ran <= NEAR * best)), error=float(np.nanmedian(errors)))


def two_starts(seed: int) -> tuple[Start, Start]:
    """A campaign by itself, and one from another family's table, on one hidden machine."""
    past, new = job("llama-3-8b", 16), job("qwen3-8b", 32)
    first = rank(past, SpaceSpec.of(SPACE), keep=N_FIRST).candidates
    steps = measured_steps(past, first.plans, seed)
    pairs = [(key, s) for key, s in zip(first.plans.keys(), steps, strict=True) if np.isfinite(s)]
    table = PastStudy(
        name="first", model=past.model, cluster=past.cluster, workload=past.workload,
        plans=tuple(key for key, _ in pairs), step_s=tuple(s for _, s in pairs),
    )  # fmt: skip
    cold = rank(new, SpaceSpec.of(SPACE), keep=N_SECOND).candidates
    warm, _ = learned_candidates(new, cold, Evidence(studies=(table,)), ["step_time"])
    seconds = dict(zip(cold.plans.keys(), measured_steps(new, cold.plans, seed), strict=True))
    return start_of(cold, seconds), start_of(warm, seconds)


def figures() -> tuple[Figure, ...]:
    """The driver's queue, and what a table saves."""
    starts = [two_starts(seed) for seed in SEEDS]
    trials = [sum(start.trials for start in pair) for pair in zip(*starts, strict=True)]
    note = f"{trials[0]} trials without a table and {trials[1]} with one, over {len(SEEDS)} hidden machines"
    nearer = sum(warm.error < cold.error for cold, warm in starts)
    workers = side_by_side(ALLOCATION, A_TRIAL)
    order = figure_of(NAME, TABLES, Provenance.DERIVED, Kind.ORDER)
    exact = figure_of(NAME, SOURCE, Provenance.SOURCE, Kind.EXACT)
    fewer, published = int(trials[1] < trials[0]), ALLOCATION * DEVICES_A_NODE // DEVICES_A_WORKER
    return (
        order("a campaign from another's table needs fewer trials", "comparisons", 1, fewer, note=note,
              is_headline=True),
        order("its predictions are nearer", "comparisons", len(SEEDS), nearer),
        exact(f"trials of {A_TRIAL} nodes at once on {ALLOCATION} nodes", "trials", published, workers),
    )  # fmt: skip


PAPER = Paper(
    name=NAME,
    title="Asynchronous campaigns over families of models: node queue, failures, one table starts the next",
    source="HydraGNN with DeepHyper; arXiv:2312.12705",
    figures=figures,
    presets=("campaign",),
)
