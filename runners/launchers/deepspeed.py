"""DeepSpeed 0.19.8 under Megatron-DeepSpeed: the engine's JSON, and arguments that agree with it.

Source: deepspeed/runtime/config.py, deepspeed/runtime/pipe/engine.py; the arguments are those of
github.com/deepspeedai/Megatron-DeepSpeed, megatron/arguments.py.
"""

import json
from typing import Any, Literal

from objectives.metrics import Job
from runners.launchers.base import (
    Arguments,
    Launch,
    Options,
    expert_exchange,
    expert_lacks,
    flag,
    n_microbatches,
    order_lacks,
    pipeline_lacks,
    precision_lacks,
    sent_tokens,
    update_lacks,
)
from runners.launchers.deepspeed_model import model_arguments, model_lacks
from search_spaces.plan import (
    NO_MODULES,
    CpKind,
    Dispatch,
    ExpertTokens,
    Plan,
    RankOrder,
    Recompute,
    Schedule,
)
from search_spaces.workload import Precision

CONFIG = "ds_config.json"
HOME = "github.com/deepspeedai/Megatron-DeepSpeed"
PROGRAM = f'"${{MEGATRON_DEEPSPEED:?set MEGATRON_DEEPSPEED to a checkout of {HOME}}}/pretrain_gpt.py"'
ENGINE_ARGUMENTS = f'--deepspeed --deepspeed_config "$HERE/{CONFIG}"'
# DeepSpeed takes an unknown key of this level without a word, so we look before it does.
KNOWN_KEYS = frozenset(
    {
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "steps_per_print",
        "zero_optimization",
        "zero_allow_untested_optimizer",
        "bf16",
        "fp16",
        "data_types",
        "activation_checkpointing",
    }
)


class DeepSpeed:
    """The launcher `deepspeed`."""

    name: Literal["deepspeed"] = "deepspeed"

    def lacks(self, job: Job, plan: Plan) -> list[str]:
        """What DeepSpeed or Megatron-DeepSpeed cannot express."""
        return [
            *model_lacks(job.model, job.workload),
            *expert_lacks(job.model, plan),
            *pipeline_lacks(job, plan),
            *order_lacks(plan, "DeepSpeed"),
            *update_lacks(plan, "DeepSpeed"),
            *sent_tokens(plan, "DeepSpeed", sends=[ExpertTokens.DROPPED]),
            *_pipeline_lacks(job, plan),
            *_group_lacks(job, plan),
            *_state_lacks(job, plan),
            *_sharding_lacks(plan),
            *_chunk_lacks(job, plan),
            *_overlap_lacks(job, plan),
        ]

    def launch(self, job: Job, plan: Plan, options: Options) -> Launch:
        """The engine's JSON and the arguments of `pretrain_gpt.py`."""
        config = engine_config(job, plan)
        arguments = [
            *model_arguments(job.model, job.workload),
            *_parallel(job, plan),
            *_recompute(plan),
            *_batch(config, job),
            *_run(job, options),
        ]
        needs_one = plan.sequence_parallel and plan.tp > 1
        return Launch(
            program=PROGRAM,
            fixed_arguments=ENGINE_ARGUMENTS,
            arguments=arguments,
            environment={"CUDA_DEVICE_MAX_CONNECTIONS": "1"} if needs_one else {},
            files={CONFIG: json.dumps(config, indent=2) + "\n"},
            fill_in=_fill_in(options),
            notes=_notes(job, plan),
        )


