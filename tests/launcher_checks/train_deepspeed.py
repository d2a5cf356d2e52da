"""A small model really trained by DeepSpeed on CPUs, by the JSON that an export wrote.

Takes the arguments of a launch and obeys those that a model of this size can: the engine's configuration
decides the batch, ZeRO and the precision.  It lets the engine print its steps.
"""

import argparse
import json
import os
import sys

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import deepspeed.comm
import torch
from deepspeed.utils.logging import logger, set_log_level_from_string

WIDTH, N_LAYERS = 256, 4


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--deepspeed", action="store_true")
    parser.add_argument("--deepspeed_config")
    parser.add_argument("--train-iters", type=int)
    arguments, _ = parser.parse_known_args()
    with open(arguments.deepspeed_config) as file:
        config = json.load(file)
    # On CPUs DeepSpeed would compile an operation of its own first, for a minute and a half.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    set_log_level_from_string("info")
    for handler in logger.handlers:
        handler.setLevel("INFO")
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(N_LAYERS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    config["zero_allow_untested_optimizer"] = True
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    micro_batch = engine.train_micro_batch_size_per_gpu()
    for _ in range(arguments.train_iters * engine.gradient_accumulation_steps()):
        batch = torch.randn(micro_batch, WIDTH, dtype=next(engine.module.parameters()).dtype)
        loss = engine(batch).float().pow(2).mean()
        engine.backward(loss)
        engine.step()
    print(f"trained {engine.global_steps} steps at ZeRO {engine.zero_optimization_stage()}", flush=True)
    sys.stdout.flush()
    os._exit(0)  # a process group of gloo may hang when it is taken down


if __name__ == "__main__":
    main()
