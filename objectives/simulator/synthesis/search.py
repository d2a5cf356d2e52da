"""Orders that may be better than any with a name: greedy construction, then local improvement.

    p  n_ranks   m  n_microbatches   t  turns of a micro-batch on a rank, 3 a chunk

Everything works on turns (`kernel`), and is the same for the same seed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from itertools import product
from types import ModuleType
from typing import Any

import numpy as np

from objectives.simulator.synthesis.problem import ROUNDING, Problem
from search_spaces.plan import Floats, Ints, OptimizerSync

_N_STARTS = 4  # orders that local improvement begins with; the better half goes on, again and again
_PATIENCE = (0.0, 0.5, 1.0)
_SHARES_OF_MEMORY = (1.0, 0.75, 0.5)
_N_DRAWN = 120
_N_LONG = 6  # rules that did best on a short step go on to a long one
LONG = 4  # more micro-batches a rank than this: the middle of a shorter order is repeated
SHORT = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Order:
    """Turns of every rank, shape (n_ranks, n_turns m), and their figure by the inner clock, seconds."""

    turns: Ints
    figure_s: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rule:
    """How a greedy order chooses (see `kernel.build`), and what a rank may hold; shape (n_ranks,)."""

    numbers: Floats
    cap_bytes: Floats


@cache
def kernel() -> ModuleType:
    """The compiled loops; Numba is loaded by whoever synthesises first."""
    return import_module("objectives.simulator.synthesis.kernel")


class Bench:
    """A problem's tables, and scratch space for its clock."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.m = problem, problem.n_microbatches
        p, n_turns = problem.work_s.shape
        rank, turn, delay_s = problem.needs
        self.tables: Any = kernel().Tables(
            work_s=problem.work_s, need_rank=rank, need_turn=turn, delay_s=delay_s,
            taken_bytes=problem.taken_bytes, given_bytes=problem.given_bytes,
            limit_bytes=problem.limit_bytes * (1 + ROUNDING / 2),
        )  # fmt: skip
        by_turn, by_place = (p, n_turns, self.m), (p, n_turns * self.m)
        self.clock: Any = kernel().Clock(
            end_s=np.zeros(by_turn), start_s=np.zeros(by_place), nth=np.zeros(by_place, np.int64),
            place=np.zeros(by_turn, np.int64), n_run=np.zeros((p, n_turns), np.int64),
            waiter=np.zeros((p, n_turns), np.int64), lacks=np.zeros(p, np.int64),
        )  # fmt: skip

    @property
    def is_span(self) -> bool:
        """Whether the longest span of a rank counts, and not the makespan."""
        return self.problem.sync is OptimizerSync.POST_VALIDATION

    def figure_s(self, turns: Ints) -> float:
        """What is to be made small; infinite where the order deadlocks or lacks memory."""
        if not all(kernel().fits(self.tables, turns, rank, self.m) for rank in range(len(turns))):
            return float("inf")
        makespan_s, span_s = kernel().run(self.tables, turns, self.clock)
        return float(span_s if self.is_span else makespan_s)

    def order(self, turns: Ints) -> Order:
        """An order with its figure."""
        return Order(turns=turns, figure_s=self.figure_s(turns))

    def improved(self, order: Order, n: int, rng: np.random.Generator) -> Order:
        """The best order that n moves from here lead to; never a worse one."""
        turns = order.turns.copy()
        draws = rng.random((n, 5))
        floor_s = self.problem.floor_s
        figure_s = kernel().improve(self.tables, turns, self.clock, draws, self.is_span, floor_s)
        return Order(turns=turns, figure_s=float(figure_s))

    def built(self, rule: Rule) -> Order:
        """An order by a priority rule; infinite where it got stuck."""
        turns = np.zeros(self.clock.start_s.shape, np.int64)
        if kernel().build(self.tables, rule.numbers, rule.cap_bytes, self.m, turns, self.clock.end_s):
            return self.order(turns)
        return Order(turns=turns, figure_s=float("inf"))

    def rules(self, rng: np.random.Generator) -> list[Rule]:
        """Every priority rule within several caps, and some rules drawn by chance."""
        deep = (0.0, 1.0) if self.problem.n_chunks > 1 else (1.0,)
        drawn_s = zip(rng.integers(0, 2, (_N_DRAWN, 2)), rng.uniform(0, 1.5, _N_DRAWN), strict=True)
        drawn = [np.array([*flags, patience], np.float64) for flags, patience in drawn_s]
        numbers = [np.array(each) for each in product((0.0, 1.0), deep, _PATIENCE)]
        return [
            *(Rule(numbers=each, cap_bytes=cap) for cap in self._caps() for each in numbers),
            *(Rule(numbers=each, cap_bytes=self._drawn_cap(rng)) for each in drawn),
        ]

    def _caps(self) -> list[Floats]:
        """Shares of the memory, and 1F1B's triangle; shape (n_ranks,) each."""
        kept, limit = self.problem.costs.activation_bytes.sum(axis=1), self.tables.limit_bytes
        line = kept * np.arange(len(kept), 0, -1)
        return [
            self._within(cap) for cap in (*(share * limit for share in _SHARES_OF_MEMORY), line, 2 * line)
        ]

    def _drawn_cap(self, rng: np.random.Generator) -> Floats:
        """A share of the memory that changes evenly from the first rank to the last."""
        first, last = rng.uniform(0.2, 1.2, 2)
        shares = np.linspace(first, last, self.problem.n_ranks)
        return self._within(shares * self.tables.limit_bytes)

    def _within(self, cap_bytes: Floats) -> Floats:
        """No more than the memory, and no less than one micro-batch."""
        least = self.problem.costs.activation_bytes.sum(axis=1) * (1 + ROUNDING / 2)
        within: Floats = np.minimum(np.maximum(cap_bytes, least), self.tables.limit_bytes)
        return within


