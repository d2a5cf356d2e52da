"""V-shaped schedules: two chunks a rank, down the pipeline and up again, so that rank 0 has both ends.

    p  n_ranks   m  n_microbatches   i  rank   tau  seconds of a pass through one chunk, F = B_i = W = tau

A micro-batch through a rank's whole share is two chunks: it holds a rank for 6 tau.

Source: Qi et al. (2024), arXiv:2405.15362.
"""

from functools import partial

import numpy as np

from objectives.simulator.program import NOTHING, Pass, Program, v_shape
from objectives.simulator.schedules.costs import PassCosts
from objectives.simulator.schedules.filling import Room, filled_best
from objectives.simulator.schedules.slots import orders_of
from objectives.simulator.schedules.writer import Columns, Turn, Writer, assemble
from search_spaces.errors import check
from search_spaces.memory_habits import Release
from search_spaces.plan import Ints

_F0, _F1 = Turn(Pass.FORWARD, 0), Turn(Pass.FORWARD, 1)
_B0, _B1 = Turn(Pass.BACKWARD_INPUT, 0), Turn(Pass.BACKWARD_INPUT, 1)
_W0, _W1 = Turn(Pass.BACKWARD_WEIGHT, 0), Turn(Pass.BACKWARD_WEIGHT, 1)
# Kind and chunk of the lanes of `slots`.
_LANES = np.array([(turn.kind, turn.chunk) for turn in (_F0, _F1, _B1, _B0, _W1, _W0)])


def zb_v(
    n_ranks: int,
    n_microbatches: int,
    costs: PassCosts | None = None,
    memory_limit: float | None = None,
    release: Release = Release.AT_WEIGHT,
) -> Program:
    """ZB-V: 1F1B's memory, and no idle where all passes take equally long.

        equal passes: span bubble = 0, makespan bubble = (p - 1) tau        activations kept until W: p

    With other costs the forward passes and gradients of the input keep the order drawn, and the weight
    gradients go where they idle least (by span, then by makespan), within `memory_limit` micro-batches (p
    unless told) of which `release` says when they are given back; never worse than as drawn.

    Raises
    ------
    InvalidSpec
        The memory limit is below p micro-batches.

    Source: Qi et al. (2024), arXiv:2405.15362, section 4, and sail-sg/zero-bubble, whose generator idles 16 s
    at p = 4 and 48 s at p = 8 for (F, B_i, W) = (10, 12, 8); so does this one.
    """
    p, m, costs = n_ranks, n_microbatches, costs or PassCosts()
    memory = p if memory_limit is None else memory_limit
    check(memory >= p, "ZB-V keeps as many micro-batches as there are ranks", f"a limit of {memory:g}",
          hint="V-Half and V-Min keep fewer")  # fmt: skip
    costs.check_fits(p, 2)
    if costs.are_equal:
        return _zb_v_drawn(p, m)
    drawn = partial(_zb_v_drawn, p)
    return filled_best(drawn, [drawn], (min(m, 3 * p), m), costs, Room(memory, release))


def v_half(n_ranks: int, n_microbatches: int) -> Program:
    """V-Half: half of 1F1B's memory.

    span bubble = (3 p - 7) tau        activations kept until W: p / 2 + 1        (p even)
    """
    p, i = n_ranks, np.arange(n_ranks)
    gap = 3 if p % 2 == 0 else 0  # keeps the lanes of a rank from falling into one slot
    pattern = np.stack([2 * i, 3 * p - i - 2, 3 * p + gap + 2 * i - 1, 6 * p + gap - i - 2], axis=1)
    return _from_pattern(pattern, n_microbatches)


def v_min(n_ranks: int, n_microbatches: int) -> Program:
    """V-Min: the least memory of the family, about a third of 1F1B's.

        span bubble = (4 p - 5) tau, (4 p - 7) tau where 6 divides p
        activations kept until W: 2, 3, 4, 4, 5, 6 for p = 4, 6, 8, 10, 12, 16

    Unstable: with passes that take F, B_i and W seconds a chunk, every micro-batch adds
    6 max(F, B_i) - 2 (F + B_i + W) where F or B_i is the longest.
    """
    p, i = n_ranks, np.arange(n_ranks)
    gap = 2 if p % 3 == 0 else 0
    pattern = np.stack([i, 2 * p - i - 1, 2 * p + gap + i, 4 * p + gap - i - 1], axis=1)
    return _from_pattern(pattern, n_microbatches)


def _zb_v_drawn(p: int, m: int) -> Program:
    ranks = []
    for i in range(p):
        # The pattern needs 2 p - 1 micro-batches; what was not asked for is left out.
        columns = _zb_v_rank(p, max(m, 2 * p - 1), i)
        ranks.append(columns[columns[:, 1] < m])
    return assemble(ranks, n_microbatches=m, stage=v_shape(p))


def _zb_v_rank(p: int, m: int, i: int) -> Columns:
    writer = Writer()
    writer.repeat(2 * (p - i) - 1, _F0)
    writer.repeat(i, _F1, _F0)
    writer.repeat(p - i, _F1, _B1, _W1)
    writer.repeat(m - 2 * p + 1 + i, _F0, _B0, _W0, _F1, _B1, _W1)
    writer.repeat(p - 1 - i, _B0, _W0, _F1, _B1, _W1)
    writer.repeat(i, _B0, _B1)
    writer.repeat(p - i, _B0, _W0)
    writer.repeat(i, _W1)
    writer.repeat(i, _W0)
    return writer.columns()


def _from_pattern(pattern: Ints, n_microbatches: int) -> Program:
    p, m = len(pattern), n_microbatches
    few = min(m, 4 * p + 8)
    orders = orders_of(pattern, few)
    if few < m:
        orders = _stretched(orders, few // 2, m - few) or orders_of(pattern, m)
    return assemble([_columns(order) for order in orders], n_microbatches=m, stage=v_shape(p))


def _stretched(orders: list[Ints], at: int, more: int) -> list[Ints] | None:
    """Orders for more micro-batches: what a rank does from one to the next is done so many times more.

    None: some rank is not in its steady state there.
    """
    stretched = []
    for order in orders:
        starts = [int(np.flatnonzero((order[:, 0] == 0) & (order[:, 1] == at + n))[0]) for n in range(3)]
        once, again = order[starts[0] : starts[1]], order[starts[1] : starts[2]]
        if len(once) != len(again) or np.any(again - once != [0, 1]):
            return None
        shifts = np.zeros((more, 1, 2), np.int64)
        shifts[:, 0, 1] = np.arange(more)
        middle = (once + shifts).reshape(-1, 2)
        stretched.append(
            np.concatenate([order[: starts[0]], middle, order[starts[0] :] + np.array([0, more])])
        )
    return stretched


def _columns(order: Ints) -> Columns:
    kind, chunk = _LANES[order[:, 0]].T
    nothing = np.full(len(order), NOTHING)
    return np.stack([kind, order[:, 1], chunk, nothing, nothing], axis=1)
