"""What a launcher answers, and what all launchers ask of a plan.

global_batch = micro_batch * n_microbatches * dp
n_layers     = first_layers + (pp - 2) * middle + last_layers
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from objectives.metrics import Job
from search_spaces.errors import CannotExport, InvalidSpec, check
from search_spaces.model import ModelSpec
from search_spaces.plan import V_SHAPED, Dispatch, ExpertTokens, OptimizerSync, Plan, Schedule
from search_spaces.workload import Precision, Workload

Arguments = list[tuple[str, ...]]  # one flag with its values each
SIXTEEN_AND_32_BITS = (Precision.BF16, Precision.FP16, Precision.FP32)
NOTHING: Mapping[str, Any] = MappingProxyType({})
EXPERT_KNOBS = (
    "ep", "etp", "overlap_ep", "deduplicate_ep", "hierarchical_ep", "dispatch", "migrate_every",
    "expert_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a launch needs and no plan says; None is left for the user to fill in.

    `program` is the path of the training program, `setup_script` a file that the scripts source first
    (modules, virtual environment), `extra` further arguments for the program.  `predicted` and `provenance`
    go into `plan.json` as they are.
    """

    account: str | None = None
    partition: str | None = None
    time_limit: str = "02:00:00"
    job_name: str | None = None
    program: str | None = None
    data_path: str | None = None
    tokenizer: str | None = None
    setup_script: str | None = None
    train_steps: int = 100
    extra: tuple[str, ...] = ()
    predicted: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    provenance: Mapping[str, Any] = field(default_factory=lambda: NOTHING)

    def __post_init__(self) -> None:
        check(self.train_steps >= 1, "Options.train_steps must be at least 1", self.train_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How one program is started: what every rank runs, and the files that lie beside.

    `program` and `fixed_arguments` are bash of ours, which may expand variables; `arguments` are plain text
    and get quoted.  `fill_in` says what the user must still give, `notes` what the program does differently
    from what was modelled.
    """

    program: str
    arguments: Arguments
    fixed_arguments: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    fill_in: Sequence[str] = ()
    notes: Sequence[str] = ()


class Launcher(Protocol):
    """A training program's language.  Stateless; both methods are pure functions of their arguments.

    A log reader (its output -> outcome) is a method of the same class, in the same module.
    """

    @property
    def name(self) -> str:
        """Its name in the table."""
        ...

    def lacks(self, job: Job, plan: Plan) -> list[str]:
        """One sentence for each knob of the plan, or field of the model, that the program cannot express.

        A sentence starts with the knob or field and its value: `schedule=zb-h1: ...`.
        """
        ...

    def launch(self, job: Job, plan: Plan, options: Options) -> Launch:
        """The program's arguments and files; called only for a plan that lacks nothing."""
        ...


def check_exportable(job: Job, plan: Plan, launcher: Launcher) -> None:
    """Refuse a plan that does not belong to the job, or that the launcher cannot express.

    Raises
    ------
    InvalidSpec
        The plan occupies another number of devices, or its batch is not the job's.
    CannotExport
        The launcher lacks a knob that the plan uses.
    """
    job = job.of_plan(plan)
    must = f"the plan must occupy all devices of {job.cluster.name}, {job.cluster.n_devices}"
    check(plan.world_size == job.cluster.n_devices, must, f"tp*cp*dp*pp = {plan.world_size}")
    n_microbatches(job, plan)
    missing = launcher.lacks(job, plan)
    if missing:
        given = "; ".join(missing)
        hint = f"choose another launcher, or tune with --framework {launcher.name}: it tries only such plans"
        raise CannotExport(f"{launcher.name} must be able to express the plan", given, hint=hint)


def n_microbatches(job: Job, plan: Plan) -> int:
    """Micro-batches of one step: global_batch / (micro_batch * dp), which must divide."""
    samples = plan.micro_batch * plan.dp
    must = f"micro_batch * dp must divide global_batch = {job.workload.global_batch}"
    check(job.workload.global_batch % samples == 0, must, f"{plan.micro_batch} * {plan.dp} = {samples}")
    return job.workload.global_batch // samples


def stage_layers(n_layers: int, plan: Plan) -> tuple[int, ...]:
    """Layers of each pipeline stage; the stages without a size of their own share the rest evenly.

    Raises
    ------
    InvalidSpec
        The rest cannot be shared evenly.
    """
    first, last = plan.first_layers, plan.last_layers
    if plan.pp == 1:
        return (n_layers,)
    n_even = plan.pp - bool(first) - bool(last)
    rest = n_layers - first - last
    if rest < 0 or (rest == 0) != (n_even == 0) or (n_even and rest % n_even):
        given = f"{rest} layers over {n_even} stages"
        raise InvalidSpec("pipeline stages without a size of their own must share the layers evenly", given)
    even = rest // n_even if n_even else 0
    sizes = [even] * plan.pp
    sizes[0], sizes[-1] = first or even, last or even
    return tuple(sizes)


def pipeline_lacks(job: Job, plan: Plan) -> list[str]:
    """What no launcher can do: a schedule that contradicts vpp, layers that do not divide."""
    found = _chunk_lacks(plan)
    try:
        sizes = stage_layers(job.model.n_layers, plan)
    except InvalidSpec as error:
        return [*found, f"pp={plan.pp}: {error.must}, not {error.given}"]
    if any(size % plan.vpp for size in sizes):
        found.append(
            f"vpp={plan.vpp}: stages of {sorted(set(sizes))} layers do not split into so many chunks"
        )
    return found


def _chunk_lacks(plan: Plan) -> list[str]:
    """What contradicts the number of chunks."""
    if plan.schedule in V_SHAPED:
        return [] if plan.vpp == 2 else [f"schedule={plan.schedule}: it holds two chunks, not vpp={plan.vpp}"]
    if (plan.schedule is Schedule.INTERLEAVED) == (plan.vpp > 1):
        return []
    return [f"schedule={plan.schedule}: vpp={plan.vpp} is interleaved exactly when it is above 1"]


def update_lacks(plan: Plan, program: str) -> list[str]:
    """Knobs of the optimizer's step and of recomputation that most programs do not have."""
    found = []
    if plan.keep_received:
        found.append(f"keep_received=true: {program} repeats communication where it recomputes")
    if plan.offload_bucket:
        found.append(
            f"offload_bucket={plan.offload_bucket}: {program} updates an offloaded optimizer its own way"
        )
    if plan.coalesced_buckets:
        found.append(
            f"coalesced_buckets={plan.coalesced_buckets}: {program} updates when all gradients are reduced"
        )
    if plan.optimizer_tile:
        found.append(f"optimizer_tile={plan.optimizer_tile}: {program} updates all parameters at once")
    return found


def expert_lacks(model: ModelSpec, plan: Plan, *, dense_only: str = "") -> list[str]:
    """Knobs of experts where there are none: in the model, or in a program that trains dense models only."""
    if model.moe is not None and not dense_only:
        return []
    why = "the model has no experts" if model.moe is None else f"{dense_only} spreads no experts"
    neutral = Plan()
    return [
        f"{name}={str(getattr(plan, name)).lower()}: {why}"
        for name in EXPERT_KNOBS
        if getattr(plan, name) != getattr(neutral, name)
    ]


def precision_lacks(
    job: Job, program: str, precisions: Iterable[Precision] = SIXTEEN_AND_32_BITS
) -> list[str]:
    """A format that the program does not multiply in."""
    precision, known = job.workload.precision, tuple(precisions)
    return (
        [] if precision in known else [f"precision={precision}: {program} multiplies in {', '.join(known)}"]
    )


def sent_tokens(plan: Plan, program: str, *, sends: Sequence[ExpertTokens] = ()) -> list[str]:
    """Tokens that tensor-parallel ranks send to experts otherwise than the program does."""
    if plan.expert_tokens in (ExpertTokens.SHARDED, *sends):
        return []
    return [f"expert_tokens={plan.expert_tokens}: {program} does not send such tokens to its experts"]


def order_lacks(plan: Plan, program: str, *, longer_warmup: bool = False) -> list[str]:
    """Knobs of a schedule that most programs do not have."""
    found = []
    if plan.optimizer_sync is not OptimizerSync.BARRIER:
        found.append(f"optimizer_sync={plan.optimizer_sync}: {program} agrees on a step before it updates")
    if plan.pipeline_limit:
        found.append(f"pipeline_limit={plan.pipeline_limit}: {program} runs passes in a fixed order")
    if plan.recompute_stages:
        found.append(f"recompute_stages={plan.recompute_stages}: {program} recomputes on every stage alike")
    if plan.extra_warmup and not longer_warmup:
        found.append(f"extra_warmup={plan.extra_warmup}: {program} has one warm-up, of pp - 1 - i passes")
    return found


def expert_exchange(plan: Plan, *known: Dispatch) -> str:
    """What a plan asks of the exchange of tokens beyond a plain all-to-all and the known ways of sending."""
    known = known or (Dispatch.PLAIN,)
    asked = [name for name in ("overlap_ep", "deduplicate_ep", "hierarchical_ep") if getattr(plan, name)]
    words = [f"{name}=true" for name in asked]
    words += [f"migrate_every={plan.migrate_every}"] if plan.migrate_every else []
    return " ".join(words if plan.dispatch in known else [*words, f"dispatch={plan.dispatch}"])


def zero_plus_lacks(plan: Plan, program: str) -> list[str]:
    """Knobs that only DeepSpeed has: fewer bytes of ZeRO-3, a sequence in chunks, checkpoints on the host."""
    reasons = {
        "quantized_weights": "gathers weights as they are",
        "hpz": "holds no second copy of sharded weights",
        "quantized_gradients": "reduces gradients as they are",
        "sequence_chunk": "passes a sequence through a layer at once",
        "offload_sequence": "passes a sequence through a layer at once",
        "offload_checkpoints": "keeps the inputs of redone layers on the device",
    }
    neutral = Plan()
    return [
        f"{name}={str(getattr(plan, name)).lower()}: {program} {reason}"
        for name, reason in reasons.items()
        if getattr(plan, name) != getattr(neutral, name)
    ]


def waiting_lacks(plan: Plan, program: str) -> list[str]:
    """What a program cannot do that overlaps the reduction of gradients wherever there is one."""
    waits = plan.dp * plan.cp > 1 and not plan.overlap_dp
    return [f"overlap_dp=false: {program} always overlaps the reduction of gradients"] if waits else []


def offload_lacks(plan: Plan, program: str) -> list[str]:
    """What a program without an update beside the passes cannot do."""
    lacks = f"overlap_offload=true: {program} waits for the update of an offloaded optimizer"
    return [lacks] if plan.overlap_offload else []


def words(arguments: Arguments) -> list[str]:
    """All flags and values, one after the other, as a program receives them."""
    return [word for argument in arguments for word in argument]


def binding_window(model: ModelSpec, workload: Workload) -> int | None:
    """The attention window, where it is shorter than the sequence and so changes anything."""
    window = model.attention.window
    return window if window is not None and window < workload.seq_len else None


def flag(name: str, *values: object) -> tuple[str, ...]:
    """A flag and its values as text."""
    return (name, *(str(value) for value in values))
