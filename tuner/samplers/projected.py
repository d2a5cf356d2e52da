"""Optuna's own samplers over the candidate table: what they propose becomes the nearest untried candidate.

The trial records the candidate, never the proposal, so the wrapped sampler learns from what was really
tried.  A fresh sampler is made for each trial and seeded by its number: a resumed study does not repeat its
start.
"""

import importlib.util
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from objectives.metrics import Job
from objectives.ranking import Candidates
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Bools, Plans
from tuner.features import knob_features
from tuner.samplers.candidates import CandidateSampler, Params, Tried, fixed_knobs, plan_from_params


class ProjectedSampler(CandidateSampler):
    """Wraps an Optuna sampler; a subclass makes it (`inner`)."""

    def inner(self, seed: int) -> BaseSampler:
        """The wrapped sampler, without state."""
        raise NotImplementedError

    def choose(self, study: Study, trial: FrozenTrial, untried: Bools, *, others: Tried) -> int:
        """The untried row nearest to the proposal; of equally near ones the best predicted.

        d² = Σ (log2 ratio of degrees)² + number of enums, flags that differ
        """
        proposal = knob_features(Plans.of([plan_from_params(self._propose(study, trial))]))[0]
        rows = np.flatnonzero(untried)
        distance = ((self.table.knobs[rows] - proposal) ** 2).sum(axis=1)
        return int(rows[np.argmin(np.round(distance, 9))])

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that is no knob of ours: as the wrapped sampler does."""
        inner = self.inner(self.seed_of(trial, param_name))
        return inner.sample_independent(study, trial, param_name, param_distribution)

    def _propose(self, study: Study, trial: FrozenTrial) -> Params:
        varying = {name: kind for name, kind in self.table.distributions.items() if not kind.single()}
        inner = self.inner(self.seed_of(trial))
        together = inner.infer_relative_search_space(study, trial).keys() & varying.keys()
        proposed = inner.sample_relative(
            study, trial, {name: varying[name] for name in varying if name in together}
        )
        for name in [name for name in varying if name not in proposed]:
            proposed[name] = inner.sample_independent(study, trial, name, varying[name])
        return {**self.table.params(0), **proposed, **fixed_knobs(trial)}


class ProjectedTPE(ProjectedSampler):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), Optuna's default."""

    def inner(self, seed: int) -> BaseSampler:
        """Optuna's TPE."""
        return TPESampler(seed=seed)


class ProjectedGP(ProjectedSampler):
    """Optuna's Gaussian process; needs torch."""

    def __init__(
        self, candidates: Candidates, *, metrics: tuple[str, ...], seed: int | None, job: Job
    ) -> None:
        if importlib.util.find_spec("torch") is None:
            raise InvalidSpec(
                "Optuna's GP sampler needs torch", "none installed", hint="pip install 'meshtune[torch]'"
            )
        super().__init__(candidates, metrics=metrics, seed=seed, job=job)

    def inner(self, seed: int) -> BaseSampler:
        """Optuna's GP."""
        return GPSampler(seed=seed)


class ProjectedRandom(ProjectedSampler):
    """Every knob uniformly at random."""

    def inner(self, seed: int) -> BaseSampler:
        """Optuna's random sampler."""
        return RandomSampler(seed=seed)