def search(problem: Problem, starts: Iterable[Ints], budget: int, seed: int) -> Order | None:
    """The best order found from these and from greedy ones, with `budget` moves tried.

    With many micro-batches half of the budget goes to a shorter step, whose middle is then repeated.
    """
    bench, rng = Bench(problem), np.random.default_rng(seed)
    rules, orders = bench.rules(rng), [bench.order(turns) for turns in starts]
    p, m = problem.n_ranks, problem.n_microbatches
    if m > LONG * p:
        short = Bench(replace(problem, n_microbatches=SHORT * p))
        built = {rule: short.built(rule) for rule in rules}
        few = [short.order(_shortened(short, order)) for order in orders]
        small = _improved(short, [*few, *built.values()], budget // 2, rng)
        orders += [bench.order(turns) for each in small for turns in repeated(short, each, m)]
        rules = sorted(rules, key=lambda rule: built[rule].figure_s)[:_N_LONG]
        budget = budget // 2 * SHORT * p // m
    best = _improved(bench, [*orders, *(bench.built(rule) for rule in rules)], budget, rng)
    return best[0] if best else None


def _improved(bench: Bench, orders: Iterable[Order], budget: int, rng: np.random.Generator) -> list[Order]:
    """The best few, improved in rounds that halve their number; the best first."""
    distinct = {each.turns.tobytes(): each for each in orders if np.isfinite(each.figure_s)}
    best = sorted(distinct.values(), key=lambda each: each.figure_s)[:_N_STARTS]
    n_rounds = _N_STARTS.bit_length()
    for left in range(n_rounds, 0, -1):
        n_alive = 2 ** (left - 1)
        alive = [bench.improved(each, budget // n_rounds // n_alive, rng) for each in best[:n_alive]]
        best = sorted([*alive, *best[n_alive:]], key=lambda each: each.figure_s)
    return best


def _shortened(short: Bench, order: Order) -> Ints:
    """An order without the micro-batches in its middle: of each turn as many as the short step has."""
    rows = []
    for turns in order.turns:
        nth = np.empty(len(turns), np.int64)
        by_turn = np.argsort(turns, kind="stable")
        m = len(turns) // short.problem.work_s.shape[1]
        nth[by_turn] = np.tile(np.arange(m), len(turns) // m)
        half = short.m // 2
        rows.append(turns[(nth < half) | (nth >= m - (short.m - half))])
    return np.stack(rows)


def repeated(short: Bench, order: Order, m: int) -> Iterator[Ints]:
    """An order for m micro-batches: a short one cut at a moment, and its next round put in again and again.

    What runs before a moment needs nothing that runs after it, so that a cut is an order of its own; the
    round is every turn once, in the order in which they come after the cut.  Several moments are tried; some
    rounds deadlock.
    """
    short.figure_s(order.turns)
    start_s = short.clock.start_s.copy()
    n_turns = short.problem.work_s.shape[1]
    for share in np.linspace(0.3, 0.7, 17):
        at_s = share * order.figure_s
        rows = []
        for turns, starts_s in zip(order.turns, start_s, strict=True):
            cut = int(np.searchsorted(starts_s, at_s))
            coming = np.concatenate([turns[cut:], np.arange(n_turns)])
            _, first = np.unique(coming, return_index=True)
            round_ = coming[np.sort(first)]
            rows.append(np.concatenate([turns[:cut], np.tile(round_, m - short.m), turns[cut:]]))
        yield np.stack(rows)
