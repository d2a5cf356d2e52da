"""Meshtune's own sampler: the cost model corrected by what the trials taught, over the whole candidate table.

    score(x) = log EI(x) + log P(x fits in memory) + log P(x runs)

Time and memory of a plan each have a surrogate; plans under way count as if they had come out as expected.
Rows are scored in two passes: all with their exact mean and a spread that ignores how near they are to a
tried plan (an upper bound in all but name), then the most promising `SHORTLIST` exactly.
"""

from dataclasses import dataclass, replace
from functools import partial
from threading import Lock

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from objectives.metrics import Job
from objectives.ranking import Candidates
from search_spaces.fidelity import Fidelities
from search_spaces.plan import Bools, Floats, Ints
from tuner.acquisition import log_probability_below
from tuner.features import MEMORY_PARTS, TIME_PARTS
from tuner.samplers.belief import MEMORY_SPREADS, TIME_SPREADS, Belief, Believer, Neighbourhoods
from tuner.samplers.candidates import CandidateSampler, Tried
from tuner.samplers.goals import (
    Goal,
    OneGoal,
    Outlook,
    front_goal,
    memory_offset,
    quantities,
    with_joules,
)
from tuner.samplers.history import History, Lesson, LessonReader, read_history
from tuner.samplers.posterior import Posterior, tried_to_run
from tuner.samplers.prospects import worth_of_more
from tuner.samplers.proxied import ProxyTable
from tuner.samplers.runs import log_chances
from tuner.worth import Worth

SHORTLIST = 512


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Promising:
    """Rows and their score, what is believed of every candidate, and the value of each that is minimised."""

    beliefs: tuple[Belief, Belief]
    every: Outlook
    rows: Ints
    score: Floats
    value: Floats


