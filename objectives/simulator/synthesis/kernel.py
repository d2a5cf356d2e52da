"""The compiled loops of synthesis: a clock for one order, a greedy builder, and local improvement.

    i  rank   t  turn: letter · n_chunks + chunk, letters F, B_i, W   j  micro-batch   k  place in an order

An order says turns only: the j-th time that turn t comes on rank i, it is of micro-batch j.  So every order
is first in, first out within a turn, and moving one turn re-times all micro-batches between.

This module imports Numba, so it is itself imported only when something is synthesised.
"""

from typing import NamedTuple

import numpy as np

from objectives.simulator.compiled import compiled
from search_spaces.plan import Floats, Ints


class Tables(NamedTuple):
    """What every turn costs, needs, takes and gives back; all of shape (n_ranks, n_turns).

    Turn t of rank i needs turn `need_turn[i, t]` of rank `need_rank[i, t]` (-1: nothing), of the same
    micro-batch, and its message, `delay_s`.  A rank may hold `limit_bytes`, shape (n_ranks,).
    """

    work_s: Floats
    need_rank: Ints
    need_turn: Ints
    delay_s: Floats
    taken_bytes: Floats
    given_bytes: Floats
    limit_bytes: Floats


class Clock(NamedTuple):
    """When an order runs; `end_s[i, t, j]`, and by place: `start_s[i, k]`, `nth[i, k]` the micro-batch.

    `place[i, t, j]` is the k of each pass; `n_run[i, t]`, `waiter[i, t]` and `lacks[i]` are the loop's own.
    """

    end_s: Floats
    start_s: Floats
    nth: Ints
    place: Ints
    n_run: Ints
    waiter: Ints
    lacks: Ints


@compiled
def run(tables: Tables, turns: Ints, clock: Clock) -> tuple[float, float]:
    """Makespan and longest span of a rank, seconds; both infinite where the order deadlocks.

    start = max(end of the rank's previous pass, end of what it needs + its message), as the engine has it.
    """
    n_ranks, n_places = turns.shape
    end_s, start_s, count, waiter = clock.end_s, clock.start_s, clock.n_run, clock.waiter
    count[:], waiter[:] = 0, -1
    cursor, free_s = np.zeros(n_ranks, np.int64), np.zeros(n_ranks)
    awake, n_awake, n_ran = np.arange(n_ranks)[::-1].copy(), n_ranks, 0
    while n_awake:
        n_awake -= 1
        rank = int(awake[n_awake])
        while cursor[rank] < n_places:
            k = cursor[rank]
            turn = turns[rank, k]
            j = count[rank, turn]
            there, needed = tables.need_rank[rank, turn], tables.need_turn[rank, turn]
            begin_s = free_s[rank]
            if needed >= 0:
                if count[there, needed] <= j:
                    waiter[there, needed], clock.lacks[rank] = rank, j
                    break
                begin_s = max(begin_s, end_s[there, needed, j] + tables.delay_s[rank, turn])
            start_s[rank, k], clock.nth[rank, k], clock.place[rank, turn, j] = begin_s, j, k
            free_s[rank] = begin_s + tables.work_s[rank, turn]
            end_s[rank, turn, j] = free_s[rank]
            count[rank, turn] = j + 1
            cursor[rank] += 1
            n_ran += 1
            waking = waiter[rank, turn]
            if waking >= 0 and clock.lacks[waking] == j:
                waiter[rank, turn] = -1
                awake[n_awake] = waking
                n_awake += 1
    if n_ran < n_ranks * n_places:
        return np.inf, np.inf
    span_s = 0.0
    for rank in range(n_ranks):
        span_s = max(span_s, free_s[rank] - start_s[rank, 0])
    return float(free_s.max() - start_s[:, 0].min()), span_s


@compiled
def fits(tables: Tables, turns: Ints, rank: int, m: int) -> bool:
    """Whether a rank's order is possible on its own: F before B_i before W, and within its memory."""
    n_chunks, held_bytes = tables.work_s.shape[1] // 3, 0.0
    count = np.zeros(3 * n_chunks, np.int64)
    for turn in turns[rank]:
        if turn >= n_chunks and count[turn] >= count[turn - n_chunks]:
            return False
        count[turn] += 1
        if count[turn] > m:
            return False
        held_bytes += tables.taken_bytes[rank, turn]
        if held_bytes > tables.limit_bytes[rank]:
            return False
        held_bytes -= tables.given_bytes[rank, turn]
    return True


