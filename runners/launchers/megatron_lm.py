"""Megatron-LM (megatron-core 0.19.2): a plan as `pretrain_gpt.py` arguments.

Source: megatron/training/arguments.py and megatron/core/transformer/transformer_config.py of that release;
the tests marked `launcher` ask the parser itself.
"""

import math
from typing import Literal

from objectives.metrics import Job
from runners.launchers.base import (
    Arguments,
    Launch,
    Options,
    expert_lacks,
    flag,
    n_microbatches,
    offload_lacks,
    order_lacks,
    pipeline_lacks,
    precision_lacks,
    sent_tokens,
    stage_layers,
    update_lacks,
    zero_plus_lacks,
)
from runners.launchers.megatron_model import biases, model_arguments, model_lacks
from search_spaces.model import ModelSpec, MoeSpec
from search_spaces.plan import NO_MODULES, CpKind, Dispatch, Plan, RankOrder, Recompute, Schedule
from search_spaces.workload import CudaGraphs, Precision, Workload

PROGRAM = '"${MEGATRON_LM:?set MEGATRON_LM to a checkout of github.com/NVIDIA/Megatron-LM}/pretrain_gpt.py"'
SHARDING = {2: "optim_grads", 3: "optim_grads_params"}
PRECISION: dict[Precision, Arguments] = {
    Precision.BF16: [("--bf16",)],
    Precision.FP16: [("--fp16",)],
    Precision.FP8: [("--bf16",), ("--fp8-format", "hybrid"), ("--fp8-recipe", "tensorwise")],
    Precision.MXFP8: [("--bf16",), ("--fp8-format", "e4m3"), ("--fp8-recipe", "mxfp8")],
    Precision.NVFP4: [("--bf16",), ("--fp4-format", "e2m1"), ("--fp4-recipe", "nvfp4")],
    Precision.FP32: [],
}


class MegatronLM:
    """The launcher `megatron-lm`."""

    name: Literal["megatron-lm"] = "megatron-lm"

    def lacks(self, job: Job, plan: Plan) -> list[str]:
        """What Megatron-LM cannot express."""
        return [
            *model_lacks(job.model, job.workload),
            *expert_lacks(job.model, plan),
            *pipeline_lacks(job, plan),
            *order_lacks(plan, "Megatron-LM"),
            *zero_plus_lacks(plan, "Megatron-LM"),
            *offload_lacks(plan, "Megatron-LM"),
            *update_lacks(plan, "Megatron-LM"),
            *sent_tokens(plan, "Megatron-LM"),
            *_schedule_lacks(plan),
            *_data_parallel_lacks(plan),
            *_overlap_lacks(plan),
            *_exchange_lacks(plan),
            *_group_lacks(job, plan),
            *precision_lacks(job, "Megatron-LM", PRECISION),
        ]

    def launch(self, job: Job, plan: Plan, options: Options) -> Launch:
        """Arguments of `pretrain_gpt.py`."""
        arguments = [
            *model_arguments(job.model, job.workload),
            *_parallel(plan),
            *_pipeline(plan),
            *_experts(job.model, plan),
            *_data_parallel(plan),
            *_recompute(job.model, plan),
            *_batch(job, plan),
            *PRECISION[job.workload.precision],
            *_run(job, options),
        ]
        return Launch(
            program=PROGRAM,
            arguments=arguments,
            environment=_environment(plan),
            fill_in=_fill_in(options),
            notes=_notes(job, plan),
        )


def _schedule_lacks(plan: Plan) -> list[str]:
    if plan.schedule in (Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED):
        return []
    return [f"schedule={plan.schedule}: Megatron-LM has 1F1B and interleaved 1F1B only"]


def _data_parallel_lacks(plan: Plan) -> list[str]:
    found = []
    if plan.zero >= 2 and plan.pp > 1:
        found.append(
            f"zero={plan.zero}: Megatron-FSDP shards gradients and weights only without a pipeline (pp=1)"
        )
    if plan.offload_optimizer and plan.zero != 1:
        found.append(
            f"offload_optimizer=true: Megatron-LM offloads its distributed optimizer only (zero=1, "
            f"not {plan.zero})"
        )
    return found


def _overlap_lacks(plan: Plan) -> list[str]:
    found = []
    if plan.overlap_tp and not (plan.sequence_parallel and plan.tp > 1):
        found.append(
            "overlap_tp=true: Megatron-LM overlaps tensor parallelism only with sequence_parallel and tp > 1"
        )
    if plan.overlap_pp and plan.pp > 1 and plan.vpp == 1:
        found.append("overlap_pp=true: Megatron-LM overlaps pipeline transfers only with vpp > 1")
    if plan.overlap_ep and plan.pp > 1 and plan.vpp == 1:
        found.append(
            "overlap_ep=true: Megatron-LM overlaps expert parallelism in a pipeline only with vpp > 1"
        )
    if plan.overlap_ep and plan.recompute is Recompute.FULL:
        found.append("overlap_ep=true: Megatron-LM overlaps expert parallelism only without recompute=full")
    if not plan.overlap_pp and plan.vpp > 1 and plan.pp == 2:
        found.append("overlap_pp=false: with vpp > 1 Megatron-LM turns this overlap off only for pp > 2")
    return found