class MeshtuneSampler(CandidateSampler):
    """Constrained expected improvement over every untried candidate; ParEGO for several metrics."""

    def __init__(
        self,
        candidates: Candidates,
        *,
        metrics: tuple[str, ...],
        seed: int | None,
        job: Job,
        fidelities: Fidelities | None = None,
    ) -> None:
        settings = fidelities or Fidelities()
        super().__init__(candidates, metrics=metrics, seed=seed, job=job, n_proxies=len(settings.proxies))
        self.proxies = ProxyTable(job=job, table=self.table, settings=settings)
        self._log_limit = float(np.log(job.cluster.device.memory_bytes))
        self._reader = LessonReader(self.table, metrics=self.metrics, job=job, proxies=self.proxies)
        # Plans compare by what the metric is proportional to: of another batch or HFU that is not the step.
        self._predicted = np.log(np.column_stack([self._reader.comparable_s, self._reader.peak_bytes]))
        self._offset = memory_offset(job, self.table.candidates, self.metrics)
        # On a machine busy with trials BLAS threads wait for each other: 1.2 s an ask instead of 0.05 s.
        self._threads, self._alone = ThreadpoolController(), Lock()
        self._log_watts = self._reader.log_watts
        more = [partial(self.proxies.features, quantity=each) for each in (0, 1)]
        self._near = Neighbourhoods(self.table.knobs, more[0])
        self._time = Believer(
            self.table.time_features,
            n_shares=len(TIME_PARTS) * (1 + self.table.n_proxies),
            near=self._near,
            spreads=TIME_SPREADS,
            more=more[0],
        )
        self._memory = Believer(
            self.table.memory_features,
            n_shares=len(MEMORY_PARTS) * (1 + self.table.n_proxies),
            near=self._near,
            spreads=MEMORY_SPREADS,
            more=more[1],
        )

    def choose(self, study: Study, trial: FrozenTrial, untried: Bools, *, others: Tried) -> int:
        """The untried row of highest score; while nothing is known, the best predicted that likely fits."""
        with self._alone, self._threads.limit(limits=1, user_api="blas"):
            return self._choose(trial, untried, read_history(others, self._reader))

    def posterior(self, study: Study) -> Posterior:
        """What is believed after the study's finished trials, whichever sampler chose them."""
        with self._alone, self._threads.limit(limits=1, user_api="blas"):
            history = read_history(self.rows_of(study, None), self._reader)
            history = replace(history, pending=(), pending_proxies=())
            beliefs = self._beliefs(history)
            return Posterior(
                table=self.table,
                history=history,
                beliefs=beliefs,
                predicted=self._predicted,
                every=self._outlook(history, beliefs),
                log_limit=self._log_limit,
                offset=self._offset,
                log_watts=self._log_watts,
            )

    def worth(self, study: Study, better_by: float) -> Worth | None:
        """What more trials of the study would be worth; None while nothing has been measured."""
        posterior = self.posterior(study)
        with self._alone, self._threads.limit(limits=1, user_api="blas"):
            return worth_of_more(posterior, self.metrics, better_by=better_by, seed=self.seed)

    def _choose(self, trial: FrozenTrial, untried: Bools, history: History) -> int:
        found = self.promising(trial, untried, history)
        return int(found.rows[np.argmax(found.score)])

    def promising(self, trial: FrozenTrial, untried: Bools, history: History) -> Promising:
        """The untried rows that may be worth a trial, with their score: before any, the best predicted."""
        beliefs = self._beliefs(history)
        every = self._outlook(history, beliefs)
        sought = self._sought(every)
        goal = self._goal(trial, sought, fits=every.mean[:, 1] <= self._log_limit)
        feasible = self._log_feasible(every)
        value = goal.value(sought.mean)
        if not history.lessons and not history.pending:
            score = np.where(untried, feasible - value, -np.inf)
            rows = np.argsort(-score, kind="stable")[: min(SHORTLIST, int(untried.sum()))]
            return Promising(beliefs=beliefs, every=every, rows=rows, score=score[rows], value=value)
        best = self._best(history, value)
        hopes = np.where(untried, goal.log_hope(sought, best) + feasible, -np.inf)
        rows = np.flatnonzero(untried)
        if len(rows) > SHORTLIST:
            rows = np.sort(np.argpartition(hopes, -SHORTLIST)[-SHORTLIST:])
        exact = self._spreads([belief.std(rows) for belief in beliefs])
        outlook = Outlook(mean=every.mean[rows], std=exact, log_runs=every.log_runs[rows])
        gain = goal.log_gain(replace(outlook, mean=sought.mean[rows]), best)
        score = gain + self._log_feasible(outlook)
        return Promising(beliefs=beliefs, every=every, rows=rows, score=score, value=value)

    def _sought(self, every: Outlook) -> Outlook:
        """The outlook with memory as the metrics count it."""
        if not self._offset.any():
            return every
        mean = every.mean.copy()
        mean[:, 1] += self._offset
        return replace(every, mean=mean)

    def _beliefs(self, history: History) -> tuple[Belief, Belief]:
        pending = history.under_way
        rows, ratios = history.timed()
        time = self._time.believe(rows, ratios, pending=pending)
        rows, ratios, censored = history.weighed()
        return time, self._memory.believe(rows, ratios, censored=censored, pending=pending)

    def _outlook(self, history: History, beliefs: tuple[Belief, Belief]) -> Outlook:
        """Every candidate, with the quick spread."""
        every = np.arange(len(self.table))
        mean = self._predicted + np.column_stack([belief.mean() for belief in beliefs])
        std = self._spreads([belief.outer_std(every) for belief in beliefs])
        log_runs = self._log_runs(history, beliefs[1], mean[:, 1])
        return Outlook(mean=with_joules(mean, self._log_watts), std=std, log_runs=log_runs)

    def _spreads(self, of_time_and_memory: list[Floats]) -> Floats:
        """Joules are seconds times known watts: as uncertain as the seconds."""
        time, memory = of_time_and_memory
        return np.column_stack([time, memory] if self._log_watts is None else [time, memory, time])

    def _log_runs(self, history: History, memory: Belief, log_peak: Floats) -> Floats:
        """Log chance that a candidate runs; even for all while nothing has failed by itself."""
        rows, ran = tried_to_run(self.table, history, memory, log_peak - self._log_limit)
        if ran.all():
            return np.zeros(len(self.table))
        return log_chances(self.table.knobs, self.table.knobs[rows], ran)

    def _log_feasible(self, outlook: Outlook) -> Floats:
        fits = log_probability_below(outlook.mean[:, 1], outlook.std[:, 1], self._log_limit)
        answer: Floats = fits + outlook.log_runs
        return answer

    def _goal(self, trial: FrozenTrial, every: Outlook, *, fits: Bools) -> Goal:
        sought = quantities(self.metrics)
        if len(sought) == 1:
            return OneGoal(quantity=sought[0])
        return front_goal(every.mean, fits, self.generator(trial, "front"), sought)

    def _best(self, history: History, value: Floats) -> float:
        """What has to be beaten: the expected value of the best plan that ran or is under way, or of any.

        The expectation, not the reading: one lucky reading would hide every better plan behind it.
        """
        good = [lesson.row for lesson in history.lessons if lesson.ran and self._fitted(lesson)]
        rows = [*good, *history.pending]
        return float((value[rows] if rows else value).min())

    def _fitted(self, lesson: Lesson) -> bool:
        log_peak = self._predicted[lesson.row, 1] + (lesson.log_memory or 0.0)
        return bool(lesson.log_memory is None or log_peak <= self._log_limit)
