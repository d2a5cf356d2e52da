"""What a row leaves open, as all the jobs and plans that it may mean."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product

from objectives.measurements.cells import Cells
from objectives.metrics import Job
from search_spaces.plan import SPLIT_BACKWARD, Plan, Recompute, Schedule
from search_spaces.workload import Workload

_GUESSES = ("assum", "inferred")  # words in `recompute_source` that make it a guess


@dataclass(frozen=True, slots=True, kw_only=True)
class Openings:
    """Readings of a row beside the one taken; `undecided` where nothing makes the one taken the likelier."""

    plans: tuple[Plan, ...]
    workloads: tuple[Workload, ...]
    undecided: bool


def openings_of(cells: Cells, job: Job, plan: Plan) -> Openings:
    """Every plan and every workload that a row may mean, the one taken first.

    recompute unknown or empty      none, the attention core, all of it: undecided
    recompute a guess               the same, but the guess is the likelier
    overlap empty                   nothing, or all that the plan can overlap: undecided
    ZeRO stage empty                0 or 1: undecided
    attention kernel not stated     the trainer's of that date, or a fused one where that was an option;
                                    not in rows that say they are complete (`known_complete` 1)
    """
    open_plans, undecided = [plan], False
    for stated, choices in (
        (cells.text("recompute").lower() not in ("", "unknown"), _recomputes(plan)),
        (cells.overlap is not None, _overlaps(plan)),
        (bool(cells.text("zero_stage")), _zeros(plan)),
    ):
        if not stated and len(choices) > 1:
            open_plans, undecided = _with(open_plans, choices), True
    if any(word in cells.text("recompute_source").lower() for word in _GUESSES):
        open_plans = _with(open_plans, _recomputes(plan))
    plans = tuple(dict.fromkeys([plan, *open_plans]))
    return Openings(plans=plans, workloads=_workloads(cells, job), undecided=undecided)


Change = dict[str, object]


def _with(plans: Iterable[Plan], changes: Iterable[Change]) -> list[Plan]:
    return [replace(plan, **change) for plan, change in product(plans, changes)]  # type: ignore[arg-type]


def _recomputes(plan: Plan) -> list[Change]:
    kinds = [Recompute.NONE, Recompute.SELECTIVE]
    if plan.schedule not in SPLIT_BACKWARD:  # those do not recompute whole layers
        kinds.append(Recompute.FULL)
    return [{"recompute": kind} for kind in kinds]


def _overlaps(plan: Plan) -> list[Change]:
    able = {
        "overlap_dp": plan.dp * plan.cp > 1,
        "overlap_tp": plan.tp > 1 and plan.sequence_parallel,
        "overlap_pp": plan.schedule is Schedule.INTERLEAVED,
    }
    return [dict.fromkeys(able, False), dict(able)] if any(able.values()) else []


def _zeros(plan: Plan) -> list[Change]:
    return [{"zero": stage} for stage in (0, 1)] if plan.dp * plan.cp > 1 else []


def _workloads(cells: Cells, job: Job) -> tuple[Workload, ...]:
    taken = job.workload
    closed = cells.extra.get("attn") or cells.text("known_complete") == "1" or taken.flash_attention
    return (taken,) if closed else (taken, replace(taken, flash_attention=True))
