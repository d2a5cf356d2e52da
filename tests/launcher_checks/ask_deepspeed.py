"""Asks DeepSpeed itself about its JSON.  A question is {"config", "dp"}."""

import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed.comm
import torch.distributed as dist
from answers import answer_all
from deepspeed.runtime.config import DeepSpeedConfig
from torch.testing._internal.distributed.fake_pg import FakeStore


class Grid:
    """As much of Megatron's parallel state as the configuration asks for."""

    def __init__(self, dp):
        self.dp = dp

    def get_data_parallel_world_size(self):
        return self.dp


def ask(question):
    config = DeepSpeedConfig(question["config"], mpu=Grid(question["dp"]))
    zero = config.zero_config
    return {
        "dp": config.world_size,
        "micro_batch": config.train_micro_batch_size_per_gpu,
        "n_microbatches": config.gradient_accumulation_steps,
        "global_batch": config.train_batch_size,
        "stage": int(zero.stage),
        "overlap": zero.overlap_comm,
        "offload": str(getattr(zero.offload_optimizer.device, "value", zero.offload_optimizer.device))
        if zero.offload_optimizer
        else None,
        "bf16": config.bfloat16_config.enabled,
        "fp16": config.float16_config.enabled,
    }


if __name__ == "__main__":
    # Without a process group DeepSpeed takes every job for one of one device; and on CPUs it would compile an
    # operation of its own first, for a minute and a half.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # the attribute of that name is torch
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    deepspeed.comm.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    answer_all(ask)
