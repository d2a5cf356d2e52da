"""llm-foundry 0.22 through Composer: FSDP and the model in a YAML, the batch on the command line.

    zero=0  no fsdp_config: Composer wraps the model in DistributedDataParallel
    zero=2  SHARD_GRAD_OP, gathered weights are kept for the backward pass
    zero=3  FULL_SHARD

Composer's own launcher sets the variables that torchrun sets too: run.sh and job.sbatch start it by torchrun.

Source: llmfoundry/utils/config_utils.py (TrainConfig), models/mpt/configuration_mpt.py;
composer/utils/parallelism.py (FSDPConfig), distributed/mosaic_parallelism.py (precisions).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from objectives.metrics import Job
from runners.launchers.base import (
    Arguments,
    Launch,
    Options,
    binding_window,
    expert_lacks,
    n_microbatches,
    offload_lacks,
    order_lacks,
    precision_lacks,
    update_lacks,
    waiting_lacks,
    zero_plus_lacks,
)
from search_spaces.model import ModelSpec, NormKind, QkNorm
from search_spaces.plan import NO_MODULES, Plan, RankOrder, Recompute, Schedule
from search_spaces.workload import Precision, Workload

CONFIG = "train.yaml"
HOME = "github.com/mosaicml/llm-foundry"
PROGRAM = f'"${{LLM_FOUNDRY:?set LLM_FOUNDRY to a checkout of {HOME}}}/scripts/train/train.py"'
PRECISION = {Precision.BF16: "amp_bf16", Precision.FP16: "amp_fp16", Precision.FP32: "fp32"}
SHARDING = {2: "SHARD_GRAD_OP", 3: "FULL_SHARD"}
NORMS = {
    NormKind.RMS: "rmsnorm",
    NormKind.LAYER: "layernorm",
    NormKind.LAYER_NO_BIAS: "layernorm",
}


class LLMFoundry:
    """The launcher `llm-foundry`."""

    name: Literal["llm-foundry"] = "llm-foundry"

    def lacks(self, job: Job, plan: Plan) -> list[str]:
        """What llm-foundry cannot express."""
        return [
            *_model_lacks(job.model, job.workload),
            *expert_lacks(job.model, plan, dense_only="llm-foundry"),
            *order_lacks(plan, "llm-foundry"),
            *zero_plus_lacks(plan, "llm-foundry"),
            *offload_lacks(plan, "llm-foundry"),
            *waiting_lacks(plan, "llm-foundry"),
            *update_lacks(plan, "llm-foundry"),
            *_group_lacks(plan),
            *_step_lacks(job, plan),
        ]

    def launch(self, job: Job, plan: Plan, options: Options) -> Launch:
        """The YAML, and the words that override it."""
        text = "\n".join(_yaml(_config(job, plan, options))) + "\n"
        # In one place only: a batch that is said twice may be said differently.
        arguments: Arguments = [
            (f"global_train_batch_size={plan.micro_batch * n_microbatches(job, plan) * plan.dp}",),
            (f"device_train_microbatch_size={plan.micro_batch}",),
            (f"max_duration={options.train_steps}ba",),
            *((word,) for word in options.extra),
        ]
        return Launch(
            program=PROGRAM,
            fixed_arguments=f'"$HERE/{CONFIG}"',
            arguments=arguments,
            files={CONFIG: text},
            fill_in=_fill_in(options),
            notes=_notes(plan),
        )


def fsdp_config(job: Job, plan: Plan) -> dict[str, Any] | None:
    """Composer's `fsdp_config`; None where nothing is sharded and nothing is recomputed."""
    recomputes = plan.recompute is Recompute.FULL
    if plan.zero == 0:
        return None
    wide = job.workload.training_state.gradient_bytes == 4.0
    return {
        "sharding_strategy": SHARDING[plan.zero],
        "mixed_precision": "DEFAULT" if wide else "PURE",  # gradients are reduced in 32 bits, or in 16
        "activation_checkpointing": recomputes,
        "activation_checkpointing_reentrant": False,
        "activation_cpu_offload": False,
        "limit_all_gathers": True,
        "backward_prefetch": "BACKWARD_PRE",
        "state_dict_type": "sharded",
    }


