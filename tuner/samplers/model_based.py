"""Meshtune's own sampler: the cost model corrected by what the trials taught, over the whole candidate table.

    score(x) = log EI(x) + log P(x fits in memory) + log P(x runs)

Time and memory of a plan each have a surrogate; plans under way count as if they had come out as expected.
Rows are scored in two passes: all with their exact mean and a spread that ignores how near they are to a
tried plan (an upper bound in all but name), then the most promising `SHORTLIST` exactly.
"""

from dataclasses import replace
from threading import Lock

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from objectives.metrics import Job
from objectives.ranking import Candidates
from search_spaces.plan import Bools, Floats
from tuner.acquisition import log_probability_below
from tuner.features import MEMORY_PARTS, TIME_PARTS
from tuner.samplers.belief import MEMORY_SPREADS, TIME_SPREADS, Belief, Believer, Neighbourhoods
from tuner.samplers.candidates import CandidateSampler, Tried
from tuner.samplers.goals import Goal, OneGoal, Outlook, front_goal, quantities
from tuner.samplers.history import History, Lesson, LessonReader, read_history
from tuner.samplers.posterior import Posterior, tried_to_run
from tuner.samplers.prospects import worth_of_more
from tuner.samplers.runs import log_chances
from tuner.worth import Worth

SHORTLIST = 512


class MeshtuneSampler(CandidateSampler):
    """Constrained expected improvement over every untried candidate; ParEGO for time and memory."""

    def __init__(
        self, candidates: Candidates, *, metrics: tuple[str, ...], seed: int | None, job: Job
    ) -> None:
        super().__init__(candidates, metrics=metrics, seed=seed, job=job)
        self._log_limit = float(np.log(job.cluster.device.memory_bytes))
        self._reader = LessonReader(self.table, metrics=self.metrics, job=job)
        self._predicted = np.log(np.column_stack([self._reader.step_s, self._reader.peak_bytes]))
        # On a machine busy with trials BLAS threads wait for each other: 1.2 s an ask instead of 0.05 s.
        self._threads, self._alone = ThreadpoolController(), Lock()
        self._near = Neighbourhoods(self.table.knobs)
        self._time = Believer(
            self.table.time_features, n_shares=len(TIME_PARTS), near=self._near, spreads=TIME_SPREADS
        )
        self._memory = Believer(
            self.table.memory_features, n_shares=len(MEMORY_PARTS), near=self._near, spreads=MEMORY_SPREADS
        )

    def choose(self, study: Study, trial: FrozenTrial, untried: Bools, *, others: Tried) -> int:
        """The untried row of highest score; while nothing is known, the best predicted that likely fits."""
        with self._alone, self._threads.limit(limits=1, user_api="blas"):
            return self._choose(trial, untried, read_history(others, self._reader))

    def posterior(self, study: Study) -> Posterior:
        """What is believed after the study's finished trials, whichever sampler chose them."""
        with self._alone, self._threads.limit(limits=1, user_api="blas"):
            history = replace(read_history(self.rows_of(study, None), self._reader), pending=())
            beliefs = self._beliefs(history)
            return Posterior(
                table=self.table,
                history=history,
                beliefs=beliefs,
                predicted=self._predicted,
                every=self._outlook(history, beliefs),
                log_limit=self._log_limit,
            )

    def worth(self, study: Study, better_by: float) -> Worth | None:
        """What more trials of the study would be worth; None while nothing has been measured."""
        posterior = self.posterior(study)
        with self._alone, self._threads.limit(limits=1, user_api="blas"):
            return worth_of_more(posterior, self.metrics, better_by=better_by, seed=self.seed)

    def _choose(self, trial: FrozenTrial, untried: Bools, history: History) -> int:
        beliefs = self._beliefs(history)
        every = self._outlook(history, beliefs)
        goal = self._goal(trial, every)
        feasible = self._log_feasible(every)
        if not history.lessons and not history.pending:
            return _largest(feasible - goal.value(every.mean), untried)
        best = self._best(history, goal.value(every.mean))
        hopes = np.where(untried, goal.log_hope(every, best) + feasible, -np.inf)
        rows = np.flatnonzero(untried)
        if len(rows) > SHORTLIST:
            rows = np.sort(np.argpartition(hopes, -SHORTLIST)[-SHORTLIST:])
        exact = np.column_stack([belief.std(rows) for belief in beliefs])
        outlook = Outlook(mean=every.mean[rows], std=exact, log_runs=every.log_runs[rows])
        return int(rows[np.argmax(goal.log_gain(outlook, best) + self._log_feasible(outlook))])

    def _beliefs(self, history: History) -> tuple[Belief, Belief]:
        pending = np.array(history.pending, dtype=np.int64)
        rows, ratios = history.timed()
        time = self._time.believe(rows, ratios, pending=pending)
        rows, ratios, censored = history.weighed()
        return time, self._memory.believe(rows, ratios, censored=censored, pending=pending)

    def _outlook(self, history: History, beliefs: tuple[Belief, Belief]) -> Outlook:
        """Every candidate, with the quick spread."""
        every = np.arange(len(self.table))
        mean = self._predicted + np.column_stack([belief.mean() for belief in beliefs])
        std = np.column_stack([belief.outer_std(every) for belief in beliefs])
        return Outlook(mean=mean, std=std, log_runs=self._log_runs(history, beliefs[1], mean[:, 1]))

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

    def _goal(self, trial: FrozenTrial, every: Outlook) -> Goal:
        sought = quantities(self.metrics)
        if len(sought) == 1:
            return OneGoal(quantity=sought[0])
        return front_goal(every.mean, every.mean[:, 1] <= self._log_limit, self.generator(trial, "front"))

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


def _largest(score: Floats, among: Bools) -> int:
    return int(np.argmax(np.where(among, score, -np.inf)))
