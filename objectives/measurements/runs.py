"""The measurements file as runs: a job, a plan and what came of it; bad rows with line and reason."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from objectives.measurements.cells import BadRow, Cells, read_cells
from objectives.measurements.checks import (
    check_batch,
    check_experts,
    check_step,
    memory_kind,
    peak_device_s,
    peak_memory,
    times_expected,
)
from objectives.measurements.clusters import Described, cluster_of
from objectives.measurements.layouts import (
    as_overlapped,
    plan_of,
    unfillable,
    unrunnable,
    with_usual_messages,
)
from objectives.measurements.models import model_of
from objectives.measurements.openings import openings_of
from objectives.measurements.tables import MemoryKind, MemoryStage, TrainerWords, WordTables, word_tables
from objectives.metrics import Job
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec, MeshtuneError
from search_spaces.first_names import first_name
from search_spaces.plan import Plan
from search_spaces.state import TrainingState
from search_spaces.workload import CudaGraphs, Precision, Workload

NEEDED = (
    "outcome", "n_layers", "hidden", "n_heads", "seq_len", "accelerator", "n_gpus", "dtype", "global_batch",
    "micro_batch", "tp", "pp", "dp", "step_time_s",
)  # fmt: skip

# What a machine is made of; rows alike in these share one.
CLUSTER_COLUMNS = ("accelerator", "gpus_per_node", "n_gpus", "cluster")
# What a job is made of.
JOB_COLUMNS = (
    *CLUSTER_COLUMNS, "model", "model_type", "n_layers", "hidden", "ffn_hidden", "n_heads", "n_kv_heads",
    "head_dim", "vocab", "gated_mlp", "tied_embeddings", "n_experts", "top_k", "moe_ffn_hidden",
    "n_shared_experts", "n_dense_layers", "mla", "extra", "seq_len", "global_batch", "dtype", "framework",
    "date", "source_group",
)  # fmt: skip
MOST_TIMES_EXPECTED = (
    300  # no published run is nearly as slow; a step in milliseconds looks a thousand times so
)


class RunOutcome(StrEnum):
    """What came of a recorded run; a failure without a number may be more than lack of memory."""

    OK = "ok"
    MEMORY_ONLY = "memory_only"
    OUT_OF_MEMORY = "oom"
    FAILED = "failed_or_oom"

    @property
    def is_failure(self) -> bool:
        """Whether the run gave no number."""
        return self in (RunOutcome.OUT_OF_MEMORY, RunOutcome.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """One row: `step_s` is None where the run failed or the row states memory only.

    `notes` say what the row leaves open and what was taken instead; a run is `trusted` where every field that
    sets its step time is known and its figures do not contradict themselves or their neighbours.
    `memory_kind` says what the memory figure counts, `memory_stage` on which device; `impossible` why a
    failed row's trainer cannot run its plan at all (empty: it could).  `alternatives` are the other jobs and
    plans that the row may mean; `undecided` says that nothing makes `job` and `plan` likelier.
    """

    id: str
    line: int
    job: Job
    plan: Plan
    outcome: RunOutcome
    step_s: float | None
    peak_memory_bytes: float | None
    labels: Mapping[str, str]
    trusted: bool
    memory_kind: MemoryKind = MemoryKind.DEVICE
    memory_stage: MemoryStage = MemoryStage.FULLEST
    notes: tuple[str, ...] = ()
    impossible: str = ""
    alternatives: tuple[tuple[Job, Plan], ...] = ()
    undecided: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """A row that cannot be used."""

    id: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """What a file holds."""

    n_rows: int
    runs: tuple[MeasuredRun, ...]
    rejected: tuple[RejectedRow, ...]


def read_measurements(path: Path | str, *, cluster: str | None = None) -> Measurements:
    """Every row of a measurements file as a run, or as rejected with its reason.

    `cluster` names a preset or a file that stands for every row's machine.

    Raises
    ------
    InvalidSpec
        The file cannot be read, lacks a needed column, or holds no row; `cluster` does not exist.
    """
    path = Path(path)
    if cluster:
        load_cluster(cluster, 1)  # a name that does not exist is one error, not one for every row
    reader = _Reader(word_tables(path.parent), cluster, path.parent)
    runs: list[MeasuredRun] = []
    rejected: list[RejectedRow] = []
    for cells in read_cells(path, NEEDED):
        try:
            runs.append(reader.run(cells))
        except (BadRow, MeshtuneError) as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            rejected.append(RejectedRow(id=cells.text("id"), line=cells.line, reason=reason))
    if not runs and not rejected:
        raise InvalidSpec(f"{path} must hold at least one row", "none")
    slips = _slips(runs)
    return Measurements(
        n_rows=len(runs) + len(rejected),
        runs=tuple(run for run in runs if run.line not in slips),
        rejected=tuple(sorted([*rejected, *slips.values()], key=lambda row: row.line)),
    )


def _slips(runs: Sequence[MeasuredRun]) -> dict[int, RejectedRow]:
    """Runs far slower than any that was ever published, by line."""
    by_job: dict[int, list[MeasuredRun]] = {}
    for run in runs:
        if run.step_s is not None:
            by_job.setdefault(id(run.job), []).append(run)
    found = {}
    for timed in by_job.values():
        times = times_expected(timed[0].job, [(run.plan, run.step_s or 0.0) for run in timed])
        for run, slower in zip(timed, times, strict=True):
            if slower > MOST_TIMES_EXPECTED:
                reason = (
                    f"step_time_s of {run.step_s:.4g} is {slower:.0f} times what the cost model expects: "
                    "is it in milliseconds?"
                )
                found[run.line] = RejectedRow(id=run.id, line=run.line, reason=reason)
    return found


class _Reader:
    """Rows to runs; rows of one job share its object, so that they can be priced together."""

    def __init__(self, tables: WordTables, cluster: str | None, folder: Path) -> None:
        self._tables, self._cluster, self._folder = tables, cluster, folder
        self._clusters: dict[tuple[str, ...], Described] = {}
        self._jobs: dict[tuple[object, ...], Job] = {}
        self._described: dict[tuple[str | None, ...], tuple[Job, tuple[str, ...]]] = {}
        self._least_s: dict[int, float] = {}
        self._trainers: dict[str, TrainerWords] = {}
        self._lines: dict[str, int] = {}

    def run(self, cells: Cells) -> MeasuredRun:
        """The run of one row."""
        if cells.fault:
            raise BadRow(cells.fault)
        self._check_id(cells)
        outcome = _outcome(cells)
        trainer = self._trainer(cells.text("framework"))
        job, job_notes = self._job(cells, trainer)
        plan, plan_notes = plan_of(cells, job.model.n_layers)
        plan = with_usual_messages(cells, plan, trainer.interleaved_overlap_since)
        plan = as_overlapped(_of_row(plan, job), trainer.known_profile)
        impossible = unfillable(plan, job.model.n_layers)
        if impossible and not outcome.is_failure:
            raise BadRow(impossible)
        if outcome.is_failure:
            impossible = impossible or unrunnable(plan, job)
        check_batch(job, plan)
        check_experts(job, plan)
        open_ = openings_of(cells, job, plan)
        readings = [(self._job_of(job, each), one) for each in open_.workloads for one in open_.plans]
        step_s = cells.number("step_time_s") if outcome is RunOutcome.OK else None
        if outcome is RunOutcome.OK:
            check_step(cells, job, plan, step_s or 0.0, self._least_s[id(job)])
        peak_bytes = peak_memory(cells, job, trainer.memory_unit_bytes)
        if cells.text("id"):
            self._lines[cells.text("id")] = cells.line
        return MeasuredRun(
            id=cells.text("id") or f"line-{cells.line}",
            line=cells.line,
            job=job,
            plan=plan,
            outcome=outcome,
            step_s=step_s,
            peak_memory_bytes=peak_bytes,
            memory_kind=memory_kind(cells, trainer),
            memory_stage=trainer.memory_stage,
            labels=_labels(cells, plan, trainer),
            trusted=_is_trusted(cells),
            notes=(*job_notes, *plan_notes),
            impossible=impossible,
            alternatives=tuple(readings[1:]),
            undecided=open_.undecided,
        )

    def _trainer(self, text: str) -> TrainerWords:
        if text not in self._trainers:
            self._trainers[text] = self._tables.trainer(text)
        return self._trainers[text]

    def _check_id(self, cells: Cells) -> None:
        """An id stands for one row; that of a rejected row may come again."""
        name = cells.text("id")
        if name in self._lines:
            raise BadRow(
                f"id must differ from row to row, or be empty; got {name!r}, as in line {self._lines[name]}"
            )

    def _job_of(self, job: Job, workload: Workload) -> Job:
        """The job with one of the workloads that its row may mean."""
        if workload == job.workload:
            return job
        return self._jobs.setdefault((id(job), workload), replace(job, workload=workload))

    def _job(self, cells: Cells, trainer: TrainerWords) -> tuple[Job, tuple[str, ...]]:
        """The row's job and what the row leaves open of it; rows alike in all that makes a job share it."""
        key = tuple(cells.by_column.get(name) for name in JOB_COLUMNS)
        if key not in self._described:
            self._described[key] = self._new_job(cells, trainer)
            job, _ = self._described[key]
            self._least_s[id(job)] = peak_device_s(job)
        return self._described[key]

    def _new_job(self, cells: Cells, trainer: TrainerWords) -> tuple[Job, tuple[str, ...]]:
        place = tuple(cells.text(name) for name in CLUSTER_COLUMNS)
        if place not in self._clusters:
            self._clusters[place] = cluster_of(cells, self._tables, self._cluster, folder=self._folder)
        cluster, cluster_notes = self._clusters[place]
        model, model_notes = model_of(cells, default_vocab=trainer.vocab)
        workload, workload_notes = _workload(cells, trainer)
        job = Job(model=model, cluster=cluster, workload=workload)
        job = self._jobs.setdefault((model, place, workload), job)
        return job, (*model_notes, *cluster_notes, *workload_notes)


