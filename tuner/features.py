"""What learning sees of a plan: where its predicted seconds and bytes go, and its knobs in natural steps.

A doubling of a degree, one ZeRO stage, another enum value and a flipped flag are each a distance of one, so
that a single length says how far a plan is from what was tried.
"""

from dataclasses import fields

import numpy as np

from objectives.cost.result import StepMemory, StepTime
from objectives.metrics import Job
from search_spaces.plan import ENUMS, FLAGS, Floats, Module, Plans
from search_spaces.units import MILLION

DEGREES = ("tp", "pp", "dp", "cp", "ep", "etp", "vpp", "micro_batch", "recompute_every", "hpz")
CAP_STEP_W = 200.0  # watts of a power cap that count like one more of a degree
STAGE_SIZES = (
    "first_layers", "last_layers", "recompute_stages", "migrate_every", "nodes", "n_microbatches",
    "coalesced_buckets", "sequence_chunk", "pipeline_limit", "extra_warmup",
)  # fmt: skip
UPDATE_SIZES = ("offload_bucket", "optimizer_tile")
TIME_PARTS: tuple[str, ...] = tuple(field.name for field in fields(StepTime))
MEMORY_PARTS: tuple[str, ...] = tuple(field.name for field in fields(StepMemory))


def knob_features(plans: Plans) -> Floats:
    """Knobs as coordinates: log2 of degrees, the ZeRO stage, modules redone, one-hot enums, flags.

    A one-hot vector is divided by √2, so that two different values of an enum are at distance 1.

    Returns
    -------
    shape (n_plans, n_features)
    """
    columns = [np.log2(getattr(plans, name)) for name in DEGREES]
    columns += [np.log2(1.0 + getattr(plans, name)) for name in STAGE_SIZES]
    columns += [np.log2(1.0 + getattr(plans, name) / MILLION) for name in UPDATE_SIZES]
    columns.append(plans.zero.astype(np.float64))
    columns.append(np.log2(1.0 + plans.power_cap_w / CAP_STEP_W))
    columns += [plans.redoes(module).astype(np.float64) for module in Module]
    for name, values in ENUMS.items():
        if name == "recompute_modules":
            continue
        codes = getattr(plans, name)
        columns += [(codes == value) / np.sqrt(2.0) for value in range(len(values))]
    columns += [getattr(plans, name).astype(np.float64) for name in FLAGS]
    return np.column_stack(columns)


def knob_columns() -> dict[str, list[int]]:
    """Which columns of `knob_features` each knob sets; what is redone, by whichever knob, is one group."""
    sizes = dict.fromkeys([*DEGREES, *STAGE_SIZES, *UPDATE_SIZES, "zero", "power_cap_w"], 1) | {
        "recompute_modules": len(Module)
    }
    sizes |= {name: len(values) for name, values in ENUMS.items() if name != "recompute_modules"}
    sizes |= dict.fromkeys(FLAGS, 1)
    found, at = {}, 0
    for name, size in sizes.items():
        found[name] = list(range(at, at + size))
        at += size
    return found


def job_features(job: Job, plans: Plans) -> Floats:
    """A job as coordinates: log2 of layers, width, experts, devices, sequences in a step, tokens in each.

    Devices and sequences are those that each plan uses.

    Returns
    -------
    shape (n_plans, n_job_features)
    """
    model, workload = job.model, job.workload
    n_experts = model.moe.n_experts if model.moe else 0
    devices = job.used_share(plans) * job.cluster.n_devices
    sequences = job.batch_share(plans) * workload.global_batch
    sizes = (model.n_layers, model.d_model, 1 + n_experts, devices, sequences, workload.seq_len)
    return np.log2(np.column_stack([np.broadcast_to(size, len(plans)) for size in sizes]).astype(np.float64))


def time_shares(time: StepTime) -> Floats:
    """Share of each part in the predicted step; rows sum to 1; shape (n_plans, n_parts).

    If the truth is Σ_k c_k part_k, then log(measured / predicted) = log Σ_k c_k share_k,
    about Σ_k (c_k - 1) share_k: a constant that the model has wrong shows in proportion to its part's share.
    """
    return _shares([getattr(time, name) for name in TIME_PARTS])


def memory_shares(memory: StepMemory) -> Floats:
    """Share of each part in the predicted peak; rows sum to 1; shape (n_plans, n_parts)."""
    return _shares([getattr(memory, name) for name in MEMORY_PARTS])


def _shares(parts: list[Floats]) -> Floats:
    table = np.column_stack(parts)
    total = table.sum(axis=1, keepdims=True)
    shares: Floats = np.divide(table, total, out=np.zeros_like(table), where=total > 0)
    return shares