def _config(job: Job, plan: Plan, options: Options) -> dict[str, Any]:
    data: dict[str, Any] = {"local": options.data_path or "FILL_IN_DATA_PATH", "split": "train"}
    data |= {"shuffle": True, "max_seq_len": job.workload.seq_len}
    return {
        "max_seq_len": job.workload.seq_len,
        "seed": 17,
        "precision": PRECISION[job.workload.precision],
        "model": model_config(job.model, job.workload),
        "tokenizer": {
            "name": options.tokenizer or "FILL_IN_TOKENIZER",
            "kwargs": {"model_max_length": job.workload.seq_len},
        },
        "train_loader": {"name": "text", "dataset": data, "drop_last": True, "num_workers": 8},
        "optimizer": {"name": "decoupled_adamw", "lr": 0.0001, "betas": [0.9, 0.95], "weight_decay": 0.0},
        "scheduler": {"name": "cosine_with_warmup", "t_warmup": "10ba", "alpha_f": 0.1},
        "algorithms": {"gradient_clipping": {"clipping_type": "norm", "clipping_threshold": 1.0}},
        "fsdp_config": fsdp_config(job, plan),
        "device_eval_batch_size": plan.micro_batch,
        "eval_interval": 0,
        "eval_first": False,
        "progress_bar": False,
        "log_to_console": True,
        "console_log_interval": "1ba",
        "callbacks": {"speed_monitor": {"window_size": 1}, "memory_monitor": {}},
    }


def model_config(model: ModelSpec, workload: Workload) -> dict[str, Any]:
    """The model as `mpt_causal_lm` takes it: the blocks of MPT build GPT's kind and Llama's."""
    attention, embedding = model.attention, model.embedding
    rotary = not embedding.n_positions
    attn: dict[str, Any] = {"attn_impl": "flash", "attn_type": "grouped_query_attention"}
    attn |= {"kv_n_heads": attention.n_kv_heads, "rope": rotary}
    attn |= {"rope_impl": "hf", "rope_theta": 500000} if rotary else {}
    window = binding_window(model, workload)
    attn |= {} if window is None else {"sliding_window_size": window}
    return {
        "name": "mpt_causal_lm",
        "init_device": "meta",
        "d_model": model.d_model,
        "n_heads": attention.n_heads,
        "n_layers": model.n_layers,
        "max_seq_len": embedding.n_positions or workload.seq_len,
        "vocab_size": embedding.vocab_size,
        "tie_word_embeddings": embedding.tied,
        "learned_pos_emb": not rotary,
        "no_bias": not attention.qkv_bias,
        "norm_type": NORMS[model.norm],
        "attn_config": attn,
        "ffn_config": {
            "ffn_type": "mptglu" if model.mlp.n_matrices == 3 else "mptmlp",
            "ffn_hidden_size": model.mlp.width,
        },
    }


