"""Asks torchtitan itself: its config manager, its mesh, its pipeline split, its model.

A question is {"argv", "world_size", "folder"}, the folder being on the path as train.sh puts it there.
"""

import csv
import sys
from pathlib import Path

import stand_ins  # noqa: F401  first
import torch
from answers import answer_all
from torch.distributed.pipelining._utils import generate_stage_to_rank_mapping
from torch.distributed.pipelining.schedules import _Action, _validate_schedule, get_schedule_class
from torchtitan.config import ConfigManager
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.pipeline_parallel import _generate_llm_fqn_per_model_part, _get_pipeline_metadata

FOLDED = ("ZBVZeroBubble", "DualPipeV")


def ask(question):
    sys.path.insert(0, question["folder"])
    try:
        config = ConfigManager().parse_args(question["argv"])
    finally:
        sys.path.remove(question["folder"])
        sys.modules.pop("meshtune_config", None)
    mesh = ParallelDims.from_config(config.parallelism, question["world_size"])
    sizes = {name: getattr(mesh, name) for name in ("dp_replicate", "dp_shard", "cp", "tp", "pp", "ep")}
    sizes["recompute"] = type(config.activation_checkpoint).__qualname__
    steps, passes = batch(config, mesh), Path(question["folder"], "schedule.csv")
    order = read_order(passes, config, mesh) if passes.is_file() else None
    return {**sizes, **steps, **model(config), "stages": stages(config, mesh, order)}


def batch(config, mesh):
    local, micro = config.training.local_batch_size, config.parallelism.pipeline_parallel_microbatch_size
    samples = local * mesh.dp_replicate * mesh.dp_shard
    steps, rest = divmod(config.training.global_batch_size, samples)
    assert rest == 0, f"global batch {config.training.global_batch_size} is not a multiple of {samples}"
    return {"n_microbatches": steps * (local // micro if mesh.pp > 1 else 1)}


def model(config):
    spec = config.model_spec.model
    with torch.device("meta"):
        built = spec.build()
    return {"n_layers": len(spec.layers), "parameters": sum(each.numel() for each in built.parameters())}


def read_order(path, config, mesh):
    """The rank of every stage, as the runtime takes it from a file of passes that it finds in order."""
    with path.open(newline="") as file:
        actions = {
            rank: [_Action.from_str(cell) for cell in row] for rank, row in enumerate(csv.reader(file))
        }
    local, micro = config.training.local_batch_size, config.parallelism.pipeline_parallel_microbatch_size
    n_stages = mesh.pp * (2 if config.parallelism.pipeline_parallel_schedule in FOLDED else 1)
    return _validate_schedule(actions, mesh.pp, n_stages, local // micro)


def stages(config, mesh, order):
    """Layers of every rank's stages, as the pipeline would split them."""
    if mesh.pp == 1:
        return [len(config.model_spec.model.layers)]
    name = config.parallelism.pipeline_parallel_schedule
    get_schedule_class(name)
    split = _get_pipeline_metadata(mesh, config.parallelism, config.model_spec.model)
    parts = _generate_llm_fqn_per_model_part(*split)
    layers = [sum(name.startswith("layers.") for name in part) for part in parts]
    style = "v" if name in FOLDED else "loop"
    ranks = order or generate_stage_to_rank_mapping(mesh.pp, len(layers), style=style)
    return [sum(n for stage, n in enumerate(layers) if ranks[stage] == rank) for rank in range(mesh.pp)]


if __name__ == "__main__":
    answer_all(ask)