def engine_config(job: Job, plan: Plan) -> dict[str, Any]:
    """DeepSpeed's own configuration of the plan."""
    config: dict[str, Any] = {
        "train_batch_size": job.workload.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": n_microbatches(job, plan),
        "gradient_clipping": 1.0,
        "steps_per_print": 1,
        "zero_optimization": _zero(plan),
    }
    if job.workload.precision is Precision.BF16:
        config["bf16"] = {"enabled": True}
        # Without ZeRO the engine refuses to add bf16 gradients up in 32 bits (`_do_optimizer_sanity_check`).
        wide = plan.zero > 0 and job.workload.training_state.gradient_bytes == 4.0
        config["data_types"] = {"grad_accum_dtype": "fp32" if wide else "bf16"}
    if job.workload.precision is Precision.FP16:
        config["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
    if plan.offload_checkpoints:
        config["activation_checkpointing"] = {"cpu_checkpointing": True}
    assert config.keys() <= KNOWN_KEYS, config.keys() - KNOWN_KEYS
    return config


def _zero(plan: Plan) -> dict[str, Any]:
    found: dict[str, Any] = {"stage": plan.zero}
    if plan.zero:
        found |= {"overlap_comm": plan.overlap_dp, "contiguous_gradients": True, "reduce_scatter": True}
    if plan.offload_optimizer:
        found["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if plan.overlap_offload:
            found["offload_optimizer"]["super_offload"] = True
    if plan.quantized_weights:
        found["zero_quantized_weights"] = True
    if plan.hpz > 1:
        found["zero_hpz_partition_size"] = plan.hpz
    if plan.quantized_gradients:
        found["zero_quantized_gradients"] = True
    return found


def _sharding_lacks(plan: Plan) -> list[str]:
    asked = {
        "quantized_weights=true": plan.quantized_weights,
        f"hpz={plan.hpz}": plan.hpz > 1,
        "quantized_gradients=true": plan.quantized_gradients,
    }
    return [
        f"{what}: DeepSpeed's ZeRO++ needs zero=3, not {plan.zero}"
        for what, is_asked in asked.items()
        if is_asked and plan.zero != 3
    ]


def _chunk_lacks(job: Job, plan: Plan) -> list[str]:
    found = []
    if plan.sequence_chunk and (plan.cp == 1 or plan.recompute is not Recompute.FULL):
        found.append(
            f"sequence_chunk={plan.sequence_chunk}: DeepSpeed's chunks run beside Ulysses (cp above 1) and "
            "recompute=full"
        )
    if plan.sequence_chunk and (job.model.moe or not job.workload.flash_attention):
        found.append(f"sequence_chunk={plan.sequence_chunk}: DeepSpeed's chunks are of dense layers, fused")
    if plan.sequence_chunk and job.workload.seq_len % plan.sequence_chunk:
        found.append(f"sequence_chunk={plan.sequence_chunk}: it must divide seq_len={job.workload.seq_len}")
    if plan.offload_sequence and not plan.sequence_chunk:
        found.append("offload_sequence=true: DeepSpeed offloads the chunks of a sequence (sequence_chunk)")
    if plan.offload_checkpoints and plan.recompute is not Recompute.FULL:
        found.append("offload_checkpoints=true: there are none without recompute=full")
    return found


def _pipeline_lacks(job: Job, plan: Plan) -> list[str]:
    found = []
    if plan.schedule not in (Schedule.ONE_F_ONE_B, Schedule.ZB_H1) or plan.vpp > 1:
        found.append(
            f"schedule={plan.schedule}, vpp={plan.vpp}: DeepSpeed's pipeline engine has 1F1B and ZB-H1 only"
        )
    if plan.schedule is Schedule.ZB_H1 and plan.sequence_parallel:
        found.append("sequence_parallel=true: Megatron-DeepSpeed refuses it beside ZB-H1")
    if plan.pp > 1 and plan.zero >= 2:
        found.append(f"zero={plan.zero}: DeepSpeed's pipeline engine takes ZeRO 0 and 1 only")
    if plan.first_layers or plan.last_layers:
        knobs = f"first_layers={plan.first_layers}, last_layers={plan.last_layers}"
        found.append(f"{knobs}: Megatron-DeepSpeed spreads the layers evenly")
    if plan.pp > 1 and job.model.moe:
        found.append(f"pp={plan.pp}: Megatron-DeepSpeed trains experts without a pipeline")
    return found


def _group_lacks(job: Job, plan: Plan) -> list[str]:
    found = []
    if plan.cp > 1 and plan.cp_kind is not CpKind.ULYSSES:
        found.append(f"cp_kind={plan.cp_kind}: DeepSpeed splits a sequence by Ulysses only")
    if plan.cp > 1 and (plan.pp > 1 or plan.sequence_parallel):
        found.append(f"cp={plan.cp}: DeepSpeed-Ulysses runs without a pipeline and without sequence_parallel")
    if plan.rank_order is not RankOrder.TP_CP_DP_PP:
        found.append(f"rank_order={plan.rank_order}: Megatron-DeepSpeed has tp-cp-dp-pp only")
    if job.model.moe is None:
        return found
    if plan.tp > 1 and not plan.sequence_parallel and plan.expert_tokens is ExpertTokens.SHARDED:
        found.append(
            "expert_tokens=sharded: with tp above 1 it takes sequence_parallel; else they are dropped"
        )
    if plan.etp not in (1, plan.tp):
        found.append(f"etp={plan.etp}: experts are split as tp={plan.tp} or not at all")
    if plan.dp % plan.ep:
        found.append(f"ep={plan.ep}: DeepSpeed's expert groups lie inside dp={plan.dp}")
    return found


def _state_lacks(job: Job, plan: Plan) -> list[str]:
    found = []
    if plan.offload_optimizer and plan.zero == 0:
        found.append(
            "offload_optimizer=true: DeepSpeed offloads a sharded optimizer only (zero of at least 1)"
        )
    if plan.overlap_offload and plan.zero != 3:
        found.append("overlap_offload=true: DeepSpeed's super_offload needs zero=3")
    if plan.recompute_modules is not NO_MODULES:
        found.append(
            f"recompute_modules={plan.recompute_modules}: Megatron-DeepSpeed redoes cores or layers only"
        )
    if plan.recompute is Recompute.FULL and plan.recompute_every > 1:
        found.append(
            f"recompute_every={plan.recompute_every}: Megatron-DeepSpeed recomputes every layer or none"
        )
    return [*found, *precision_lacks(job, "DeepSpeed")]


def _overlap_lacks(job: Job, plan: Plan) -> list[str]:
    found = []
    if plan.overlap_tp:
        found.append("overlap_tp=true: Megatron-DeepSpeed does not overlap tensor parallelism")
    if plan.overlap_pp and plan.pp > 1:
        found.append("overlap_pp=true: DeepSpeed's pipeline engine does not overlap its transfers")
    if job.model.has_capacity and plan.dispatch is Dispatch.PLAIN:
        found.append(
            "dispatch=plain: DeepSpeed pads by products with masks (einsum), or as Tutel does (padded)"
        )
    if asked := expert_exchange(plan, Dispatch.PLAIN, Dispatch.EINSUM, Dispatch.PADDED):
        found.append(f"{asked}: DeepSpeed exchanges tokens plainly, and waits for them")
    if plan.overlap_dp and plan.zero == 0:
        found.append("overlap_dp=true: DeepSpeed overlaps gradient reduction only from ZeRO 1 on")
    return found


def _parallel(job: Job, plan: Plan) -> Arguments:
    found = [
        flag("--tensor-model-parallel-size", plan.tp),
        flag("--pipeline-model-parallel-size", plan.pp),
        flag("--zero-stage", plan.zero),
    ]
    if plan.pp == 1:
        found.append(flag("--no-pipeline-parallel"))
    if plan.schedule is Schedule.ZB_H1:
        found.append(flag("--enable-zbh1-pipeline"))
    if plan.cp > 1:
        found.append(flag("--ds-sequence-parallel-size", plan.cp))
    if plan.sequence_chunk:
        found.append(flag("--ds-sequence-parallel-fpdt"))
        found.append(flag("--ds-sequence-parallel-fpdt-chunk-size", plan.sequence_chunk))
        found += [flag("--ds-sequence-parallel-fpdt-offloading")] if plan.offload_sequence else []
    if plan.sequence_parallel and plan.tp > 1:
        found.append(flag("--sequence-parallel"))
    if plan.offload_optimizer:
        found.append(flag("--cpu-optimizer"))
    if job.model.moe:
        found.append(flag("--moe-expert-parallel-size", plan.ep))
        found += [flag("--create-moe-param-group")] if plan.zero else []
        found += [flag("--use-tutel")] if plan.dispatch is Dispatch.PADDED else []
        found += [flag("--enable-expert-tensor-parallelism")] if plan.etp > 1 else []
    return found


def _recompute(plan: Plan) -> Arguments:
    match plan.recompute:
        case Recompute.NONE:
            return []
        case Recompute.SELECTIVE:
            return [flag("--recompute-granularity", "selective")]
        case Recompute.FULL:
            return [
                flag("--checkpoint-activations"),
                flag("--checkpoint-num-layers", 1),
                flag("--deepspeed-activation-checkpointing"),
                *([flag("--checkpoint-in-cpu")] if plan.offload_checkpoints else []),
            ]


def _batch(config: dict[str, Any], job: Job) -> Arguments:
    # From the JSON itself: the two once disagreed in a published log, and the engine obeyed neither.
    found = [
        flag("--micro-batch-size", config["train_micro_batch_size_per_gpu"]),
        flag("--global-batch-size", config["train_batch_size"]),
        flag("--seq-length", job.workload.seq_len),
    ]
    return [*found, *(flag(f"--{name}") for name in ("bf16", "fp16") if name in config)]


def _run(job: Job, options: Options) -> Arguments:
    tokenizer = [
        flag("--tokenizer-type", "NullTokenizer"),
        flag("--vocab-size", job.model.embedding.vocab_size),
    ]
    if options.tokenizer:
        tokenizer = [flag("--tokenizer-type", "HFTokenizer"), flag("--tokenizer-model", options.tokenizer)]
    return [
        *tokenizer,
        flag("--data-path", options.data_path or "FILL_IN_DATA_PATH"),
        flag("--train-iters", options.train_steps),
        flag("--lr", "1e-4"),
        flag("--log-interval", 1),
        flag("--eval-iters", 0),
        *((word,) for word in options.extra),
    ]


def _fill_in(options: Options) -> list[str]:
    found = [] if options.program else ["MEGATRON_DEEPSPEED: the folder of a Megatron-DeepSpeed checkout"]
    found += [] if options.data_path else ["--data-path in train.sh: FILL_IN_DATA_PATH stands for your data"]
    found += (
        [] if options.tokenizer else ["--tokenizer-type in train.sh: NullTokenizer has the right size only"]
    )
    return [*found, "--lr and --train-iters in train.sh: placeholders that do not change a step's cost"]


def _notes(job: Job, plan: Plan) -> list[str]:
    return [*_chunk_notes(job, plan), *_precision_notes(job, plan)]


def _chunk_notes(job: Job, plan: Plan) -> list[str]:
    if not plan.sequence_chunk or job.model.mlp.n_matrices == 2:
        return []
    return [
        "DeepSpeed's chunked MLP (FPDT_FFN) is a GELU with biases: a gated one needs a version that has it."
    ]


def _precision_notes(job: Job, plan: Plan) -> list[str]:
    if job.workload.precision is Precision.BF16 and plan.zero == 0:
        return ["Without ZeRO DeepSpeed adds bf16 gradients up in 16 bits, whatever was modelled."]
    if job.workload.precision is not Precision.FP16:
        return []
    return ["The first steps search the loss scale and skip the optimizer: leave them out of any timing."]