def _of_row(plan: Plan, job: Job) -> Plan:
    """The plan in its row's job, which has the plan's own devices and sequences: under its first name.

    Raises
    ------
    BadRow
        The row's devices or sequences are others than its plan's.
    """
    first = first_name(job.context, plan)
    if first.nodes:
        given = f"{plan.nodes} of {job.cluster.devices_per_node} devices"
        raise BadRow(f"extra.plan's nodes must hold the row's n_gpus {job.cluster.n_devices}; got {given}")
    if first.n_microbatches:
        given = f"{plan.n_microbatches} x {plan.micro_batch} x {plan.dp}"
        whole = job.workload.global_batch
        raise BadRow(f"extra.plan's n_microbatches x micro_batch x dp must be the row's {whole}; got {given}")
    return first


def _outcome(cells: Cells) -> RunOutcome:
    word = cells.text("outcome")
    if word not in list(RunOutcome):
        raise BadRow(f"outcome must be one of {', '.join(RunOutcome)}; got {word!r}")
    return RunOutcome(word)


def _is_trusted(cells: Cells) -> bool:
    """Rows that say nothing of it are trusted: a user's own file need not have the columns."""
    complete = not cells.text("known_complete") or cells.is_set("known_complete")
    if cells.text("outcome") in ("oom", "failed_or_oom"):
        complete = True  # without a step time a source cannot be complete in what sets it
    return complete and not cells.is_set("suspect")


