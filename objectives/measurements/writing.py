"""Runs of one's own as rows of a measurements file: what `read_measurements` and the replay runner read."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from objectives.metrics import Job
from objectives.outcome import Cause, Measured, Outcome
from search_spaces.model import ModelSpec
from search_spaces.parameters import total_parameters
from search_spaces.plan import NO_MODULES, Plan, Recompute
from search_spaces.units import gb

COLUMNS = (
    "id", "source", "model", "model_type", "n_layers", "hidden", "ffn_hidden", "n_heads", "n_kv_heads",
    "head_dim", "vocab", "gated_mlp", "tied_embeddings", "n_experts", "top_k", "moe_ffn_hidden",
    "n_shared_experts", "n_dense_layers", "extra", "params_total", "seq_len", "accelerator", "gpus_per_node",
    "n_gpus", "dtype", "global_batch", "micro_batch", "tp", "pp", "vpp", "cp", "cp_kind", "ep", "etp", "dp",
    "zero_stage", "schedule", "recompute", "seq_parallel", "offload", "overlap", "framework", "step_time_s",
    "tokens_per_s_per_gpu", "peak_mem_gb", "notes", "known_complete", "source_group", "outcome",
    "measured_as", "cluster", "date", "step_time_origin",
)  # fmt: skip
DIGITS = 6
_OVERLAPS = {
    "overlap_dp": "dp_grad_reduce",
    "overlap_tp": "tp_async",
    "overlap_pp": "pp_p2p",
    "overlap_ep": "moe_a2a",
}
# Keys of an outcome's `effective` that say where and how it was measured.
FACTS = (
    "device",
    "backend",
    "n_threads",
    "torch",
    "proxy",
    "steps_s",
    "n_warmup",
    "spikes",
    "busy_s",
    "trial_s",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a row comes from; `cluster` is what that column says, `facts` of the machine go into `extra`."""

    id: str
    source: str
    cluster: str
    date: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def row_of(job: Job, plan: Plan, outcome: Outcome, provenance: Provenance) -> dict[str, str]:
    """One trial as the cells of a row.

    The plan's words stand in `extra` whole, because some knobs have no column.  Devices and sequences are
    those that the plan uses.
    """
    job = job.of_plan(plan)
    cells = _model_cells(job.model) | _plan_cells(plan) | _workload_cells(job)
    extra = {"plan": plan.key, "attn": _attention(job), **provenance.facts, **_positions(job.model)}
    told = {name: outcome.effective.get(name) for name in FACTS}
    extra |= {name: value for name, value in told.items() if value not in (None, {}, [])}
    cells |= {
        "id": provenance.id,
        "source": provenance.source,
        "source_group": provenance.source,
        "cluster": provenance.cluster,
        "date": provenance.date,
        "known_complete": "1",
        "measured_as": "step time",
    }
    return _text(cells | _outcome_cells(job, outcome, extra))


def measurements_text(rows: Iterable[Mapping[str, str]]) -> str:
    """The whole file."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _text(cells: Mapping[str, Any]) -> dict[str, str]:
    return {name: "" if value is None else str(value) for name, value in cells.items()}


def _model_cells(model: ModelSpec) -> dict[str, Any]:
    attention, moe = model.attention, model.moe
    cells = {
        "model": model.name,
        "model_type": "moe" if moe else "dense",
        "n_layers": model.n_layers,
        "hidden": model.d_model,
        "ffn_hidden": model.mlp.width,
        "n_heads": attention.n_heads,
        "n_kv_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "vocab": model.embedding.vocab_size,
        "gated_mlp": int(model.mlp.n_matrices == 3),
        "tied_embeddings": int(model.embedding.tied),
        "params_total": total_parameters(model),
    }
    if moe is not None:
        cells |= {
            "n_experts": moe.n_experts,
            "top_k": moe.top_k,
            "moe_ffn_hidden": moe.expert_width,
            "n_shared_experts": moe.shared_width // moe.expert_width,
            "n_dense_layers": moe.n_dense_layers,
        }
    return cells


def _positions(model: ModelSpec) -> dict[str, str]:
    return {"pos": "learned"} if model.embedding.n_positions else {}


def _attention(job: Job) -> str:
    return "fused" if job.workload.flash_attention else "unfused"


def _workload_cells(job: Job) -> dict[str, Any]:
    workload, cluster = job.workload, job.cluster
    return {
        "seq_len": workload.seq_len,
        "global_batch": workload.global_batch,
        "dtype": workload.precision,
        "framework": workload.framework,
        "accelerator": cluster.device.name,
        "gpus_per_node": min(cluster.devices_per_node, cluster.n_devices),
        "n_gpus": cluster.n_devices,
    }


def _plan_cells(plan: Plan) -> dict[str, Any]:
    overlap = {words: int(getattr(plan, knob)) for knob, words in _OVERLAPS.items()}
    return {
        **{name: getattr(plan, name) for name in ("tp", "pp", "vpp", "cp", "ep", "etp", "dp", "micro_batch")},
        "zero_stage": plan.zero,
        "schedule": plan.schedule if plan.pp > 1 else "none",
        "cp_kind": plan.cp_kind if plan.cp > 1 else "",
        "recompute": _recompute(plan),
        "seq_parallel": int(plan.sequence_parallel),
        "offload": "optimizer" if plan.offload_optimizer else "none",
        "overlap": json.dumps(overlap),
    }


def _recompute(plan: Plan) -> str:
    """As the column has it: `selective:` names modules, the attention core among them."""
    named = "" if plan.recompute_modules == NO_MODULES else str(plan.recompute_modules)
    if plan.recompute is Recompute.SELECTIVE:
        return f"selective:core_attn+{named}" if named else "selective:core_attn"
    return f"selective:{named}" if named and plan.recompute is Recompute.NONE else str(plan.recompute)


def _outcome_cells(job: Job, outcome: Outcome, extra: dict[str, Any]) -> dict[str, Any]:
    if isinstance(outcome, Measured):
        if outcome.energy_j is not None:
            extra = {**extra, "energy_j": round(outcome.energy_j, 3)}
        extra = {**extra, "spread_s": round(outcome.step_spread_s, DIGITS), "mem_unit": "1e9 bytes"}
        tokens = job.workload.tokens_per_step / outcome.step_s / job.cluster.n_devices
        return {
            "outcome": "ok",
            "step_time_s": round(outcome.step_s, DIGITS),
            "tokens_per_s_per_gpu": round(tokens, 2),
            "peak_mem_gb": round(gb(outcome.peak_memory_bytes), DIGITS),
            "step_time_origin": str(outcome.origin),
            "extra": json.dumps(extra, sort_keys=True),
        }
    cause = outcome.cause
    return {
        "outcome": "oom" if cause is Cause.OUT_OF_MEMORY else "failed_or_oom",
        "extra": json.dumps({**extra, "cause": str(cause)}, sort_keys=True),
        "notes": " ".join(outcome.message.split()),
    }