def _model_lacks(model: ModelSpec, workload: Workload) -> list[str]:
    """Fields of a model that MPT's blocks, as Meshtune writes them, do not have."""
    attention, embedding = model.attention, model.embedding
    biases = {attention.qkv_bias, attention.out_bias, model.mlp.bias}
    # Its one switch, no_bias, is for all linear layers and for the layer norms.
    biases |= {model.norm is NormKind.LAYER} if model.norm is not NormKind.RMS else set()
    absent = {
        "moe": model.moe is not None,
        f"n_predict_layers={model.n_predict_layers}": model.n_predict_layers > 0,
        f"norm={model.norm}": model.norm not in NORMS,
        f"norms_per_layer={model.norms_per_layer}": model.norms_per_layer != 2,
        "parallel_block=true": model.parallel_block,
        "final_norm=false": not model.final_norm,
        "attention.qkv_bias, attention.out_bias, mlp.bias or embedding.head_bias in some places only": (
            len(biases) > 1 or embedding.head_bias
        ),
        f"attention.qk_norm={attention.qk_norm}": attention.qk_norm is not QkNorm.NONE,
        f"attention.head_dim={attention.head_dim}": attention.n_heads * attention.head_dim != model.d_model,
        "attention.latent": attention.latent is not None,
        "attention.sinks=true": attention.sinks,
        "attention.chunked=true": attention.chunked and binding_window(model, workload) is not None,
        f"embedding.width={embedding.width}": embedding.width not in (None, model.d_model),
    }
    found = [f"{what}: MPT's blocks do not have it" for what, is_absent in absent.items() if is_absent]
    if 0 < embedding.n_positions < workload.seq_len:
        end = embedding.n_positions
        found.append(f"seq_len={workload.seq_len}: the model's learned positions end at {end}")
    return found


def _group_lacks(plan: Plan) -> list[str]:
    found = [
        f"{name}={getattr(plan, name)}: llm-foundry shards and replicates only (dp)"
        for name in ("tp", "pp", "cp", "vpp")
        if getattr(plan, name) > 1
    ]
    if plan.schedule is not Schedule.ONE_F_ONE_B or plan.first_layers or plan.last_layers:
        found.append(f"schedule={plan.schedule}: llm-foundry has no pipeline")
    if plan.rank_order is not RankOrder.TP_CP_DP_PP:
        found.append(f"rank_order={plan.rank_order}: there is one axis only")
    if plan.zero == 1:
        found.append("zero=1: FSDP shards gradients too (zero=2), and weights (zero=3)")
    return found


def _step_lacks(job: Job, plan: Plan) -> list[str]:
    found = []
    if plan.offload_optimizer:
        found.append("offload_optimizer=true: FSDP offloads weights, gradients and optimizer only together")
    if plan.recompute is Recompute.SELECTIVE or plan.recompute_modules is not NO_MODULES:
        found.append(
            f"recompute={plan.recompute}, recompute_modules={plan.recompute_modules}: llm-foundry redoes "
            "whole blocks"
        )
    if plan.recompute_every > 1:
        found.append(f"recompute_every={plan.recompute_every}: llm-foundry redoes every block or none")
    if plan.recompute is Recompute.FULL and plan.zero == 0:
        found.append("recompute=full: Composer wraps blocks for it only as FSDP does (zero=2 or 3)")
    found += precision_lacks(job, "llm-foundry, as Meshtune writes it,", PRECISION)
    if plan.overlap_tp or plan.overlap_pp:
        found.append("overlap_tp=true or overlap_pp=true: there is nothing to overlap")
    return found


def _yaml(document: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Nested tables as YAML; every value is JSON, which any version of YAML reads the same."""
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield f"{indent}{key}:"
            yield from _yaml(value, indent + "  ")
        else:
            yield f"{indent}{key}: {json.dumps(value)}"


def _fill_in(options: Options) -> list[str]:
    found = [] if options.program else ["LLM_FOUNDRY: the folder of an llm-foundry checkout"]
    found += [] if options.tokenizer else [f"tokenizer.name in {CONFIG}: FILL_IN_TOKENIZER"]
    found += [] if options.data_path else [f"train_loader.dataset.local in {CONFIG}: FILL_IN_DATA_PATH"]
    return [*found, f"optimizer and scheduler in {CONFIG}: placeholders that do not change a step's cost"]


def _notes(plan: Plan) -> list[str]:
    found = ["OmegaConf reads the YAML: a ${...} in a path or a name would be replaced."]
    if plan.zero == 0:
        found.append("Without sharding Composer wraps the whole model in DistributedDataParallel.")
    return found
