"""The engines of the race: each proposes untried rows of the same candidate table.

    meshtune        the sampler of this tool; sees the predictions
    best_first      candidates in the order of their prediction, nothing learned
    tpe, gp, nsga2  Optuna's samplers; random: knobs at random
    smac            SMAC3's random forest with its default acquisition (the extra `race`)

The last five know the knobs alone.  What they propose becomes the nearest untried row (`ProjectedSampler`: a
doubling of a degree, another enum value, a flipped flag are each a distance of one; of equally near rows the
best predicted), and they learn from that row, never from a plan that was not run.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from objectives.metrics import Job
from objectives.outcome import Measured, Outcome, outcome_to_dict
from objectives.ranking import Candidates
from search_spaces.plan import ENUMS
from tuner.samplers import SAMPLERS, make_sampler
from tuner.samplers.candidates import CandidateSampler, Params, choices_of, fixed_knobs
from tuner.samplers.projected import ProjectedSampler
from tuner.tell import constraints_of, state_of, values_of

METRICS = ("step_time",)
POPULATION = 10  # of NSGA-II: with its 50 a race of 100 trials would be two generations, the first at random
SMAC_FIRST = 10  # designs before its forest is asked, as many as TPE and GP draw at random
FAILED_COSTS = 2.0  # what SMAC, which needs a figure, is told of a failure: so many times the slowest step


class ProjectedNSGAII(ProjectedSampler):
    """Optuna's NSGA-II; with one metric a plain genetic algorithm."""

    def inner(self, seed: int) -> BaseSampler:
        """Optuna's NSGA-II."""
        return NSGAIISampler(seed=seed, population_size=POPULATION)


class ProjectedSMAC(ProjectedSampler):
    """SMAC3 by ask and tell; it needs one process from the first trial to the last."""

    def inner(self, seed: int) -> BaseSampler:
        """SMAC is no Optuna sampler."""
        raise NotImplementedError

    @cached_property
    def smac(self) -> "Smac":
        """Made at the first ask."""
        return Smac(self)

    def _propose(self, study: Study, trial: FrozenTrial) -> Params:
        told = [each for each in study.get_trials(deepcopy=False) if each.state.is_finished()]
        return {**self.table.params(0), **self.smac.propose(told), **fixed_knobs(trial)}


class Smac:
    """SMAC3's facade over the knobs that vary: degrees ordered, enums and flags not."""

    def __init__(self, sampler: CandidateSampler) -> None:
        import ConfigSpace  # noqa: PLC0415 - a benchmark-only extra
        from smac import HyperparameterOptimizationFacade, Scenario  # noqa: PLC0415

        logging.getLogger("smac").setLevel(logging.ERROR)
        self._n_told, self._slowest = 0, 0.0
        plans = sampler.table.candidates.plans
        varying = {
            name: choices
            for name in sampler.table.distributions
            if len(choices := choices_of(plans, name)) > 1
        }
        self._space = ConfigSpace.ConfigurationSpace(seed=sampler.seed)
        for name, choices in varying.items():
            is_ordered = name not in ENUMS and not isinstance(choices[0], bool)
            kind = ConfigSpace.OrdinalHyperparameter if is_ordered else ConfigSpace.CategoricalHyperparameter
            self._space.add(kind(name, choices))
        self._folder = tempfile.TemporaryDirectory()
        scenario = Scenario(
            self._space, deterministic=True, n_trials=100_000, seed=sampler.seed,
            output_directory=self._folder.name,
        )  # fmt: skip
        facade = HyperparameterOptimizationFacade
        self._facade = facade(
            scenario, lambda config, seed=0: 0.0, overwrite=True, logging_level=logging.ERROR,
            initial_design=facade.get_initial_design(scenario, n_configs=SMAC_FIRST),
            intensifier=facade.get_intensifier(scenario, max_config_calls=1),
        )  # fmt: skip

    def propose(self, told: list[FrozenTrial]) -> Params:
        """Knobs, after it was told what is new."""
        for trial in told[self._n_told :]:
            self._tell(trial)
        self._n_told = len(told)
        self._asked = self._facade.ask()
        asked = self._asked.config
        return {name: _plain(asked[name]) for name in asked}

    def _tell(self, trial: FrozenTrial) -> None:
        """The outcome under the row that ran, and under the proposal that it stands for."""
        from ConfigSpace import Configuration  # noqa: PLC0415
        from smac.runhistory.dataclasses import TrialInfo, TrialValue  # noqa: PLC0415
        from smac.runhistory.enumerations import StatusType  # noqa: PLC0415

        if trial.state is TrialState.COMPLETE:
            self._slowest = max(self._slowest, trial.values[0])
            value = TrialValue(cost=trial.values[0], status=StatusType.SUCCESS)
        else:
            value = TrialValue(cost=FAILED_COSTS * (self._slowest or 1.0), status=StatusType.CRASHED)
        ran = Configuration(self._space, values={name: trial.params[name] for name in self._space})
        self._facade.tell(self._asked, value, save=False)
        if ran != self._asked.config:
            self._facade.tell(TrialInfo(config=ran, seed=self._asked.seed), value, save=False)


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's own."""
    return value.item() if isinstance(value, np.generic) else value


OUTSIDE: Mapping[str, Callable[..., CandidateSampler]] = MappingProxyType(
    {"nsga2": ProjectedNSGAII, "smac": ProjectedSMAC}
)
ENGINES = (*SAMPLERS, *OUTSIDE)
SLOW = ("gp", "smac")
SEEDLESS = ("meshtune", "best_first")  # with one metric they draw nothing: all seeds are the same search


def make_engine(name: str, *, candidates: Candidates, seed: int, job: Job) -> CandidateSampler:
    """An engine over a table."""
    if name in OUTSIDE:
        return OUTSIDE[name](candidates, metrics=METRICS, seed=seed, job=job)
    return make_sampler(name, candidates=candidates, metrics=METRICS, seed=seed, job=job)


def study_of(
    sampler: CandidateSampler,
    outcomes: list[Outcome],
    n_trials: int,
    *,
    until: Callable[[int], bool] = lambda row: False,
) -> tuple[list[int], list[float]]:
    """Rows tried, up to the first that is what is wanted, and seconds of each ask."""
    study, rows, ask_s = optuna.create_study(sampler=sampler), [], []
    for _ in range(min(n_trials, len(sampler.table))):
        start = time.perf_counter()
        trial = study.ask(fixed_distributions=sampler.table.distributions)
        ask_s.append(time.perf_counter() - start)
        row = sampler.table.row_of(trial.params)
        assert row is not None
        rows.append(row)
        tell(study, trial, outcomes[row], sampler.job)
        if until(row):
            break
    return rows, ask_s


def tell(study: optuna.Study, trial: optuna.Trial, outcome: Outcome, job: Job) -> None:
    """As a study of the tool tells its trials."""
    trial.set_user_attr("outcome", outcome_to_dict(outcome))
    for constraint, value in constraints_of(outcome, job).items():
        trial.set_constraint(constraint, value)
    values: Any = values_of(outcome, job, METRICS) if isinstance(outcome, Measured) else None
    study.tell(trial, values, state=state_of(outcome))


def is_found(step_s: Any, row: int) -> bool:
    """Whether the row is the table's best."""
    return bool(step_s[row] <= np.min(step_s))
