"""An order of passes for the stages of a plan, in the memory that its states leave free."""

import numpy as np

from objectives.cost.memory import release_of
from objectives.cost.stage_parts import stage_parts
from objectives.cost.step import stage_profile
from objectives.metrics import Job
from objectives.ranking import memory_limit_bytes
from objectives.simulator.step import program_of_plan
from objectives.simulator.synthesis import BUDGET, Synthesis, synthesize
from objectives.simulator.synthesis.problem import Placement, StageCosts
from objectives.simulator.timeline import PassTimes
from search_spaces.errors import check
from search_spaces.plan import Floats, Plan, Recompute, Schedule
from search_spaces.units import gib

_V_SHAPED = (Schedule.ZB_V, Schedule.V_HALF, Schedule.V_MIN, Schedule.DUALPIPE_V)


def synthesize_for_plan(job: Job, plan: Plan, *, budget: int = BUDGET, seed: int = 0) -> Synthesis:
    """An order for the plan's stages and micro-batches, in the placement of its schedule.

        memory for activations on rank i = limit - (states + buffers + reserve of stage i)

    Raises
    ------
    InvalidSpec
        The plan has no pipeline, holds the model twice, recomputes whole layers, or no order fits its memory.
    """
    check(plan.pp > 1, "an order of passes is synthesized for a pipeline: pp above 1", f"pp={plan.pp}")
    check(
        plan.schedule is not Schedule.DUALPIPE,
        "an order is synthesized for one copy of the model",
        "schedule=dualpipe, which holds two",
        hint="take schedule=dualpipe-v",
    )
    check(
        plan.recompute is not Recompute.FULL,
        "an order that splits backward passes must not recompute whole layers",
        "recompute=full",
        hint="set recompute=selective or none",
    )
    named, parts, profile = program_of_plan(job, plan), stage_parts(job, plan), stage_profile(job, plan)
    limit = memory_limit_bytes(job) - (profile.memory.total_bytes - profile.memory.activations_bytes)
    stage = int(np.argmin(limit))
    check(
        limit[stage] > 0,
        "states and buffers of every stage must leave memory for activations",
        f"stage {stage}, which lacks {gib(-float(limit[stage])):.1f} GiB",
    )

    def of_chunks(of_stage: Floats) -> Floats:
        return np.repeat(of_stage[:, None] / named.n_chunks, named.n_chunks, axis=1)

    times = PassTimes(
        forward_s=of_chunks(parts.forward_s.sum(axis=0)),
        backward_input_s=of_chunks(parts.backward_input_s.sum(axis=0)),
        backward_weight_s=of_chunks(parts.backward_weight_s.sum(axis=0)),
        send_s=np.full(plan.pp, parts.send_s),
    )
    costs = StageCosts(
        times=times, activation_bytes=of_chunks(profile.activation_bytes), release=release_of(job)
    )
    return synthesize(
        costs,
        named.n_microbatches,
        memory_limit_bytes=limit,
        sync=plan.optimizer_sync,
        placement=Placement.V_SHAPE if plan.schedule in _V_SHAPED else Placement.ROUND_ROBIN,
        budget=budget,
        seed=seed,
    )
