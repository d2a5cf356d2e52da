"""V-shaped schedules from a repeating pattern: one pass a slot, the ends packed tight, then an order.

    p  n_ranks   m  n_microbatches   i  rank
    lane  0: F of chunk 0   1: F of chunk 1   2: B_i of chunk 1   3: B_i of chunk 0   4: W

A micro-batch goes through a rank by lanes 0 to 3.  A pattern gives the slots in which it does so on every
rank; the next micro-batch follows six slots later, for each is six passes of a rank: two weight gradients
take what the lanes leave free.  In the steady state nothing collides.  At both ends slots stay empty, and
passes move forward into them as far as dependencies and the pattern's own peak of memory allow.  In the end
the slots only say who goes first: an order depends on no seconds.

Source: Qi et al. (2024), arXiv:2405.15362, section 3 (building blocks, squeezing, reordering).
"""

from bisect import insort
from itertools import accumulate

import numpy as np

from search_spaces.plan import Ints

PERIOD = 6
_FORWARD_LANES, _BACKWARD_LANES, _WEIGHT = (0, 1), (2, 3), 4
_TAKES = (1, 1, 0, 0, -1)  # activations of a pass, in chunks, by lane: taken by F, freed by W

Lanes = list[list[int]]  # of one rank: the slot of every pass by lane and micro-batch (W: the n-th)


def orders_of(pattern: Ints, n_microbatches: int) -> list[Ints]:
    """Lane and micro-batch of every pass of every rank, in order; shape (6 n_microbatches, 2) each.

    `pattern` has shape (n_ranks, 4).  Lane 4 is W of chunk 1, lane 5 of chunk 0: where both wait, the chunk
    that its gradient reaches first comes first.
    """
    span = PERIOD * n_microbatches
    ranks: list[Lanes] = [
        [list(range(at, at + span, PERIOD)) for at in starts] for starts in pattern.tolist()
    ]
    for lanes in ranks:
        lanes.append(_weight_slots(lanes))
    rows: list[_Row] = [_Row(lanes) for lanes in ranks]
    _pack(ranks, rows, head=True)
    ranks = [lanes[:_WEIGHT] for lanes in _squeezed(ranks)]
    rows = [_FillingRow(lanes) for lanes in ranks]
    _pack(ranks, rows, head=False)
    for lanes in ranks:
        lanes.append(_weight_slots(lanes))
    return [_order(lanes[:_WEIGHT]) for lanes in _squeezed(ranks)]


def _row_of(lanes: Lanes) -> list[int]:
    """For every slot up to the last backward pass, the lane in it, or -1."""
    slots = [-1] * (max(slots[-1] for slots in lanes) + 1)
    for lane, places in enumerate(lanes):
        for at in places:
            slots[at] = lane
    return slots


def _weight_slots(lanes: Lanes) -> list[int]:
    """Slots of the weight gradients: each takes the first that is free, the rest follow the last pass."""
    slots, waiting = [], 0
    row = _row_of(lanes)
    for at, lane in enumerate(row):
        waiting += lane in _BACKWARD_LANES
        if lane < 0 and waiting:
            slots.append(at)
            waiting -= 1
    return slots + list(range(len(row), len(row) + waiting))


def _order(lanes: Lanes) -> Ints:
    """A rank's passes by slot, with weight gradients of either chunk in free slots."""
    ops: list[tuple[int, int]] = []
    done, waiting, ran = [0] * len(lanes), [0, 0], [0, 0]

    def run_weight() -> None:
        chunk = 0 if waiting[0] else 1
        ops.append((_WEIGHT + chunk, ran[chunk]))
        waiting[chunk] -= 1
        ran[chunk] += 1

    for lane in _row_of(lanes):
        if lane >= 0:
            ops.append((lane, done[lane]))
            done[lane] += 1
            if lane in _BACKWARD_LANES:
                waiting[lane - _BACKWARD_LANES[0]] += 1
        elif any(waiting):
            run_weight()
    while any(waiting):
        run_weight()
    return np.array(ops, dtype=np.int64)


def _sorted_passes(ranks: list[Lanes]) -> list[list[int]]:
    """Every pass as (slot, rank, lane, number), in this order."""
    rows = [
        (at, rank, lane, number)
        for rank, lanes in enumerate(ranks)
        for lane, slots in enumerate(lanes)
        for number, at in enumerate(slots)
    ]
    table = np.array(rows, dtype=np.int64)
    passes: list[list[int]] = table[np.lexsort(table.T[::-1])].tolist()
    return passes