@compiled
def build(tables: Tables, rule: Floats, cap_bytes: Floats, m: int, turns: Ints, end_s: Floats) -> bool:
    """Write an order greedily, always the rank that can go on first; False: it got stuck.

    `rule` is (F before B_i, deep chunks first, patience): a weight gradient runs where nothing else is there,
    unless something is known to arrive within `patience` of its seconds.
    """
    n_ranks, n_turns = tables.work_s.shape
    count = np.zeros((n_ranks, n_turns), np.int64)
    held_bytes = np.zeros((n_ranks, n_turns // 3))
    free_s, at_s, chosen = np.zeros(n_ranks), np.full(n_ranks, np.inf), np.full(n_ranks, -1)
    for rank in range(n_ranks):
        at_s[rank], chosen[rank] = _next(
            tables, rule, cap_bytes, m, rank, count, held_bytes, end_s, free_s[rank]
        )
    for n_ran in range(turns.size):
        rank = int(np.argmin(at_s))
        if at_s[rank] == np.inf:
            return n_ran == turns.size
        turn = chosen[rank]
        turns[rank, count[rank].sum()] = turn
        free_s[rank] = at_s[rank] + tables.work_s[rank, turn]
        end_s[rank, turn, count[rank, turn]] = free_s[rank]
        count[rank, turn] += 1
        taken = tables.taken_bytes[rank, turn] - tables.given_bytes[rank, turn]
        held_bytes[rank, turn % (n_turns // 3)] += taken
        for step in range(-1, 2):
            near = (rank + step) % n_ranks
            at_s[near], chosen[near] = _next(
                tables, rule, cap_bytes, m, near, count, held_bytes, end_s, free_s[near]
            )
    return True


@compiled
def _next(  # noqa: PLR0913, PLR0917
    tables: Tables, rule: Floats, cap_bytes: Floats, m: int, rank: int,
    count: Ints, held_bytes: Floats, end_s: Floats, free_s: float,
) -> tuple[float, int]:  # fmt: skip
    """When a rank does something next, and which turn; infinite: nothing that is known of."""
    n_chunks = held_bytes.shape[1]
    chosen, best_s, best_place, weight = -1, np.inf, 0, -1
    for turn in range(3 * n_chunks):
        letter, chunk = turn // n_chunks, turn % n_chunks
        ready_s = _ready_s(tables, m, rank, turn, count, end_s, free_s)
        if ready_s == np.inf:
            continue
        if letter == 2:
            weight = turn
        elif letter == 1 or _has_room(tables, cap_bytes[rank], rank, chunk, held_bytes):
            is_second = (letter == 0) != (rule[0] > 0)
            depth = chunk if (letter == 1) == (rule[1] > 0) else n_chunks - 1 - chunk
            place = n_chunks * is_second + depth
            if ready_s < best_s or (ready_s == best_s and place < best_place):
                best_s, best_place, chosen = ready_s, place, turn
    if weight >= 0 and best_s - free_s > rule[2] * tables.work_s[rank, weight]:
        return free_s, weight
    return best_s, chosen


@compiled
def _ready_s(  # noqa: PLR0913, PLR0917
    tables: Tables, m: int, rank: int, turn: int, count: Ints, end_s: Floats, free_s: float
) -> float:
    """When the rank can start its next pass of a turn; infinite: there is none, or nobody knows yet."""
    j = count[rank, turn]
    there, needed = tables.need_rank[rank, turn], tables.need_turn[rank, turn]
    if j == m or (needed >= 0 and count[there, needed] <= j):
        return float(np.inf)
    if needed < 0:
        return free_s
    return float(max(free_s, end_s[there, needed, j] + tables.delay_s[rank, turn]))


@compiled
def _has_room(tables: Tables, cap_bytes: float, rank: int, chunk: int, held_bytes: Floats) -> bool:
    """Whether a forward pass may start.

    Chunks up to c leave room for one micro-batch in each later chunk, so that what is held can always drain:
    the last chunk's forward pass never waits for ever.
    """
    taken, held = tables.taken_bytes[rank], held_bytes[rank]
    drains = held[: chunk + 1].sum() + taken[chunk : len(held)].sum() <= cap_bytes
    return bool(drains and held.sum() + taken[chunk] <= cap_bytes)


@compiled
def improve(
    tables: Tables, turns: Ints, clock: Clock, draws: Floats, is_span: bool, floor_s: float
) -> float:  # fmt: skip
    """Move single turns within a rank's order; leaves the best order found in `turns`, returns its figure.

    Each row of `draws`, shape (n, 5), is one evaluation: mostly a move across a pass on the critical path
    that waits for its rank, else anywhere.  A move is kept where it is no worse than the order some moves
    ago (late acceptance), so that plateaus are crossed.

    Source: Burke and Bykov (2017), The late acceptance hill-climbing heuristic, EJOR 258(1).
    """
    n_ranks, n_places = turns.shape
    m = n_places // tables.work_s.shape[1]
    best, best_s = turns.copy(), np.inf
    critical, n_critical = np.empty((n_ranks * n_places, 2), np.int64), 0
    makespan_s, span_s = run(tables, turns, clock)
    best_s = span_s if is_span else makespan_s
    cost = _cost(tables, clock, best_s)
    history = np.full(min(200, 1 + len(draws) // 20), cost)
    n_critical = _critical(tables, turns, clock, is_span, critical)
    for n in range(len(draws)):
        if best_s <= floor_s:
            break
        draw = draws[n]
        reach = 1 + int(n_places ** draw[2]) if draw[2] < 1 else 1
        if draw[0] < 0.75 and n_critical:
            at = int(draw[1] * n_critical)
            rank, k = critical[at, 0], critical[at, 1]
            source, target = (k, k - reach) if draw[3] < 0.5 else (k - 1, k - 1 + reach)
        else:
            rank = int(draw[1] * n_ranks)
            source = int(draw[4] * n_places)
            target = source - reach if draw[3] < 0.5 else source + reach
        target = min(max(target, 0), n_places - 1)
        if source == target:
            continue
        _move(turns, rank, source, target)
        if not fits(tables, turns, rank, m):
            _move(turns, rank, target, source)
            continue
        makespan_s, span_s = run(tables, turns, clock)
        figure_s = span_s if is_span else makespan_s
        new_cost = _cost(tables, clock, figure_s) if figure_s < np.inf else np.inf
        late = n % len(history)
        if new_cost <= cost or new_cost <= history[late]:
            cost = new_cost
            n_critical = _critical(tables, turns, clock, is_span, critical)
            if figure_s < best_s:
                best_s, best[:] = figure_s, turns
        else:
            _move(turns, rank, target, source)
        history[late] = cost
    turns[:] = best
    return best_s


@compiled
def _move(turns: Ints, rank: int, source: int, target: int) -> None:
    """The turn at one place goes to another; those between close up."""
    turn, step = turns[rank, source], 1 if target > source else -1
    k = source
    while k != target:
        turns[rank, k] = turns[rank, k + step]
        k += step
    turns[rank, target] = turn


@compiled
def _cost(tables: Tables, clock: Clock, figure_s: float) -> float:
    """The figure, and a little of how late ranks are on average, which tells plateaus apart."""
    n_ranks, n_places = clock.start_s.shape
    late_s = 0.0
    for rank in range(n_ranks):
        late_s += clock.start_s[rank, n_places - 1]
    return float(figure_s + 0.01 * late_s / n_ranks)


@compiled
def _critical(tables: Tables, turns: Ints, clock: Clock, is_span: bool, critical: Ints) -> int:
    """Passes on the longest chain that start when their rank's previous pass ends; returns how many."""
    n_ranks, n_places = turns.shape
    rank, worst_s, n = 0, -1.0, 0
    for each in range(n_ranks):
        last = turns[each, n_places - 1]
        done_s = clock.start_s[each, n_places - 1] + tables.work_s[each, last]
        if is_span:
            done_s -= clock.start_s[each, 0]
        if done_s > worst_s:
            rank, worst_s = each, done_s
    k = n_places - 1
    while True:
        turn, j = turns[rank, k], clock.nth[rank, k]
        if k > 0:
            before = turns[rank, k - 1]
            if clock.end_s[rank, before, clock.nth[rank, k - 1]] == clock.start_s[rank, k]:
                critical[n, 0], critical[n, 1] = rank, k
                n += 1
                k -= 1
                continue
        there, needed = tables.need_rank[rank, turn], tables.need_turn[rank, turn]
        if needed < 0:
            return n
        rank, k = there, clock.place[there, needed, j]
