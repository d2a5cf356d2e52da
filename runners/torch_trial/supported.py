"""Which plans the built-in trainer runs; what it would run otherwise than named is refused, with a reason."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from objectives.simulator.program import Pass, Program
from runners.torch_trial.mesh import chunk_stages
from search_spaces.model import ModelSpec
from search_spaces.plan import (
    V_SHAPED,
    CpKind,
    Dispatch,
    ExpertTokens,
    OptimizerSync,
    Plan,
    Schedule,
)
from search_spaces.workload import CudaGraphs, Precision, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A plan for a model and a workload."""

    model: ModelSpec
    workload: Workload
    plan: Plan


Refusal = tuple[str, Callable[[Question], bool]]

_MODELS: tuple[Refusal, ...] = (
    ("has no latent attention", lambda q: q.model.attention.latent is not None),
    ("predicts one token ahead only", lambda q: q.model.n_predict_layers > 0),
    ("takes embeddings of the model's own width", lambda q: q.model.embedding.width is not None),
    ("normalises queries and keys by heads only", lambda q: q.model.attention.qk_norm.value == "full"),
    ("attends within no chunks (attention.chunked)",
     lambda q: q.model.attention.chunked and (q.model.attention.window or 0) < q.workload.seq_len),
    ("builds no attention sinks and no experts with biases (attention.sinks, moe.expert_bias)",
     lambda q: q.model.attention.sinks or (q.model.moe is not None and q.model.moe.expert_bias)),
    ("drops no tokens (moe.capacity_factor)", lambda q: q.model.has_capacity),
    ("needs two norms a layer, or four, or a parallel block",
     lambda q: not q.model.parallel_block and q.model.norms_per_layer not in (2, 4)),
    ("needs as many learned positions as tokens in a sequence",
     lambda q: 0 < q.model.embedding.n_positions < q.workload.seq_len),
    ("rotates heads of an even width", lambda q: q.model.attention.head_dim % 2 == 1),
)  # fmt: skip
_WORKLOADS: tuple[Refusal, ...] = (
    ("computes in bf16 or fp32", lambda q: q.workload.precision not in (Precision.BF16, Precision.FP32)),
    ("records no graphs (cuda_graphs)", lambda q: q.workload.cuda_graphs is not CudaGraphs.NONE),
    ("sends tokens to experts in their own precision", lambda q: q.workload.fp8_dispatch),
)
_PLANS: tuple[Refusal, ...] = (
    ("runs no schedule that holds the model twice (dualpipe)",
     lambda q: q.plan.schedule is Schedule.DUALPIPE),
    ("waits for all stages before an update (optimizer_sync)",
     lambda q: q.plan.optimizer_sync is not OptimizerSync.BARRIER),
    ("keeps the optimizer on the device (offload_optimizer)", lambda q: q.plan.offload_optimizer),
    ("leaves a device's power limit alone (power_cap_w)", lambda q: q.plan.power_cap_w > 0),
    ("waits for tensor parallelism's exchanges (overlap_tp)", lambda q: q.plan.overlap_tp),
    ("waits for the experts' exchanges (overlap_ep)", lambda q: q.plan.overlap_ep),
    ("sends a token once for each of its experts (deduplicate_ep)", lambda q: q.plan.deduplicate_ep),
    ("sends tokens straight to each device (hierarchical_ep)", lambda q: q.plan.hierarchical_ep),
    ("sends tokens as the model says (dispatch)", lambda q: q.plan.dispatch is not Dispatch.PLAIN),
    ("leaves experts where they are (migrate_every)", lambda q: q.plan.migrate_every > 0),
    ("recomputes on every stage alike (recompute_stages)", lambda q: q.plan.recompute_stages > 0),
    ("moves ZeRO-3's weights and gradients as they are (quantized_weights, hpz, quantized_gradients)",
     lambda q: q.plan.quantized_weights or q.plan.quantized_gradients or q.plan.hpz > 1),
    ("keeps sequences whole, and checkpoints on the device (sequence_chunk, offload_checkpoints)",
     lambda q: q.plan.sequence_chunk > 0 or q.plan.offload_sequence or q.plan.offload_checkpoints),
    ("sends an expert's tokens from sharded sequences (expert_tokens)",
     lambda q: q.plan.expert_tokens is not ExpertTokens.SHARDED),
    ("repeats communication where it recomputes (keep_received)", lambda q: q.plan.keep_received),
    ("updates all parameters at once (offload_bucket, coalesced_buckets, optimizer_tile)",
     lambda q: bool(q.plan.offload_bucket or q.plan.coalesced_buckets or q.plan.optimizer_tile)),
    ("recomputes no single products (recompute_modules=moe_act, mla_up_proj)",
     lambda q: any(word in ("moe_act", "mla_up_proj") for word in str(q.plan.recompute_modules).split("+"))),
    ("runs zero=3 beside whole backward passes only: torch's FSDP loses gradients in halves",
     lambda q: _splits_backward(q.plan) and q.plan.zero == 3),
    ("overlaps gradients at zero=0; from zero=2 on FSDP decides (overlap_dp)",
     lambda q: q.plan.overlap_dp and q.plan.zero > 0),
    ("runs no ring over a sliding window; cp_kind=ulysses or all-gather do",
     lambda q: q.plan.cp > 1 and q.plan.cp_kind is CpKind.RING and q.model.attention.window is not None),
    ("has no more pipeline stages than layers", lambda q: q.plan.pp * q.plan.vpp > q.model.n_layers),
)  # fmt: skip
_HALVES = (
    Schedule.ZB_H1, Schedule.ZB_H2, Schedule.ZB_V, Schedule.V_HALF, Schedule.V_MIN, Schedule.DUALPIPE_V,
)  # fmt: skip