def _workload(cells: Cells, trainer: TrainerWords) -> tuple[Workload, list[str]]:
    notes: list[str] = []
    precision = _precision(cells, notes)
    fused, routing = _fused_attention(cells, trainer, notes), str(cells.extra.get("moe_routing", ""))
    if "natural" in routing:
        notes.append("expert load not stated: even")
    workload = Workload(
        seq_len=cells.needed("seq_len"),
        global_batch=cells.needed("global_batch"),
        precision=precision,
        flash_attention=fused,
        framework=trainer.known_profile,
        cuda_graphs=_graphs(cells, notes),
        state=_state(cells),
        launch_blocking=(cells.overlap or {}).get("cuda_launch_blocking") in (1, "1", "often 1"),
    )
    return workload, notes


def _precision(cells: Cells, notes: list[str]) -> Precision:
    """Number format; kinds of one format (scalings of fp8) share its name."""
    word = cells.text("dtype").lower()
    if word == "fp8-mx":
        return Precision.MXFP8
    named = re.split(r"[^a-z0-9]", word.removeprefix("amp_").replace("float", "fp"))[0]
    if named in tuple(Precision):
        return Precision(named)
    raise BadRow(f"dtype must be one of {', '.join(Precision)}; got {word!r}")


def _graphs(cells: Cells, notes: list[str]) -> CudaGraphs:
    """What is recorded: a whole step, a layer's static parts, or nothing."""
    word = str(cells.extra.get("cuda_graph") or "none").lower()
    if word in ("none", "unknown"):
        if word == "unknown":
            notes.append("CUDA graphs not stated: none")
        return CudaGraphs.NONE
    return CudaGraphs.STEP if "full" in word else CudaGraphs.LAYERS


def _fused_attention(cells: Cells, trainer: TrainerWords, notes: list[str]) -> bool:
    """Whether attention runs as one kernel: as stated, else by the trainer's default on that date."""
    stated, date = str(cells.extra.get("attn", "")).lower(), cells.text("date")
    if stated:
        return "unfused" not in stated
    fused = bool(trainer.flash_since) and (not date or date >= trainer.flash_since)
    notes.append(f"attention kernel not stated: {'fused' if fused else 'not fused'}")
    return fused


def _state(cells: Cells) -> TrainingState | None:
    """What a parameter keeps, where the row says otherwise than its trainer's habit."""
    kind = cells.extra.get("grad_accum_dtype") or cells.extra.get("grad_reduce_dtype")
    if kind in ("fp16", "bf16"):
        return TrainingState(gradient_bytes=2.0)
    return TrainingState(gradient_bytes=4.0) if kind == "fp32" or cells.extra.get("grads_fp32") else None


def _labels(cells: Cells, plan: Plan, trainer: TrainerWords) -> dict[str, str]:
    """What rows are grouped by in a report."""
    axes = [name for name in ("tp", "pp", "cp", "ep") if getattr(plan, name) > 1]
    sharded = {0: "dp", 1: "zero1", 2: "zero2", 3: "zero3"}[plan.zero]
    return {
        "source": cells.text("source_group") or "this file",
        "accelerator": cells.text("accelerator"),
        "model kind": "moe" if (cells.whole("n_experts") or 0) > 1 else "dense",
        "parallelism": "+".join([*axes, *([sharded] if plan.dp > 1 else [])]) or "one device",
        "framework": trainer.profile,
        "precision": cells.text("dtype").partition("-")[0],
    }
