"""One plan on the engine, beside what the closed form says of it."""

from dataclasses import dataclass

import numpy as np

from objectives.cost.result import Estimate
from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.simulator.agreement import assumptions
from objectives.simulator.randomness import Randomness
from objectives.simulator.step import PLAIN, Detail, SimulatedStep, StepOptions, StepSimulator
from search_spaces.errors import check
from search_spaces.plan import Floats, Plan, Plans

MOST_SEEDS = 10_000
_IN_PIECES = (
    "in pieces, communication hides behind what runs beside it, shares links, and slows computation; the"
    " closed form hides a fitted share of it"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulation:
    """A plan's step: by the engine with the first seed, by the closed form, and over all seeds.

    `seeds_s` are the step seconds of every seed, (n_seeds,); `reasons` says where the closed form's
    assumptions do not hold, each in one sentence without its full stop.
    """

    job: Job
    plan: Plan
    options: StepOptions
    step: SimulatedStep
    closed_form: Estimate
    seeds_s: Floats
    reasons: tuple[str, ...]

    @property
    def difference(self) -> float:
        """Simulated over closed-form step seconds, less one."""
        return self.step.step_s / float(self.closed_form.step_s[0]) - 1


def simulate(job: Job, plan: Plan, options: StepOptions = PLAIN, *, n_seeds: int = 1) -> Simulation:
    """Simulate one step of a plan with seeds 0 to n_seeds - 1.

    Raises
    ------
    InvalidSpec
        The schedule cannot be had or deadlocks, or an option does not fit the plan.
    """
    check(1 <= n_seeds <= MOST_SEEDS, f"the number of seeds must be from 1 to {MOST_SEEDS:,}", n_seeds)
    simulator = StepSimulator(job, plan, options)
    step = simulator.step(0)
    others_s = [simulator.seconds(seed) for seed in range(1, n_seeds)]
    return Simulation(
        job=job,
        plan=plan,
        options=options,
        step=step,
        closed_form=estimate(job, Plans.of([plan])),
        seeds_s=np.array([step.step_s, *others_s]),
        reasons=reasons(job, plan, options),
    )


def reasons(job: Job, plan: Plan, options: StepOptions) -> tuple[str, ...]:
    """Why the engine and the closed form may differ on a plan."""
    found = assumptions(job, plan)
    if options.program is not None:
        found.append("the engine ran the schedule file, the closed form knows the plan's own schedule")
    if options.detail is Detail.PIECES:
        found.append(_IN_PIECES)
    if options.randomness != Randomness():
        found.append("what is drawn (jitter, stragglers, loads) is not in the closed form")
    return tuple(found)
