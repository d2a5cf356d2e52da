"""What would change a study's answer: the nearest rivals, and constants of the cluster that would turn it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.uncertainty import bounds, constants, with_constant
from search_spaces.cluster import Constant
from search_spaces.plan import Floats, Ints, Plans
from tuner.insight.beliefs import differences, of_rows
from tuner.insight.content import Rival, Turn
from tuner.samplers.posterior import Posterior

N_RIVALS, N_TURNS = 8, 8
N_DRAWS = 2048
SHORTLIST = 200
FARTHEST = 4.0  # a constant is looked at from a quarter to four times its value
HALVINGS = 6


def nearest_rivals(
    posterior: Posterior, best: int, *, quantity: int, trials: Mapping[str, int], seed: int
) -> tuple[Rival, ...]:
    """The plans likeliest to be better than the best measured one, which stands at its reading."""
    rows = contenders(posterior, best, quantity)
    if not len(rows):
        return ()
    drawn = posterior.draws(rows, N_DRAWS, np.random.default_rng([seed, 1]))
    readings = {int(row): posterior.readings[i] for i, row in enumerate(posterior.measured)}
    values, feasible = drawn.values[:, :, quantity], drawn.is_feasible
    for i, row in enumerate(rows.tolist()):
        if row in readings:  # it ran and was measured: nothing about it is left to chance
            values[:, i], feasible[:, i] = readings[row][quantity], True
    overtakes = ((values < readings[best][quantity]) & feasible).mean(axis=0)
    change, spread = differences(
        posterior, of_rows(posterior, [best]), of_rows(posterior, rows.tolist()), quantity
    )
    order = np.lexsort((change, -overtakes))[:N_RIVALS]
    plans = posterior.table.candidates.plans.take(rows)
    return tuple(
        Rival(
            plan=plans.row(int(i)),
            trial=trials.get(plans.row(int(i)).key),
            change=float(change[i]),
            spread=float(spread[i]),
            fits=float(feasible[:, i].mean()),
            overtakes=float(overtakes[i]),
        )
        for i in order
    )


def contenders(posterior: Posterior, best: int, quantity: int) -> Ints:
    """The rows of the best outlook that may still run and fit, the best measured one left out."""
    outlook = posterior.every.mean[:, quantity] - posterior.every.std[:, quantity]
    failed = [lesson.row for lesson in posterior.history.lessons if not lesson.ran]
    score = np.where(posterior.log_feasible > np.log(0.01), outlook, np.inf)
    score[[best, *failed]] = np.inf
    rows = np.argsort(score, kind="stable")[:SHORTLIST]
    return np.sort(rows[np.isfinite(score[rows])])


def turning_constants(job: Job, posterior: Posterior, best: int, quantity: int) -> tuple[Turn, ...]:
    """For every constant the smallest change that puts another plan first, the nearest first.

    What trials taught of each plan is kept; both ends of [1/4, 4] times the constant are searched by halving
    on the scale of ratios.  Plans that are expected to be ahead already are left out: no constant put them
    there.
    """
    rows = np.concatenate([[best], contenders(posterior, best, quantity)])
    value = posterior.every.mean[rows, quantity]
    rows = rows[(value >= value[0]) & (posterior.log_feasible[rows] > np.log(0.5)) | (rows == best)]
    plans = posterior.table.candidates.plans.take(rows)
    now = _logs(job, plans, quantity)
    taught = posterior.every.mean[rows, quantity] - now
    ground = _Ground(job=job, plans=plans, taught=taught, quantity=quantity)
    found = [ground.turn(name, constant) for name, constant in constants(job).items() if constant.value > 0]
    turns = [turn for turn in found if turn is not None]
    return tuple(sorted(turns, key=lambda turn: abs(np.log(turn.factor)))[:N_TURNS])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ground:
    """Plans, the best measured one first, with what trials taught of each in logs; shape (n,)."""

    job: Job
    plans: Plans
    taught: Floats
    quantity: int

    def turn(self, name: str, constant: Constant) -> Turn | None:
        """The nearer of the two changes of one constant that turn the answer; None where none does."""
        reaches = [float(np.log(max(_most(name, constant) / constant.value, 1.0))), -float(np.log(FARTHEST))]
        found = [self._halved(name, constant, each) for each in reaches if self._first(name, constant, each)]
        if not found:
            return None
        log_factor, at = min(found, key=lambda each: abs(each[0]))
        return Turn(name=name, constant=constant, factor=float(np.exp(log_factor)), plan=self.plans.row(at))

    def _halved(self, name: str, constant: Constant, reach: float) -> tuple[float, int]:
        low, high = 0.0, reach
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._first(name, constant, middle) else (middle, high)
        return high, self._first(name, constant, high)

    def _first(self, name: str, constant: Constant, log_factor: float) -> int:
        """Which plan is first where the constant is so much larger; 0 is the best measured one."""
        # A share that is raised to one must not round above it.
        value = min(constant.value * float(np.exp(log_factor)), _most(name, constant))
        other = with_constant(self.job, name, replace(constant, value=value))
        return int(np.argmin(_logs(other, self.plans, self.quantity) + self.taught))


def _most(name: str, constant: Constant) -> float:
    """The largest value that is tried of a constant."""
    return bounds(name, replace(constant, spread=FARTHEST - 1.0))[1].value


def _logs(job: Job, plans: Plans, quantity: int) -> Floats:
    priced = estimate(job, plans)
    return np.log((priced.step_s, priced.peak_memory_bytes)[quantity])
