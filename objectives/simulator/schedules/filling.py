"""Weight gradients fitted between the passes of a given order, by the seconds that passes take.

Forward passes and gradients of the input keep the order they are given, for others wait for them.  While a
rank waits, or lacks memory for its next forward pass, it runs a weight gradient if one is due.  One that
lasts longer than the wait delays its neighbours, none leaves the rank idle; which is better no rank can tell
alone, so a few policies are tried and the best is kept.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from operator import add

import numpy as np

from objectives.simulator.program import NOTHING, Pass, Program
from objectives.simulator.schedules.accounting import HALVES_AT_BACKWARD_INPUT
from objectives.simulator.schedules.costs import PassCosts
from objectives.simulator.schedules.writer import Columns, assemble
from search_spaces.memory_habits import Release
from search_spaces.plan import Ints

_INFINITE = float("inf")
_F, _B, _W = 0, 1, 2  # letters: places in a table of costs
_KINDS = np.array([Pass.FORWARD, Pass.BACKWARD_INPUT, Pass.BACKWARD_WEIGHT])

Step = tuple[int, int, int]  # letter, chunk, micro-batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """What passes cost and where; `memory` in half chunks, of which B_i gives back `at_input`, W the rest."""

    stage: list[list[int]]
    n_microbatches: int
    seconds: list[list[list[float]]]  # by letter, rank and chunk
    send_s: list[float]
    memory: int
    at_input: int

    @property
    def n_stages(self) -> int:
        """Stages along the model."""
        return sum(map(len, self.stage))


@dataclass(frozen=True, slots=True)
class Room:
    """How many micro-batches' activations a rank may keep, and when they are given back."""

    microbatches: float
    release: Release


@dataclass(frozen=True, slots=True)
class Policy:
    """When a rank that waits runs a weight gradient instead.

    It does where the wait lasts at least `fit` of the gradient's seconds, or where idling on would bring the
    rank above `allowance_s` idle seconds in all.
    """

    fit: float
    allowance_s: float


