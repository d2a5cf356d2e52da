"""What a study believes of every candidate, to be asked about many candidates at once."""

from dataclasses import dataclass

import numpy as np

from search_spaces.plan import Bools, Floats, Ints
from tuner.acquisition import log_probability_below
from tuner.samplers.alternatives import Alternative, alternatives
from tuner.samplers.belief import Belief
from tuner.samplers.candidates import CandidateTable
from tuner.samplers.goals import Outlook, with_joules
from tuner.samplers.history import History
from tuner.samplers.runs import blamed, chance_draws
from tuner.surrogate import LogRatioSurrogate

ROUNDING, SMALLEST_VARIANCE = 1e-6, 1e-12  # added to variances so that rounding leaves them positive
FREEDOM = 4.0  # assumed: what the prior's spreads are worth, in trials
# Assumed: a plan's own part of the noise's variance.  Chosen on 9 hidden clusters of 0.5, 0.25, 0.1 and 0; on
# 18 others the stated probability fell from 0.56 to the true 0.49, on published runs from 0.15 to 0.13.
OWN_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """Worlds that the trials allow: [log seconds, log bytes] and whether a plan runs and fits there.

    Shapes (n_draws, n_rows, 2) and (n_draws, n_rows); log joules are a third column where they are sought.
    """

    values: Floats
    is_feasible: Bools


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Posterior:
    """Beliefs after the finished trials; those under way count as not tried.

    `predicted` is [log seconds, log bytes] of the cost model, shape (n_candidates, 2); `every` what is
    expected of each candidate, its spreads the quick ones.  `offset` turns log bytes into what the metrics
    count, shape (n_candidates,).
    """

    table: CandidateTable
    history: History
    beliefs: tuple[Belief, Belief]
    predicted: Floats
    every: Outlook
    log_limit: float
    offset: Floats
    log_watts: Floats | None = None

    @property
    def measured(self) -> Ints:
        """Rows with a step time or a peak that ran and fitted, in the order of their trials."""
        lessons = [each for each in self.history.lessons if each.ran and not each.memory_is_bound]
        return np.array([each.row for each in lessons], dtype=np.int64)

    @property
    def readings(self) -> Floats:
        """[log seconds, log bytes] as `measured` plans showed them; expected where one is missing."""
        found = self.every.mean[self.measured].copy()
        lessons = [each for each in self.history.lessons if each.ran and not each.memory_is_bound]
        for i, lesson in enumerate(lessons):
            for quantity, ratio in enumerate((lesson.log_time, lesson.log_memory)):
                if ratio is not None:
                    found[i, quantity] = self.predicted[lesson.row, quantity] + ratio
        return with_joules(found[:, :2], self._watts_of(self.measured))

    def sought(self, values: Floats, rows: Ints | None = None) -> Floats:
        """[log seconds, log bytes] of rows, or of all, with bytes as the metrics count them."""
        if not self.offset.any():
            return values
        moved = values.copy()
        moved[..., 1] += self.offset if rows is None else self.offset[rows]
        return moved

    @property
    def without_outcome(self) -> Bools:
        """Candidates of which no trial has said anything; shape (n_candidates,)."""
        mask = np.ones(len(self.table), dtype=np.bool_)
        mask[[lesson.row for lesson in self.history.lessons]] = False
        return mask

    @property
    def log_feasible(self) -> Floats:
        """Log probability that a candidate fits and runs, by the quick spreads; shape (n_candidates,)."""
        fits = log_probability_below(self.every.mean[:, 1], self.every.std[:, 1], self.log_limit)
        answer: Floats = fits + self.every.log_runs
        return answer

    def joint(self, rows: Ints, quantity: int) -> tuple[Floats, Floats]:
        """Expected log seconds (0) or bytes (1) of rows and their covariance; (n_rows,), (n_rows, n_rows)."""
        features = (self.table.time_features, self.table.memory_features)[quantity]
        mean, covariance = self.beliefs[quantity].model.joint(features[rows])
        return self.predicted[rows, quantity] + mean, covariance

    def draws(self, rows: Ints, n_draws: int, rng: np.random.Generator) -> Draws:
        """Seconds, bytes and feasibility of rows in worlds drawn from the beliefs, all rows together."""
        values = np.stack([self._values(rows, each, n_draws, rng) for each in (0, 1)], axis=2)
        runs = self._runs(rows, n_draws, rng)
        joint = with_joules(values, self._watts_of(rows))
        return Draws(values=joint, is_feasible=runs & (values[:, :, 1] <= self.log_limit))

    def _watts_of(self, rows: Ints) -> Floats | None:
        return None if self.log_watts is None else self.log_watts[rows]

    def _values(self, rows: Ints, quantity: int, n_draws: int, rng: np.random.Generator) -> Floats:
        """Multivariate t: how wide all spreads are is itself learned from how far the readings lay out.

            y ~ mean + s L z + own noise z',   s² = (ν + e' K⁻¹ e) / χ²(ν + n)

        The last term is what a plan has for itself: it shows as noise among its neighbours, and stays in the
        mean of many steps.

        Source
        ------
        Shah, Wilson and Ghahramani (2014), arXiv:1402.4306, section 3 (Student-t processes).
        """
        features, models = self._models(quantity)
        n_pairs = rng.multinomial(n_draws // 2, [each.weight for each in models])
        parts = [
            _student(each.model, features[rows], 2 * n, rng)
            for each, n in zip(models, n_pairs.tolist(), strict=True)
            if n
        ]
        answer: Floats = self.predicted[rows, quantity] + np.concatenate(parts)
        return answer

    def _models(self, quantity: int) -> tuple[Floats, list[Alternative]]:
        """Features, and the surrogates that the trials allow; of memory, which is surer, the likeliest."""
        model = self.beliefs[quantity].model
        if quantity:
            return self.table.memory_features, [Alternative(model=model, weight=1.0)]
        # No step is censored and none is under way: the rows and targets of the fit are the readings.
        return self.table.time_features, alternatives(model, model.rows, model.targets_)

    def _runs(self, rows: Ints, n_draws: int, rng: np.random.Generator) -> Bools:
        log_over = self.every.mean[:, 1] - self.log_limit
        tried, ran = tried_to_run(self.table, self.history, self.beliefs[1], log_over)
        if ran.all():
            return np.ones((n_draws, len(rows)), dtype=np.bool_)
        knobs = self.table.knobs
        chances = chance_draws(
            knobs[rows],
            knobs[tried],
            ran,
            center=knobs.mean(axis=0),
            normals=rng.standard_normal((n_draws, knobs.shape[1] + 1)),
        )
        found: Bools = rng.random(chances.shape) < chances
        return found


def tried_to_run(
    table: CandidateTable, history: History, memory: Belief, log_over: Floats
) -> tuple[Ints, Floats]:
    """Rows that ran or failed by themselves, and the probability that memory was not why.

    Parameters
    ----------
    log_over : shape (n_candidates,), expected log bytes above what a device has
    """
    rows, ran = history.tried()
    if ran.all():
        return rows, ran.astype(np.float64)
    fits = np.exp(log_probability_below(log_over[rows], memory.std(rows), 0.0))
    return rows, blamed(table.knobs[rows], ran, fits, center=table.knobs.mean(axis=0))


def _student(model: LogRatioSurrogate, X: Floats, n_draws: int, rng: np.random.Generator) -> Floats:
    """Log ratios of plans in worlds of one surrogate, in pairs about the mean; shape (n_draws, n_plans)."""
    mean, covariance = model.joint(X)
    misfit, n = float(model.targets_ @ model.alpha_), len(model.targets_)
    half = np.sqrt((FREEDOM + misfit) / rng.chisquare(FREEDOM + n, n_draws // 2))
    scale = np.concatenate([half, half])[:, None]
    own = np.sqrt(OWN_SHARE) * model.noise_std_ * rng.standard_normal((n_draws, len(X)))
    answer: Floats = mean + scale * _normal(covariance, n_draws, rng) + own
    return answer


def _normal(covariance: Floats, n_draws: int, rng: np.random.Generator) -> Floats:
    """Draws about nought, in pairs of opposite sign; shape (n_draws, n_rows)."""
    n = len(covariance)
    most = max(float(covariance.diagonal().max(initial=0.0)), SMALLEST_VARIANCE)
    root = np.linalg.cholesky(covariance + ROUNDING * most * np.eye(n)).astype(np.float32)
    half = rng.standard_normal((n_draws // 2, n), dtype=np.float32) @ root.T
    return np.concatenate([half, -half]).astype(np.float64)
