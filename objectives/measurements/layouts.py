"""The layout columns of a row as a plan."""

import re
from dataclasses import replace
from enum import StrEnum
from types import MappingProxyType

from objectives.cost.stages import leaves_a_stage_empty
from objectives.measurements.cells import BadRow, Cells
from objectives.metrics import Job
from search_spaces.errors import InvalidSpec
from search_spaces.framework import EndStages, framework_named
from search_spaces.plan import (
    NO_MODULES,
    V_SHAPED,
    CpKind,
    Module,
    ModuleSet,
    OptimizerSync,
    Plan,
    Recompute,
    Schedule,
    module_set,
)

SCHEDULES = MappingProxyType({
    **{str(schedule): schedule for schedule in Schedule},
    "none": Schedule.ONE_F_ONE_B,
    "1f1b-interleaved": Schedule.INTERLEAVED,
    "zb-1p": Schedule.ZB_H1,
    "zb-2p": Schedule.ZB_H2,
    "zbv": Schedule.ZB_V,
    "zbvzerobubble": Schedule.ZB_V,
    "dualpipev": Schedule.DUALPIPE_V,
    "afab": Schedule.GPIPE,
    "interleaved1f1b": Schedule.INTERLEAVED,
})  # fmt: skip
# Published as without bubbles, which they are where stages update before they agree.
INTERLOCKING = (Schedule.ZB_H2, Schedule.ZB_V)
CORE_ATTENTION = "core_attn"
_CORE_WORDS = frozenset({CORE_ATTENTION, "core_attention", "attention", "attn"})
# Every n-th layer ("selective:2", "selective:layer2"); and what keeps the outputs of every second product
# (torchtitan's "op"), which redoes and keeps half of a layer as redoing every second layer does.
_EVERY_NTH = re.compile(r"(?:layer)?(\d+)")
_EVERY_SECOND = frozenset({"op", "ops"})
MODULES = MappingProxyType({
    **{str(module): module for module in Module},
    "norm": Module.LAYERNORM,
    "rmsnorm": Module.LAYERNORM,
    "act": Module.MOE_ACT,
})  # fmt: skip
_SAME_AS_COLUMNS = ("tp", "pp", "dp", "cp", "ep", "etp", "vpp", "micro_batch")
_OVERLAPS = {
    "overlap_dp": ("dp_grad_reduce", "dp_param_gather", "fsdp_prefetch"),
    "overlap_tp": ("tp_userbuffer", "tp_async"),
    "overlap_pp": ("pp_p2p",),
    "overlap_ep": ("moe_a2a_1f1b", "moe_a2a"),
}


def plan_of(cells: Cells, n_layers: int) -> tuple[Plan, list[str]]:
    """The row's plan, and what the row leaves open or Meshtune has no word for.

    Raises
    ------
    BadRow
        A degree is missing, or the degrees do not multiply to the devices.
    """
    notes: list[str] = []
    degrees = _degrees(cells)
    if stated := stated_plan(cells):
        return stated, notes
    schedule, vpp = _schedule(cells, degrees["pp"], notes)
    first, last = _uneven(n_layers, degrees["pp"], vpp, notes)
    overlaps = _overlaps(cells, degrees, notes)
    recompute, modules, every = _recompute(cells, notes)
    plan = Plan(
        tp=degrees["tp"],
        pp=degrees["pp"],
        cp=degrees["cp"],
        dp=degrees["dp"],
        ep=cells.count("ep") or 1,
        etp=cells.count("etp") or 1,
        vpp=vpp,
        micro_batch=cells.needed("micro_batch"),
        zero=_zero(cells, notes),
        first_layers=first,
        last_layers=last,
        cp_kind=cp_kind(cells),
        schedule=schedule,
        optimizer_sync=_sync(schedule),
        recompute=recompute,
        recompute_modules=modules,
        recompute_every=every,
        sequence_parallel=cells.is_set("seq_parallel") and degrees["tp"] > 1,
        offload_optimizer=_offloads_optimizer(cells, notes),
        overlap_dp=overlaps["overlap_dp"],
        overlap_tp=overlaps["overlap_tp"],
        overlap_pp=overlaps["overlap_pp"],
        overlap_ep=overlaps["overlap_ep"],
        deduplicate_ep=_deduplicates(cells) and (cells.whole("ep") or 1) > 1,
    )
    return plan, notes


