"""The JSON documents: seconds, bytes and fractions, every one with its schema's name and version."""

from dataclasses import asdict
from typing import Any

from objectives.cost.energy import step_energy
from objectives.cost.reserve import memory_bounds_bytes
from objectives.cost.result import Estimate, StageProfile
from objectives.longest import MAX_SEQ_LEN
from objectives.metrics import Job
from objectives.ranking import Ledger, Ranking, memory_limit_bytes
from search_spaces.plan import Floats, Plan, Plans
from tuner.report.energy import energy_document
from tuner.report.parts import memory_by_part, time_by_part
from tuner.report.rescored import second_document, simulated_document

VERSION = 1
Intervals = tuple[Floats, Floats]


def document(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    """A document of one kind."""
    return {"schema": f"meshtune.{kind}", "version": VERSION, **body}


def plan_document(plan: Plan) -> dict[str, Any]:
    """Every knob of a plan; enums as their words."""
    return {name: str(value) if isinstance(value, str) else value for name, value in asdict(plan).items()}


def job_document(job: Job) -> dict[str, Any]:
    """What was asked, in short."""
    return {
        "model": job.model.name,
        "cluster": job.cluster.name,
        "devices": job.cluster.n_devices,
        "global_batch": job.workload.global_batch,
        "seq_len": job.workload.seq_len,
        "precision": str(job.workload.precision),
        "framework": job.workload.framework,
    }


def ledger_document(ledger: Ledger) -> dict[str, Any]:
    """Where the plans went; counts add up to `enumerated`."""
    return {
        "enumerated": ledger.enumerated,
        "removed": dict(ledger.removed),
        "too_large": ledger.too_large,
        "feasible": ledger.feasible,
        "priced": ledger.priced,
    }


def rank_document(job: Job, ranking: Ranking, top: int, intervals: Intervals) -> dict[str, Any]:
    """What `rank --json` prints."""
    candidates = ranking.candidates
    rows = priced_rows(job, candidates.plans, candidates.estimate, intervals, min(top, len(candidates)))
    best = [{**row, "simulated": simulated_document(ranking, i)} for i, row in enumerate(rows)]
    if ranking.metric == MAX_SEQ_LEN:
        best = [{**row, MAX_SEQ_LEN: int(-ranking.candidates.score[i])} for i, row in enumerate(best)]
    body = {
        "job": job_document(job),
        "origin": "analytic",
        "plans": ledger_document(ranking.ledger),
        "second_opinion": second_document(ranking.second),
        "best": best,
    }
    return document("rank", body)


def priced_rows(
    job: Job, plans: Plans, estimate: Estimate, intervals: Intervals, n: int
) -> list[dict[str, Any]]:
    """The first n plans with their figures and breakdowns."""
    step_s, peak_bytes = estimate.step_s, estimate.peak_memory_bytes
    tokens, mfu = (job.values(name, step_s, peak_bytes, plans) for name in ("tokens_per_s_per_device", "mfu"))
    energy = step_energy(job, plans, estimate)
    low_s, high_s = intervals
    return [
        {
            "plan": plan_document(plans.row(i)),
            "step_time_s": float(step_s[i]),
            "interval_s": [float(low_s[i]), float(high_s[i])],
            "tokens_per_s_per_device": float(tokens[i]),
            "mfu": float(mfu[i]),
            "peak_memory_bytes": float(peak_bytes[i]),
            "time_s": _without_unit(time_by_part(estimate.time, i)),
            "memory_bytes": _without_unit(memory_by_part(estimate.memory, i)),
            "energy_j": energy_document(energy, i),
        }
        for i in range(n)
    ]


def estimate_document(
    job: Job, plans: Plans, estimate: Estimate, intervals: Intervals, profile: StageProfile
) -> dict[str, Any]:
    """What `estimate --json` prints."""
    limit = memory_limit_bytes(job)
    peak = float(estimate.peak_memory_bytes[0])
    body = {
        "job": job_document(job),
        "origin": "analytic",
        **priced_rows(job, plans, estimate, intervals, 1)[0],
        "memory_limit_bytes": limit,
        "fits": peak <= limit,
        "peak_memory_interval_bytes": [
            float(bound[0]) for bound in memory_bounds_bytes(job, estimate.memory)
        ],
        "peak_stage": int(estimate.peak_stage[0]),
        "stages": [_stage(profile, i) for i in range(len(profile.n_layers))],
    }
    return document("estimate", body)


def _stage(profile: StageProfile, i: int) -> dict[str, Any]:
    return {
        "layers": float(profile.n_layers[i]),
        "forward_s": float(profile.forward_s[i]),
        "backward_s": float(profile.backward_s[i]),
        "memory_bytes": _without_unit(memory_by_part(profile.memory, i)),
        "peak_memory_bytes": float(profile.memory.total_bytes[i]),
    }


def _without_unit(parts: dict[str, float]) -> dict[str, float]:
    """The unit stands in the key around the parts."""
    return {name.removesuffix("_s").removesuffix("_bytes"): value for name, value in parts.items()}