def _exchange_lacks(plan: Plan) -> list[str]:
    found = []
    if plan.hierarchical_ep:
        found.append("hierarchical_ep=true: Megatron-LM's dispatchers send to every rank, or once to a node")
    if plan.migrate_every:
        found.append(f"migrate_every={plan.migrate_every}: Megatron-LM leaves experts where they are")
    if plan.dispatch is Dispatch.PADDED:
        found.append("dispatch=padded: Megatron-LM pads without Tutel's combining in fp32 (dispatch=plain)")
    if plan.dispatch is Dispatch.EINSUM:
        found.append("dispatch=einsum: Megatron-LM moves tokens by index, without masks over slots")
    return found


def _group_lacks(job: Job, plan: Plan) -> list[str]:
    found, moe = [], job.model.moe
    edp = plan.tp * plan.cp * plan.dp / (_expert_tp(job.model, plan) * plan.ep)
    if plan.rank_order is RankOrder.TP_CP_PP_DP and plan.pp > 1 and edp != plan.dp:
        found.append(
            f"rank_order={plan.rank_order}: Megatron-LM needs as many replicas of experts as of the rest, "
            f"not {edp:g} and {plan.dp}"
        )
    if moe and plan.tp > 1 and not plan.sequence_parallel:
        found.append("sequence_parallel=false: Megatron-LM trains experts beside tp > 1 only with it")
    if moe and plan.etp > 1 and any(biases(job.model)):
        found.append(f"etp={plan.etp}: Megatron-LM splits experts only where no linear layer has a bias")
    if plan.cp > 1 and job.workload.seq_len % (2 * plan.cp):
        found.append(
            f"cp={plan.cp}: Megatron-LM cuts a sequence into 2*cp pieces, and {job.workload.seq_len} "
            "tokens do not divide"
        )
    return found


def _expert_tp(model: ModelSpec, plan: Plan) -> int:
    """Width of the expert groups, which Megatron-LM builds, and checks, for dense models too."""
    if model.moe:
        return plan.etp
    return plan.tp * plan.cp if plan.rank_order is RankOrder.TP_CP_PP_DP else plan.tp


_CP_WORDS = {CpKind.RING: "p2p", CpKind.ULYSSES: "a2a", CpKind.ALL_GATHER: "all_gather"}


def _parallel(plan: Plan) -> Arguments:
    found = [
        flag("--tensor-model-parallel-size", plan.tp),
        flag("--pipeline-model-parallel-size", plan.pp),
        flag("--context-parallel-size", plan.cp),
    ]
    if plan.cp > 1:
        found.append(flag("--cp-comm-type", _CP_WORDS[plan.cp_kind]))
    if plan.sequence_parallel and plan.tp > 1:
        found.append(flag("--sequence-parallel"))
    if plan.rank_order is RankOrder.TP_CP_PP_DP:
        found.append(flag("--use-tp-pp-dp-mapping"))
    if plan.overlap_tp:
        found.append(flag("--tp-comm-overlap"))
    return found


def _pipeline(plan: Plan) -> Arguments:
    found: Arguments = []
    if plan.vpp > 1:
        found.append(flag("--num-virtual-stages-per-pipeline-rank", plan.vpp))
        found += [] if plan.overlap_pp else [flag("--no-overlap-p2p-communication")]
    if plan.pp > 1 and plan.first_layers:
        found.append(flag("--decoder-first-pipeline-num-layers", plan.first_layers))
    if plan.pp > 1 and plan.last_layers:
        found.append(flag("--decoder-last-pipeline-num-layers", plan.last_layers))
    return found


def _experts(model: ModelSpec, plan: Plan) -> Arguments:
    if model.moe:
        return [
            flag("--expert-model-parallel-size", plan.ep),
            flag("--expert-tensor-parallel-size", plan.etp),
            *_dispatch(model.moe, plan),
        ]
    width = _expert_tp(model, plan)
    return [] if width == plan.tp else [flag("--expert-tensor-parallel-size", width)]


def _dispatch(moe: MoeSpec, plan: Plan) -> Arguments:
    found = [flag("--moe-token-dispatcher-type", "flex" if plan.deduplicate_ep else "alltoall")]
    if plan.deduplicate_ep:
        found.append(flag("--moe-flex-dispatcher-backend", "deepep"))
    if moe.capacity_factor is not None and plan.dispatch is not Dispatch.PADDING_FREE:
        found.append(flag("--moe-pad-expert-input-to-capacity"))
    if plan.overlap_ep:
        found.append(flag("--overlap-moe-expert-parallel-comm"))
    return found


