"""The cheapest run that could change the answer: a whole plan, or a proxy that tells of the best ones.

    whole plan x      V = E[ gain of x + best expected improvement of the others after it ]
    proxy p           V = E[ best expected improvement of any plan after p's reading ]
    choice            the largest  log V - log( its price + the price of a whole plan after it )

Both look two runs ahead, so they compare: a reading moves all plans that share its parts, and what a proxy
alone can never give is a gain of its own.  Improvement counts against the best measured plan or, while none
is measured whole, against the best expected one, jointly with it, so that what all plans share cancels.
Without proxies the choice among whole plans is the largest  log EI - log price.

Source: Frazier, Powell and Dayanik (2009), "The knowledge-gradient policy for correlated normal beliefs";
per cost: Wu, Toscano-Palmerin, Frazier and Wilson (2020), arXiv:1903.04703, section 2.3.
"""

from dataclasses import dataclass, field

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from objectives.metrics import Job
from objectives.ranking import Candidates
from search_spaces.fidelity import Fidelities, Fidelity
from search_spaces.plan import Bools, Floats, Ints
from tuner.acquisition import log_expected_improvement
from tuner.budget import Budget
from tuner.ledger import COUNTED, n_running
from tuner.prices import N_STEPS, Prices, prices_of, spent_device_s
from tuner.samplers.candidates import Tried, fidelity_of_trial
from tuner.samplers.goals import quantities
from tuner.samplers.history import History, read_history
from tuner.samplers.model_based import MeshtuneSampler, Promising
from tuner.surrogate import LogRatioSurrogate

N_RIVALS = 48  # plans whose improvement a reading is judged by
N_PROXIED = 12  # leading plans of which proxies are thought of, of each kind
LEAST_GAIN = (
    0.002  # of a step: while no plan is measured whole, a proxy that promises less is not worth a run
)
MOST_BEFORE = 1.0  # prices of a whole plan that proxies may cost before one is measured whole: assumed
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(9)


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

    def covariances(self, others: Floats) -> tuple[Floats, Floats]:
        """Of all rows' differences to the reference among each other, and with readings of others."""
        _, joint = self.model.joint(np.vstack([self.features, others]))
        n = len(self.features)
        moved = joint - joint[n - 1][None, :]
        own = moved[:n, :n] - moved[:n, n - 1][:, None]
        return own, moved[:n, n:] / np.sqrt(joint.diagonal()[n:] + self.model.noise_std_**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """The whole plan that would be tried, and its price in device-seconds."""

    row: int
    price_s: float

    @property
    def run(self) -> tuple[int, Fidelity]:
        return self.row, Fidelity.FULL


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proxy:
    """A proxy with its price, what it gains (in logarithm of the quantity), and its value for the price."""

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
            proxy, now_or_later = self._best_proxy(scene, whole, others, prices)
            if proxy is None:
                return whole.run
            if _is_measured(history):
                return proxy.run if proxy.rate > now_or_later / (2.0 * whole.price_s) else whole.run
            spent_s = spent_device_s([each for each, _ in others]) + self._under_way_s(others, prices)
            is_cheap = spent_s + proxy.price_s <= MOST_BEFORE * whole.price_s
            return proxy.run if is_cheap and proxy.gain > LEAST_GAIN else whole.run

    def price_s(self, row: int, fidelity: Fidelity, prices: Prices) -> float:
        """Device-seconds of one run as the cost model expects them."""
        if fidelity is Fidelity.FULL:
            step_s = self.table.candidates.estimate.step_s[row]
            return float(prices.device_s(fidelity, self.job.cluster.n_devices, step_s))
        proxy = self.proxies.find(row, fidelity)
        assert proxy is not None
        return float(prices.device_s(fidelity, proxy.n_devices, proxy.step_s))

    def _price_whole(self, found: Promising, prices: Prices) -> Floats:
        step_s = np.exp(found.every.mean[found.rows, 0])
        answer: Floats = prices.device_s(Fidelity.FULL, self.job.cluster.n_devices, step_s)
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

    def _best_proxy(
        self, scene: _Scene, whole: _Whole, others: Tried, prices: Prices
    ) -> tuple[_Proxy | None, float]:
        """The proxy of most value for its price, and the value of the whole plan in its place."""
        (quantity,) = quantities(self.metrics)
        choices = self._choices(scene, others)
        features = (self.table.time_features, self.table.memory_features)[quantity][[whole.row]]
        of_proxies = [self.proxies.features(self.proxies.code(*each), quantity) for each in choices]
        covariance, moves = scene.covariances(np.vstack([features, *of_proxies]))
        place = np.flatnonzero(scene.rows == whole.row)
        of_whole = after(scene, covariance, moves[:, 0], int(place[0]) if len(place) else None)
        at_once = now(scene, covariance)
        found = []
        for i, run in enumerate(choices, start=1):
            price_s, value = self.price_s(*run, prices), after(scene, covariance, moves[:, i], None)
            rate = value / (price_s + whole.price_s)
            found.append(_Proxy(run=run, price_s=price_s, rate=rate, gain=value - at_once))
        return max(found, key=lambda each: each.rate, default=None), of_whole

    def _choices(self, scene: _Scene, others: Tried) -> list[tuple[int, Fidelity]]:
        tried = {(row, fidelity_of_trial(trial)) for trial, row in others}
        leading = [*scene.rows[-1:], *scene.rows[:N_PROXIED]]
        return [
            (int(row), kind)
            for row in leading
            for kind in self.proxies.kinds
            if (int(row), kind) not in tried and self.proxies.find(int(row), kind) is not None
        ]

    def _under_way_s(self, others: Tried, prices: Prices) -> float:
        return sum(
            self.price_s(row, fidelity_of_trial(trial), prices)
            for trial, row in others
            if trial.state is TrialState.RUNNING and fidelity_of_trial(trial) is not Fidelity.FULL
        )


def now(scene: _Scene, covariance: Floats) -> float:
    """Best expected improvement over the reference by what is known, in logarithm of the quantity."""
    return float(_improvement(scene, scene.mean, covariance.diagonal(), 0.0).max())


def after(scene: _Scene, covariance: Floats, moves: Floats, whole: int | None) -> float:
    """What is gained in the mean by a reading and the best whole plan after it.

    `moves` is by how much one standard deviation of the reading moves each row's difference to the
    reference; `whole` is the place of the plan that the reading is of, if it is one: its gain is real.
    """
    left = np.maximum(covariance.diagonal() - moves**2, 1e-12)
    total = 0.0
    for z, weight in zip(NODES, WEIGHTS / WEIGHTS.sum(), strict=True):
        mean = scene.mean + moves * z
        gained = 0.0 if whole is None else max(-float(mean[whole]), 0.0) * np.exp(scene.log_feasible[whole])
        improvement = _improvement(scene, mean, left, gained)
        if whole is not None:
            improvement[whole] = 0.0
        total += float(weight) * (gained + float(improvement.max()))
    return total


def _improvement(scene: _Scene, mean: Floats, variance: Floats, gained: float) -> Floats:
    log_gain = log_expected_improvement(mean, np.sqrt(np.maximum(variance, 1e-12)), -gained)
    answer: Floats = np.exp(log_gain + scene.log_feasible)
    answer[-1] = 0.0
    return answer


def _is_measured(history: History) -> bool:
    return any(lesson.ran for lesson in history.lessons) or bool(history.pending)
