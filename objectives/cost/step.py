"""One optimizer step: every part's exposed seconds and live bytes, for many plans at once."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from objectives.cost import pipeline
from objectives.cost.activations import stage_activations
from objectives.cost.factored import distinct, factored
from objectives.cost.memory import PeakMemory, peak_memory, release_of, stage_memory
from objectives.cost.migration import migration_share_s
from objectives.cost.passes import PASS_KNOBS, PassTable, pass_table, stage_pass
from objectives.cost.result import Estimate, StageProfile, StepMemory, StepTime
from objectives.cost.stages import held_stages, stages_of
from objectives.cost.states import STATE_KNOBS, StateTimes, state_times, visiting_bucket
from objectives.cost.tokens import microbatches
from objectives.metrics import Job
from search_spaces.framework import framework_named
from search_spaces.plan import Floats, Ints, Plan, Plans

CHUNK_PLANS = 32_768  # a chunk's columns stay in the processor's cache
ROUNDING = 1e-9  # of a sum of parts, relative


def estimate(job: Job, plans: Plans) -> Estimate:
    """Seconds and bytes of one step of every plan.

    Assumes the plans are legal (`search_spaces.space`); memory does not grow with more than one result per
    plan.

    Returns
    -------
    Estimate, columns of shape (n_plans,)
    """
    return join_estimates([estimate_chunk(job, part) for part in chunks(plans)])


def chunks(plans: Plans) -> Iterator[Plans]:
    """The plans in pieces that fit the cache."""
    for start in range(0, max(len(plans), 1), CHUNK_PLANS):
        yield plans.take(slice(start, start + CHUNK_PLANS))


def join_estimates(parts: list[Estimate]) -> Estimate:
    """Estimates of consecutive pieces as one."""
    if len(parts) == 1:
        return parts[0]
    return Estimate(
        time=StepTime(**_joined([part.time for part in parts], StepTime)),
        memory=StepMemory(**_joined([part.memory for part in parts], StepMemory)),
        **{
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("peak_stage", "pass_share", "host_s", "visited_s")
        },
    )


def _joined(parts: list[StepTime] | list[StepMemory], kind: type[StepTime | StepMemory]) -> dict[str, Floats]:
    return {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in kind.__dataclass_fields__
    }


def estimate_chunk(job: Job, plans: Plans, held: PeakMemory | None = None) -> Estimate:
    """One piece of `estimate`: plans under a power cap are priced with the clocks that it leaves them.

    `held` is the plans' peak memory where it is known already.
    """
    held = peak_memory(job, plans) if held is None else held
    if not plans.power_cap_w.any():
        return _priced(job, plans, held)
    order, parts = [], []
    for cap_w in np.unique(plans.power_cap_w).tolist():
        rows = np.flatnonzero(plans.power_cap_w == cap_w)
        order.append(rows)
        parts.append(_priced(job.under_cap(cap_w), plans.take(rows), held.take(rows)))
    return join_estimates(parts).take(np.argsort(np.concatenate(order)))


def least_step_s(job: Job, plans: Plans) -> Floats:
    """Seconds below which no plan's step ends: m (F + B) of the worst stage; shape (n_plans,).

    All else that a step takes only adds, and a power cap makes nothing faster.  Where devices take turns on
    a core, so that one uses what another leaves, the stages' mean counts.
    """
    some, setting = distinct(plans, PASS_KNOBS)
    passes = pass_table(job, some)
    one_s = passes.worst_s if job.cluster.turns == 1 else passes.all_stages_s / some.pp
    return microbatches(job, plans) * one_s[setting] * (1 - ROUNDING)


def _priced(job: Job, plans: Plans, held: PeakMemory) -> Estimate:
    passes = factored(plans, PASS_KNOBS, lambda rows: pass_table(job, rows))
    states = factored(plans, STATE_KNOBS, lambda rows: state_times(job, rows))
    memory, peak_stage = held.by_plan()
    return Estimate(
        time=_time(job, plans, passes, states, microbatches(job, plans)),
        memory=memory,
        peak_stage=peak_stage,
        pass_share=_pass_share(job, plans, passes),
        host_s=np.where(visiting_bucket(job, plans) > 0, 0.0, states.offload_s),
        visited_s=_exposed_visits_s(plans, states, passes),
    )


def _exposed_visits_s(plans: Plans, states: StateTimes, passes: PassTable) -> Floats:
    """Exposed seconds of the device's own update of a visiting state: its share of the offload's."""
    if not states.visited_s.any():
        return states.visited_s
    exposed_s = exposed_offload_s(plans, states.offload_s, passes.worst_s)
    shown: Floats = states.visited_s * exposed_s / np.maximum(states.offload_s, np.finfo(np.float64).tiny)
    return shown


def _pass_share(job: Job, plans: Plans, passes: PassTable) -> Floats:
    """Mean over the stages of what passes take, by the parts of a step; those are the mean with turns."""
    if job.cluster.turns > 1:
        return np.ones(len(plans))
    return passes.all_stages_s / (plans.pp * passes.worst_s)


def node_doublings(job: Job, plans: Plans) -> Floats | float:
    """How often the nodes that plans use double from one: log2(n)."""
    of_all = float(np.log2(max(job.cluster.n_nodes, 1)))
    return (
        np.where(plans.nodes > 0, np.log2(np.maximum(plans.nodes, 1)), of_all)
        if plans.nodes.any()
        else of_all
    )


def _time(job: Job, plans: Plans, passes: PassTable, states: StateTimes, m: Ints) -> StepTime:
    """M micro-batches on the worst stage, the bubble around them, and what follows them.

    Stragglers stretch all of it: the slowest of n nodes sets the pace, a little more with every doubling.
    """
    cluster = job.cluster
    bubble = idle_s(job, plans, m, passes)
    send = pipeline.send_s(plans, m, passes)
    dp_comm = exposed_dp_comm_s(job, plans, passes, states, m)
    slow = cluster.straggler_per_log2.value * node_doublings(job, plans)
    busy = m * passes.worst_s + bubble + send
    offload_s = exposed_offload_s(plans, states.offload_s, passes.worst_s)
    return StepTime(
        compute_s=m * passes.compute_s,
        recompute_s=m * passes.recompute_s,
        tp_comm_s=m * passes.tp_comm_s,
        cp_comm_s=m * passes.cp_comm_s,
        ep_comm_s=m * passes.ep_comm_s,
        launch_s=m * passes.launch_s,
        pp_comm_s=send,
        bubble_s=bubble,
        dp_comm_s=dp_comm,
        optimizer_s=states.optimizer_s,
        offload_s=offload_s if passes.host_s is None else offload_s + m * passes.host_s,
        fixed_s=cluster.step_fixed_s.value + slow * busy + migration_share_s(job, plans),
    )


def idle_s(job: Job, plans: Plans, m: Ints, passes: PassTable) -> Floats:
    """Idle seconds of the worst stage; where r devices take turns on a core, what no other one fills.

        max(sum_{k < p} max(1 - k r / p, 0) (F + B) / r,  (m (F + B)_worst + bubble) / r - m (F + B)_mean)

    A device that waits gives its core to another, which then runs up to r times as fast: the step takes what
    all stages have to do, and the time in which fewer stages have work than there are cores; at least as long
    as the schedule would with a core for each device.
    """
    bubble = pipeline.bubble_s(plans, m, passes)
    turns = job.cluster.turns
    if turns == 1:
        return bubble
    mean_s = passes.all_stages_s / plans.pp
    stages = np.arange(1, int(plans.pp.max(initial=1)))[:, None]
    unused = np.maximum(1 - stages * turns / plans.pp, 0) * (stages < plans.pp)
    filling_s = unused.sum(axis=0) * mean_s / turns
    alone_s = (m * passes.worst_s + bubble) / turns - m * mean_s
    idle: Floats = np.maximum(filling_s, alone_s) * (plans.pp > 1)
    return idle


def exposed_dp_comm_s(job: Job, plans: Plans, passes: PassTable, states: StateTimes, m: Ints) -> Floats:
    """Exposed seconds of gradient reduction and parameter gather.

        stage 0    one all-reduce                     stage 2    m reduce-scatters, one gather
        stage 1    one reduce-scatter, one gather     stage 3    m reduce-scatters, 2 m gathers

    A trainer that shards by layers gathers m times in stage 2 as well.  A pipeline reduces once, and stage 2
    gathers once there: gradients are summed whole (torch.distributed.pipelining, stage.py, holds FSDP2's
    reductions and resharding back until the last backward pass).  Overlap hides up to the framework's share,
    behind the last backward and the first forward pass (stages 0 and 1) or behind every pass (2 and 3).
    Gradients of tied embeddings follow, exposed.  Coalesced buckets hide behind the update of those before
    them.

    Source
    ------
    Rajbhandari et al. (2020), arXiv:1910.02054, section 7; Zhao et al. (2023), arXiv:2304.11277, section 3.
    """
    zero = plans.zero
    n_reductions, n_gathers = times_shared(job, plans, m)
    reductions, gathers = n_reductions * states.reduce_s, n_gathers * states.gather_s
    hidden_reduce = np.minimum(reductions, n_reductions * passes.backward_s)
    gather_room = np.where(zero >= 3, m * passes.worst_s - hidden_reduce, passes.forward_s)
    hidden_gather = np.minimum(gathers, np.maximum(gather_room, 0))
    share = job.trainer.dp_overlap.value * plans.overlap_dp
    picked: Floats = reductions + gathers + states.tie_s - share * (hidden_reduce + hidden_gather)
    return picked - _hidden_by_update_s(plans, reductions, states)


def _hidden_by_update_s(plans: Plans, reductions: Floats, states: StateTimes) -> Floats | float:
    """Seconds of a reduction in n pieces that run beside the update of earlier ones.

        (1 - 1/n) min(reduction, update)        two stages in a row, n equal pieces

    Source
    ------
    Singh and Bhatele (2021), arXiv:2110.13005: data-parallel all-reduces overlap the optimizer's buckets.
    """
    if not plans.coalesced_buckets.any():
        return 0.0
    return (1 - 1 / states.reduced_pieces) * np.minimum(reductions, states.offload_s)


def exposed_offload_s(plans: Plans, offload_s: Floats, pass_s: Floats) -> Floats:
    """Exposed seconds of moving and updating an offloaded optimizer.

    Overlapped, gradients leave and are updated bucket by bucket beside the step's last backward pass, and
    weights come back beside the next step's first forward pass: max(offload - (F + B), 0).

    Source
    ------
    Lian et al. (2025), arXiv:2509.21271 (SuperOffload: update beside the backward pass, checked afterwards).
    """
    if not plans.overlap_offload.any():
        return offload_s
    shown: Floats = offload_s - plans.overlap_offload * np.minimum(offload_s, pass_s)
    return shown


def times_shared(job: Job, plans: Plans, m: Ints) -> tuple[Ints, Ints]:
    """Reductions of gradients and gathers of weights in a step of m micro-batches."""
    zero = plans.zero
    by_layer = framework_named(job.workload.framework).shards_by_layer
    reductions = np.where(plans.reduces_every_pass, m, 1)
    before_forward = np.where(by_layer & (zero == 2) & (plans.pp == 1), m, zero >= 1)
    return reductions, np.where(zero >= 3, 2 * m, before_forward)


def stage_profile(job: Job, plan: Plan) -> StageProfile:
    """One plan, every stage, under its power cap: pass times, message time, the step's end, memory.

    Returns
    -------
    StageProfile, arrays of shape (pp,)
    """
    job = job.under_cap(plan.power_cap_w)
    one = Plans.of([replace(plan, power_cap_w=0)])
    index = np.arange(plan.pp)[:, None]
    stages = stages_of(job, one, index)
    passes, table = stage_pass(job, one, stages), pass_table(job, one)
    in_memory = held_stages(job, one, index)
    held = stage_activations(job, one, in_memory)
    time = estimate_chunk(job, one).time
    step_end = time.dp_comm_s + time.optimizer_s + time.offload_s + job.cluster.step_fixed_s.value
    step_end = step_end + migration_share_s(job, one)
    flights = pipeline.in_flight(one, microbatches(job, one), index, release_of(job))
    ones = np.ones(plan.pp)
    return StageProfile(
        n_layers=stages.n_layers[:, 0],
        forward_s=passes.full_forward_s[:, 0],
        backward_input_s=passes.full_backward_input_s[:, 0],
        backward_weight_s=passes.full_backward_weight_s[:, 0],
        send_s=np.where(plan.pp > 1, table.send_s[0], 0.0) * ones,
        step_end_s=step_end[0] * ones,
        memory=stage_memory(job, one, in_memory, held, flights),
        activation_bytes=held.kept_bytes[:, 0],
        in_flight=flights[:, 0],
    )