# torch's classes with one stage a rank, with several in loops (d, d + pp, ...), and with two down and up a V.
SINGLE_CLASSES = ("GPipe", "1F1B")
LOOP_CLASSES = ("Interleaved1F1B", "LoopedBFS", "InterleavedZeroBubble")
V_CLASSES = ("ZBVZeroBubble", "DualPipeV")
SCHEDULE_CLASSES = (*SINGLE_CLASSES, *LOOP_CLASSES, *V_CLASSES)
_SPLITTING_CLASSES = ("InterleavedZeroBubble", *V_CLASSES)


def class_refusals(plan: Plan, name: str) -> Iterator[str]:
    """Why one of torch's schedule classes cannot run a plan's stages where they lie."""
    is_v = plan.schedule in V_SHAPED
    if name in SINGLE_CLASSES and plan.vpp > 1:
        yield f"torch's {name} holds one stage a rank, and vpp={plan.vpp}"
    if name in LOOP_CLASSES and is_v:
        yield f"torch's {name} holds stages in loops, and {plan.schedule} in a V"
    if name in V_CLASSES and not is_v:
        yield f"torch's {name} holds stages in a V: it replaces {', '.join(V_SHAPED)}; not {plan.schedule}"
    if name in _SPLITTING_CLASSES and plan.zero == 3:
        yield f"torch's {name} splits backward passes, in which FSDP loses gradients with zero=3"


def order_refusals(plan: Plan, n_microbatches: int, order: Program) -> Iterator[str]:
    """Why the order of passes in a file cannot run a plan's stages where they lie."""
    needs = (plan.pp, n_microbatches)
    if (order.n_ranks, order.n_microbatches) != needs:
        yield (
            f"the schedule file has {order.n_ranks} ranks and {order.n_microbatches} micro-batches, "
            f"the plan {needs[0]} and {needs[1]}"
        )
        return
    held_by = {int(stage): rank for rank, row in enumerate(order.stage) for stage in row}
    if [held_by[stage] for stage in sorted(held_by)] != chunk_stages(plan):
        yield "the schedule file holds stages on other ranks than the plan"
    if plan.zero == 3 and np.isin(order.kind, (Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT)).any():
        yield "the schedule file splits backward passes, in which FSDP loses gradients with zero=3"


def _splits_backward(plan: Plan) -> bool:
    return plan.pp > 1 and plan.schedule in _HALVES


def refusals(model: ModelSpec, workload: Workload, plan: Plan) -> Iterator[str]:
    """Every reason why the built-in trainer does not run this, as `the built-in trainer ...`."""
    question = Question(model=model, workload=workload, plan=plan)
    for words, is_so in (*_MODELS, *_WORKLOADS, *_PLANS):
        if is_so(question):
            yield f"the built-in trainer {words}"
