"""What cannot be true of a measured run, found before it is compared with anything."""

from objectives.cost.flops import model_flops_per_step
from objectives.measurements.cells import BadRow, Cells
from objectives.measurements.tables import MemoryKind, TrainerWords
from objectives.metrics import Job
from search_spaces.plan import Plan
from search_spaces.units import GB, gb

TOKENS_TOLERANCE = 0.05
MOST_STEP_S = 24 * 3600.0
MEMORY_SLACK = 1.1  # a figure above the device's memory by more than this is a slip of the unit


def check_step(cells: Cells, job: Job, plan: Plan, step_s: float) -> None:
    """Raise `BadRow` for step seconds that no machine can have measured."""
    if step_s <= 0:
        raise BadRow("step_time_s must be positive where the outcome is ok")
    if step_s > MOST_STEP_S:
        raise BadRow(f"step_time_s of {step_s:.4g} is more than a day: a slip of the unit?")
    peaks = job.cluster.device.peak_flops_per_s
    peak = peaks.get(job.workload.precision, max(peaks.values()))
    share = model_flops_per_step(job.model, job.workload) / (step_s * plan.world_size * peak)
    if share > 1:
        raise BadRow(f"step_time_s of {step_s:.4g} means {share:.0%} of the peak: a slip of the unit?")
    stated = cells.number("tokens_per_s_per_gpu")
    tokens = job.workload.tokens_per_step / step_s / plan.world_size
    if stated and abs(tokens / stated - 1) > TOKENS_TOLERANCE:
        raise BadRow(
            f"tokens_per_s_per_gpu {stated:.6g} contradicts step_time_s {step_s:.4g}, "
            f"which makes {tokens:.6g}"
        )


def check_batch(job: Job, plan: Plan) -> None:
    """Raise `BadRow` for a batch that micro-batches cannot fill."""
    if job.workload.global_batch % (plan.micro_batch * plan.dp):
        given = f"{job.workload.global_batch}, micro_batch {plan.micro_batch}, dp {plan.dp}"
        raise BadRow(f"global_batch must be a multiple of micro_batch x dp; got {given}")


def peak_memory(cells: Cells, job: Job, unit_bytes: float = GB) -> float | None:
    """Peak bytes that the row states, None where it states none or an estimate of what would be needed.

    A row that names its figure's unit has it in 1e9 bytes; others are as their trainer prints them.
    """
    peak_gb = cells.number("peak_mem_gb")
    if not peak_gb:
        return None
    limit = job.cluster.device.memory_bytes * MEMORY_SLACK
    if "mem_unit" in cells.extra:
        unit_bytes = GB
    if peak_gb * unit_bytes > limit and cells.text("outcome") == "ok":
        raise BadRow(
            f"peak_mem_gb of {peak_gb:.4g} is more than the device's {gb(limit / MEMORY_SLACK):.4g} GB: "
            "a slip of the unit?"
        )
    return peak_gb * unit_bytes


def memory_kind(cells: Cells, trainer: TrainerWords) -> MemoryKind:
    """What the row's memory figure counts: as it says, else as its trainer prints it."""
    stated = str(cells.extra.get("mem_kind", ""))
    return next((kind for kind in MemoryKind if kind in stated), trainer.memory)
