"""The values each knob may take for a job: the source of grids and of Optuna's distributions.

A default choice list is every value that could be legal, up to a bound that is stated here; a user may name
others.
"""

from enum import StrEnum
from typing import Any

from search_spaces.errors import InvalidSpec, UnknownName, check
from search_spaces.plan import (
    ENUMS,
    FLAGS,
    FROM_ZERO,
    KNOB_NAMES,
    NO_MODULES,
    CpKind,
    Dispatch,
    ExpertTokens,
    OptimizerSync,
    Schedule,
    parse_value,
)
from search_spaces.rule import Context, scale_up_devices

MAX_MICRO_BATCH = 64
LAYER_BYTES_PER_ENTRY = 34  # one layer's activations, Korthikanti et al. (2022), arXiv:2205.05198, equation 1
MAX_CHUNKS = 8
MAX_STAGE_GAP = 2
MIN_SEQUENCE_SHARD_TOKENS = 512
OWN_COALESCED_BUCKETS = 4  # what axonn/optim.py, CPUAdam, takes unless told
# Tried where a user names them: they take a trainer's extra kernels or code, or are many.
OPT_IN: dict[str, Any] = {
    "overlap_ep": False,
    "deduplicate_ep": False,
    "hierarchical_ep": False,
    "dispatch": Dispatch.PLAIN,
    "recompute_stages": 0,
    "migrate_every": 0,
    "recompute_modules": NO_MODULES,
    "optimizer_sync": OptimizerSync.BARRIER,
    "pipeline_limit": 0,
    "extra_warmup": 0,
    "quantized_weights": False,
    "hpz": 1,
    "quantized_gradients": False,
    "sequence_chunk": 0,
    "offload_sequence": False,
    "offload_checkpoints": False,
    "overlap_offload": False,
    "power_cap_w": 0,
    "nodes": 0,
    "n_microbatches": 0,
    "expert_tokens": ExpertTokens.SHARDED,
    "keep_received": False,
    "offload_bucket": 0,
    "coalesced_buckets": 0,
    "optimizer_tile": 0,
}
# Schedules tried wherever the trainer runs them; others where a user, or the trainer's profile, names them.
COMMON_SCHEDULES = (
    Schedule.GPIPE, Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED, Schedule.ZB_H1, Schedule.ZB_H2,
)  # fmt: skip

# The order of enumeration: knobs that many rules need come first, so that illegal branches die early.
ORDER = (
    "tp", "cp", "pp", "nodes", "dp", "cp_kind", "micro_batch", "n_microbatches", "ep", "etp", "split", "vpp",
    "schedule", "optimizer_sync", "pipeline_limit", "extra_warmup", "expert_tokens", "sequence_parallel",
    "recompute", "recompute_modules", "recompute_every", "recompute_stages", "rank_order", "zero",
    "overlap_tp", "overlap_pp", "overlap_dp", "offload_optimizer", "overlap_ep", "deduplicate_ep",
    "hierarchical_ep", "dispatch", "migrate_every", "keep_received", "offload_bucket", "coalesced_buckets",
    "optimizer_tile", "quantized_weights", "hpz", "quantized_gradients", "sequence_chunk", "offload_sequence",
    "offload_checkpoints", "overlap_offload", "power_cap_w",
)  # fmt: skip


