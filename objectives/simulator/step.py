"""One optimizer step of a job's plan on the engine: a second opinion beside the closed forms.

Every pipeline stage is one rank that stands for its tp x cp x dp symmetric devices; `all_ranks` simulates
each and joins their collectives, which gives the same times.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from objectives.cost.result import StepMemory
from objectives.cost.stage_parts import stage_parts
from objectives.cost.step import stage_profile
from objectives.metrics import Job
from objectives.simulator.engine import Run, execute
from objectives.simulator.memory import RankMemory, rank_memory
from objectives.simulator.program import Program
from objectives.simulator.randomness import Randomness
from objectives.simulator.schedules import Release, program
from objectives.simulator.step_account import SHOWN, step_parts
from objectives.simulator.step_build import StepGraph, StepInput, in_pieces, whole_passes
from objectives.simulator.step_costs import row_costs, stage_of_chunk
from objectives.simulator.step_graph import (
    Activity,
    Slowdown,
    StepTasks,
    Stream,
    engine_input,
    on_every_device,
)
from objectives.simulator.timeline import Timeline, clock, reordered, wire
from search_spaces.cluster import Constant, assumed
from search_spaces.errors import check
from search_spaces.plan import Floats, Ints, Plan

# Both sides take up to 1.3 times as long while they overlap on an NVIDIA GPU, since kernels of both share its
# processors and memory: Miao et al. (2022), arXiv:2211.13878, on estimating costs.
OVERLAP_SLOWDOWN = assumed(1.3, "arXiv:2211.13878 (Galvatron), on estimating costs", spread=0.1)


class Detail(StrEnum):
    """How finely a step is simulated."""

    PASSES = "passes"
    PIECES = "pieces"


class Sync(StrEnum):
    """How the optimizer step waits: for all stages, or only for its own, checked afterwards."""

    BARRIER = "barrier"
    POST_VALIDATION = "post-validation"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """What to simulate.

    `n_groups` is the groups of layers of a pass in pieces; `slowdown` the factor by which computation and
    communication each take longer while both run on a device; `sync` None stands for the plan's own.
    `release` says when split backward passes give activations back.  `program` is run in place of the plan's
    own schedule.
    """

    detail: Detail = Detail.PIECES
    n_groups: int = 4
    slowdown: Constant = OVERLAP_SLOWDOWN
    shares_links: bool = True
    sync: Sync | None = None
    release: Release = Release.AT_WEIGHT
    all_ranks: bool = False
    copy_factors: tuple[tuple[float, ...], ...] = ()
    randomness: Randomness = field(default_factory=Randomness)
    program: Program | None = None

    def __post_init__(self) -> None:
        check(1 <= self.n_groups <= 64, "n_groups must be from 1 to 64", self.n_groups)
        check(self.slowdown.value >= 1, "the overlap slow-down must be at least 1", self.slowdown.value)


PLAIN = StepOptions(detail=Detail.PASSES, slowdown=assumed(1.0, "the closed form's"), shares_links=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTimeline:
    """Everything that runs in a step, (n_tasks,), in seconds; see `Activity` and `Stream` for the codes.

    `row` is the pass of the program that a task belongs to (-1: none), `copy` which symmetric device.
    """

    activity: Ints
    rank: Ints
    copy: Ints
    stream: Ints
    row: Ints
    start_s: Floats
    finish_s: Floats

    def __len__(self) -> int:
        return len(self.activity)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulatedStep:
    """One simulated step.

    `parts_s` has the seconds of every device by part (names as in `StepTime`), shape (n_devices,): pipeline
    ranks, or with all ranks copy after copy of them; each device's parts add up to `makespan_s`.  `passes`
    is when each pass of the program ran, `activities` everything.  `memory` follows the passes; its constant
    bytes are those of `stage_memory` without activations.  `hang` says why the step never ends, if it does.
    """

    plan: Plan
    step_s: float
    makespan_s: float
    parts_s: dict[str, Floats]
    passes: Timeline
    activities: StepTimeline
    memory: RankMemory
    stage_memory: StepMemory
    n_empty_expert_ranks: int
    hang: str = ""

    @property
    def program(self) -> Program:
        """The passes, in the order in which they ran."""
        return self.passes.program

    @property
    def exposed_comm_s(self) -> Floats:
        """Seconds of every device in which it communicates and does nothing else; shape (n_devices,)."""
        return np.asarray(sum(self.parts_s[name] for name in SHOWN))

    @property
    def makespan_bubble_fraction(self) -> float:
        """Share of the passes' makespan in which the busiest rank idles: a barrier closes the step."""
        return self.passes.makespan_bubble_s / max(self.passes.makespan_s, np.finfo(np.float64).tiny)

    @property
    def span_bubble_fraction(self) -> float:
        """Share of its span in which the worst rank idles: steps interlock."""
        span_s = self.passes.span_idle_s + self.passes.busy_s
        return float(np.max(self.passes.span_idle_s / np.maximum(span_s, np.finfo(np.float64).tiny)))

    @property
    def peak_memory_bytes(self) -> float:
        """Bytes on the fullest rank at its peak."""
        return float(self.memory.peak_bytes.max())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepDistribution:
    """Step seconds of several seeds; shape (n_seeds,)."""

    step_s: Floats

    def quantile_s(self, share: float) -> float:
        """The seconds that this share of the steps stays below."""
        return float(np.quantile(self.step_s, share))


