"""A plan: one layout of a training job over the devices; and plans as columns.

    world = tp * cp * dp * pp                 the dense mesh
    world = etp * ep * edp * pp               the expert mesh, over the same devices
    global_batch = micro_batch * n_microbatches * dp

Two knobs make a job smaller than its cluster and its batch: `nodes` takes some of the nodes, `n_microbatches`
says how many micro-batches a step has instead of dividing the global batch.
Rules: `search_spaces.rules`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from search_spaces.columns import taken
from search_spaces.errors import InvalidSpec, UnknownName, check

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class CpKind(StrEnum):
    """How attention runs over a sequence split between devices."""

    RING = "ring"
    ULYSSES = "ulysses"
    ALL_GATHER = "all-gather"


class Schedule(StrEnum):
    """Order of forward and backward passes on a pipeline."""

    GPIPE = "gpipe"
    ONE_F_ONE_B = "1f1b"
    INTERLEAVED = "interleaved"
    ZB_H1 = "zb-h1"
    ZB_H2 = "zb-h2"
    ZB_V = "zb-v"
    V_HALF = "v-half"
    V_MIN = "v-min"
    DUALPIPE = "dualpipe"
    DUALPIPE_V = "dualpipe-v"
    MESSAGE_DRIVEN = "message-driven"


# One stage's share as two chunks, down the pipeline and up again.
V_SHAPED = (Schedule.ZB_V, Schedule.V_HALF, Schedule.V_MIN, Schedule.DUALPIPE_V)
# Backward passes in two halves, the one to the weights later.
SPLIT_BACKWARD = (Schedule.ZB_H1, Schedule.ZB_H2, Schedule.DUALPIPE, *V_SHAPED)


class OptimizerSync(StrEnum):
    """When pipeline stages agree on a step (gradient norm, finite gradients): before the update, or after.

    Checked after, an update that should not have been is taken back and done again; stages need not wait for
    each other, so that one step's drain meets the next one's fill.
    """

    BARRIER = "barrier"
    POST_VALIDATION = "post-validation"


class Recompute(StrEnum):
    """What the backward pass computes again: nothing, the attention core, or whole layers."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


class Module(StrEnum):
    """Parts of a layer that the backward pass can compute again beside the attention core.

    Norms, a dense MLP, an expert layer's MLPs, the activation inside its experts, and latent attention's
    up-projections.
    """

    LAYERNORM = "layernorm"
    MLP = "mlp"
    MOE = "moe"
    MOE_ACT = "moe_act"
    MLA_UP_PROJ = "mla_up_proj"


def module_set(modules: Iterable[Module]) -> str:
    """A set of modules as one word, in the order of their class: `mlp+moe_act`, or `none`."""
    chosen = set(modules)
    return "+".join(module for module in Module if module in chosen) or "none"


# Every set of modules; a set's place in the class has a bit for each of its modules.
ModuleSet: type[StrEnum] = StrEnum(  # type: ignore[misc]
    "ModuleSet",
    [
        (word.upper().replace("+", "_AND_"), word)
        for bits in range(1 << len(Module))
        for word in [module_set(module for i, module in enumerate(Module) if bits >> i & 1)]
    ],
)
NO_MODULES = ModuleSet("none")


class Dispatch(StrEnum):
    """How tokens reach their experts.

    `plain` is what the model says: every (token, expert) pair once, or every expert padded to its capacity.
    `einsum` pads and moves tokens by products with masks over all (token, expert, slot), as GShard and
    DeepSpeed-MoE do; `padded` pads, and combines in fp32 (Tutel).  `padding-free` sends only what was routed,
    capacity or not (X-MoE).
    """

    PLAIN = "plain"
    EINSUM = "einsum"
    PADDED = "padded"
    PADDING_FREE = "padding-free"


class ExpertTokens(StrEnum):
    """Which of a replica's tokens each of its tensor-parallel ranks sends to the experts.

    Its part of a sequence that is sharded between them (or whole where tp is 1), all of them as its
    neighbours do too, or its part of them, gathered again after the exchange.
    """

    SHARDED = "sharded"
    DUPLICATED = "duplicated"
    DROPPED = "dropped"


class RankOrder(StrEnum):
    """Mesh axes from the innermost (neighbouring ranks) to the outermost."""

    TP_CP_DP_PP = "tp-cp-dp-pp"
    TP_CP_PP_DP = "tp-cp-pp-dp"


