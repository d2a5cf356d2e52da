"""One optimizer step of a job's plan on the engine: a second opinion beside the closed forms.

Every pipeline stage is one rank that stands for its tp x cp x dp symmetric devices; `all_ranks` simulates
each and joins their collectives, which gives the same times.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from objectives.cost.memory import release_of
from objectives.cost.migration import migration_share_s
from objectives.cost.pipeline import warmups_beyond
from objectives.cost.result import StepMemory
from objectives.cost.stage_parts import stage_parts
from objectives.cost.step import stage_profile
from objectives.metrics import Job
from objectives.simulator.engine import Run, execute
from objectives.simulator.memory import RankMemory, rank_memory
from objectives.simulator.program import NOTHING, Pass, Program
from objectives.simulator.randomness import Randomness
from objectives.simulator.schedules import program
from objectives.simulator.step_account import SHOWN, step_parts
from objectives.simulator.step_build import StepGraph, StepInput, hideable, in_pieces, whole_passes
from objectives.simulator.step_costs import loaded, row_costs, stage_of_chunk
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
from search_spaces.errors import InvalidSpec, check
from search_spaces.memory_habits import Release
from search_spaces.plan import Floats, Ints, OptimizerSync, Plan, Plans, Recompute

# Both sides take up to 1.3 times as long while they overlap on an NVIDIA GPU, since kernels of both share its
# processors and memory: Miao et al. (2022), arXiv:2211.13878, on estimating costs.
OVERLAP_SLOWDOWN = assumed(1.3, "arXiv:2211.13878 (Galvatron), on estimating costs", spread=0.1)


class Detail(StrEnum):
    """How finely a step is simulated."""

    PASSES = "passes"
    PIECES = "pieces"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """What to simulate.

    `n_groups` is the groups of layers of a pass in pieces; `slowdown` the factor by which computation and
    communication each take longer while both run on a device; `sync` None stands for the plan's own.
    `release` says when split backward passes give activations back, None: when the trainer does.  `program`
    is run in place of the plan's own schedule.
    """

    detail: Detail = Detail.PIECES
    n_groups: int = 4
    slowdown: Constant = OVERLAP_SLOWDOWN
    shares_links: bool = True
    sync: OptimizerSync | None = None
    release: Release | None = None
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
        """Share of the longest span in which its rank does not do what the busiest does: steps interlock."""
        span_s = float(np.max(self.passes.span_idle_s + self.passes.busy_s))
        return self.passes.span_bubble_s / max(span_s, np.finfo(np.float64).tiny)

    @property
    def peak_memory_bytes(self) -> float:
        """Bytes on the fullest rank at its peak."""
        return float(self.memory.peak_bytes.max())


def simulate_step(job: Job, plan: Plan, options: StepOptions = PLAIN, *, seed: int = 0) -> SimulatedStep:
    """Simulate one step of a plan.

    Assumes the plan is legal for the job.

    Raises
    ------
    InvalidSpec
        The schedule cannot be had or deadlocks, or an option names a rank that is not there.
    """
    return StepSimulator(job, plan, options).step(seed)


def program_of_plan(job: Job, plan: Plan) -> Program:
    """The schedule that the plan runs."""
    return program(
        plan.schedule, plan.pp, _n_microbatches(job, plan), plan.vpp,
        extra_warmup=warmups_beyond(plan), limit=plan.pipeline_limit,
    )  # fmt: skip


def _n_microbatches(job: Job, plan: Plan) -> int:
    return plan.n_microbatches or job.workload.global_batch // (plan.micro_batch * plan.dp)


def _program(job: Job, plan: Plan, options: StepOptions) -> Program:
    given = options.program
    if given is None:
        return program_of_plan(job, plan)
    needs = f"{plan.pp} ranks and {_n_microbatches(job, plan)} micro-batches"
    has = f"{given.n_ranks} ranks and {given.n_microbatches} micro-batches"
    check(has == needs, f"the schedule must have the plan's {needs}", has)
    halves = np.isin(given.kind, (Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT))
    if plan.recompute is Recompute.FULL and halves.any():
        # Between its halves a pass would keep all that it has just redone, which nothing here counts.
        raise InvalidSpec("an order that splits backward passes must not recompute whole layers",
                          f"recompute=full and {given.op(int(halves.argmax()))}",
                          hint="set recompute=selective or none, or write whole backward passes")  # fmt: skip
    return given


class StepSimulator:
    """One plan, ready to be simulated with many seeds: what no seed changes is worked out once."""

    def __init__(self, job: Job, plan: Plan, options: StepOptions = PLAIN) -> None:
        job = job.of_plan(plan)
        self._job, self._plan, self._options = job, plan, options
        self._parts, self._wiring = stage_parts(job, plan), wire(_program(job, plan, options))
        self._is_fine = options.detail is Detail.PIECES
        used = set(self._wiring.sends.ravel().tolist())
        for link, _ in options.randomness.slow_links:
            must = "a slow link must be one that messages cross: that behind a rank which another one follows"
            check(link in used, must, f"that behind rank {link} of {plan.pp}")

    def step(self, seed: int) -> SimulatedStep:
        """The step that a seed draws."""
        step = self.input(seed)
        graph = self._graph(step)
        tasks, run = self._run(graph)
        return self._result(step, graph, tasks, run)

    def seconds(self, seed: int) -> float:
        """Seconds of that step alone."""
        step = self.input(seed)
        return self._step_s(step, *self._run(self._graph(step)))

    def hangs(self, seed: int) -> str:
        """Why that step never ends, if it does not."""
        if not self._options.randomness.empty_ranks_hang:
            return ""
        return self._hang(self.input(seed).costs.n_empty)

    def parts_s(self, seed: int) -> dict[str, Floats]:
        """Seconds of every device by part, as that step has them; they add up to its makespan."""
        step = self.input(seed)
        tasks, run = self._run(self._graph(step))
        return step_parts(tasks, run, step.costs, n_ranks=self._plan.pp, in_pieces=self._is_fine)

    def input(self, seed: int) -> StepInput:
        """The passes with their costs, in an order: that of the schedule, or by arrival as passes run."""
        job, plan, wiring = self._job, self._plan, self._wiring
        rng = np.random.default_rng(seed)
        costs = row_costs(job, plan, wiring.program, self._parts, self._options.randomness, rng)
        if wiring.program.by_arrival:
            ran = clock(wiring, costs.total_s, costs.link_s, sends_block=not plan.overlap_pp)
            order = np.lexsort((ran.turn, ran.rank))
            wiring = wire(reordered(wiring.program, order))
            costs = replace(costs, parts_s=costs.parts_s[:, order], hidden_s=costs.hidden_s[:, order])
        layers_of_chunk = job.model.n_layers // (plan.pp * wiring.program.n_chunks)
        return StepInput(
            plan=plan,
            wiring=wiring,
            parts=self._parts,
            costs=costs,
            share=job.trainer.dp_overlap.value * plan.overlap_dp,
            fixed_s=job.cluster.step_fixed_s.value + float(migration_share_s(job, Plans.of([plan]))[0]),
            n_groups=min(self._options.n_groups, max(1, layers_of_chunk)),
            every_stage_agrees=self._waits_for_all,
        )

    @property
    def _waits_for_all(self) -> bool:
        return (self._options.sync or self._plan.optimizer_sync) is OptimizerSync.BARRIER

    def _graph(self, step: StepInput) -> StepGraph:
        return in_pieces(step) if self._is_fine else whole_passes(step)

    def _run(self, graph: StepGraph) -> tuple[StepTasks, Run]:
        options, tasks = self._options, graph.tasks
        if options.all_ranks:
            tasks = on_every_device(tasks, device_groups(self._plan), _factors(self._plan, options))
        factor = options.slowdown.value if self._is_fine else 1.0
        return tasks, execute(
            *engine_input(
                tasks, n_ranks=self._plan.pp, n_tiers=len(self._job.cluster.tiers),
                slowdown=Slowdown(compute=factor, comm=factor),
                shares_links=self._is_fine and options.shares_links,
            ),
            name=lambda task: (f"rank {tasks.rank[task]}", _words(tasks, graph.program, task)),
        )  # fmt: skip

    def _step_s(self, step: StepInput, tasks: StepTasks, run: Run) -> float:
        """The makespan; without a barrier the worst device's seconds, its steps one after the other."""
        if self._waits_for_all:
            return float(run.finish_s.max())
        computes = tasks.stream == Stream.COMPUTE
        device = (tasks.copy * self._plan.pp + tasks.rank)[computes]
        first, last = (np.full(int(device.max()) + 1, each) for each in (np.inf, 0.0))
        np.minimum.at(first, device, run.start_s[computes])
        np.maximum.at(last, device, run.finish_s[computes])
        lead_s = hideable(step, in_buckets=self._is_fine).gather_shown_s if self._plan.zero in (1, 2) else 0.0
        return float(np.max((last - first).reshape(-1, self._plan.pp) + lead_s))

    def _result(self, step: StepInput, graph: StepGraph, tasks: StepTasks, run: Run) -> SimulatedStep:
        rows = graph.rows
        passes = Timeline(
            program=step.program, rank=step.wiring.rank, start_s=run.start_s[rows.pieces[:, 0]],
            finish_s=run.finish_s[rows.end], turn=run.turn[rows.pieces[:, 0]],
        )  # fmt: skip
        memory, stage_memory = self._memory(passes, step.costs.load)
        return SimulatedStep(
            plan=self._plan,
            step_s=self._step_s(step, tasks, run),
            makespan_s=float(run.finish_s.max()),
            parts_s=step_parts(tasks, run, step.costs, n_ranks=self._plan.pp, in_pieces=self._is_fine),
            passes=passes,
            activities=StepTimeline(
                activity=tasks.activity, rank=tasks.rank, copy=tasks.copy, stream=tasks.stream, row=tasks.row,
                start_s=run.start_s, finish_s=run.finish_s,
            ),
            memory=memory,
            stage_memory=stage_memory,
            n_empty_expert_ranks=step.costs.n_empty,
            hang=self._hang(step.costs.n_empty),
        )  # fmt: skip

    def _memory(self, passes: Timeline, load: Floats | None) -> tuple[RankMemory, StepMemory]:
        """What passes keep, beside what is there all the time; experts keep what came to the hottest."""
        job, plan = self._job, self._plan
        stage, share = stage_of_chunk(passes.program)
        if load is None:
            profile = stage_profile(job, plan)
            kept = profile.activation_bytes[stage] * share
        else:
            # Bytes are a line in the load, drawn here through those at 1 and at 2.
            even, twice, profile = (
                stage_profile(*loaded(job, plan, each)) for each in (1.0, 2.0, load.max())
            )
            more = (twice.activation_bytes - even.activation_bytes)[:, None] * (load - 1)
            kept = (even.activation_bytes[:, None] + more)[stage] * share
        constant = profile.memory.total_bytes - profile.memory.activations_bytes
        release = self._options.release or release_of(job)
        return rank_memory(passes, kept, constant_bytes=constant, release=release), profile.memory

    def _hang(self, n_empty: int) -> str:
        if not (n_empty and self._options.randomness.empty_ranks_hang):
            return ""
        return f"{n_empty} expert-parallel ranks had no token, and the trainer waits for them"


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


def _words(tasks: StepTasks, program: Program, task: int) -> str:
    """What a task does: which pass, or of what kind it is, or both."""
    activity, row = Activity(int(tasks.activity[task])), int(tasks.row[task])
    if row == NOTHING:
        return activity.words
    op = str(program.op(row))
    return op if activity <= Activity.FORWARD_BACKWARD else f"{activity.words} of {op}"


def _factors(plan: Plan, options: StepOptions) -> Floats:
    n_copies = plan.tp * plan.cp * plan.dp
    if not options.copy_factors:
        return np.ones((n_copies, plan.pp))
    factors = np.asarray(options.copy_factors, dtype=np.float64)
    must = f"copy_factors need the shape (tp cp dp, pp) = {(n_copies, plan.pp)}"
    check(factors.shape == (n_copies, plan.pp), must, factors.shape)
    return factors
