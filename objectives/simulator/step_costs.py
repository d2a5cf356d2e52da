"""Seconds of every pass of a program from a plan's stages, by part, with what a seed draws."""

from dataclasses import dataclass, replace

import numpy as np

from objectives.cost.migration import imbalance_of
from objectives.cost.stage_parts import COLLECTIVES, PARTS, StageParts, stage_parts
from objectives.cost.tokens import sequence_shards, tokens_per_device
from objectives.metrics import Job
from objectives.simulator.program import Pass, Program
from objectives.simulator.randomness import (
    ExpertLoad,
    Randomness,
    expert_loads,
    jitter_factors,
    slow_factors,
)
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Dispatch, Floats, Ints, Plan, Plans

MOST_LOADS = 4096  # different draws of expert loads in one step
# Which table of (F, B_i, W) each kind of pass adds up; F&B's second half is added apart.
_TABLES_OF_KIND = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowCosts:
    """Seconds of every pass of a program: exposed by part, (7, n_ops), hidden by collective, (3, n_ops).

    `link_s` is a message on each rank's link, (n_ranks,); `n_empty` how many expert-parallel ranks had no
    token in some pass.  `load` is that of the hottest device's experts over the mean, of each stage's
    micro-batches, (n_stages, n_microbatches); None where it is the workload's own.
    """

    parts_s: Floats
    hidden_s: Floats
    link_s: Floats
    n_empty: int
    load: Floats | None = None

    @property
    def total_s(self) -> Floats:
        """Seconds of every pass, its exposed communication inside; (n_ops,)."""
        return np.asarray(self.parts_s.sum(axis=0))


def stage_of_chunk(program: Program) -> tuple[Ints, float]:
    """The stage whose costs a chunk has a share of, (n_ranks, n_chunks), and the share.

    Chunks of one route split a rank's layers evenly; of two routes each is a whole stage of its own.
    """
    if program.route.max() > 0:
        return program.stage, 1.0
    own = np.repeat(np.arange(program.n_ranks)[:, None], program.n_chunks, axis=1)
    return own, 1.0 / program.n_chunks


def row_costs(
    job: Job, plan: Plan, program: Program, parts: StageParts, draws: Randomness, rng: np.random.Generator
) -> RowCosts:  # fmt: skip
    """Costs of every pass, the slowest of n nodes' pace and all that is random included.

    Raises
    ------
    InvalidSpec
        A slow rank is not there, or a load of experts is asked of a model that has none.
    """
    pace = 1 + job.cluster.straggler_per_log2.value * float(np.log2(max(job.cluster.n_nodes, 1)))
    slow = slow_factors(program.n_ranks, draws.slow_ranks, "rank")
    halves, n_empty, load = _halves(program, parts), 0, None
    if draws.expert_load is not ExpertLoad.AS_GIVEN:
        change, n_empty, load = _load_change(job, plan, program, halves, draws, rng)
        halves = np.maximum(halves + change, 0)
    exposed_s, hidden_s = np.split(halves.sum(axis=0), [len(PARTS)])
    factor = pace * slow[program.rank] * jitter_factors(rng, draws.jitter, len(program))
    links = slow_factors(program.n_ranks, draws.slow_links, "link")
    return RowCosts(
        parts_s=exposed_s * factor,
        hidden_s=hidden_s * pace,
        link_s=links * pace * parts.send_s,
        n_empty=n_empty,
        load=load,
    )


def _halves(program: Program, parts: StageParts) -> Floats:
    """Seconds exposed by part, then hidden by collective, of each pass and of F&B's backward half.

    Shape (2, 10, n_ops): a pass that is no F&B has no second half.
    """
    stage, share = stage_of_chunk(program)
    hidden_s = (parts.forward_hidden_s, parts.backward_hidden_s, np.zeros_like(parts.forward_hidden_s))
    exposed_s = (parts.forward_s, parts.backward_input_s, parts.backward_weight_s)
    tables = np.concatenate([np.stack(exposed_s), np.stack(hidden_s)], axis=1)  # (3, 10, pp)
    of_kind = np.einsum("kt,tps->kps", _TABLES_OF_KIND, tables) * share
    rank, kind = program.rank, program.kind
    first = of_kind[kind, :, stage[rank, program.chunk]].T
    second, both = np.zeros_like(first), np.flatnonzero(kind == Pass.FORWARD_BACKWARD)
    second[:, both] = of_kind[Pass.BACKWARD][:, stage[rank[both], program.with_chunk[both]]]
    return np.stack([first, second])


def _load_change(
    job: Job, plan: Plan, program: Program, halves: Floats, draws: Randomness, rng: np.random.Generator
) -> tuple[Floats, int, Floats | None]:  # fmt: skip
    """What the drawn loads change against the workload's imbalance, like `halves`; empty ranks; the loads.

    A stage's seconds are taken as a line in the load, through those at the workload's and at one more.  Each
    micro-batch has one draw a stage, for its forward and its backward pass.
    """
    moe, one = job.model.moe, Plans.of([plan])
    if moe is None:
        raise InvalidSpec("a load of experts needs a model with experts", f"{job.model.name}, which is dense")
    given, most = float(np.max(imbalance_of(job, one))), moe.capacity_factor
    if most is not None and plan.dispatch is not Dispatch.PADDING_FREE:
        # Padded to capacity whatever the load: no rank is without slots.
        return np.zeros_like(halves), 0, None
    given = given if most is None else min(given, most)
    steeper = _halves(program, stage_parts(*loaded(job, plan, given + 1)))
    stage, _ = stage_of_chunk(program)
    n_stages = int(stage.max()) + 1
    n_draws = min(MOST_LOADS, n_stages * program.n_microbatches)
    n_tokens = tokens_per_device(job, one) / sequence_shards(one) * plan.ep
    draws = replace(draws, balanced_experts=plan.migrate_every > 0)
    loads = expert_loads(
        rng, draws, n_draws, n_experts=moe.n_experts, ep=plan.ep, n_copies=int(n_tokens[0] * moe.top_k),
    )  # fmt: skip
    picked = rng.integers(n_draws, size=(n_stages, program.n_microbatches))
    is_pair = program.kind == Pass.FORWARD_BACKWARD
    chunk = np.stack([program.chunk, np.where(is_pair, program.with_chunk, program.chunk)])
    microbatch = np.stack(
        [program.microbatch, np.where(is_pair, program.with_microbatch, program.microbatch)]
    )
    hottest = loads.hottest[picked] if most is None else np.minimum(loads.hottest[picked], most)
    drawn = stage[program.rank, chunk], microbatch
    extra = hottest[drawn] - given
    n_empty = int(loads.n_empty[np.unique(picked[drawn])].sum())
    return (steeper - halves) * extra[:, None], n_empty, hottest


def loaded(job: Job, plan: Plan, load: float) -> tuple[Job, Plan]:
    """A job whose hottest device gets `load` times the mean, whatever its capacity; a plan that keeps it."""
    moe = job.model.moe
    assert moe is not None
    model = replace(job.model, moe=replace(moe, capacity_factor=None))
    uneven = replace(job, model=model, workload=replace(job.workload, expert_imbalance=load))
    return uneven, replace(plan, migrate_every=0)


__all__ = ["COLLECTIVES", "PARTS", "RowCosts", "loaded", "row_costs", "stage_of_chunk"]