def simulate_step(job: Job, plan: Plan, options: StepOptions = PLAIN, *, seed: int = 0) -> SimulatedStep:
    """Simulate one step of a plan.

    Assumes the plan is legal for the job.

    Raises
    ------
    InvalidSpec
        The schedule cannot be had or deadlocks, or an option names a rank that is not there.
    """
    rng = np.random.default_rng(seed)
    step = _input(job, plan, options, rng)
    is_fine = options.detail is Detail.PIECES
    graph = in_pieces(step) if is_fine else whole_passes(step)
    tasks = graph.tasks
    if options.all_ranks:
        tasks = on_every_device(tasks, device_groups(plan), _factors(plan, options))
    factor = options.slowdown.value
    slowdown = Slowdown(compute=factor, comm=factor) if is_fine else Slowdown()
    run = execute(
        *engine_input(
            tasks, n_ranks=plan.pp, n_tiers=len(job.cluster.tiers), slowdown=slowdown,
            shares_links=is_fine and options.shares_links,
        ),
        name=lambda task: (f"rank {tasks.rank[task]}", Activity(int(tasks.activity[task])).words),
    )  # fmt: skip
    return _result(job, options, step, graph, (tasks, run))


def simulate_steps(job: Job, plan: Plan, options: StepOptions, seeds: Sequence[int]) -> StepDistribution:
    """Step seconds over seeds."""
    check(len(seeds) > 0, "a distribution needs at least one seed", "none")
    return StepDistribution(
        step_s=np.array([simulate_step(job, plan, options, seed=seed).step_s for seed in seeds])
    )


def program_of_plan(job: Job, plan: Plan) -> Program:
    """The schedule that the plan runs."""
    return program(
        plan.schedule, plan.pp, _n_microbatches(job, plan), plan.vpp,
        extra_warmup=plan.extra_warmup, limit=plan.pipeline_limit,
    )  # fmt: skip


def _n_microbatches(job: Job, plan: Plan) -> int:
    return job.workload.global_batch // (plan.micro_batch * plan.dp)


def _program(job: Job, plan: Plan, options: StepOptions) -> Program:
    given = options.program
    if given is None:
        return program_of_plan(job, plan)
    must = "the schedule must have the plan's pipeline ranks and micro-batches"
    needs = f"{plan.pp} ranks and {_n_microbatches(job, plan)} micro-batches"
    has = f"{given.n_ranks} ranks and {given.n_microbatches} micro-batches"
    check(has == needs, f"{must}, {needs}", has)
    return given


