"""The whole legal space priced, what fits kept: the candidates a study chooses from."""

from dataclasses import dataclass, replace

import numpy as np

from objectives.cost.memory import peak_memory
from objectives.cost.result import Estimate
from objectives.cost.step import estimate_chunk, join_estimates, least_step_s
from objectives.metrics import TIME_METRICS, Goal, Job, metric_named
from objectives.valuing import metric_values
from search_spaces.errors import NothingFits, check
from search_spaces.plan import Floats, Ints, Plans
from search_spaces.space import SearchSpace, SpaceSpec, Tally
from search_spaces.units import gib

DEFAULT_KEEP = 10_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Plans that fit in memory, best predicted first; every column has shape (n_candidates,).

    `score` is the metric, negated where larger is better, so that the smallest is the best.
    """

    plans: Plans
    estimate: Estimate
    score: Floats

    def __len__(self) -> int:
        return len(self.plans)

    def take(self, index: Ints | slice) -> "Candidates":
        """Candidates at the given positions."""
        return Candidates(
            plans=self.plans.take(index), estimate=self.estimate.take(index), score=self.score[index]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Where the plans went: enumerated = sum(removed) + too_large + feasible.

    Of those that are too large only the bytes were priced; of the feasible ones `priced` in full, the others
    by a bound that keeps them from being among the best.  `smallest_shortfall_bytes` is what the leanest of
    the plans that are too large lacks (None: all fit).
    """

    enumerated: int
    removed: dict[str, int]
    too_large: int
    feasible: int
    priced: int
    smallest_shortfall_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SecondOpinion:
    """What the engine says of the best candidates; columns have shape (n_candidates,).

    `step_s` is not a number where a candidate was not simulated; `reasons` says why it differs from the
    closed form, where it does.  Of `n_close` candidates that the engine could put first, `n_simulated` were
    within `budget_s`; it took `seconds`, and `load_s` to load it, the first time on a machine to compile it.
    """

    step_s: Floats
    reasons: tuple[tuple[str, ...], ...]
    n_close: int
    n_simulated: int
    budget_s: float
    load_s: float
    seconds: float

    def first(self, n: int) -> "SecondOpinion":
        """That of the first n candidates."""
        return replace(self, step_s=self.step_s[:n], reasons=self.reasons[:n])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """What `rank` answers: the ledger, the best candidates, and what the engine says of them, if asked.

    The candidates are the best by `metric`.
    """

    ledger: Ledger
    candidates: Candidates
    second: SecondOpinion | None = None
    metric: str = "step_time"

    def first(self, n: int) -> "Ranking":
        """The ranking with its first n candidates."""
        second = None if self.second is None else self.second.first(n)
        return replace(self, candidates=self.candidates.take(slice(0, n)), second=second)


def rank(job: Job, space: SpaceSpec, *, metric: str = "step_time", keep: int = DEFAULT_KEEP) -> Ranking:
    """Price the bytes of every legal plan, the seconds of those that fit, and keep the best `keep`.

    Plans whose passes alone take longer than the whole step of `keep` others are not priced any further.
    Ties go to the plan enumerated first, so the answer does not depend on chunk sizes.

    Raises
    ------
    NoLegalPlan
        The rules leave no plan.
    NothingFits
        Legal plans exist, and the leanest is too large for the devices.
    """
    check(keep >= 1, "rank must keep at least one plan", keep)
    sign = 1.0 if metric_named(metric).goal is Goal.MINIMIZE else -1.0
    tally, best = Tally(), _Best(keep)
    limit, too_large, n_priced, shortfall = memory_limit_bytes(job), 0, 0, np.inf
    for legal in SearchSpace(job.model, job.cluster, job.workload, space).chunks(tally):
        held = peak_memory(job, legal)
        beyond = held.total_bytes - limit
        fits = np.flatnonzero(beyond <= 0)
        too_large += len(legal) - len(fits)
        shortfall = min(shortfall, float(np.min(beyond, initial=np.inf, where=beyond > 0)))
        rows = _worth_pricing(job, metric, legal, fits, best.worst_kept)
        n_priced += len(rows)
        if len(rows):
            plans = legal.take(rows)
            priced = estimate_chunk(job, plans, held.take(rows))
            best.offer(plans, priced, sign * metric_values(job, metric, plans, priced))
    feasible = tally.enumerated - sum(tally.removed.values()) - too_large
    if not feasible:
        raise NothingFits(
            f"at least one legal plan must fit in {gib(limit):.1f} GiB a device",
            f"none of {too_large}; the leanest is {gib(shortfall):.1f} GiB too large",
            hint="use more devices, a longer pipeline, recomputation or offload, "
            "or a smaller micro-batch or sequence",
        )
    ledger = Ledger(
        enumerated=tally.enumerated,
        removed=tally.removed,
        too_large=too_large,
        feasible=feasible,
        priced=n_priced,
        smallest_shortfall_bytes=shortfall if too_large else None,
    )
    return Ranking(ledger=ledger, candidates=best.candidates(), metric=metric)


def _worth_pricing(job: Job, metric: str, legal: Plans, rows: Ints, worst_kept: float) -> Ints:
    """Those of the rows whose plan's least step is better than the worst step that is kept."""
    if metric not in TIME_METRICS or not np.isfinite(worst_kept) or not len(rows):
        return rows
    plans = legal.take(rows)
    values = job.values(metric, least_step_s(job, plans), np.zeros(len(plans)), plans)
    score = values if metric_named(metric).goal is Goal.MINIMIZE else -values
    return rows[score < worst_kept]


class _Best:
    """The best rows seen so far, bounded in memory: pieces are merged when they outgrow the bound."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.parts: list[Candidates] = []
        self.n_held = 0
        self.worst_kept = np.inf

    def offer(self, plans: Plans, priced: Estimate, score: Floats) -> None:
        """Remember the rows that may still be among the best."""
        chosen = np.flatnonzero(score < self.worst_kept)
        if len(chosen) > self.keep:
            chosen = np.sort(chosen[np.argsort(score[chosen], kind="stable")[: self.keep]])
        if not len(chosen):
            return
        self.parts.append(
            Candidates(plans=plans.take(chosen), estimate=priced.take(chosen), score=score[chosen])
        )
        self.n_held += len(chosen)
        if self.n_held >= 2 * self.keep:
            self.parts = [self.candidates()]
            self.n_held = len(self.parts[0])
            if self.n_held == self.keep:
                self.worst_kept = float(self.parts[0].score[-1])

    def candidates(self) -> Candidates:
        """The best rows, best first."""
        merged = Candidates(
            plans=Plans.concatenate([part.plans for part in self.parts]),
            estimate=join_estimates([part.estimate for part in self.parts]),
            score=np.concatenate([part.score for part in self.parts]),
        )
        order = np.argsort(merged.score, kind="stable")[: self.keep]
        return merged.take(order)


def memory_limit_bytes(job: Job) -> float:
    """What a plan may be predicted to use of one device."""
    return job.cluster.device.memory_bytes * job.workload.memory_share
