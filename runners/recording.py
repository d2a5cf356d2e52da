"""The measurements file as a runner reads it: rows of a job, with the knobs that each of them states.

Columns are those of the public measurements file; an empty cell states nothing.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from objectives.measurements.cells import BadRow, Cells, read_cells
from objectives.measurements.layouts import cp_kind, stated_plan
from objectives.metrics import Job
from search_spaces.errors import InvalidSpec
from search_spaces.first_names import first_name
from search_spaces.plan import KNOB_NAMES, Plan, Recompute, Schedule
from search_spaces.units import GB

logger = logging.getLogger(__name__)
_NEEDED = ("outcome", "n_gpus", "tp", "pp", "dp", "micro_batch", "step_time_s")
_FAILURES = ("oom", "failed_or_oom")
_MOST_NAMED = 3

_SCHEDULES = {
    **{str(schedule): schedule for schedule in Schedule},
    "1f1b-interleaved": Schedule.INTERLEAVED,
    "zb-1p": Schedule.ZB_H1,
    "zb-2p": Schedule.ZB_H2,
}
_RECOMPUTES = {
    "none": Recompute.NONE,
    "full": Recompute.FULL,
    "selective": Recompute.SELECTIVE,
    "selective:core_attn": Recompute.SELECTIVE,
}
_DEGREES = MappingProxyType(
    {name: name for name in ("tp", "pp", "dp", "cp", "ep", "etp", "vpp", "micro_batch")}
    | {"zero": "zero_stage"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One recorded run: the knobs it states, and what came of it (`step_s` None: it failed).

    `cause` and `why` are those of a failure, where the row says them.
    """

    line: int
    knobs: Mapping[str, Any]
    outcome: str
    step_s: float | None
    peak_memory_bytes: float | None
    cause: str = ""
    why: str = ""

    def is_of(self, plan: Plan) -> bool:
        """Whether the plan has every knob that the row states."""
        return all(getattr(plan, name) == value for name, value in self.knobs.items())


def read_rows(path: Path | str, job: Job) -> list[Row]:
    """Rows of a measurements file that were run with the job's shapes.

    Raises
    ------
    InvalidSpec
        A column is missing, or no row can be used: with line and reason of the first bad ones.
    """
    rows, bad, n_others = [], [], 0
    for cells in read_cells(path, _NEEDED):
        try:
            if not _is_of_job(cells, job):
                n_others += 1
            elif cells.text("outcome") in ("ok", *_FAILURES):
                rows.append(_row(cells, job))
        except BadRow as reason:
            bad.append(f"line {cells.line}: {reason}")
    for words in bad:
        logger.info("%s: %s", path, words)
    if not rows:
        given = "; ".join(bad[:_MOST_NAMED]) or f"{n_others} rows of other jobs"
        hint = "model, cluster and workload must be those of the recording"
        raise InvalidSpec(f"{path} must hold runs of this job", given, hint=hint)
    return rows


def _is_of_job(cells: Cells, job: Job) -> bool:
    """Whether every shape that the row states is the job's."""
    plan = stated_plan(cells)
    job = job.of_plan(plan) if plan else job
    attention, moe, n = job.model.attention, job.model.moe, job.cluster.n_devices
    kind, per_node = cells.text("model_type"), cells.whole("gpus_per_node")
    if kind and (kind == "moe") != (moe is not None):
        return False
    if per_node is not None and min(per_node, n) != min(job.cluster.devices_per_node, n):
        return False
    shapes = {
        "n_layers": job.model.n_layers,
        "hidden": job.model.d_model,
        "ffn_hidden": job.model.mlp.width,
        "n_heads": attention.n_heads,
        "n_kv_heads": attention.n_kv_heads,
        "seq_len": job.workload.seq_len,
        "global_batch": job.workload.global_batch,
        "n_gpus": n,
    }
    if moe is not None:
        shapes |= {"n_experts": moe.n_experts, "top_k": moe.top_k, "moe_ffn_hidden": moe.expert_width}
    accelerator = cells.text("accelerator").partition("-")[0].lower()
    return accelerator in job.cluster.device.name.lower() and all(
        value in (None, wanted)
        for value, wanted in ((cells.whole(name), wanted) for name, wanted in shapes.items())
    )


def _row(cells: Cells, job: Job) -> Row:
    outcome = cells.text("outcome")
    step_s, peak_gb = cells.number("step_time_s"), cells.number("peak_mem_gb")
    if outcome == "ok" and not step_s:
        raise BadRow("step_time_s must be positive where the outcome is ok")
    return Row(
        line=cells.line,
        knobs=_knobs(cells, job),
        outcome=outcome,
        step_s=step_s if outcome == "ok" else None,
        peak_memory_bytes=peak_gb * GB if peak_gb else None,
        cause=str(cells.extra.get("cause", "")),
        why=cells.text("notes"),
    )


def _knobs(cells: Cells, job: Job) -> dict[str, Any]:
    """Knobs that the row states; those that do nothing in its plan are left open."""
    if plan := stated_plan(cells):
        plan = first_name(job.context, plan)
        return {name: getattr(plan, name) for name in KNOB_NAMES}
    stated = {knob: cells.whole(column) for knob, column in _DEGREES.items()}
    knobs: dict[str, Any] = {knob: value for knob, value in stated.items() if value is not None}
    for name in ("tp", "pp", "dp", "micro_batch"):
        if knobs.get(name, 0) < 1:
            raise BadRow(f"{name} must be stated and at least 1")
    if knobs["dp"] * knobs.get("cp", 1) == 1:
        knobs.pop("zero", None)
    if knobs["tp"] > 1 and cells.text("seq_parallel") in ("0", "1"):
        knobs["sequence_parallel"] = cells.is_set("seq_parallel")
    if knobs["pp"] > 1:
        knobs |= _word(cells, "schedule", _SCHEDULES, unstated=("", "none"))
    if knobs.get("cp", 1) > 1 and cells.text("cp_kind"):
        knobs["cp_kind"] = cp_kind(cells)
    return knobs | _word(cells, "recompute", _RECOMPUTES, unstated=("", "unknown"))


def _word(cells: Cells, name: str, known: Mapping[str, Any], *, unstated: tuple[str, ...]) -> dict[str, Any]:
    word = cells.text(name)
    if word in unstated:
        return {}
    if word not in known:
        raise BadRow(f"{name} must be one of {', '.join(known)}; got {word!r}")
    return {name: known[word]}
