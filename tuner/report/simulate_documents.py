"""The JSON document of a simulated step."""

from typing import Any

import numpy as np

from objectives.ranking import memory_limit_bytes
from objectives.simulator.step_account import SHOWN, STEP_PARTS
from tuner.report.documents import document, job_document, plan_document
from tuner.report.parts import memory_by_part, time_by_part
from tuner.report.simulate_screen import peak_parts
from tuner.second_opinion import Simulation

QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}


def simulate_document(simulation: Simulation) -> dict[str, Any]:
    """What `simulate --json` prints."""
    step = simulation.step
    limit = memory_limit_bytes(simulation.job)
    passes = step.passes
    body = {
        "job": job_document(simulation.job),
        "origin": "simulated",
        "plan": plan_document(simulation.plan),
        "detail": str(simulation.options.detail),
        "step_time_s": step.step_s,
        "closed_form": {
            "step_time_s": float(simulation.closed_form.step_s[0]),
            "peak_memory_bytes": float(simulation.closed_form.peak_memory_bytes[0]),
            "time_s": _without_unit(time_by_part(simulation.closed_form.time, 0)),
            "memory_bytes": _without_unit(memory_by_part(simulation.closed_form.memory, 0)),
        },
        "difference": simulation.difference,
        "reasons": list(simulation.reasons),
        "bubble": {
            "makespan_s": passes.makespan_bubble_s,
            "makespan_share": step.makespan_bubble_fraction,
            "span_s": passes.span_bubble_s,
            "span_share": step.span_bubble_fraction,
        },
        "seeds": {
            "n": len(simulation.seeds_s),
            "step_time_s": {
                name: float(np.quantile(simulation.seeds_s, at)) for name, at in QUANTILES.items()
            },
        },
        "peak_memory_bytes": step.peak_memory_bytes,
        "memory_limit_bytes": limit,
        "fits": step.peak_memory_bytes <= limit,
        "peak_rank": step.memory.peak_rank,
        "hang": step.hang or None,
        "ranks": [_rank(simulation, rank) for rank in range(len(step.memory.peak_bytes))],
    }
    return document("simulate", body)


def _rank(simulation: Simulation, rank: int) -> dict[str, Any]:
    step = simulation.step
    return {
        "time_s": _without_unit({name: float(step.parts_s[name][rank]) for name in STEP_PARTS}),
        "exposed_s": {name.removesuffix("_comm_s"): float(step.parts_s[name][rank]) for name in SHOWN},
        "peak_memory_bytes": float(step.memory.peak_bytes[rank]),
        "peak_at_s": float(step.memory.peak_at_s[rank]),
        "memory_bytes": _without_unit(peak_parts(simulation, rank)),
        "held_micro_batches": sorted({each.microbatch for each in step.memory.held_at_peak(rank)}),
    }


def _without_unit(parts: dict[str, float]) -> dict[str, float]:
    """The unit stands in the key around the parts."""
    return {name.removesuffix("_s").removesuffix("_bytes"): value for name, value in parts.items()}
