"""What cannot be true of a measured run, found before it is compared with anything."""

from collections.abc import Sequence

from objectives.cost.flops import model_flops_per_step
from objectives.cost.step import estimate
from objectives.measurements.cells import BadRow, Cells
from objectives.measurements.tables import MemoryKind, TrainerWords
from objectives.metrics import Job
from search_spaces.parameters import total_parameters
from search_spaces.plan import Plan, Plans
from search_spaces.units import BILLION, GB, KILO, MILLION, MINUTE_S, MS, gb

TOKENS_TOLERANCE = 0.05
MOST_STEP_S = 24 * 3600.0
IDLE_SHARE = 0.005  # of the peak: what a step in milliseconds, read as seconds, stays below
MEMORY_SLACK = 1.1  # a figure above the device's memory by more than this is a slip of the unit


def peak_device_s(job: Job) -> float:
    """Device-seconds of a step at the dense peak, that of the fastest format where the job's is unknown."""
    peaks = job.cluster.device.peak_flops_per_s
    peak = peaks.get(job.workload.precision, max(peaks.values()))
    return model_flops_per_step(job.model, job.workload) / peak


def check_step(cells: Cells, job: Job, plan: Plan, step_s: float, least_device_s: float) -> None:
    """Raise `BadRow` for step seconds that no machine can have measured."""
    if step_s <= 0:
        raise BadRow("step_time_s must be positive where the outcome is ok")
    if step_s > MOST_STEP_S:
        raise BadRow(f"step_time_s of {step_s:.4g} is more than a day: a slip of the unit?")
    share = least_device_s / (step_s * plan.world_size)
    if share > 1:
        raise BadRow(f"step_time_s of {step_s:.4g} means {share:.0%} of the peak: a slip of the unit?")
    stated = cells.number("tokens_per_s_per_gpu")
    tokens = job.workload.tokens_per_step / step_s / plan.world_size
    if stated and abs(tokens / stated - 1) > TOKENS_TOLERANCE:
        raise BadRow(
            f"tokens_per_s_per_gpu {stated:.6g} contradicts step_time_s {step_s:.4g}, "
            f"which makes {tokens:.6g}{_slip(stated / tokens, plan.world_size)}"
        )


def _slip(ratio: float, n_devices: int) -> str:
    """What a figure that is so many times too large was probably meant to be."""
    slips = (
        (n_devices, "are they of all devices?"),
        (1 / MS, "is the step in milliseconds?"),
        (1 / MINUTE_S, "is the step in minutes?"),
    )
    likely = [words for factor, words in slips if abs(ratio / factor - 1) < TOKENS_TOLERANCE]
    return f": {likely[0]}" if likely else ""


def check_batch(job: Job, plan: Plan) -> None:
    """Raise `BadRow` for a batch that micro-batches cannot fill."""
    if job.workload.global_batch % (plan.micro_batch * plan.dp):
        given = f"{job.workload.global_batch}, micro_batch {plan.micro_batch}, dp {plan.dp}"
        small = job.workload.global_batch < plan.micro_batch * plan.dp
        why = ": it counts the sequences of a step on all devices, not tokens" if small else ""
        raise BadRow(f"global_batch must be a multiple of micro_batch x dp; got {given}{why}")


def check_experts(job: Job, plan: Plan) -> None:
    """Raise `BadRow` for experts that cannot be spread as the row says."""
    n_experts = job.model.moe.n_experts if job.model.moe else 1
    if n_experts % plan.ep:
        raise BadRow(f"ep must divide the model's {n_experts} experts; got {plan.ep}")
    ranks = plan.tp * plan.cp * plan.dp
    if ranks % (plan.ep * plan.etp):
        raise BadRow(f"ep x etp must divide tp x cp x dp, {ranks}; got {plan.ep} x {plan.etp}")


def peak_memory(cells: Cells, job: Job, unit_bytes: float = GB) -> float | None:
    """Peak bytes that the row states, None where it states none or an estimate of what would be needed.

    A row that names its figure's unit has it in 1e9 bytes; others are as their trainer prints them.
    """
    peak_gb = cells.number("peak_mem_gb")
    if not peak_gb:
        return None
    if "mem_unit" not in cells.extra:
        peak_gb *= unit_bytes / GB
    memory_gb = gb(job.cluster.device.memory_bytes)
    if peak_gb > memory_gb * MEMORY_SLACK and cells.text("outcome") == "ok":
        why = f"{_memory_unit(peak_gb, memory_gb * MEMORY_SLACK)}?"
        raise BadRow(f"peak_mem_gb of {peak_gb:.4g} is more than the device's {memory_gb:.4g} GB: {why}")
    least_gb = gb(total_parameters(job.model) / job.cluster.n_devices)
    if peak_gb < least_gb and not cells.text("offload"):
        raise BadRow(
            f"peak_mem_gb of {peak_gb:.4g} is less than a byte of each weight, {least_gb:.4g} GB a device: "
            "a slip of the unit?"
        )
    return peak_gb * GB


def memory_kind(cells: Cells, trainer: TrainerWords) -> MemoryKind:
    """What the row's memory figure counts: as it says, else as its trainer prints it."""
    stated = str(cells.extra.get("mem_kind", ""))
    return next((kind for kind in MemoryKind if kind in stated), trainer.memory)


def _memory_unit(figure: float, most_gb: float) -> str:
    """The unit in which a figure fits a device."""
    units = {"MB or MiB": KILO, "kB or KiB": MILLION, "bytes": BILLION}
    return next((word for word, size in units.items() if figure / size <= most_gb), "a slip of the unit")


def times_expected(job: Job, runs: Sequence[tuple[Plan, float]]) -> list[float]:
    """How many times what the cost model expects the runs of a job took; 0 where devices were kept busy."""
    idle_device_s = peak_device_s(job) / IDLE_SHARE
    idle = [i for i, (plan, step_s) in enumerate(runs) if step_s * plan.world_size > idle_device_s]
    times = [0.0] * len(runs)
    if idle:
        expected_s = estimate(job, Plans.of([runs[i][0] for i in idle])).step_s
        for i, seconds in zip(idle, expected_s, strict=True):
            times[i] = runs[i][1] / float(seconds)
    return times