def stated_plan(cells: Cells) -> Plan | None:
    """The plan that `extra.plan` spells out, every knob of it; None where the row has columns only.

    Raises
    ------
    BadRow
        Words that are no plan, or another one than the row's degrees say.
    """
    words = cells.extra.get("plan")
    if words is None:
        return None
    try:
        plan = Plan.parse(str(words))
    except InvalidSpec as error:
        raise BadRow(f"extra.plan: {error.must}; got {error.given}") from None
    for name in _SAME_AS_COLUMNS:
        value = cells.count(name)
        if value not in (None, getattr(plan, name)):
            raise BadRow(f"extra.plan must have the row's {name} {value}; got {getattr(plan, name)}")
    return plan


def as_overlapped(plan: Plan, framework: str) -> Plan:
    """The plan as its trainer runs it: gradients overlap only at the ZeRO stages where it can do that."""
    stages = framework_named(framework).zero_stages_with_overlap
    return plan if plan.zero in stages else replace(plan, overlap_dp=False)


def with_usual_messages(cells: Cells, plan: Plan, since: str) -> Plan:
    """The plan with an interleaved pipeline's messages beside passes, where a row leaves that open.

    `since` (YYYY-MM) is when the trainer began to do so; empty: it does not.
    """
    date = cells.text("date")
    left_open = cells.overlap is not None and not set(_OVERLAPS["overlap_pp"]) & set(cells.overlap)
    if not (left_open and since and plan.vpp > 1) or (date and date < since):
        return plan
    return plan if stated_plan(cells) else replace(plan, overlap_pp=True)


def unfillable(plan: Plan, n_layers: int) -> str:
    """Why a model has too few layers for a plan's stages and chunks; empty where it has enough.

    A chunk may hold the embedding alone, or the head.
    """
    if n_layers + 2 >= plan.pp * plan.vpp:
        return ""
    return f"{n_layers} layers do not fill {plan.pp} stages of {plan.vpp} chunks"


def unrunnable(plan: Plan, job: Job) -> str:
    """Why the job's trainer stops before its first step; empty where it does not."""
    profile, n = framework_named(job.workload.framework), job.workload.global_batch
    n_microbatches = n // (plan.micro_batch * plan.dp)
    if profile.fills_pipeline and n_microbatches < plan.pp - 1:
        return f"{n_microbatches} micro-batches do not fill {plan.pp} stages"
    if profile.end_stages is EndStages.BALANCED and leaves_a_stage_empty(job.model, plan.pp):
        return f"balanced by cost, {job.model.n_layers} layers and a head leave one of {plan.pp} stages empty"
    return ""


