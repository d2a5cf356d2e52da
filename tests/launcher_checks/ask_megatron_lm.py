"""Asks Megatron-LM itself: its argument parser, its validation, its transformer config, its process groups.

A question is {"argv", "world_size", "environment", "vocab_size"}.
"""

import contextlib
import io
import os
import re
import sys

import stand_ins  # noqa: F401  first
import torch.distributed as dist
from answers import answer_all
from megatron.core import parallel_state
from megatron.core.num_microbatches_calculator import ConstantNumMicroBatchesCalculator
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.training.arguments import core_transformer_config_from_args, parse_args, validate_args
from megatron.training.theoretical_memory_usage import compute_weight_and_optimizer_memory
from torch.testing._internal.distributed.fake_pg import FakeStore

# Kernels of Transformer Engine and apex, which no CPU has; nothing else of the exported arguments is changed.
WITHOUT_KERNELS = ["--no-persist-layer-norm", "--no-gradient-accumulation-fusion", "--no-rope-fusion"]
WITHOUT_KERNELS += ["--transformer-impl", "local"]
RULED = ("CUDA_DEVICE_MAX_CONNECTIONS",)


def ask(question):
    os.environ.update(WORLD_SIZE=str(question["world_size"]), RANK="0", LOCAL_RANK="0")
    for name in RULED:
        os.environ.pop(name, None)
    os.environ.update(question["environment"])
    sys.argv = ["pretrain_gpt.py", *question["argv"], *WITHOUT_KERNELS]
    args = parse_args()
    validate_args(args)
    config = core_transformer_config_from_args(args)
    found = {**batch(args), **groups(args, question["world_size"]), "stages": stages(args, config)}
    return {**found, "parameters": parameters(args, question["vocab_size"])}


def batch(args):
    calculator = ConstantNumMicroBatchesCalculator(
        global_batch_size=args.global_batch_size,
        micro_batch_size=args.micro_batch_size,
        data_parallel_size=args.data_parallel_size,
        decrease_batch_size_if_needed=False,
        rank=args.rank,
    )
    return {"dp": args.data_parallel_size, "n_microbatches": calculator.get()}


def stages(args, config):
    """Layers of every stage, as the model would be built."""
    vpp = args.virtual_pipeline_model_parallel_size
    return [
        sum(get_num_layers_to_build(config, vp_stage=chunk, pp_rank=rank) for chunk in range(vpp or 1))
        if vpp
        else get_num_layers_to_build(config, pp_rank=rank)
        for rank in range(args.pipeline_model_parallel_size)
    ]


def parameters(args, vocab_size):
    """Megatron's own count, which it only prints."""
    args.padded_vocab_size = vocab_size
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        compute_weight_and_optimizer_memory(args, verbose=True)
    return float(re.search(r"Total number of parameters in billions: *([0-9.]+)", said.getvalue())[1]) * 1e9


def groups(args, world_size):
    """Ranks that rank 0 shares a group with, on a process group that only pretends."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    try:
        parallel_state.initialize_model_parallel(
            args.tensor_model_parallel_size,
            args.pipeline_model_parallel_size,
            args.virtual_pipeline_model_parallel_size,
            context_parallel_size=args.context_parallel_size,
            expert_model_parallel_size=args.expert_model_parallel_size,
            expert_tensor_parallel_size=args.expert_tensor_parallel_size,
            order="tp-cp-ep-pp-dp" if args.use_tp_pp_dp_mapping else "tp-cp-ep-dp-pp",
            create_gloo_process_groups=False,
        )
        return {
            "tp_ranks": dist.get_process_group_ranks(parallel_state.get_tensor_model_parallel_group()),
            "pp_ranks": dist.get_process_group_ranks(parallel_state.get_pipeline_model_parallel_group()),
            "ep_ranks": dist.get_process_group_ranks(parallel_state.get_expert_model_parallel_group()),
        }
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


if __name__ == "__main__":
    answer_all(ask)
