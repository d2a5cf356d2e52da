"""The named schedules on a problem: the best form of each that fits the memory, or why there is none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from objectives.simulator.memory import rank_memory
from objectives.simulator.program import Program
from objectives.simulator.schedules import PassCosts, program
from objectives.simulator.synthesis.problem import ROUNDING, Placement, Problem
from objectives.simulator.timeline import Timeline, simulate
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Floats, Ints, Schedule
from search_spaces.units import gib

Form = Callable[[Problem], Program]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """A program that fits, its figure and its makespan by the engine, seconds."""

    program: Program
    figure_s: float
    makespan_s: float


def found(problem: Problem, candidate: Program) -> Found | str:
    """A program as the engine runs it; or what of the memory it lacks."""
    timeline = simulate(candidate, problem.costs.times)
    peak = peak_bytes(problem, timeline)
    over = peak - problem.limit_bytes * (1 + ROUNDING)
    worst = int(np.argmax(over))
    if over[worst] > 0:
        limit = problem.limit_bytes[worst]
        return f"holds {gib(peak[worst]):.4g} GiB on rank {worst}, where {gib(limit):.4g} GiB are allowed"
    return Found(program=candidate, figure_s=problem.figure_s(timeline), makespan_s=timeline.makespan_s)


def ordered(problem: Problem, result: Found) -> Found:
    """What ran by arrival, with its ranks held to the order in which they ran; other programs as they are."""
    if not result.program.by_arrival:
        return result
    again = found(problem, simulate(result.program, problem.costs.times).in_order())
    assert isinstance(again, Found), again
    return again


def peak_bytes(problem: Problem, timeline: Timeline) -> Floats:
    """The most bytes that every rank holds; shape (n_ranks,)."""
    costs = problem.costs
    return rank_memory(timeline, costs.activation_bytes, release=costs.release).peak_bytes


def named_figures(problem: Problem) -> dict[Schedule, Found | str]:
    """The best form of every named schedule of this placement that fits; else why none does."""
    figures: dict[Schedule, Found | str] = {}
    for schedule, forms in _forms(problem).items():
        results = [_tried(problem, form) for form in forms]
        fitting = [each for each in results if isinstance(each, Found)]
        figures[schedule] = min(fitting, key=lambda each: each.figure_s) if fitting else results[0]
    return figures


def _tried(problem: Problem, form: Form) -> Found | str:
    try:
        return found(problem, form(problem))
    except InvalidSpec as trouble:
        return str(trouble).splitlines()[0]


def _plain(schedule: Schedule) -> tuple[Form, ...]:
    """As drawn."""
    return (lambda problem: program(schedule, problem.n_ranks, problem.n_microbatches, problem.n_chunks),)


def _planned(schedule: Schedule) -> tuple[Form, ...]:
    """As drawn, and as planned with the costs and the memory."""

    def planned(problem: Problem) -> Program:
        p, m, v = problem.n_ranks, problem.n_microbatches, problem.n_chunks
        return program(
            schedule, p, m, v, costs=_pass_costs(problem), memory_limit=_room(problem),
            release=problem.costs.release,
        )  # fmt: skip

    return (*_plain(schedule), planned)


def _pass_costs(problem: Problem) -> PassCosts:
    times = problem.costs.times
    return PassCosts(
        forward_s=times.forward_s, backward_input_s=times.backward_input_s,
        backward_weight_s=times.backward_weight_s, send_s=times.send_s,
    )  # fmt: skip


def _room(problem: Problem) -> float:
    """Micro-batches that fit on the fullest rank; no more than there are."""
    share = problem.costs.activation_bytes.sum(axis=1)
    m = problem.n_microbatches
    fit = np.divide(problem.limit_bytes, share, out=np.full(len(share), float(m)), where=share > 0)
    return float(min(m, fit.min() * (1 + ROUNDING)))


def _deeper(problem: Problem) -> tuple[Form, ...]:
    """1F1B as drawn, and with its ranks warming up for longer: each by as much, or as memory allows."""
    p, m = problem.n_ranks, problem.n_microbatches
    share = problem.costs.activation_bytes[:, 0]
    fit = np.divide(problem.limit_bytes, share, out=np.full(p, float(m)), where=share > 0)
    room = np.floor(np.minimum(fit * (1 + ROUNDING), m)).astype(np.int64)
    deepest = np.maximum(room - 1 - np.arange(p)[::-1], 0)
    return tuple(partial(_one_f_one_b, extra) for extra in (*range(min(p, m - 1) + 1), deepest))


def _one_f_one_b(extra_warmup: int | Ints, problem: Problem) -> Program:
    return program(Schedule.ONE_F_ONE_B, problem.n_ranks, problem.n_microbatches, extra_warmup=extra_warmup)


def _limited(problem: Problem) -> tuple[Form, ...]:
    """The message-driven schedule with AxoNN's limit, half and twice that, and as many as fit."""
    p = problem.n_ranks
    return tuple(partial(_message_driven, n) for n in (p, 2 * p, max(1, p // 2), max(1, int(_room(problem)))))


def _message_driven(limit: int, problem: Problem) -> Program:
    return program(Schedule.MESSAGE_DRIVEN, problem.n_ranks, problem.n_microbatches, limit=limit)


_ONE_CHUNK: Mapping[Schedule, Callable[[Problem], tuple[Form, ...]]] = MappingProxyType({
    Schedule.GPIPE: lambda _: _plain(Schedule.GPIPE),
    Schedule.ONE_F_ONE_B: _deeper,
    Schedule.ZB_H1: lambda _: _plain(Schedule.ZB_H1),
    Schedule.ZB_H2: lambda _: _planned(Schedule.ZB_H2),
    Schedule.MESSAGE_DRIVEN: _limited,
})  # fmt: skip

_V_SHAPE: Mapping[Schedule, Callable[[Problem], tuple[Form, ...]]] = MappingProxyType(
    {
        Schedule.ZB_V: lambda _: _planned(Schedule.ZB_V),
        Schedule.V_HALF: lambda _: _plain(Schedule.V_HALF),
        Schedule.V_MIN: lambda _: _plain(Schedule.V_MIN),
        Schedule.DUALPIPE_V: lambda _: _plain(Schedule.DUALPIPE_V),
    }
)


def _forms(problem: Problem) -> dict[Schedule, tuple[Form, ...]]:
    """The schedules that run on this placement, each in all its forms."""
    if problem.placement is Placement.V_SHAPE:
        table = _V_SHAPE
    elif problem.n_chunks == 1:
        table = _ONE_CHUNK
    else:
        return {Schedule.INTERLEAVED: _plain(Schedule.INTERLEAVED)}
    return {schedule: forms(problem) for schedule, forms in table.items()}
