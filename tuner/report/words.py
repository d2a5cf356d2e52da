"""Numbers and plans as short words for tables and pictures."""

from search_spaces.plan import NO_MODULES, Dispatch, Plan, RankOrder, Recompute
from search_spaces.units import BILLION, KILO, MILLION, MS, US, gib
from tuner.worth import Worth


def seconds(value_s: float) -> str:
    """`12.35 s`, `48.2 ms` or `7.1 us`."""
    if value_s >= 1 or value_s == 0:
        return f"{value_s:.2f} s" if value_s < 100 else f"{value_s:,.0f} s"
    return f"{value_s / MS:.1f} ms" if value_s >= MS else f"{value_s / US:.1f} us"


def duration(value_s: float) -> str:
    """`48 s`, `3 min 20 s` or `1 h 05 min`: how long a person waits."""
    minutes, rest_s = divmod(round(value_s), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest_s:02d} s" if minutes else f"{rest_s} s"


def gibibytes(n_bytes: float) -> str:
    """`63.2 GiB`."""
    return f"{gib(n_bytes):.1f} GiB"


def count(value: float) -> str:
    """`8.03 B`, `124.4 M`, `12.3 k`: parameters and tokens."""
    for size, letter in ((KILO * BILLION, "T"), (BILLION, "B"), (MILLION, "M"), (KILO, "k")):
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:g}"


def number_of(n: int, thing: str) -> str:
    """`1 sequence`, `1,024 sequences`."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def percent(share: float) -> str:
    """`41.2 %` of a fraction."""
    return f"{100 * share:.1f} %"


def signed_percent(share: float) -> str:
    """`+4.1 %` of a fraction."""
    return f"{100 * share:+.1f} %"


def worth_words(worth: Worth) -> str:
    """What more trials are worth, in one line."""
    if not worth.n_untried:
        return "nothing: every candidate has an outcome"
    chance = percent(worth.probability) if worth.probability >= 0.001 else "below 0.1 %"
    return (
        f"another plan saves over {100 * worth.better_by:g} % with a probability of {chance};"
        f" {percent(worth.expected_gain)} to gain in the mean"
    )


def plan_words(plan: Plan) -> str:
    """A plan in short form, `tp8 pp4 dp16 mb1 sp 1f1b recompute-full`; what has no effect is left out."""
    words = [f"tp{plan.tp}", f"pp{plan.pp}", f"dp{plan.dp}"]
    words += [
        f"{name}{value}"
        for name, value in (("ep", plan.ep), ("etp", plan.etp), ("vpp", plan.vpp))
        if value > 1
    ]
    if plan.cp > 1:
        words.append(f"cp{plan.cp}-{plan.cp_kind}")
    words.append(f"mb{plan.micro_batch}")
    if plan.zero:
        words.append(f"zero{plan.zero}")
    if plan.sequence_parallel:
        words.append("sp")
    if plan.pp > 1:
        words.append(str(plan.schedule))
    return " ".join([*words, *_lesser_words(plan), *_expert_words(plan)])


def _expert_words(plan: Plan) -> list[str]:
    """`padding-free`, `ep-once`, `ep-by-node`, `migrate100`: how tokens reach experts, and these move."""
    words = [] if plan.dispatch is Dispatch.PLAIN else [str(plan.dispatch)]
    words += [] if plan.expert_tokens is Plan().expert_tokens else [f"tokens-{plan.expert_tokens}"]
    named = (
        ("ep-once", plan.deduplicate_ep),
        ("ep-by-node", plan.hierarchical_ep),
        ("keep-received", plan.keep_received),
    )
    words += [word for word, is_on in named if is_on]
    return [*words, f"migrate{plan.migrate_every}"] if plan.migrate_every else words


def _on_stages(plan: Plan) -> str:
    return f"@{plan.recompute_stages}" if plan.recompute_stages else ""


def _lesser_words(plan: Plan) -> list[str]:
    words = []
    if plan.recompute is not Recompute.NONE:
        every = f"/{plan.recompute_every}" if plan.recompute_every > 1 else ""
        words.append(f"recompute-{plan.recompute}{every}{_on_stages(plan)}")
    if plan.recompute_modules is not NO_MODULES:
        words.append(f"redo-{plan.recompute_modules}{_on_stages(plan)}")
    words += [f"{end}{n}" for end, n in (("first", plan.first_layers), ("last", plan.last_layers)) if n]
    if plan.offload_optimizer:
        words.append("offload-overlapped" if plan.overlap_offload else "offload")
    words += [f"cap{plan.power_cap_w}W"] if plan.power_cap_w else []
    overlapped = [axis for axis in ("dp", "tp", "pp", "ep") if getattr(plan, f"overlap_{axis}")]
    if overlapped:
        words.append("overlap-" + "+".join(overlapped))
    if plan.rank_order is not RankOrder.TP_CP_DP_PP:
        words.append(str(plan.rank_order))
    return [*words, *_size_words(plan), *_zero_plus_words(plan), *_host_words(plan)]


def _size_words(plan: Plan) -> list[str]:
    """`nodes12 microbatches320 limit8 bucket4000000`: numbers that most plans leave alone."""
    named = {
        "nodes": plan.nodes,
        "microbatches": plan.n_microbatches,
        "limit": plan.pipeline_limit,
        "warmup": plan.extra_warmup,
        "bucket": plan.offload_bucket,
        "coalesce": plan.coalesced_buckets,
        "tile": plan.optimizer_tile,
    }
    words = [f"{name}{value}" for name, value in named.items() if value]
    return words if plan.optimizer_sync is Plan().optimizer_sync else [*words, str(plan.optimizer_sync)]


def _zero_plus_words(plan: Plan) -> list[str]:
    words = ["qwz"] if plan.quantized_weights else []
    words += [f"hpz{plan.hpz}"] if plan.hpz > 1 else []
    return [*words, "qgz"] if plan.quantized_gradients else words


def _host_words(plan: Plan) -> list[str]:
    words = ["checkpoints-on-host"] if plan.offload_checkpoints else []
    if plan.sequence_chunk:
        words.append(f"chunks-of-{plan.sequence_chunk}" + ("-on-host" if plan.offload_sequence else ""))
    return words