def divisors(n: int) -> list[int]:
    """Whole numbers that divide n."""
    small = [i for i in range(1, int(n**0.5) + 1) if n % i == 0]
    return small + [n // i for i in reversed(small) if i * i != n]


def powers_of_two(n: int) -> list[int]:
    """Powers of two that divide n, from 1."""
    return [1 << i for i in range((n & -n).bit_length())]


def largest_micro_batch(context: Context) -> int:
    """Sequences whose activations of a single layer, split over one node, still fit; at least 1."""
    layer_bytes = LAYER_BYTES_PER_ENTRY * context.workload.seq_len * context.model.d_model
    devices = min(context.cluster.devices_per_node, context.cluster.n_devices)
    fit = int(context.cluster.device.memory_bytes * devices / 2 / layer_bytes)
    return min(max(fit, 1), MAX_MICRO_BATCH)


def _cp_kinds(context: Context) -> tuple[CpKind, ...]:
    """Every kind; the all-gather only where no ring runs, which moves the same bytes behind the core."""
    has_ring = CpKind.RING in context.framework.cp_kinds
    return tuple(kind for kind in CpKind if kind is not CpKind.ALL_GATHER or not has_ring)


def _schedules(context: Context) -> tuple[Schedule, ...]:
    """What the trainer's profile lists; for a profile that lists everything, the common ones."""
    everything = set(context.framework.schedules) == set(Schedule)
    return COMMON_SCHEDULES if everything else tuple(Schedule)


def _unasked_choices(context: Context, name: str) -> tuple[Any, ...]:
    """A knob that a user turns on: neutral, or where its trainer has no neutral value, what it does."""
    update, dispatches = context.framework.update, context.framework.experts.dispatches
    if name == "coalesced_buckets" and update.always_coalesces:
        return 0, OWN_COALESCED_BUCKETS
    if name == "dispatch" and context.model.has_capacity and OPT_IN[name] not in dispatches:
        return dispatches
    return (OPT_IN[name],)


def default_choices(context: Context, name: str) -> tuple[Any, ...]:
    """What a knob may be when nobody narrows it."""
    model, n, batch = context.model, context.cluster.n_devices, context.workload.global_batch
    experts = model.moe.n_experts if model.moe else 1
    if name in OPT_IN:
        return _unasked_choices(context, name)
    if name in FLAGS:
        return (False, True)
    if name == "cp_kind":
        return _cp_kinds(context)
    if name == "schedule":
        return _schedules(context)
    if name in ENUMS:
        return tuple(ENUMS[name])
    shards = max(context.workload.seq_len // MIN_SEQUENCE_SHARD_TOKENS, 1)
    tensor = [d for d in divisors(n) if d <= min(model.attention.n_heads, 2 * scale_up_devices(context))]
    table: dict[str, list[int]] = {
        "tp": tensor,
        "pp": [d for d in divisors(n) if d <= model.n_layers],
        "cp": [d for d in divisors(n) if d <= shards],
        "dp": divisors(n),
        "ep": divisors(experts),
        "etp": [d for d in tensor if d <= scale_up_devices(context)] if model.moe else [1],
        "vpp": list(range(1, min(MAX_CHUNKS, model.n_layers) + 1)),
        "micro_batch": [b for b in powers_of_two(batch) if b <= largest_micro_batch(context)],
        "zero": [0, 1, 2, 3],
        "recompute_every": [1, 2, 4],
    }
    return tuple(table[name])


def default_splits(n_layers: int, pp: int) -> list[tuple[int, int]]:
    """(first_layers, last_layers) worth trying: even, or ends up to MAX_STAGE_GAP layers lighter.

    The embedding and the head weigh on the ends; (0, 0) is the even split.
    """
    if pp == 1:
        return [(0, 0)]
    splits = [(0, 0)] if n_layers % pp == 0 else []
    gaps = range(MAX_STAGE_GAP + 1)
    if pp == 2:
        n_first = range((n_layers + 1) // 2 - MAX_STAGE_GAP // 2, n_layers // 2 + MAX_STAGE_GAP // 2 + 1)
        return splits + [(n, 0) for n in n_first if 0 < n < n_layers and 2 * n != n_layers] or [(0, 0)]
    for first_gap in gaps:
        for last_gap in gaps:
            middle, remainder = divmod(n_layers + first_gap + last_gap, pp)
            named = (first_gap or last_gap) and remainder == 0 and middle > max(first_gap, last_gap)
            if named:
                splits.append((middle - first_gap if first_gap else 0, middle - last_gap if last_gap else 0))
    return splits or [(0, 0)]


def asked_choices(name: str, values: object) -> tuple[Any, ...]:
    """A user's values for a knob, from TOML or text, checked one by one.

    Raises
    ------
    UnknownName
        No such knob, or an enum value that does not exist.
    InvalidSpec
        An empty list, a repeated value, or one of the wrong kind.
    """
    if name not in KNOB_NAMES:
        raise UnknownName("a knob of [space]", name, KNOB_NAMES)
    items = values if isinstance(values, list | tuple) else [values]
    check(len(items) > 0, f"[space] {name} must list at least one value", "an empty list")
    parsed = tuple(_one(name, item) for item in items)
    check(len(set(parsed)) == len(parsed), f"[space] {name} must not repeat a value", list(items))
    return parsed


def _one(name: str, item: object) -> int | bool | StrEnum:
    if isinstance(item, bool):
        if name not in FLAGS:
            raise InvalidSpec(f"[space] {name} must be {_kind(name)}", str(item).lower())
        return item
    if not isinstance(item, str | int):
        raise InvalidSpec(f"[space] {name} must be {_kind(name)}", repr(item))
    value = parse_value(name, str(item))
    lowest = 0 if name in ("zero", *FROM_ZERO) else 1
    highest = 3 if name == "zero" else None
    if isinstance(value, int) and not isinstance(value, bool):
        in_range = value >= lowest and (highest is None or value <= highest)
        check(
            in_range,
            f"[space] {name} must be at least {lowest}" + (" and at most 3" if highest else ""),
            value,
        )
    return value


def _kind(name: str) -> str:
    if name in ENUMS:
        return f"one of {', '.join(ENUMS[name])}"
    return "true or false" if name in FLAGS else "a whole number"