def _input(job: Job, plan: Plan, options: StepOptions, rng: np.random.Generator) -> StepInput:
    """The plan's passes with their costs, in an order: that of the schedule, or by arrival as passes run."""
    parts, passes = stage_parts(job, plan), _program(job, plan, options)
    costs = row_costs(job, plan, passes, parts, options.randomness, rng)
    wiring = wire(passes)
    if passes.by_arrival:
        ran = clock(wiring, costs.total_s, costs.link_s, sends_block=not plan.overlap_pp)
        order = np.lexsort((ran.turn, ran.rank))
        passes = reordered(passes, order)
        wiring = wire(passes)
        costs = replace(costs, parts_s=costs.parts_s[:, order], hidden_s=costs.hidden_s[:, order])
    return StepInput(
        plan=plan,
        wiring=wiring,
        parts=parts,
        costs=costs,
        share=job.trainer.dp_overlap.value * plan.overlap_dp,
        fixed_s=job.cluster.step_fixed_s.value,
        n_groups=min(options.n_groups, max(1, job.model.n_layers // (plan.pp * passes.n_chunks))),
        every_stage_agrees=_sync(plan, options) is Sync.BARRIER,
    )


def _sync(plan: Plan, options: StepOptions) -> Sync:
    return options.sync or Sync(getattr(plan, "optimizer_sync", Sync.BARRIER))


def device_groups(plan: Plan) -> dict[int, Ints]:
    """The group of each of a stage's symmetric devices, (n_copies,), by the collective that joins it.

    Positions lie tp innermost, then cp, then dp; experts over the same positions as etp, ep, edp.
    """
    position = np.arange(plan.tp * plan.cp * plan.dp)
    tp = position // plan.tp
    cp = position % plan.tp + plan.tp * (position // (plan.tp * plan.cp))
    dp = position % plan.tp
    ep = position % plan.etp + plan.etp * (position // (plan.etp * plan.ep))
    return {
        Activity.TENSOR_COLLECTIVE: tp, Activity.CONTEXT_COLLECTIVE: cp, Activity.EXPERT_COLLECTIVE: ep,
        Activity.REDUCE: dp, Activity.GATHER: dp,
    }  # fmt: skip


def _factors(plan: Plan, options: StepOptions) -> Floats:
    n_copies = plan.tp * plan.cp * plan.dp
    if not options.copy_factors:
        return np.ones((n_copies, plan.pp))
    factors = np.asarray(options.copy_factors, dtype=np.float64)
    must = f"copy_factors need the shape (tp cp dp, pp) = {(n_copies, plan.pp)}"
    check(factors.shape == (n_copies, plan.pp), must, factors.shape)
    return factors


def _result(
    job: Job, options: StepOptions, step: StepInput, graph: StepGraph, ran: tuple[StepTasks, Run]
) -> SimulatedStep:
    tasks, run = ran
    plan, rows = step.plan, graph.rows
    start_s, finish_s = run.start_s[rows.pieces[:, 0]], run.finish_s[rows.end]
    passes = Timeline(
        program=step.program, rank=step.wiring.rank, start_s=start_s, finish_s=finish_s,
        turn=run.turn[rows.pieces[:, 0]],
    )  # fmt: skip
    makespan_s = float(run.finish_s.max())
    memory, stage_memory = _memory(job, plan, passes, options.release)
    hang = ""
    if step.costs.n_empty and options.randomness.empty_ranks_hang:
        hang = f"{step.costs.n_empty} expert-parallel ranks without a token hang the trainer"
    return SimulatedStep(
        plan=plan,
        step_s=makespan_s if _sync(plan, options) is Sync.BARRIER else _longest_span_s(tasks, run, plan.pp),
        makespan_s=makespan_s,
        parts_s=step_parts(
            tasks, run, step.costs, n_ranks=plan.pp, in_pieces=options.detail is Detail.PIECES
        ),
        passes=passes,
        activities=StepTimeline(
            activity=tasks.activity, rank=tasks.rank, copy=tasks.copy, stream=tasks.stream, row=tasks.row,
            start_s=run.start_s, finish_s=run.finish_s,
        ),
        memory=memory,
        stage_memory=stage_memory,
        n_empty_expert_ranks=step.costs.n_empty,
        hang=hang,
    )  # fmt: skip


def _longest_span_s(tasks: StepTasks, run: Run, n_ranks: int) -> float:
    """Seconds from a device's first task to its last, of the worst device: one step after the other."""
    real = tasks.stream != Stream.NONE
    device = (tasks.copy * n_ranks + tasks.rank)[real]
    first, last = np.full(int(device.max()) + 1, np.inf), np.zeros(int(device.max()) + 1)
    np.minimum.at(first, device, run.start_s[real])
    np.maximum.at(last, device, run.finish_s[real])
    return float(np.max(last - first))


def _memory(job: Job, plan: Plan, passes: Timeline, release: Release) -> tuple[RankMemory, StepMemory]:
    profile = stage_profile(job, plan)
    stage, share = stage_of_chunk(passes.program)
    constant = profile.memory.total_bytes - profile.memory.activations_bytes
    memory = rank_memory(
        passes, profile.activation_bytes[stage] * share, constant_bytes=constant, release=release
    )
    return memory, profile.memory
