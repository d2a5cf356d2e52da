"""Pipeline schedules as data: a pure function each, from ranks and micro-batches to a `Program`.

    p  n_ranks   m  n_microbatches   v  n_chunks   i  rank
    F  forward, B  whole backward = B_i + W, B_i  gradient of the input, W  gradient of the weights

Two measures of idle time must not be mixed: the *span* of the worst rank, its last end - first start - work,
where consecutive steps interlock; and the *makespan*, global end - global start - work, where a barrier
closes each step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from objectives.simulator.program import Program
from objectives.simulator.schedules.accounting import check_program, in_flight, peak_in_flight
from objectives.simulator.schedules.classic import gpipe, interleaved, one_f_one_b
from objectives.simulator.schedules.costs import PassCosts
from objectives.simulator.schedules.csv_file import csv_of, program_of_csv, read_csv, write_csv
from objectives.simulator.schedules.dual_pipe import dual_pipe, dual_pipe_v
from objectives.simulator.schedules.message_driven import message_driven
from objectives.simulator.schedules.v_shaped import v_half, v_min, zb_v
from objectives.simulator.schedules.zero_bubble import zb_h1, zb_h2
from search_spaces.errors import UnknownName, check
from search_spaces.memory_habits import Release
from search_spaces.plan import Ints, Schedule

__all__ = [
    "SCHEDULES", "TWO_CHUNKS", "PassCosts", "Release", "check_program", "csv_of", "dual_pipe", "dual_pipe_v",
    "gpipe", "in_flight", "interleaved", "message_driven", "one_f_one_b", "peak_in_flight", "program",
    "program_of_csv", "read_csv", "v_half", "v_min", "write_csv", "zb_h1", "zb_h2", "zb_v",
]  # fmt: skip

# Schedules that hold two chunks on every rank, neither more nor less.
TWO_CHUNKS = (Schedule.ZB_V, Schedule.V_HALF, Schedule.V_MIN, Schedule.DUALPIPE, Schedule.DUALPIPE_V)


def program(  # noqa: PLR0913 - one entry for all schedules, and each has its own knob
    schedule: Schedule | str,
    n_ranks: int,
    n_microbatches: int,
    n_chunks: int = 1,
    *,
    costs: PassCosts | None = None,
    extra_warmup: int | Ints = 0,
    limit: int = 0,
    memory_limit: float | None = None,
    release: Release | None = None,
) -> Program:
    """The named schedule, written out for every rank.

    `costs`, `memory_limit` (micro-batches) and `release` are what ZB-H2 and ZB-V plan with; `extra_warmup` is
    for 1F1B and `limit` for the message-driven schedule.  `n_chunks` is the interleaved schedule's; the
    V-shaped ones hold two chunks a rank and DualPipe two copies, whether 1 or 2 is asked for.

    Raises
    ------
    InvalidSpec
        The schedule cannot be had with these numbers, or an option is another schedule's.
    """
    ask = _Ask(
        n_ranks, n_microbatches, n_chunks, costs or PassCosts(), extra_warmup, limit, memory_limit, release
    )
    schedule = _named(schedule)
    check(n_ranks >= 1 and n_microbatches >= 1 and n_chunks >= 1,
          "a schedule needs at least one rank, one micro-batch and one chunk",
          f"{n_ranks}, {n_microbatches}, {n_chunks}")  # fmt: skip
    _check_chunks(schedule, n_chunks)
    for name, owners in _OPTIONS.items():
        given = getattr(ask, name)
        is_given = given is not None and bool(np.any(given))
        check(
            schedule in owners or not is_given,
            f"{name} is an option of {' and '.join(owners)} alone",
            schedule,
        )
    return SCHEDULES[schedule](ask)


@dataclass(frozen=True, slots=True)
class _Ask:
    """All that a schedule may be asked for."""

    p: int
    m: int
    v: int
    costs: PassCosts
    extra_warmup: int | Ints
    limit: int
    memory_limit: float | None
    release: Release | None


SCHEDULES: Mapping[Schedule, Callable[[_Ask], Program]] = MappingProxyType({
    Schedule.GPIPE: lambda ask: gpipe(ask.p, ask.m),
    Schedule.ONE_F_ONE_B: lambda ask: one_f_one_b(ask.p, ask.m, ask.extra_warmup),
    Schedule.INTERLEAVED: lambda ask: interleaved(ask.p, ask.m, ask.v),
    Schedule.ZB_H1: lambda ask: zb_h1(ask.p, ask.m),
    Schedule.ZB_H2: lambda ask: zb_h2(
        ask.p, ask.m, ask.costs, ask.memory_limit, ask.release or Release.HALF_AND_HALF
    ),
    Schedule.ZB_V: lambda ask: zb_v(
        ask.p, ask.m, ask.costs, ask.memory_limit, ask.release or Release.AT_WEIGHT
    ),
    Schedule.V_HALF: lambda ask: v_half(ask.p, ask.m),
    Schedule.V_MIN: lambda ask: v_min(ask.p, ask.m),
    Schedule.DUALPIPE: lambda ask: dual_pipe(ask.p, ask.m),
    Schedule.DUALPIPE_V: lambda ask: dual_pipe_v(ask.p, ask.m),
    Schedule.MESSAGE_DRIVEN: lambda ask: message_driven(ask.p, ask.m, ask.limit),
})  # fmt: skip

_OPTIONS = {
    "extra_warmup": (Schedule.ONE_F_ONE_B,),
    "limit": (Schedule.MESSAGE_DRIVEN,),
    "memory_limit": (Schedule.ZB_H2, Schedule.ZB_V),
    "release": (Schedule.ZB_H2, Schedule.ZB_V),
}


def _named(schedule: Schedule | str) -> Schedule:
    if schedule not in set(Schedule):
        raise UnknownName("a schedule", str(schedule), map(str, Schedule))
    return Schedule(schedule)


def _check_chunks(schedule: Schedule, n_chunks: int) -> None:
    if schedule is Schedule.INTERLEAVED:
        return
    most = 2 if schedule in TWO_CHUNKS else 1
    check(
        n_chunks in (1, most),
        f"the schedule {schedule} holds {('one chunk', 'two chunks')[most - 1]} a rank",
        n_chunks,
        hint=f"set vpp={most}, or schedule=interleaved",
    )