def _degrees(cells: Cells) -> dict[str, int]:
    """tp, pp, cp, dp; dp follows from the devices where the row leaves it out."""
    n_devices = cells.needed("n_gpus")
    degrees = {"tp": cells.needed("tp"), "pp": cells.needed("pp"), "cp": cells.count("cp") or 1}
    inner = degrees["tp"] * degrees["pp"] * degrees["cp"]
    degrees["dp"] = cells.count("dp") or max(n_devices // inner, 1)
    if inner * degrees["dp"] != n_devices:
        words = " x ".join(f"{name} {value}" for name, value in degrees.items())
        raise BadRow(f"tp x pp x cp x dp must be n_gpus {n_devices}; got {words} = {inner * degrees['dp']}")
    return degrees


def _schedule(cells: Cells, pp: int, notes: list[str]) -> tuple[Schedule, int]:
    """The schedule, and the chunks of a stage that it needs."""
    word, vpp = cells.text("schedule").lower(), cells.count("vpp") or 1
    if pp == 1:
        return Schedule.ONE_F_ONE_B, 1
    if SCHEDULES.get(word) in V_SHAPED:
        return SCHEDULES[word], 2
    if vpp > 1:
        return Schedule.INTERLEAVED, vpp
    if word in ("", "unknown"):
        notes.append("schedule not stated: 1f1b")
        return Schedule.ONE_F_ONE_B, 1
    if word not in SCHEDULES:
        raise BadRow(f"schedule must be one of {', '.join(SCHEDULES)}; got {word!r}")
    # One chunk a stage leaves nothing to interleave.
    schedule = SCHEDULES[word]
    return (Schedule.ONE_F_ONE_B if schedule is Schedule.INTERLEAVED else schedule), 1


def _sync(schedule: Schedule) -> OptimizerSync:
    return OptimizerSync.POST_VALIDATION if schedule in INTERLOCKING else OptimizerSync.BARRIER


def _uneven(n_layers: int, pp: int, vpp: int, notes: list[str]) -> tuple[int, int]:
    """Layers of the first and the last stage where they do not divide: (0, 0) where they do.

    Stages hold the rounded-up share.  Two layers too few: one less at each end, as trainers do that count
    embedding and head as a layer each; otherwise the last stage goes short, or, where that is not enough,
    both ends.
    """
    whole = -(-n_layers // (pp * vpp)) * vpp
    short = whole * pp - n_layers
    if short == 0 or pp == 1:
        return 0, 0
    if short == 2 and whole > 1 and pp > 2:
        return whole - 1, whole - 1
    ends = 2 * whole - short
    if ends < 2:
        return 0, 0
    first = whole if short < whole else ends // 2
    notes.append(f"{n_layers} layers on {pp} x {vpp} chunks taken as {first}, {whole} ..., {ends - first}")
    return first, (ends - first if pp > 2 else 0)


def _zero(cells: Cells, notes: list[str]) -> int:
    stage = cells.whole("zero_stage")
    if stage is None:
        notes.append("ZeRO stage not stated: 0 or 1")
        return 0
    if stage > 3:
        raise BadRow(f"zero_stage must be from 0 to 3; got {stage}")
    return stage


def cp_kind(cells: Cells) -> CpKind:
    """How the row splits a sequence; a ring where it does not say."""
    word = cells.text("cp_kind").lower()
    if "gather" in word:
        return CpKind.ALL_GATHER
    return CpKind.ULYSSES if "a2a" in word or "ulysses" in word else CpKind.RING


def _recompute(cells: Cells, notes: list[str]) -> tuple[Recompute, StrEnum, int]:
    """What is redone: nothing, the attention core, or all; modules by name; and in every n-th layer."""
    word, _, named = cells.text("recompute").lower().partition(":")
    if word in ("", "unknown"):
        notes.append("recompute not stated: none to full")
        return Recompute.NONE, NO_MODULES, 1
    if word in ("none", "full"):
        return Recompute(word), NO_MODULES, 1
    if word != "selective":
        raise BadRow(f"recompute must be none, full, unknown or selective:MODULES; got {word!r}")
    if every := _every(named, notes):
        return Recompute.FULL, NO_MODULES, every
    words = set(re.split(r"\s*[+,]\s*", named)) if named else {CORE_ATTENTION}
    unknown = sorted(words - _CORE_WORDS - set(MODULES))
    if unknown:
        notes.append(f"recomputes {'+'.join(unknown)}, which has no word here")
    core = Recompute.SELECTIVE if words & _CORE_WORDS else Recompute.NONE
    return core, ModuleSet(module_set(MODULES[word] for word in words & set(MODULES))), 1


def _every(named: str, notes: list[str]) -> int:
    """Of how many layers one is redone; 0 where the words name modules."""
    if named in _EVERY_SECOND:
        notes.append(f"recomputes {named}: taken as every second layer")
        return 2
    found = _EVERY_NTH.fullmatch(named)
    return int(found[1]) if found else 0


def _offloads_optimizer(cells: Cells, notes: list[str]) -> bool:
    word = cells.text("offload").lower()
    if word in ("", "none"):
        return False
    if "optimizer" in word:
        return True
    notes.append(f"offloads {word}, which has no word here")
    return False


def _deduplicates(cells: Cells) -> bool:
    """Whether a token goes once to a node: dispatchers that do so by name, and those of a "flex" kind."""
    word = str(cells.extra.get("moe_dispatcher") or cells.extra.get("dispatcher") or "").lower()
    return word in ("deepep", "hybridep", "flex")


def _overlaps(cells: Cells, degrees: dict[str, int], notes: list[str]) -> dict[str, bool]:
    stated = cells.overlap
    if stated is None:
        notes.append("overlap not stated: none or all")
        stated = {}
    flags = {
        knob: any(stated.get(name) in (1, True, "1", "dualpipe") for name in names)
        for knob, names in _OVERLAPS.items()
    }
    flags["overlap_dp"] &= degrees["dp"] * degrees["cp"] > 1
    flags["overlap_tp"] &= degrees["tp"] > 1 and cells.is_set("seq_parallel")
    flags["overlap_pp"] &= degrees["pp"] > 1
    flags["overlap_ep"] &= (cells.whole("ep") or 1) > 1
    return flags