_PATIENT = Policy(1.0, _INFINITE)
_FITS = (1.0, 0.75, 0.5)
_N_LOWERED = 8  # twice as many gain at most 5 % more, and mostly nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """Full orders, the longest span of a rank and the makespan, both with the work in them.

    `waited_s` is the most idle seconds that a rank came up to because it was allowed to.
    """

    orders: list[list[Step]]
    span_s: float
    makespan_s: float
    waited_s: float

    @property
    def badness(self) -> tuple[float, float]:
        """What to make small: the step where steps interlock, then the step behind a barrier."""
        return self.span_s, self.makespan_s


class _Clock:
    """One run of the ranks side by side, always the earliest one first."""

    def __init__(self, pipeline: Pipeline, orders: Sequence[Sequence[Step]], policy: Policy) -> None:
        p, self.pipeline, self.policy, self.orders = len(pipeline.stage), pipeline, policy, orders
        self.fills = all(letter != _W for order in orders for letter, _, _ in order)
        self.rank_of = {s: rank for rank, stages in enumerate(pipeline.stage) for s in stages}
        blank = [_INFINITE] * pipeline.n_microbatches
        # When the input of a pass is there, by letter and stage.
        self.arrives = [[list(blank) for _ in self.rank_of] for _ in (_F, _B)]
        self.arrives[_F][0] = [0.0] * pipeline.n_microbatches
        self.ran: list[list[Step]] = [[] for _ in range(p)]
        self.due: list[list[tuple[int, int]]] = [[] for _ in range(p)]  # weight gradients, first in first out
        self.at, self.n_weights, self.held = [0] * p, [0] * p, [0] * p
        self.free, self.idle, self.busy = [0.0] * p, [0.0] * p, [0.0] * p
        self.asleep: list[tuple[int, int, int] | None] = [None] * p
        self.awake = [(0.0, rank) for rank in range(p)]
        self.waited = 0.0

    def run(self) -> Filled | None:
        """Until nobody can go on; None: not every pass ran."""
        while self.awake:
            now, rank = heappop(self.awake)
            if now >= self.free[rank]:
                self._turn(rank, now)
        n_passes = 3 * self.pipeline.n_stages * self.pipeline.n_microbatches
        if sum(map(len, self.ran)) < n_passes:
            return None
        span_s = max(map(add, self.idle, self.busy))
        return Filled(orders=self.ran, span_s=span_s, makespan_s=max(self.free), waited_s=self.waited)

    def _turn(self, rank: int, now: float) -> None:
        """Run the next pass, or a weight gradient, or wait."""
        order, at = self.orders[rank], self.at[rank]
        is_due = self.fills and self.n_weights[rank] < len(self.due[rank])
        if at == len(order):
            if is_due:
                self._run(rank, now, (_W, *self.due[rank][self.n_weights[rank]]))
            return
        letter, chunk, microbatch = step = order[at]
        stage = self.pipeline.stage[rank][chunk]
        arrives = self.arrives[letter][stage][microbatch] if letter != _W else now
        is_full = letter == _F and self.held[rank] + 2 > self.pipeline.memory
        if arrives <= now and not is_full:
            self.at[rank] += 1
            self._run(rank, now, step)
        elif is_due and (is_full or self._fills(rank, arrives - now)):
            self._run(rank, now, (_W, *self.due[rank][self.n_weights[rank]]))
        elif is_full:
            return  # no weight gradient will ever make room
        elif arrives < _INFINITE:
            heappush(self.awake, (arrives, rank))
        else:
            self.asleep[rank] = (letter, stage, microbatch)

    def _fills(self, rank: int, wait_s: float) -> bool:
        chunk, _ = self.due[rank][self.n_weights[rank]]
        if wait_s >= self.policy.fit * self.pipeline.seconds[_W][rank][chunk]:
            return True
        if self.idle[rank] + wait_s > self.policy.allowance_s:
            return True
        self.waited = max(self.waited, self.idle[rank] + wait_s)
        return False

    def _run(self, rank: int, now: float, step: Step) -> None:
        letter, chunk, microbatch = step
        if self.ran[rank]:
            self.idle[rank] += now - self.free[rank]
        self.busy[rank] += self.pipeline.seconds[letter][rank][chunk]
        end = self.free[rank] = now + self.pipeline.seconds[letter][rank][chunk]
        self.ran[rank].append(step)
        stage, at_input = self.pipeline.stage[rank][chunk], self.pipeline.at_input
        if letter == _F:
            self.held[rank] += 2
            is_last = stage + 1 == self.pipeline.n_stages
            self._give(rank, _B if is_last else _F, stage if is_last else stage + 1, microbatch, end)
        elif letter == _B:
            self.held[rank] -= at_input
            self.due[rank].append((chunk, microbatch))
            if stage > 0:
                self._give(rank, _B, stage - 1, microbatch, end)
        else:
            self.held[rank] -= 2 - at_input
            self.n_weights[rank] += 1
        heappush(self.awake, (end, rank))

    def _give(self, rank: int, letter: int, stage: int, microbatch: int, end: float) -> None:
        """Tell the rank of a stage that its input is on the way."""
        to = self.rank_of[stage]
        link = min(rank, to) if abs(rank - to) == 1 else rank  # the last rank's link leads back to the first
        arrives = end if to == rank else end + self.pipeline.send_s[link]
        self.arrives[letter][stage][microbatch] = arrives
        if self.asleep[to] == (letter, stage, microbatch):
            self.asleep[to] = None
            heappush(self.awake, (max(arrives, self.free[to]), to))


def fill(pipeline: Pipeline, orders: Sequence[Sequence[Step]], policy: Policy) -> Filled | None:
    """The orders with weight gradients fitted in; orders that hold them already run as they are.

    None: the memory does not allow this order, or it deadlocks.
    """
    return _Clock(pipeline, orders, policy).run()


Maker = Callable[[int], Program]  # a program for so many micro-batches


@dataclass(frozen=True, slots=True)
class _Order:
    """An order for any number of micro-batches, and written out for few."""

    make: Maker
    steps: list[list[Step]]


@dataclass(frozen=True, slots=True)
class _Try:
    """An order with a policy, and what they idle on a small case."""

    order: _Order
    policy: Policy
    badness: tuple[float, float]
    waited_s: float


def best_try(pipeline: Pipeline, orders: Sequence[Maker]) -> _Try | None:
    """The order and policy that idle least; None: no order fits in the memory.

    Orders are compared where ranks may idle without end, or not at all.  Then the allowance of the best is
    lowered, each time below the most that a rank has idled up to, so that every step changes what some rank
    does.
    """
    given = [_Order(make, steps(make(pipeline.n_microbatches), with_weights=False)) for make in orders]
    ends = [Policy(fit, allowance_s) for fit in _FITS for allowance_s in (_INFINITE, 0.0)]
    tries = [each for order in given for policy in ends if (each := _attempt(pipeline, order, policy))]
    if not tries:
        return None
    order = min(tries, key=lambda each: each.badness).order
    for fit in _FITS:
        tries += _lowered(pipeline, order, fit)
    return min(tries, key=lambda each: each.badness)


def _lowered(pipeline: Pipeline, order: _Order, fit: float) -> list[_Try]:
    """Tries of one order with ever smaller allowances."""
    tries = []
    latest = _attempt(pipeline, order, Policy(fit, _INFINITE))
    for _ in range(_N_LOWERED):
        if latest and latest.waited_s > 0:
            latest = _attempt(pipeline, order, Policy(fit, latest.waited_s * (1 - 1e-9)))
            tries.append(latest)
    return [each for each in tries if each]


def _attempt(pipeline: Pipeline, order: _Order, policy: Policy) -> _Try | None:
    filled = fill(pipeline, order.steps, policy)
    return _Try(order, policy, filled.badness, filled.waited_s) if filled else None


def filled_best(
    drawn: Maker, orders: Sequence[Maker], sizes: tuple[int, int], costs: PassCosts, room: Room
) -> Program:
    """The best of a drawn program and of other orders with their weight gradients fitted in.

    Of `sizes` the second is how many micro-batches are asked for; orders and policies are compared on the
    first, so that the time is that of many passes over a small program and two over the large one.  The drawn
    program must fit.
    """
    few, m = sizes
    stage = drawn(1).stage
    small = pipeline_of(stage, few, costs, room)
    large = pipeline_of(stage, m, costs, room)
    boundless = replace(large, memory=2 * m * large.n_stages)
    results = [fill(boundless, steps(drawn(m), with_weights=True), _PATIENT)]
    if won := best_try(small, orders):
        results.append(fill(large, steps(won.order.make(m), with_weights=False), won.policy))
    best = min((filled for filled in results if filled), key=lambda filled: filled.badness)
    return program_from(stage, m, best.orders)


def pipeline_of(stage: Ints, n_microbatches: int, costs: PassCosts, room: Room) -> Pipeline:
    """A pipeline of these stages."""
    n_ranks, n_chunks = stage.shape
    return Pipeline(
        stage=stage.tolist(),
        n_microbatches=n_microbatches,
        seconds=costs.table(n_ranks, n_chunks).tolist(),
        send_s=costs.sends_s(n_ranks).tolist(),
        memory=int(2 * n_chunks * min(room.microbatches, n_microbatches) + 1e-9),
        at_input=HALVES_AT_BACKWARD_INPUT[room.release],
    )


def steps(program: Program, *, with_weights: bool) -> list[list[Step]]:
    """A program as steps, by rank; a whole backward pass counts as a gradient of the input."""
    letters = np.array([_F, _B, _B, _W, NOTHING])[program.kind]
    table = np.stack([letters, program.chunk, program.microbatch], axis=1)
    ranks = np.split(table, program.first[1:-1])
    return [[(k, c, j) for k, c, j in rows.tolist() if with_weights or k != _W] for rows in ranks]


def program_from(stage: Ints, n_microbatches: int, orders: Iterable[Sequence[Step]]) -> Program:
    """Steps as a program."""
    return assemble([_columns(order) for order in orders], n_microbatches=n_microbatches, stage=stage)


def _columns(order: Sequence[Step]) -> Columns:
    letter, chunk, microbatch = np.array(order, dtype=np.int64).reshape(-1, 3).T
    nothing = np.full(len(letter), NOTHING)
    return np.stack([_KINDS[letter], microbatch, chunk, nothing, nothing], axis=1)
