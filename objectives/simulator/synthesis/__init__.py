"""Schedule synthesis: an order of passes for given costs and a memory limit, better than those with names.

    greedy list construction by several rules + the named schedules  ->  local improvement on a fast clock
    ->  the engine's figure, and the named schedules' beside it

Source: Qi et al. (2023), arXiv:2401.10241, section 3, for the idea of a schedule made for its costs under a
memory limit; the search is a list scheduler with late-acceptance moves on the critical path.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from objectives.simulator.program import Program
from objectives.simulator.schedules import check_program
from objectives.simulator.synthesis.named import Found, found, named_figures, ordered
from objectives.simulator.synthesis.problem import Placement, Problem, StageCosts, problem_of
from objectives.simulator.synthesis.search import search
from search_spaces.errors import check
from search_spaces.plan import Floats, OptimizerSync, Schedule

__all__ = ["Placement", "StageCosts", "Synthesis", "synthesize"]

BUDGET = 20_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Synthesis:
    """A program made for its costs, its figure, and those of the named schedules (or why they do not fit).

    `figure_s` is the engine's makespan where a barrier closes the step, else the longest span of a rank;
    `floor_s` is what no order can go below (it need not be attainable).
    """

    program: Program
    figure_s: float
    makespan_s: float
    floor_s: float
    named: Mapping[Schedule, float | str]

    @property
    def best_named(self) -> Schedule | None:
        """The best named schedule that fits."""
        fitting = {name: figure for name, figure in self.named.items() if isinstance(figure, float)}
        return min(fitting, key=lambda name: fitting[name]) if fitting else None

    @property
    def gain(self) -> float | None:
        """1 - figure / that of the best named schedule; None: none fits."""
        best = self.best_named
        figure = None if best is None else self.named[best]
        return 1 - self.figure_s / figure if isinstance(figure, float) and figure else None


def synthesize(  # noqa: PLR0913 - each is one condition of the search
    costs: StageCosts,
    n_microbatches: int,
    *,
    memory_limit_bytes: float | Floats,
    sync: OptimizerSync = OptimizerSync.BARRIER,
    placement: Placement = Placement.ROUND_ROBIN,
    budget: int = BUDGET,
    seed: int = 0,
) -> Synthesis:
    """An order for these costs within the memory, never worse than a named schedule that fits as well.

    `memory_limit_bytes`, one number or shape (n_ranks,), is for activations; `budget` counts the moves that
    are tried, each linear in the passes; greedy orders, up to 200, come on top.  The same arguments
    give the same program.

    Named schedules are those of the placement, in their best form (depths of 1F1B's warm-up, limits of the
    message-driven one, ZB-H2 and ZB-V planned with the costs).  DualPipe is not among them: it holds the
    model twice, which is another use of memory.

    Raises
    ------
    InvalidSpec
        No order fits the memory, or a number cannot be.
    """
    check(budget >= 0, "budget must not be negative", budget)
    problem = problem_of(
        costs, n_microbatches, memory_limit_bytes=memory_limit_bytes, sync=sync, placement=placement
    )
    named = named_figures(problem)
    fitting = [ordered(problem, each) for each in named.values() if isinstance(each, Found)]
    best = min([*fitting, *_searched(problem, fitting, budget, seed)], key=lambda each: each.figure_s)
    check_program(best.program)
    return Synthesis(
        program=best.program, figure_s=best.figure_s, makespan_s=best.makespan_s, floor_s=problem.floor_s,
        named={name: each.figure_s if isinstance(each, Found) else each for name, each in named.items()},
    )  # fmt: skip


def _searched(problem: Problem, fitting: list[Found], budget: int, seed: int) -> list[Found]:
    """The order that the search ends with, as the engine runs it."""
    starts = [turns for each in fitting if (turns := problem.turns(each.program)) is not None]
    order = search(problem, starts, budget, seed)
    if order is None:
        return []
    result = found(problem, problem.program(order.turns, problem.n_microbatches))
    assert isinstance(result, Found), result
    return [result]
