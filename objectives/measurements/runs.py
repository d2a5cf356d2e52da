"""The measurements file as runs: a job, a plan and what came of it; bad rows with line and reason."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from objectives.measurements.cells import BadRow, Cells, read_cells
from objectives.measurements.checks import check_batch, check_step, memory_kind, peak_memory
from objectives.measurements.clusters import Described, cluster_of
from objectives.measurements.layouts import plan_of, unfillable, unrunnable
from objectives.measurements.models import model_of
from objectives.measurements.tables import MemoryKind, TrainerWords, WordTables, word_tables
from objectives.metrics import Job
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec, MeshtuneError
from search_spaces.framework import framework_named
from search_spaces.plan import Plan
from search_spaces.state import TrainingState
from search_spaces.workload import Precision, Workload

NEEDED = (
    "outcome", "n_layers", "hidden", "n_heads", "seq_len", "accelerator", "n_gpus", "dtype", "global_batch",
    "micro_batch", "tp", "pp", "dp", "step_time_s",
)  # fmt: skip

# What a machine is made of; rows alike in these share one.
CLUSTER_COLUMNS = ("accelerator", "gpus_per_node", "n_gpus", "cluster")


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
    `memory_kind` says what the memory figure counts; `impossible` why a failed row's trainer cannot run its
    plan at all (empty: it could).
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
    notes: tuple[str, ...] = ()
    impossible: str = ""


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
    reader = _Reader(word_tables(path.parent), cluster)
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
    return Measurements(n_rows=len(runs) + len(rejected), runs=tuple(runs), rejected=tuple(rejected))


class _Reader:
    """Rows to runs; rows of one job share its object, so that they can be priced together."""

    def __init__(self, tables: WordTables, cluster: str | None) -> None:
        self._tables, self._cluster = tables, cluster
        self._clusters: dict[tuple[str, ...], Described] = {}
        self._jobs: dict[tuple[object, ...], Job] = {}

    def run(self, cells: Cells) -> MeasuredRun:
        """The run of one row."""
        outcome = _outcome(cells)
        trainer = self._tables.trainer(cells.text("framework"))
        job, job_notes = self._job(cells, trainer)
        by_cost = framework_named(trainer.known_profile).stages_by_cost
        plan, plan_notes = plan_of(cells, job.model.n_layers, stages_by_cost=by_cost)
        impossible = unfillable(plan, job.model.n_layers)
        if impossible and not outcome.is_failure:
            raise BadRow(impossible)
        if outcome.is_failure:
            impossible = impossible or unrunnable(plan, job)
        check_batch(job, plan)
        step_s = cells.number("step_time_s") if outcome is RunOutcome.OK else None
        if outcome is RunOutcome.OK:
            check_step(cells, job, plan, step_s or 0.0)
        return MeasuredRun(
            id=cells.text("id") or f"line-{cells.line}",
            line=cells.line,
            job=job,
            plan=plan,
            outcome=outcome,
            step_s=step_s,
            peak_memory_bytes=peak_memory(cells, job, trainer.memory_unit_bytes),
            memory_kind=memory_kind(cells, trainer),
            labels=_labels(cells, plan, trainer),
            trusted=_is_trusted(cells),
            notes=(*job_notes, *plan_notes),
            impossible=impossible,
        )

    def _job(self, cells: Cells, trainer: TrainerWords) -> tuple[Job, tuple[str, ...]]:
        """The row's job and what the row leaves open of it."""
        place = tuple(cells.text(name) for name in CLUSTER_COLUMNS)
        if place not in self._clusters:
            self._clusters[place] = cluster_of(cells, self._tables, self._cluster)
        cluster, cluster_notes = self._clusters[place]
        model, model_notes = model_of(cells, default_vocab=trainer.vocab)
        workload, workload_notes = _workload(cells, trainer)
        job = Job(model=model, cluster=cluster, workload=workload)
        job = self._jobs.setdefault((model, place, workload), job)
        return job, (*model_notes, *cluster_notes, *workload_notes)


def _outcome(cells: Cells) -> RunOutcome:
    word = cells.text("outcome")
    if word not in list(RunOutcome):
        raise BadRow(f"outcome must be one of {', '.join(RunOutcome)}; got {word!r}")
    return RunOutcome(word)


def _is_trusted(cells: Cells) -> bool:
    """Rows that say nothing of it are trusted: a user's own file need not have the columns."""
    complete = cells.text("known_complete") != "0"
    if cells.text("outcome") in ("oom", "failed_or_oom"):
        complete = True  # without a step time a source cannot be complete in what sets it
    return complete and not cells.is_set("suspect")


def _workload(cells: Cells, trainer: TrainerWords) -> tuple[Workload, list[str]]:
    notes: list[str] = []
    precision = _precision(cells, notes)
    fused, routing = _fused_attention(cells, trainer, notes), str(cells.extra.get("moe_routing", ""))
    if "natural" in routing:
        notes.append("expert load not stated: even")
    if cells.extra.get("cuda_graph") not in (None, "none"):
        notes.append(f"CUDA graphs ({cells.extra['cuda_graph']}), which have no word here")
    workload = Workload(
        seq_len=cells.needed("seq_len"),
        global_batch=cells.needed("global_batch"),
        precision=precision,
        flash_attention=fused,
        framework=trainer.known_profile,
        state=_state(cells),
    )
    return workload, notes


def _precision(cells: Cells, notes: list[str]) -> Precision:
    """Number format; kinds of one format (scalings of fp8) share its name."""
    word = cells.text("dtype").lower()
    for precision in Precision:
        if word.partition("-")[0] == precision:
            return precision
    if word == "nvfp4":
        notes.append("nvfp4 has no word here: fp8")
        return Precision.FP8
    raise BadRow(f"dtype must be one of {', '.join(Precision)}; got {word!r}")


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
