"""What passes and the end of a step are made of, stage by stage: what a timeline of one plan needs.

The sums are those of `objectives.cost.step.stage_profile`; here communication that hides is told too.
"""

from dataclasses import dataclass, replace

import numpy as np

from objectives.cost import mesh
from objectives.cost.passes import StagePass, send_message_s, stage_pass
from objectives.cost.stages import RankParameters, stages_of
from objectives.cost.states import held_parameters, reduced_pieces, stage_sharing, tie_s
from objectives.cost.step import exposed_offload_s
from objectives.metrics import Job
from search_spaces.cluster import assumed
from search_spaces.framework import framework_named
from search_spaces.plan import Floats, Ints, Plan, Plans

PARTS = ("compute_s", "recompute_s", "tp_comm_s", "cp_comm_s", "ep_comm_s", "launch_s", "offload_s")
COLLECTIVES = ("tp", "cp", "ep")
_NONE = assumed(0.0, "a trainer that hides nothing")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageParts:
    """One plan, stage by stage; the last axis is the stage, (pp,).

    `forward_s`, `backward_input_s` and `backward_weight_s` are the exposed seconds of one micro-batch through
    the whole share, by `PARTS`: shape (7, pp).  `forward_hidden_s` and `backward_hidden_s` are what the
    plan's overlap hides, by `COLLECTIVES`: (3, pp).  `reduce_s` and `gather_s` are one reduction of all
    gradients and one gather of all weights, `gather_again_s` one before a backward pass, `n_buckets` the
    pieces they come in, `n_updated` those that are updated as they arrive (1: the update waits for all);
    `tie_s` adds up what stage i and stage p - 1 - i both hold: tied embeddings, or the second copy of
    DualPipe.  `tier` is the outermost tier that each kind of communication crosses.
    """

    forward_s: Floats
    backward_input_s: Floats
    backward_weight_s: Floats
    forward_hidden_s: Floats
    backward_hidden_s: Floats
    send_s: float
    reduce_s: Floats
    gather_s: Floats
    gather_again_s: Floats
    n_buckets: Ints
    n_updated: Ints
    optimizer_s: Floats
    offload_s: Floats
    host_s: Floats
    tie_s: Floats
    tier: dict[str, int]


def stage_parts(job: Job, plan: Plan) -> StageParts:
    """Seconds of every stage of a plan, by part.

    Hidden seconds are those that the same plan shows with a trainer that overlaps nothing, less its own.
    """
    job = job.under_cap(plan.power_cap_w)
    one = Plans.of([replace(plan, power_cap_w=0)])
    stages = stages_of(job, one, np.arange(plan.pp)[:, None])
    passes = stage_pass(job, one, stages)
    bare_habits = replace(job.trainer, tp_overlap=_NONE, cp_overlap=_NONE, ep_overlap=_NONE)
    bare = stage_pass(replace(job, habits=bare_habits), one, stages)
    forward, backward_input, backward_weight = _parts(passes)
    bare_forward, bare_backward, _ = _parts(bare)
    rows = one.take(np.zeros(plan.pp, np.int64))
    of_rows = stages_of(job, rows, np.arange(plan.pp)[None])
    held = held_parameters(job, rows, of_rows)
    parameters = RankParameters(dense=held.dense[0], expert=held.expert[0])
    sharing = stage_sharing(job, rows, parameters, of_rows.n_layers[0])
    per_bucket = framework_named(job.workload.framework).bucket_parameters
    return StageParts(
        forward_s=forward,
        backward_input_s=backward_input,
        backward_weight_s=backward_weight,
        forward_hidden_s=np.maximum(bare_forward[2:5] - forward[2:5], 0),
        backward_hidden_s=np.maximum(bare_backward[2:5] - backward_input[2:5], 0),
        send_s=float(send_message_s(job, one)[0]) if plan.pp > 1 else 0.0,
        reduce_s=sharing.reduce_s,
        gather_s=sharing.gather_s,
        gather_again_s=sharing.gather_again_s,
        n_buckets=np.maximum(np.ceil(parameters.total / per_bucket), 1).astype(np.int64),
        n_updated=reduced_pieces(job, rows, parameters.total).astype(np.int64),
        optimizer_s=sharing.optimizer_s,
        offload_s=exposed_offload_s(rows, sharing.offload_s, passes.total_s[:, 0]),
        host_s=sharing.offload_s,
        tie_s=sharing.copies_s + tie_s(job, one)[0] * np.isin(np.arange(plan.pp), (0, plan.pp - 1)),
        tier=_tiers(job, one),
    )


def _parts(passes: StagePass) -> tuple[Floats, Floats, Floats]:
    """F, B_i and W by part, each (7, pp)."""
    none, half_launch = np.zeros_like(passes.forward_s), passes.launch_backward_s / 2
    forward = (
        passes.forward_s, none, passes.tp_forward_s, passes.cp_forward_s, passes.ep_forward_s,
        passes.launch_forward_s, passes.host_forward_s,
    )  # fmt: skip
    backward_input = (
        passes.backward_input_s, passes.recompute_s, passes.tp_comm_s - passes.tp_forward_s,
        passes.cp_comm_s - passes.cp_forward_s, passes.ep_comm_s - passes.ep_forward_s, half_launch,
        passes.host_backward_s,
    )  # fmt: skip
    backward_weight = (passes.backward_weight_s, none, none, none, none, half_launch, none)
    return tuple(  # type: ignore[return-value]
        np.stack([np.broadcast_to(part, none.shape)[:, 0] for part in each])
        for each in (forward, backward_input, backward_weight)
    )


def _tiers(job: Job, one: Plans) -> dict[str, int]:
    """The outermost tier that a group of each kind crosses."""
    cluster = job.cluster
    members = {
        "tp": mesh.tp_members(cluster, one),
        "cp": mesh.cp_members(cluster, one),
        "ep": mesh.ep_members(cluster, one),
        "dp": mesh.dp_members(cluster, one),
    }
    tiers = {kind: int(np.argmax(of_tiers[:, 0])) for kind, of_tiers in members.items()}
    return tiers | {"pp": int(mesh.pp_tier(cluster, one)[0])}