def _last_need(ranks: list[Lanes], rank: int, lane: int, number: int) -> int:
    """The last slot of what a pass of lane 0 to 3 waits for, -1: nothing."""
    lanes = ranks[rank]
    source = rank + (-1 if lane % 2 == 0 else 1)
    needs = [-1]
    if 0 <= source < len(ranks):
        needs.append(ranks[source][lane][number])
    if lane > 0:
        needs.append(lanes[lane - 1][number])
    return max(needs)


def _squeezed(ranks: list[Lanes]) -> list[Lanes]:
    """The same orders, every pass in the first slot in which it can run."""
    squeezed: list[Lanes] = [[[] for _ in lanes] for lanes in ranks]
    free = [0] * len(ranks)
    for _, rank, lane, number in _sorted_passes(ranks):
        need = _last_need(squeezed, rank, lane, number) if lane < _WEIGHT else -1
        at = max(free[rank], need + 1)
        squeezed[rank][lane].append(at)
        free[rank] = at + 1
    return squeezed


class _Row:
    """A rank's slots with its weight gradients placed: what is taken, and the memory after each slot."""

    def __init__(self, lanes: Lanes) -> None:
        self.slots = _row_of(lanes)
        self.held = list(accumulate(_TAKES[lane] if lane >= 0 else 0 for lane in self.slots))

    def peak(self) -> int:
        """Most chunks kept."""
        return max(self.held)

    def move(self, lane: int, at: int, earliest: int, limit: int) -> int:
        """Move the pass at a slot to the first free one, not before `earliest`, that memory allows."""
        first = at
        while first > earliest and not (_TAKES[lane] > 0 and self.held[first - 1] >= limit):
            first -= 1
        to = next((slot for slot in range(first, at) if self.slots[slot] < 0), at)
        self.slots[at], self.slots[to] = -1, lane
        for slot in range(to, at):
            self.held[slot] += _TAKES[lane]
        return to


class _FillingRow(_Row):
    """A rank's slots without weight gradients: they run wherever a slot is free, wherever that is."""

    def __init__(self, lanes: Lanes) -> None:
        self.slots = _row_of(lanes)
        self.held, self.waiting = [0] * len(self.slots), [0] * len(self.slots)
        self._fill(0, len(self.slots), len(self.slots) * PERIOD)

    def move(self, lane: int, at: int, earliest: int, limit: int) -> int:
        """As above; weight gradients give way."""
        for to in range(earliest, at):
            if self.slots[to] < 0:
                self.slots[at], self.slots[to] = -1, lane
                if self._fill(to, at, limit):
                    return to
                self.slots[at], self.slots[to] = lane, -1
                self._fill(to, at, len(self.slots) * PERIOD)
        return at

    def _fill(self, start: int, changed: int, limit: int) -> bool:
        """Count memory from a slot on, until nothing differs after the last change; False: too much."""
        held, waiting = (self.held[start - 1], self.waiting[start - 1]) if start else (0, 0)
        for at in range(start, len(self.slots)):
            lane = self.slots[at]
            if lane < 0:
                runs = min(waiting, 1)
                held, waiting = held - runs, waiting - runs
            elif lane in _FORWARD_LANES:
                held += 1
            else:
                waiting += 1
            if at > changed and held == self.held[at] and waiting == self.waiting[at]:
                return True
            self.held[at], self.waiting[at] = held, waiting
            if held > limit:
                return False
        return True


def _pack(ranks: list[Lanes], rows: list[_Row], *, head: bool) -> None:
    """Move passes forward: those after the last F has begun, and, with `head`, those before the first end."""
    limit = max(row.peak() for row in rows)
    last = len(ranks[0][0]) - 1
    ends: list[list[int]] = [
        [] for _ in ranks
    ]  # of backward passes seen, sorted: the n-th W follows the n-th
    is_head, is_tail, all_began = True, False, False
    for at, rank, lane, number in _sorted_passes(ranks):
        is_head = is_head and (lane, rank) != (3, 0)
        is_tail = not is_head and all_began
        to = at
        if (is_head and head) or is_tail:
            need = ends[rank][number] if lane == _WEIGHT else _last_need(ranks, rank, lane, number)
            before = ranks[rank][lane][number - 1] if number else -1
            to = rows[rank].move(lane, at, max(need, before) + 1, limit)
            ranks[rank][lane][number] = to
        if lane in _BACKWARD_LANES:
            insort(ends[rank], to)
        all_began = all_began or (lane == 0 and number == last)