def _data_parallel(plan: Plan) -> Arguments:
    found: Arguments = []
    if plan.zero >= 1:
        found.append(flag("--use-distributed-optimizer"))
    if plan.zero >= 2:
        found.append(flag("--use-megatron-fsdp"))
        found.append(flag("--data-parallel-sharding-strategy", SHARDING[plan.zero]))
        found.append(flag("--ckpt-format", "fsdp_dtensor"))
    if plan.overlap_dp:
        found.append(flag("--overlap-grad-reduce"))
        found += [flag("--overlap-param-gather")] if plan.zero else []
    if plan.offload_optimizer:
        found += [flag("--optimizer-cpu-offload"), flag("--optimizer-offload-fraction", 1.0)]
        found.append(flag("--use-precision-aware-optimizer"))
    return found


def _recompute(model: ModelSpec, plan: Plan) -> Arguments:
    match plan.recompute:
        case Recompute.NONE | Recompute.SELECTIVE:
            core = ["core_attn"] if plan.recompute is Recompute.SELECTIVE else []
            named = [] if plan.recompute_modules is NO_MODULES else plan.recompute_modules.split("+")
            if not core + named:
                return []
            return [
                flag("--recompute-granularity", "selective"),
                flag("--recompute-modules", *core, *named),
            ]
        case Recompute.FULL:
            method = "uniform" if plan.recompute_every == 1 else "block"
            return [
                flag("--recompute-granularity", "full"),
                flag("--recompute-method", method),
                flag(
                    "--recompute-num-layers", 1 if method == "uniform" else recomputed_per_chunk(model, plan)
                ),
            ]


def recomputed_per_chunk(model: ModelSpec, plan: Plan) -> int:
    """Layers of each model chunk that `--recompute-method block` recomputes: every n-th one, rounded up."""
    chunk = max(stage_layers(model.n_layers, plan)) // plan.vpp
    return math.ceil(chunk / plan.recompute_every)


def _batch(job: Job, plan: Plan) -> Arguments:
    return [
        flag("--micro-batch-size", plan.micro_batch),
        flag("--global-batch-size", plan.micro_batch * n_microbatches(job, plan) * plan.dp),
        flag("--seq-length", job.workload.seq_len),
    ]


def _run(job: Job, options: Options) -> Arguments:
    tokenizer = [
        flag("--tokenizer-type", "NullTokenizer"),
        flag("--vocab-size", job.model.embedding.vocab_size),
    ]
    if options.tokenizer:
        tokenizer = [
            flag("--tokenizer-type", "HuggingFaceTokenizer"),
            flag("--tokenizer-model", options.tokenizer),
        ]
    return [
        *tokenizer,
        flag("--data-path", options.data_path) if options.data_path else flag("--mock-data"),
        *([flag("--grad-reduce-in-bf16")] if _reduces_in_bf16(job.workload) else []),
        flag("--train-iters", options.train_steps),
        flag("--lr", "1e-4"),
        flag("--log-interval", 1),
        flag("--log-throughput"),
        flag("--eval-iters", 0),
        flag("--transformer-impl", "transformer_engine"),
        *((word,) for word in options.extra),
    ]


def _reduces_in_bf16(workload: Workload) -> bool:
    return workload.training_state.gradient_bytes == 2.0 and workload.precision in (
        Precision.BF16,
        Precision.FP8,
        Precision.MXFP8,
        Precision.NVFP4,
    )


def _environment(plan: Plan) -> dict[str, str]:
    if plan.zero >= 2:
        return {"CUDA_DEVICE_MAX_CONNECTIONS": "32"}  # Megatron-FSDP refuses 1
    if plan.tp > 1 or plan.cp > 1:
        return {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}  # before Blackwell Megatron-LM insists on 1
    return {}


def _fill_in(options: Options) -> list[str]:
    found = [] if options.program else ["MEGATRON_LM: the folder of a Megatron-LM checkout (core 0.19)"]
    found += [] if options.data_path else ["--mock-data in train.sh: replace it by --data-path PREFIX"]
    found += (
        [] if options.tokenizer else ["--tokenizer-type in train.sh: NullTokenizer has the right size only"]
    )
    return [*found, "--lr and --train-iters in train.sh: placeholders that do not change a step's cost"]


def _notes(job: Job, plan: Plan) -> list[str]:
    found = []
    if job.model.attention.latent is None and not job.model.embedding.n_positions:
        found.append(
            "The base and scaling of the rotary positions are Megatron-LM's defaults (--rotary-base)."
        )
    if job.model.moe is None and job.model.mlp.n_matrices == 2:
        found.append("The activation is GELU; for squared ReLU add --squared-relu.")
    if job.workload.precision is Precision.FP8:
        found.append("8-bit products use the tensorwise recipe; see --fp8-recipe for the others.")
    if job.workload.cuda_graphs is not CudaGraphs.NONE:
        found.append("CUDA graphs are priced but not written; see --cuda-graph-impl and --cuda-graph-scope.")
    if job.workload.fp8_dispatch:
        found.append("Tokens are priced as sent in 8 bits; the flags written send 16.")
    if plan.recompute is Recompute.FULL and plan.recompute_every > 1:
        n = recomputed_per_chunk(job.model, plan)
        found.append(
            f"One layer in {plan.recompute_every} recomputed is written as the first {n} of each model chunk."
        )
    return found
