"""What came of a command: its log's figures held against the job, or the cause of its failure."""

from typing import TYPE_CHECKING, Any

from objectives.cost.flops import model_flops_per_step
from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Measured, Outcome, OutcomeOrigin
from runners.command_process import BoundedLog, Command
from runners.logs.account import Account
from runners.logs.figures import Expected, LogSummary
from runners.logs.summary import summary_of
from runners.logs.verdict import STEPS_OF_NAN, Case, EndedBy, Ending, verdict_of
from search_spaces.plan import Plan, Plans, RankOrder

if TYPE_CHECKING:
    from runners.command import Watch


def expected_of(job: Job, plan: Plan | None = None) -> Expected:
    """What a log of the job, and of the plan if there is one, must agree with."""
    job = job.of_plan(plan) if plan else job
    return Expected(
        global_batch=job.workload.global_batch,
        micro_batch=plan.micro_batch if plan else None,
        seq_len=job.workload.seq_len,
        n_devices=job.cluster.n_devices,
        tp=plan.tp if plan else None,
        pp=plan.pp if plan else None,
        peak_flops_per_s=job.cluster.device.peak(job.workload.precision),
        model_flops_per_step=float(model_flops_per_step(job.model, job.workload)),
    )


def stage_of_rank(plan: Plan, rank: int) -> int:
    """The pipeline stage of a global rank, by the plan's order of ranks."""
    inner = plan.tp * plan.cp
    if plan.rank_order is RankOrder.TP_CP_DP_PP:
        return rank // (inner * plan.dp)
    return rank // inner % plan.pp


def is_nan(account: Account) -> bool:
    """Whether the loss was no number in the last steps."""
    return account.n_nan_in_a_row >= STEPS_OF_NAN


def outcome_of_run(
    job: Job, plan: Plan, command: Command, watch: "Watch", ending: Ending, log: BoundedLog
) -> Outcome:
    """The outcome of a run that has ended."""
    summary = summary_of(watch.account, expected_of(job, plan))
    effective = _effective(command, summary, ending, log)
    case = Case(
        clues=watch.clues,
        ending=ending,
        is_nan=is_nan(watch.account),
        stage_of=lambda rank: stage_of_rank(plan, rank),
    )
    # However it ended after its last step (most hang or crash in a teardown): the steps were run.
    finding = verdict_of(case) if case.is_nan or not watch.is_done else None
    if finding is not None:
        return Failed(
            cause=finding.cause,
            message=finding.message,
            short_bytes=finding.short_bytes,
            origin=OutcomeOrigin.MEASURED,
            log_tail=log.tail,
            effective=effective,
        )
    if summary.refused or summary.window is None:
        message = summary.refused[0].splitlines()[0]
        return Failed(
            cause=Cause.UNMEASURED,
            message=message,
            origin=OutcomeOrigin.MEASURED,
            log_tail=log.tail,
            effective=effective,
        )
    return Measured(
        step_s=summary.window.step_s,
        step_spread_s=summary.window.spread_s,
        peak_memory_bytes=summary.peak_memory_bytes or _predicted_peak_bytes(job, plan),
        origin=OutcomeOrigin.MEASURED,
        n_steps=summary.window.n_steps,
        log_tail=log.tail,
        effective=effective,
        energy_j=_energy_j(job, summary),
    )


def _effective(command: Command, summary: LogSummary, ending: Ending, log: BoundedLog) -> dict[str, Any]:
    """What ran and how it was measured, as JSON can hold it."""
    notes = [*summary.notes]
    if ending.by is EndedBy.ENOUGH:
        notes.append(f"ended {ending.limit_s:g} s after its last step")
    elif ending.by is EndedBy.TIME_LIMIT:
        notes.append(f"ended {ending.limit_s:g} s after its start")
    elif ending.status and summary.window is not None:
        notes.append(f"ended with exit status {ending.status}")
    if log.trouble:
        notes.append(log.trouble)
    found: dict[str, Any] = {
        "command": list(command.words),
        "reader": summary.trainer,
        **summary.settings,
        "steps": [summary.window.first, summary.window.last] if summary.window else [],
        "memory": f"{summary.memory_kind} by the trainer's allocator"
        if summary.peak_memory_bytes
        else "not in the log: the cost model's",
        "notes": notes,
    }
    figures = {
        "tokens_per_s": summary.tokens_per_s,
        "tflops_per_device": summary.tflops_per_device,
        "first_loss": summary.first_loss,
        "last_loss": summary.last_loss,
    }
    found |= {name: value for name, value in figures.items() if value is not None}
    if summary.tflops_per_device is not None:
        found["convention"] = str(summary.convention)
    return found


def _energy_j(job: Job, summary: LogSummary) -> float | None:
    """Joules of a step of all devices, where the trainer logs them (Megatron-LM with --log-energy)."""
    each_j = summary.energy_j_per_device
    return each_j * job.cluster.n_devices if each_j is not None and each_j > 0 else None


def _predicted_peak_bytes(job: Job, plan: Plan) -> float:
    """The cost model's peak, where the log has none: a peak is never unknown, and `effective` says so."""
    return float(estimate(job, Plans.of([plan])).peak_memory_bytes[0])
