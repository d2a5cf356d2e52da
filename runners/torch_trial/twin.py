"""A big model's smaller proxy: a plan's own structure with fewer devices, layers, widths and tokens.

What shrinks, in this order, each as far as the limits ask:

    copies (dp), pipeline stages, context and tensor parallel ranks, halved, two of each kept while possible
    layers, to one a chunk (n, where every n-th is redone); micro-batches a step, to twice the stages
    widths of all matrices and the vocabulary, by one factor; head widths stay
    tokens of a sequence

A proxy's seconds are those of the proxy.  Nothing here scales them up.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from objectives.metrics import Job
from search_spaces.errors import check
from search_spaces.local_cluster import MIN_DEVICES
from search_spaces.model import ModelSpec, MoeSpec
from search_spaces.parameters import trained_parameters
from search_spaces.plan import Plan
from search_spaces.units import MILLION, gib

_MIN_TOKENS = 64  # of a context-parallel rank: below it, only the launch of operations would be measured
_MIN_VOCABULARY = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a trial may occupy: rank processes, parameters of the model, tokens of a step."""

    n_ranks: int
    parameters: float = 20 * MILLION
    tokens: int = 8192

    def __post_init__(self) -> None:
        for name in self.__slots__:
            check(getattr(self, name) >= 1, f"a proxy's {name} must be at least 1", getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """What runs in place of a job's plan, and in what it differs: name to (proxy's, the job's own)."""

    job: Job
    plan: Plan
    differs: dict[str, tuple[int, int]]

    @property
    def words(self) -> str:
        """The differences as a person reads them; empty where there are none."""
        return difference_words(self.differs)

    @property
    def key(self) -> str:
        """The same for all plans that run alike: sixteen hexadecimal digits of everything that runs."""
        text = repr((neutral(self.plan).key, self.job.model, self.job.workload))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference_words(differs: Mapping[str, Sequence[int]]) -> str:
    """`layers 4 of 32, devices 8 of 64`."""
    return ", ".join(f"{name} {own} of {whole}" for name, (own, whole) in differs.items())


def most_ranks() -> int:
    """CPU ranks that a trial may have: the cores, and at least as many as the cluster `local` has."""
    return max(os.cpu_count() or 1, MIN_DEVICES)


def same(job: Job, plan: Plan) -> Twin:
    """The job itself."""
    return Twin(job=job, plan=plan, differs={})


def twin(job: Job, plan: Plan, limits: Limits) -> Twin:
    """The proxy of a plan within the limits.

    Raises
    ------
    InvalidSpec
        The plan's structure does not fit even so.
    """
    small_plan = fewer_ranks(replace(plan, nodes=0, n_microbatches=0), limits.n_ranks)
    model = _fewer_layers(job.model, plan, small_plan)
    model = _narrower(model, small_plan, limits.parameters)
    n_microbatches = plan.n_microbatches or job.workload.global_batch // (plan.micro_batch * plan.dp)
    per_step = min(n_microbatches, 2 * small_plan.pp)
    workload = replace(job.workload, global_batch=per_step * small_plan.micro_batch * small_plan.dp)
    seq_len = _fewer_tokens(workload.seq_len, workload.global_batch, small_plan, limits.tokens)
    workload = replace(workload, seq_len=seq_len)
    if model.embedding.n_positions:
        model = replace(model, embedding=replace(model.embedding, n_positions=seq_len))
    small = replace(job, model=model, workload=workload)
    return Twin(job=small, plan=small_plan, differs=differences(job, plan, small, small_plan))


def fewer_ranks(plan: Plan, n_ranks: int) -> Plan:
    """Halve the axes in turn, first while two ranks of each remain, then to one.

    Raises
    ------
    InvalidSpec
        Degrees that cannot be halved so far.
    """
    for least in (2, 1):
        for axis in ("dp", "pp", "cp", "tp"):
            while plan.world_size > n_ranks and getattr(plan, axis) % 2 == 0 and getattr(plan, axis) > least:
                plan = _halved(plan, axis)
    check(
        plan.world_size <= n_ranks,
        f"a proxy must fit {n_ranks} processes",
        f"{plan.key}, whose degrees cannot be halved further",
    )
    return plan


def _halved(plan: Plan, axis: str) -> Plan:
    changed: dict[str, object] = {axis: getattr(plan, axis) // 2}
    if axis == "pp":
        changed |= dict(first_layers=0, last_layers=0)
    if axis == "tp" and plan.etp > 1 and plan.etp % 2 == 0:
        changed["etp"] = plan.etp // 2
    smaller = replace(plan, **changed)  # type: ignore[arg-type]
    inner = smaller.tp * smaller.cp * smaller.dp
    while smaller.ep > 1 and inner % (smaller.etp * smaller.ep):
        smaller = replace(smaller, ep=smaller.ep // 2)
    return neutral(smaller)


def neutral(plan: Plan) -> Plan:
    """Knobs that do nothing at their neutral values; torch always sends between stages on the side."""
    default = Plan()
    plan = replace(plan, overlap_pp=default.overlap_pp)
    if plan.pp == 1:
        plan = replace(
            plan,
            schedule=default.schedule,
            vpp=1,
            extra_warmup=0,
            pipeline_limit=0,
            recompute_stages=0,
            optimizer_sync=default.optimizer_sync,
        )
    if plan.pp == 1 or plan.dp == 1:
        plan = replace(plan, rank_order=default.rank_order)
    if plan.tp == 1:
        plan = replace(plan, sequence_parallel=False, overlap_tp=False, expert_tokens=default.expert_tokens)
    if plan.ep == 1:
        plan = replace(plan, overlap_ep=False, deduplicate_ep=False, hierarchical_ep=False, migrate_every=0)
    if plan.cp == 1:
        plan = replace(plan, cp_kind=default.cp_kind)
    if plan.dp * plan.cp == 1:
        plan = replace(plan, zero=0, overlap_dp=False, coalesced_buckets=0)
    if plan.zero < 3:
        plan = replace(plan, hpz=1, quantized_weights=False, quantized_gradients=False)
    return plan


def _fewer_layers(model: ModelSpec, plan: Plan, small: Plan) -> ModelSpec:
    """As many chunks as the small plan holds, one layer each; a model of one stage keeps two layers.

    Where every n-th layer is redone, n layers to a chunk, if the model has so many.
    """
    chunks = small.pp * small.vpp
    per_chunk = min(small.recompute_every, max(model.n_layers // chunks, 1))
    n_layers = min(max(chunks * per_chunk, 2), model.n_layers)
    return replace(with_layers(model, n_layers, plan, small), n_predict_layers=0)


def with_layers(model: ModelSpec, n_layers: int, plan: Plan, small: Plan) -> ModelSpec:
    """The model with fewer layers, and as many experts a rank as before if the small plan has fewer ranks.

    A model with dense layers in front of its expert layers keeps one of them.
    """
    moe = model.moe
    if moe is not None:
        every = min(moe.layer_every, max(n_layers - 1, 1))
        dense = min(moe.n_dense_layers, 1, n_layers - 1)
        held = moe.n_experts // plan.ep
        n_experts = max(held * small.ep, moe.top_k)
        n_experts += -n_experts % small.ep
        moe = replace(
            moe, n_dense_layers=dense, layer_every=every, n_experts=n_experts, n_groups=1, top_groups=1
        )
    return replace(model, n_layers=n_layers, moe=moe)


def _narrower(model: ModelSpec, plan: Plan, most_parameters: float) -> ModelSpec:
    """Every width over the same power of two, as few times as the limit of parameters asks."""
    split = plan.tp * plan.cp
    while trained_parameters(model) > most_parameters:
        smaller = _half_as_wide(model, split)
        if smaller is None:
            break
        model = smaller
    return model


def _half_as_wide(model: ModelSpec, split: int) -> ModelSpec | None:
    """Half of every width, or None where heads could not be split over so many ranks any more."""
    attention = model.attention
    n_heads = attention.n_heads // 2
    n_kv_heads = max(attention.n_kv_heads // 2, 1)
    is_even = attention.n_heads % 2 == 0 and model.d_model % (2 * split) == 0
    if not is_even or n_heads % split or n_heads % n_kv_heads:
        return None

    def half(width: int) -> int:
        return max(width // 2 // split, 1) * split

    embedding = model.embedding
    return replace(
        model,
        d_model=model.d_model // 2,
        attention=replace(attention, n_heads=n_heads, n_kv_heads=n_kv_heads),
        mlp=replace(model.mlp, width=half(model.mlp.width)),
        moe=_half_experts(model.moe, split),
        embedding=replace(embedding, vocab_size=max(embedding.vocab_size // 2, _MIN_VOCABULARY)),
    )


def _half_experts(moe: MoeSpec | None, split: int) -> MoeSpec | None:
    if moe is None:
        return None
    shared = max(moe.shared_width // 2 // split, 1) * split if moe.shared_width else 0
    width = max(moe.expert_width // 2 // split, 1) * split
    return replace(moe, expert_width=width, shared_width=shared)


def _fewer_tokens(seq_len: int, global_batch: int, plan: Plan, most_tokens: int) -> int:
    least = _MIN_TOKENS * plan.cp * 2
    while seq_len * global_batch > most_tokens and seq_len % 2 == 0 and seq_len // 2 >= least:
        seq_len //= 2
    return seq_len


def differences(job: Job, plan: Plan, small: Job, small_plan: Plan) -> dict[str, tuple[int, int]]:
    """Everything in which the proxy is another; equal entries left out."""
    both = (_sizes(small, small_plan), _sizes(job, plan))
    return {name: (own, both[1][name]) for name, own in both[0].items() if own != both[1][name]}


def _sizes(job: Job, plan: Plan) -> dict[str, int]:
    model, workload = job.model, job.workload
    return {
        "devices": plan.world_size,
        **{name: getattr(plan, name) for name in ("dp", "pp", "cp", "tp", "ep", "etp")},
        "layers": model.n_layers,
        "width": model.d_model,
        "heads": model.attention.n_heads,
        "mlp width": model.mlp.width,
        "experts": model.moe.n_experts if model.moe else 0,
        "vocabulary": model.embedding.vocab_size,
        "sequence": workload.seq_len,
        "global batch": workload.global_batch,
    }


def too_large(plan: Plan, *, n_ranks: int, needed_bytes: float, host_bytes: float) -> str:
    """In what a plan exceeds this machine; empty if it may be started."""
    if plan.world_size > n_ranks:
        return too_many(plan, n_ranks)
    if needed_bytes > host_bytes:
        return f"{gib(needed_bytes):.1f} GiB predicted for all processes of {gib(host_bytes):.1f} GiB"
    return ""


def too_many(plan: Plan, n_ranks: int) -> str:
    """That a plan has more ranks than may run."""
    return f"{plan.world_size} processes where {n_ranks} may run"
