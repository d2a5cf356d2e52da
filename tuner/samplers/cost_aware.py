"""The cheapest run that could change the answer: a whole plan, or a proxy that tells of the best ones.

    V(R) = E[ best EI of any plan after the readings R ]          V₀ = V(nothing)
    whole plan x      V(x) / price: it gains V₀ at once, and V(x) - V₀ later
    proxies P         ( V(P) - V₀ ) / price

A whole run gains by itself; any reading gains what the next whole run then gains more, for it moves all plans
that share its parts.  One reading hardly says which of two plans is better, and a pair does, so P
are the proxies of the leading 1, 2, 4 ... plans, of which the first is run.  Improvement counts against the
best measured plan or, while none is measured whole, against the best expected one, jointly with it, so that
what all plans share cancels; proxies then go first as long as they promise more than `LEAST_GAIN` and have
cost less than a whole run does.
Without proxies the choice among whole plans is the largest  log EI - log price.

Source: Frazier, Powell and Dayanik (2009), "The knowledge-gradient policy for correlated normal beliefs";
per cost: Wu, Toscano-Palmerin, Frazier and Wilson (2020), arXiv:1903.04703, section 2.3; why several
readings: Frazier and Powell (2010), "Paradoxes in learning and the marginal value of information".
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from objectives.metrics import Job
from objectives.ranking import Candidates
from search_spaces.fidelity import Fidelities, Fidelity
from search_spaces.plan import Bools, Floats, Ints
from tuner.acquisition import log_expected_improvement, normal_draws
from tuner.budget import Budget
from tuner.ledger import COUNTED, n_running
from tuner.prices import N_STEPS, Prices, prices_of, spent_device_s
from tuner.samplers.candidates import Tried, fidelity_of_trial
from tuner.samplers.goals import quantities
from tuner.samplers.history import History, read_history
from tuner.samplers.model_based import MeshtuneSampler, Promising
from tuner.surrogate import LogRatioSurrogate

N_RIVALS = 48  # plans whose improvement a reading is judged by
BATCHES = (1, 2, 4, 8, 16)  # leading plans whose proxies are weighed together
LEAST_GAIN = (
    0.002  # of a step: while no plan is measured whole, a proxy that promises less is not worth a run
)
MOST_BEFORE = 1.0  # prices of a whole plan that proxies may cost before one is measured whole: assumed
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(9)  # of what one reading may turn out to be


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What a study may run and spend, and how many steps a trial takes."""

    fidelities: Fidelities = field(default_factory=Fidelities)
    budget: Budget = field(default_factory=Budget)
    n_steps: int = N_STEPS


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scene:
    """Rivals and their reference, jointly: log values, covariance of log ratios, log chances to be feasible.

    The reference, whose improvement is nought by definition, comes last.
    """

    model: LogRatioSurrogate
    rows: Ints
    mean: Floats
    features: Floats
    log_feasible: Floats

    def covariances(self, others: Floats) -> tuple[Floats, Floats, Floats]:
        """Of all rows' differences to the reference; of these with others' readings; of the readings."""
        _, joint = self.model.joint(np.vstack([self.features, others]))
        n = len(self.features)
        moved = joint - joint[n - 1][None, :]
        own = moved[:n, :n] - moved[:n, n - 1][:, None]
        return own, moved[:n, n:], joint[n:, n:] + self.model.noise_std_**2 * np.eye(len(others))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """The whole plan that would be tried, and its price in device-seconds."""

    row: int
    price_s: float

    @property
    def run(self) -> tuple[int, Fidelity]:
        return self.row, Fidelity.FULL


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Proxies, the first of which would be run: what all cost and gain (in logarithm of the quantity)."""

    run: tuple[int, Fidelity]
    price_s: float
    rate: float
    gain: float


class CostAwareSampler(MeshtuneSampler):
    """Meshtune's sampler that weighs what runs cost, and chooses how much of a plan's job to run."""

    def __init__(
        self,
        candidates: Candidates,
        *,
        metrics: tuple[str, ...],
        seed: int | None,
        job: Job,
        spending: Spending | None = None,
    ) -> None:
        self.spending = spending or Spending()
        super().__init__(candidates, metrics=metrics, seed=seed, job=job, fidelities=self.spending.fidelities)
        self.has_proxies = bool(self.spending.fidelities.proxies)

    def pick(
        self, study: Study, trial: FrozenTrial, untried: Bools, *, others: Tried
    ) -> tuple[int, Fidelity]:
        """The run of most value for its price."""
        with self._alone, self._threads.limit(limits=1, user_api="blas"):
            history = read_history(others, self._reader)
            prices = prices_of([each for each, _ in others], self.spending.n_steps)
            found = self.promising(trial, untried, history)
            whole_s = self._price_whole(found, prices)
            scored = found.score - np.log(whole_s) if _is_measured(history) else found.score
            best = int(np.argmax(scored))
            whole = _Whole(row=int(found.rows[best]), price_s=float(whole_s[best]))
            if not self._may_try_proxies(others, whole.price_s):
                return whole.run
            scene = self._scene(found, np.argsort(-scored, kind="stable")[:N_RIVALS], history)
            at_once = after(scene, scene.covariances(scene.features[:0])[0])
            batches = self._weighed(trial, scene, at_once, others, prices)
            if _is_measured(history):
                best_batch = max(batches, key=lambda each: each.rate, default=None)
                taught = self._value(trial, scene, [(whole.row, Fidelity.FULL)])
                rate = max(taught, at_once) / whole.price_s
                return best_batch.run if best_batch and best_batch.rate > rate else whole.run
            spent_s = spent_device_s([each for each, _ in others]) + self._under_way_s(others, prices)
            left_s = MOST_BEFORE * whole.price_s - spent_s
            worth = [each for each in batches if each.price_s <= left_s and each.gain > LEAST_GAIN]
            return max(worth, key=lambda each: each.rate).run if worth else whole.run

    def price_s(self, row: int, fidelity: Fidelity, prices: Prices) -> float:
        """Device-seconds of one run as the cost model expects them."""
        if fidelity is Fidelity.FULL:
            step_s = self.table.candidates.estimate.step_s[row]
            return float(prices.device_s(fidelity, self._n_devices[row], step_s))
        proxy = self.proxies.find(row, fidelity)
        assert proxy is not None
        return float(prices.device_s(fidelity, proxy.n_devices, proxy.step_s))

    @property
    def _n_devices(self) -> Ints:
        """Devices of each candidate, which may use some of the nodes only."""
        plans = self.table.candidates.plans
        devices: Ints = plans.tp * plans.cp * plans.dp * plans.pp
        return devices

    def _price_whole(self, found: Promising, prices: Prices) -> Floats:
        step_s = np.exp(found.every.mean[found.rows, 0])
        answer: Floats = prices.device_s(Fidelity.FULL, self._n_devices[found.rows], step_s)
        return answer

    def _may_try_proxies(self, others: Tried, whole_s: float) -> bool:
        """Whether what a proxy teaches could still be used: a whole plan must fit the budget after it."""
        if not self.has_proxies:
            return False
        budget, trials = self.spending.budget, [trial for trial, _ in others]
        n_living = sum(trial.state in COUNTED for trial in trials) + n_running(trials)
        left_s = budget.device_s - spent_device_s(trials)
        return budget.trials - n_living > 1 and left_s > 2.0 * whole_s

    def _scene(self, found: Promising, rivals: Ints, history: History) -> _Scene:
        (quantity,) = quantities(self.metrics)
        measured = [lesson.row for lesson in history.lessons if lesson.ran and self._fitted(lesson)]
        known = [*measured, *history.pending]
        rows = found.rows[rivals]
        reference = known[int(np.argmin(found.value[known]))] if known else int(rows[0])
        rows = np.append(rows[rows != reference], reference)
        features = (self.table.time_features, self.table.memory_features)[quantity]
        outlook = found.every
        feasible = self._log_feasible(outlook)[rows]
        return _Scene(
            model=found.beliefs[quantity].model,
            rows=rows,
            mean=found.value[rows] - found.value[reference],
            features=features[rows],
            log_feasible=feasible,
        )

    def _weighed(
        self, trial: FrozenTrial, scene: _Scene, at_once: float, others: Tried, prices: Prices
    ) -> list[_Batch]:
        """Batches of untried proxies, with what they gain and cost."""
        tried = {(row, fidelity_of_trial(each)) for each, row in others}
        found = []
        for runs in self._batches(scene, tried):
            gain = self._value(trial, scene, runs) - at_once
            price_s = sum(self.price_s(*run, prices) for run in runs)
            found.append(_Batch(run=runs[0], price_s=price_s, rate=gain / price_s, gain=gain))
        return found

    def _value(self, trial: FrozenTrial, scene: _Scene, runs: list[tuple[int, Fidelity]]) -> float:
        """The best expected improvement of any plan in the mean over readings of these runs."""
        (quantity,) = quantities(self.metrics)
        features = np.array([self._features(*run, quantity) for run in runs])
        covariance, across, own = scene.covariances(features)
        moves = np.linalg.solve(np.linalg.cholesky(own), across.T).T
        if len(runs) == 1:
            return after(scene, covariance, moves, NODES[:, None], WEIGHTS / WEIGHTS.sum())
        return after(scene, covariance, moves, normal_draws(len(runs), self.generator(trial, "proxies")))

    def _features(self, row: int, fidelity: Fidelity, quantity: int) -> Floats:
        if fidelity is Fidelity.FULL:
            answer: Floats = (self.table.time_features, self.table.memory_features)[quantity][row]
            return answer
        return self.proxies.features(self.proxies.code(row, fidelity), quantity)

    def _batches(
        self, scene: _Scene, tried: set[tuple[int, Fidelity]]
    ) -> Iterator[list[tuple[int, Fidelity]]]:
        """Untried proxies of one kind: of the reference, and of the leading plans beside it."""
        for kind in self.proxies.kinds:
            runs: list[tuple[int, Fidelity]] = []
            for row in [*scene.rows[-1:].tolist(), *scene.rows[:-1].tolist()]:
                if (row, kind) not in tried and self.proxies.find(row, kind) is not None:
                    runs.append((row, kind))
                    if len(runs) in BATCHES:
                        yield list(runs)
                if len(runs) == BATCHES[-1]:
                    break

    def _under_way_s(self, others: Tried, prices: Prices) -> float:
        return sum(
            self.price_s(row, fidelity_of_trial(trial), prices)
            for trial, row in others
            if trial.state is TrialState.RUNNING and fidelity_of_trial(trial) is not Fidelity.FULL
        )


def after(
    scene: _Scene,
    covariance: Floats,
    moves: Floats | None = None,
    draws: Floats | None = None,
    weights: Floats | None = None,
) -> float:
    """The best expected improvement of any row in the mean over some readings; without them, as it is.

    Parameters
    ----------
    covariance : shape (n, n), of the rows' differences to the reference before
    moves : shape (n, n_readings), by how much independent standard normals behind the readings move these
    draws, weights : shapes (n_draws, n_readings) and (n_draws,) of those normals, all alike if not given
    """
    variance, mean = covariance.diagonal(), scene.mean[None, :]
    if moves is not None and draws is not None:
        variance, mean = variance - (moves**2).sum(axis=1), mean + draws @ moves.T
    log_gain = log_expected_improvement(mean, np.sqrt(np.maximum(variance, 1e-12)), 0.0)
    improvement = np.exp(log_gain + scene.log_feasible)
    improvement[:, -1] = 0.0
    return float(np.average(improvement.max(axis=1), weights=weights))


def _is_measured(history: History) -> bool:
    return any(lesson.ran for lesson in history.lessons) or bool(history.pending)
