"""The beliefs of a stored study, rebuilt from its storage, and prices of plans that no candidate is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna
from optuna.samplers import RandomSampler

from objectives.cost.step import estimate
from objectives.metrics import Job
from search_spaces.plan import Floats, Plans
from tuner.acquisition import log_probability_below
from tuner.features import knob_features, memory_shares, time_shares
from tuner.fidelity import predicted_again, stored_prior
from tuner.samplers.model_based import MeshtuneSampler
from tuner.samplers.posterior import Posterior
from tuner.shortlist import shortlist
from tuner.storage import open_storage, storage_place, storage_trouble
from tuner.study import stored_config


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Priced:
    """Plans with what is expected of them: features, log seconds and log bytes; (n, ...)."""

    plans: Plans
    features: tuple[Floats, Floats]
    predicted: Floats


def stored_posterior(name: str, storage: str | Path) -> Posterior:
    """What a stored study believes of its candidates."""
    inputs = stored_config(name, storage).inputs
    candidates = shortlist(inputs).candidates
    with storage_trouble(storage_place(storage).shown):
        opened = open_storage(storage, create=False)
        study = optuna.load_study(study_name=name, storage=opened, sampler=RandomSampler())
        kept = stored_prior(study.user_attrs)
        if kept:
            candidates, _ = predicted_again(inputs.job, candidates, kept, inputs.objective)
        sampler = MeshtuneSampler(candidates, metrics=inputs.objective, seed=inputs.seed, job=inputs.job)
        return sampler.posterior(study)


def price(job: Job, plans: Plans, metric: str = "step_time") -> Priced:
    """Plans as the closed form has them, their seconds as the metric compares them."""
    priced, knobs = estimate(job, plans), knob_features(plans)
    seconds = job.comparable_s(metric, priced.step_s, plans)
    return Priced(
        plans=plans,
        features=(
            np.hstack([time_shares(priced.time), knobs]),
            np.hstack([memory_shares(priced.memory), knobs]),
        ),
        predicted=np.log(np.column_stack([seconds, priced.peak_memory_bytes])),
    )


def of_rows(posterior: Posterior, rows: list[int]) -> Priced:
    """Candidates as the study prices them."""
    table = posterior.table
    return Priced(
        plans=table.candidates.plans.take(np.array(rows)),
        features=(table.time_features[rows], table.memory_features[rows]),
        predicted=posterior.predicted[rows],
    )


def differences(posterior: Posterior, best: Priced, others: Priced, quantity: int) -> tuple[Floats, Floats]:
    """Expected log difference of others to the best plan, and its spread; shapes (n,)."""
    features = np.vstack([best.features[quantity], others.features[quantity]])
    mean, covariance = posterior.beliefs[quantity].model.joint(features)
    value = mean + np.concatenate([best.predicted[:, quantity], others.predicted[:, quantity]])
    variance = covariance.diagonal()[1:] + covariance[0, 0] - 2.0 * covariance[0, 1:]
    return value[1:] - value[0], np.sqrt(np.maximum(variance, 0.0))


def fit_chances(posterior: Posterior, priced: Priced) -> Floats:
    """Probability that each plan fits in memory; shape (n,)."""
    mean, covariance = posterior.beliefs[1].model.joint(priced.features[1])
    spread = np.sqrt(np.maximum(covariance.diagonal(), 1e-12))
    return np.exp(log_probability_below(mean + priced.predicted[:, 1], spread, posterior.log_limit))
