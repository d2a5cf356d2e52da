"""What a report tells, free of how it is stored and how it looks."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from objectives.metrics import Goal, Job, Metric
from objectives.outcome import Failed, Measured, Outcome
from search_spaces.fidelity import Fidelity
from search_spaces.plan import Floats, Plan
from tuner.report.words import plan_words
from tuner.worth import Worth


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One trial: its plan, what was predicted, and what came of it (None: not yet).

    Where a proxy or a twin ran in the plan's place `proxy_words` says in what it is smaller, and prediction
    and outcome are its own.  `ran` is the job and the plan that ran; None of a proxy that this Meshtune makes
    no longer.
    """

    number: int
    plan: Plan
    ran: tuple[Job, Plan] | None
    state: str
    predicted_s: float
    predicted_bytes: float
    outcome: Outcome | None = None
    values: tuple[float, ...] = ()
    fidelity: Fidelity = Fidelity.FULL
    proxy_words: str = ""
    device_s: float | None = None

    @property
    def mfu(self) -> float | None:
        """Model FLOPs of what ran over the peak of its devices; None where nothing was observed."""
        if self.measured is None or self.ran is None:
            return None
        job, plan = self.ran
        return float(job.of_plan(plan).mfu(self.measured.step_s))  # type: ignore[arg-type]

    @property
    def tokens_per_s_per_device(self) -> float | None:
        """Tokens of what ran; None where nothing was observed."""
        if self.measured is None or self.ran is None:
            return None
        job = self.ran[0].of_plan(self.ran[1])
        return job.workload.tokens_per_step / job.cluster.n_devices / self.measured.step_s

    @property
    def words(self) -> str:
        """The plan in short form."""
        return plan_words(self.plan)

    @property
    def measured(self) -> Measured | None:
        """The outcome of a trial that ran."""
        return self.outcome if isinstance(self.outcome, Measured) else None

    @property
    def failed(self) -> Failed | None:
        """The outcome of a trial that did not."""
        return self.outcome if isinstance(self.outcome, Failed) else None

    @property
    def error(self) -> float | None:
        """Predicted over observed step time, less one; None where nothing was observed."""
        return self.predicted_s / self.measured.step_s - 1 if self.measured else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """How much each knob matters by one evaluator, or why it was not asked."""

    evaluator: str
    shares: dict[str, float] = field(default_factory=dict)
    skipped: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyReport:
    """A study as a reader meets it."""

    name: str
    job: Job
    metrics: tuple[Metric, ...]
    trials: tuple[TrialRow, ...]
    importance: tuple[Importance, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()
    worth: Worth | None = None

    @property
    def complete(self) -> list[TrialRow]:
        """Trials that ran whole, in order of their numbers."""
        return [row for row in self.trials if row.measured and row.fidelity is Fidelity.FULL]

    @property
    def proxies(self) -> list[TrialRow]:
        """Trials of smaller proxies, whatever came of them."""
        return [row for row in self.trials if row.fidelity is not Fidelity.FULL]

    @property
    def any_smaller(self) -> bool:
        """Whether something smaller than its plan ran in some trial."""
        return any(row.proxy_words for row in self.trials)

    @property
    def device_s(self) -> float:
        """Device-seconds that the trials held."""
        return sum(row.device_s for row in self.trials if row.device_s is not None)

    @property
    def failures(self) -> list[TrialRow]:
        """Trials that failed."""
        return [row for row in self.trials if row.failed]

    @property
    def states(self) -> str:
        """`34 measured, 6 failed, 1 running`; a lost trial's plan gets another one."""
        return ", ".join(f"{n} {state}" for state, n in Counter(row.state for row in self.trials).items())

    @property
    def origin(self) -> str:
        """Where the observed numbers come from: `simulated`, `measured` or both; `observed` before any."""
        origins = sorted({str(row.measured.origin) for row in self.trials if row.measured})
        return " and ".join(origins) or "observed"

    @property
    def ranked(self) -> list[TrialRow]:
        """Trials that ran, best first by the first objective."""
        sign = 1 if self.metrics[0].goal is Goal.MINIMIZE else -1
        return sorted(self.complete, key=lambda row: sign * row.values[0])

    @property
    def best(self) -> TrialRow | None:
        """The best trial by the first objective."""
        return self.ranked[0] if self.complete else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """How well the predictions met what was observed; errors as fractions."""

    n: int
    median_ape: float
    bias: float
    pair_order: float | None


def accuracy(rows: list[TrialRow]) -> Accuracy | None:
    """Error figures over the trials that ran; None when there is none."""
    errors = np.array([row.error for row in rows if row.error is not None])
    if not len(errors):
        return None
    predicted = np.array([row.predicted_s for row in rows if row.measured])
    observed = np.array([row.measured.step_s for row in rows if row.measured])
    return Accuracy(
        n=len(errors),
        median_ape=float(np.median(np.abs(errors))),
        bias=float(np.mean(errors)),
        pair_order=pair_order(predicted, observed),
    )


def pair_order(predicted: Floats, observed: Floats) -> float | None:
    """Share of pairs that the prediction puts in the observed order; pairs that tie are left out."""
    upper = np.triu_indices(len(predicted), k=1)
    signs = (np.sign(column[:, None] - column[None, :])[upper] for column in (predicted, observed))
    product = np.multiply(*signs)
    told = np.count_nonzero(product)
    return float(np.count_nonzero(product > 0) / told) if told else None


def best_so_far(rows: list[TrialRow], metric: Metric) -> list[float]:
    """The best first value among the trials up to each one."""
    pick = np.minimum if metric.goal is Goal.MINIMIZE else np.maximum
    return [float(value) for value in pick.accumulate([row.values[0] for row in rows])] if rows else []


def pareto_front(points: Floats, goals: list[Goal]) -> list[int]:
    """Positions of points, shape (n, 2), that no other point beats in both columns, by the first column."""
    costs = points * [1 if goal is Goal.MINIMIZE else -1 for goal in goals]
    front: list[int] = []
    for i in np.lexsort((costs[:, 1], costs[:, 0])):
        if not front or costs[i, 1] < costs[front[-1], 1]:
            front.append(int(i))
    return front
