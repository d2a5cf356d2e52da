"""Asks torchtitan itself: its config manager, its mesh, its pipeline split, its model.

A question is {"argv", "world_size", "folder"}, the folder being on the path as train.sh puts it there.
"""

import sys

import stand_ins  # noqa: F401  first
import torch
from answers import answer_all
from torch.distributed.pipelining.schedules import get_schedule_class
from torchtitan.config import ConfigManager
from torchtitan.distributed import ParallelDims
from torchtitan.distributed.pipeline_parallel import _generate_llm_fqn_per_model_part, _get_pipeline_metadata


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
    return {**sizes, **batch(config, mesh), **model(config), "stages": stages(config, mesh)}


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


def stages(config, mesh):
    """Layers of every stage, as the pipeline would split them."""
    if mesh.pp == 1:
        return [len(config.model_spec.model.layers)]
    get_schedule_class(config.parallelism.pipeline_parallel_schedule)
    split = _get_pipeline_metadata(mesh, config.parallelism, config.model_spec.model)
    parts = _generate_llm_fqn_per_model_part(*split)
    layers = [sum(name.startswith("layers.") for name in part) for part in parts]
    return [sum(layers[rank :: mesh.pp]) for rank in range(mesh.pp)]


if __name__ == "__main__":
    answer_all(ask)