ENUMS: dict[str, type[StrEnum]] = {
    "cp_kind": CpKind,
    "schedule": Schedule,
    "optimizer_sync": OptimizerSync,
    "recompute": Recompute,
    "recompute_modules": ModuleSet,
    "dispatch": Dispatch,
    "rank_order": RankOrder,
    "expert_tokens": ExpertTokens,
}
FROM_ZERO = (
    "first_layers", "last_layers", "recompute_stages", "pipeline_limit", "extra_warmup", "sequence_chunk",
    "power_cap_w", "migrate_every", "nodes", "n_microbatches", "offload_bucket", "coalesced_buckets",
    "optimizer_tile",
)  # fmt: skip
MAX_DIGITS = 9  # products of two degrees stay within int64
FLAGS = (
    "sequence_parallel", "offload_optimizer", "overlap_dp", "overlap_tp", "overlap_pp", "overlap_ep",
    "deduplicate_ep", "hierarchical_ep", "quantized_weights", "quantized_gradients", "offload_sequence",
    "offload_checkpoints", "overlap_offload", "keep_received",
)  # fmt: skip


def code(value: StrEnum) -> int:
    """Position of an enum's value among its class: what a column stores."""
    return list(type(value)).index(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One layout of a job.

    `zero` is the ZeRO stage (0-3; 3 shards parameters as FSDP does). `first_layers` and `last_layers` are the
    layers of the first and last pipeline stage (0: even split). `recompute_every` n > 1 recomputes only every
    n-th layer; it needs recompute=full. `recompute_modules` are redone beside recompute=none or selective.
    `recompute_stages` n recomputes on the first n pipeline stages only, which keep the most micro-batches
    (0: on all).
    `vpp` counts model chunks per stage. `pipeline_limit` is the most micro-batches between their passes on
    the first stage with schedule=message-driven (0: pp); `extra_warmup` the forward passes by which the
    warm-up of 1f1b is longer. `overlap_ep` runs one micro-batch's expert all-to-all beside another's
    computation; `deduplicate_ep` sends a token once to each node and device that holds experts of its own,
    and copies it there (DeepEP; X-MoE's redundancy-bypassing dispatch).  `hierarchical_ep` sends one message
    to each node, and hands tokens on inside it (Piper's HALO).  Every `migrate_every` steps experts change
    places between hot and cold devices (0: never).

    `quantized_weights` and `quantized_gradients` send what ZeRO-3 moves in 8 and 4 bits; `hpz` devices next
    to each other hold the weights a second time, for the backward pass (1: none do). `sequence_chunk` is the
    tokens of a sequence that pass a layer at a time (0: all); `offload_sequence` keeps the other chunks'
    queries, keys and values on the host, `offload_checkpoints` the inputs of layers that are redone.
    `overlap_offload` updates an offloaded optimizer bucket by bucket beside the passes around the step's end;
    `power_cap_w` is each device's power limit (0: its rating).

    `nodes` is how many of the cluster's nodes are used and `n_microbatches` the micro-batches of a step on
    each replica (0: all of them, and what the global batch asks).  `offload_bucket` parameters at a time an
    offloaded optimizer's state visits the device (0: as the trainer does), `coalesced_buckets` such buckets
    are reduced together while earlier ones are updated (0: the update waits for all).  `optimizer_tile`
    parameters are updated at a time (0: all).  `keep_received` keeps what collectives brought, so that
    recomputation repeats none of them.
    """

    tp: int = 1
    pp: int = 1
    dp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int = 1
    vpp: int = 1
    micro_batch: int = 1
    zero: int = 0
    first_layers: int = 0
    last_layers: int = 0
    recompute_every: int = 1
    recompute_stages: int = 0
    pipeline_limit: int = 0
    extra_warmup: int = 0
    hpz: int = 1
    sequence_chunk: int = 0
    power_cap_w: int = 0
    migrate_every: int = 0
    nodes: int = 0
    n_microbatches: int = 0
    offload_bucket: int = 0
    coalesced_buckets: int = 0
    optimizer_tile: int = 0
    cp_kind: CpKind = CpKind.RING
    schedule: Schedule = Schedule.ONE_F_ONE_B
    optimizer_sync: OptimizerSync = OptimizerSync.BARRIER
    recompute: Recompute = Recompute.NONE
    recompute_modules: StrEnum = NO_MODULES
    dispatch: Dispatch = Dispatch.PLAIN
    rank_order: RankOrder = RankOrder.TP_CP_DP_PP
    expert_tokens: ExpertTokens = ExpertTokens.SHARDED
    sequence_parallel: bool = False
    offload_optimizer: bool = False
    overlap_dp: bool = False
    overlap_tp: bool = False
    overlap_pp: bool = False
    overlap_ep: bool = False
    deduplicate_ep: bool = False
    hierarchical_ep: bool = False
    quantized_weights: bool = False
    quantized_gradients: bool = False
    offload_sequence: bool = False
    offload_checkpoints: bool = False
    overlap_offload: bool = False
    keep_received: bool = False

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "dp", "cp", "ep", "etp", "vpp", "micro_batch", "recompute_every", "hpz"):
            check(getattr(self, name) >= 1, f"Plan.{name} must be at least 1", getattr(self, name))
        check(0 <= self.zero <= 3, "Plan.zero must be a ZeRO stage from 0 to 3", self.zero)
        for name in FROM_ZERO:
            check(getattr(self, name) >= 0, f"Plan.{name} must not be negative", getattr(self, name))

    @property
    def world_size(self) -> int:
        """Devices the plan occupies: tp cp dp pp."""
        return self.tp * self.cp * self.dp * self.pp

    @property
    def reduces_every_pass(self) -> bool:
        """Whether each micro-batch's gradients are reduced: sharded ones, except in a pipeline."""
        return self.zero >= 2 and self.pp == 1

    @property
    def key(self) -> str:
        """The plan as `knob=value` words, defaults left out; two plans are the same iff their keys are."""
        words = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default or field.name in ("tp", "pp", "dp", "micro_batch"):
                words.append(f"{field.name}={_word(value)}")
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `tp=8 pp=4 recompute=full`; a knob left out keeps its default.

        Raises
        ------
        UnknownName
            A knob or an enum's value that does not exist.
        InvalidSpec
            A word that is not `knob=value`, a knob given twice, or a value of the wrong kind.
        """
        values: dict[str, Any] = {}
        for word in text.replace(",", " ").split():
            name, equals, value = word.partition("=")
            check(bool(equals), "a plan is written as knob=value words", repr(word))
            check(name not in values, "a plan names each knob once", repr(word))
            values[name] = parse_value(name, value)
        return cls(**values)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _modules(value: str) -> StrEnum:
    """A set of modules from its words, in any order."""
    if value == NO_MODULES:
        return NO_MODULES
    words = value.split("+")
    for word in words:
        if word not in list(Module):
            raise UnknownName("each of recompute_modules", word, [*Module, NO_MODULES])
    check(len(set(words)) == len(words), "recompute_modules names each module once", repr(value))
    return ModuleSet(module_set(map(Module, words)))


def parse_value(name: str, value: str) -> int | bool | StrEnum:
    """A knob's value from its text."""
    names = [field.name for field in fields(Plan)]
    if name not in names:
        raise UnknownName("a knob of a plan", name, names)
    if name == "recompute_modules":
        return _modules(value)
    if name in ENUMS:
        choices = [str(choice) for choice in ENUMS[name]]
        if value not in choices:
            raise UnknownName(name, value, choices)
        return ENUMS[name](value)
    if name in FLAGS:
        check(value in ("true", "false"), f"{name} must be true or false", repr(value))
        return value == "true"
    check(value.isascii() and value.isdigit(), f"{name} must be a whole number", repr(value))
    check(len(value) <= MAX_DIGITS, f"{name} must have at most {MAX_DIGITS} digits", len(value))
    return int(value)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plans:
    """Many plans as columns: every field has shape (n_plans,), row i is plan i.

    Degrees are int64; enums are int8 codes (position in their class, see `code`); flags are bool.
    """

    tp: Ints
    pp: Ints
    dp: Ints
    cp: Ints
    ep: Ints
    etp: Ints
    vpp: Ints
    micro_batch: Ints
    zero: Ints
    first_layers: Ints
    last_layers: Ints
    recompute_every: Ints
    recompute_stages: Ints
    pipeline_limit: Ints
    extra_warmup: Ints
    hpz: Ints
    sequence_chunk: Ints
    power_cap_w: Ints
    migrate_every: Ints
    nodes: Ints
    n_microbatches: Ints
    offload_bucket: Ints
    coalesced_buckets: Ints
    optimizer_tile: Ints
    cp_kind: NDArray[np.int8]
    schedule: NDArray[np.int8]
    optimizer_sync: NDArray[np.int8]
    recompute: NDArray[np.int8]
    recompute_modules: NDArray[np.int8]
    dispatch: NDArray[np.int8]
    rank_order: NDArray[np.int8]
    expert_tokens: NDArray[np.int8]
    sequence_parallel: Bools
    offload_optimizer: Bools
    overlap_dp: Bools
    overlap_tp: Bools
    overlap_pp: Bools
    overlap_ep: Bools
    deduplicate_ep: Bools
    hierarchical_ep: Bools
    quantized_weights: Bools
    quantized_gradients: Bools
    offload_sequence: Bools
    offload_checkpoints: Bools
    overlap_offload: Bools
    keep_received: Bools

    def __len__(self) -> int:
        return len(self.tp)

    def __iter__(self) -> Iterator[Plan]:
        return (self.row(i) for i in range(len(self)))

    @classmethod
    def of(cls, plans: Iterable[Plan]) -> Self:
        """Columns from single plans."""
        rows = list(plans)
        return cls(**{name: column([getattr(plan, name) for plan in rows], name) for name in KNOB_NAMES})

    @classmethod
    def concatenate(cls, parts: Sequence["Plans"]) -> Self:
        """Plans of all parts, in order."""
        return cls(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in KNOB_NAMES})

    def row(self, i: int) -> Plan:
        """Plan i."""
        values: dict[str, Any] = {}
        for name in KNOB_NAMES:
            item = getattr(self, name)[i].item()
            values[name] = list(ENUMS[name])[item] if name in ENUMS else item
        return Plan(**values)

    def take(self, index: NDArray[Any] | slice) -> "Plans":
        """Plans at the given positions (or where a mask is true)."""
        if isinstance(index, slice):
            return Plans(**{name: getattr(self, name)[index] for name in KNOB_NAMES})
        rows = np.flatnonzero(index) if index.dtype == np.bool_ else index
        return Plans(**{name: taken(getattr(self, name), rows) for name in KNOB_NAMES})

    def keys(self) -> list[str]:
        """Key of every plan."""
        return [plan.key for plan in self]

    @property
    def edp(self) -> Ints:
        """Data-parallel replicas of an expert: tp cp dp / (etp ep)."""
        return self.tp * self.cp * self.dp // (self.etp * self.ep)

    def is_schedule(self, schedule: Schedule) -> Bools:
        """Where the plan runs this schedule."""
        equal: Bools = self.schedule == code(schedule)
        return equal

    def is_any_schedule(self, schedules: Iterable[Schedule]) -> Bools:
        """Where the plan runs one of these schedules."""
        highest = self.schedule.max(initial=0)
        found: Bools = np.zeros(len(self), dtype=np.bool_)
        for wanted in map(code, schedules):
            if wanted <= highest:
                found |= self.schedule == wanted
        return found

    @property
    def reduces_every_pass(self) -> Bools:
        """Where each micro-batch's gradients are reduced; a pipeline sums them whole, and reduces once."""
        return np.asarray((self.zero >= 2) & (self.pp == 1))

    @property
    def folds(self) -> Bools:
        """Where a stage holds two chunks of the model from opposite ends: the first one the head too."""
        return self.is_any_schedule(V_SHAPED)

    @property
    def mirrors(self) -> Bools:
        """Where stage i holds stage p - 1 - i as well, of a second copy of the model."""
        return self.is_schedule(Schedule.DUALPIPE)

    def is_sync(self, sync: OptimizerSync) -> Bools:
        """Where the optimizer step is synchronised in this way."""
        equal: Bools = self.optimizer_sync == code(sync)
        return equal

    def is_recompute(self, recompute: Recompute) -> Bools:
        """Where the plan recomputes this much."""
        equal: Bools = self.recompute == code(recompute)
        return equal

    def redoes(self, module: Module) -> Bools:
        """Where the backward pass computes this module again."""
        redone: Bools = (self.recompute_modules >> list(Module).index(module) & 1).astype(np.bool_)
        return redone

    def is_dispatch(self, dispatch: Dispatch) -> Bools:
        """Where tokens reach their experts in this way."""
        equal: Bools = self.dispatch == code(dispatch)
        return equal

    def sends_tokens(self, tokens: ExpertTokens) -> Bools:
        """Where tensor-parallel ranks send these tokens to the experts."""
        equal: Bools = self.expert_tokens == code(tokens)
        return equal

    def is_cp(self, kind: CpKind) -> Bools:
        """Where the sequence is split, and in this way."""
        split: Bools = (self.cp > 1) & (self.cp_kind == code(kind))
        return split


KNOB_NAMES: tuple[str, ...] = tuple(field.name for field in fields(Plan))


def column(values: Sequence[Any], name: str) -> NDArray[Any]:
    """Values of one knob as the column `Plans` stores."""
    if name in ENUMS:
        choices = list(ENUMS[name])
        return np.array([choices.index(ENUMS[name](value)) for value in values], dtype=np.int8)
    if name in FLAGS:
        return np.array(values, dtype=np.bool_)
    if any(isinstance(value, bool) or int(value) != value for value in values):
        raise InvalidSpec(f"{name} must be whole numbers", str(list(values)))
    return np.array(values, dtype=np.int64)
