"""How far a predicted step time may be off: the formulas are simple, and constants known only so well.

    sigma^2 = phi^2 + sum over constants c of  ( ln t(c up) - ln t(c down) )^2 / 4
    phi^2   = phi_0^2 + sum over parts i of  ( phi_i t_i / t )^2
    interval = t exp(-z sigma) ... t exp(+z sigma)

`step_sigma` takes ( ln t(c down) - ln t )^2 instead: half the work where many jobs are priced.

phi is the error of the formulas themselves: that of the arithmetic, and more where a part t_i that is harder
to foresee (waiting for the host, communication) takes much of the step.  benchmarks/fit_constants.py fits its
coefficients to published runs.  Assumes independent constants.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from objectives.cost.result import Estimate
from objectives.cost.step import estimate
from objectives.metrics import Job
from search_spaces.cluster import ClusterSpec, Constant
from search_spaces.plan import Floats, Plans

COVERAGE, Z_SCORE = 0.9, 1.645
# What is left of the error on benchmarks/data where every constant is fitted, as a standard deviation: of a
# step that is all arithmetic, and of each part that adds to it, by its share of the step.
FORMULA_SPREAD = 0.03
PART_SPREADS: Mapping[str, float] = MappingProxyType({
    "tp_comm_s": 0.28, "ep_comm_s": 0.61, "pp_comm_s": 0.39, "bubble_s": 0.17, "dp_comm_s": 0.18,
    "optimizer_s": 0.8,
})  # fmt: skip
TIMELESS = ("memory_reserve_bytes", "device_hour_price")  # constants that no second depends on


def constants(job: Job) -> dict[str, Constant]:
    """Every constant a prediction rests on, by its place: `step_fixed_s`, `device.gemm_efficiency`.

    Places: the cluster's own, `device`, each tier's name, `trainer` (its habits) and `nature`.
    """
    return cluster_constants(job.cluster) | _constants([("trainer.", job.trainer), ("nature.", job.nature)])


def cluster_constants(cluster: ClusterSpec) -> dict[str, Constant]:
    """The constants that are the machine's."""
    tiers = [(f"{tier.name}.", tier) for tier in cluster.tiers]
    return _constants([("", cluster), ("device.", cluster.device), *tiers])


def _constants(named: Sequence[tuple[str, Any]]) -> dict[str, Constant]:
    return {
        prefix + field.name: value
        for prefix, spec in named
        for field in fields(spec)
        if isinstance(value := getattr(spec, field.name), Constant)
    }


def with_constant(job: Job, name: str, constant: Constant) -> Job:
    """The job with another constant in that place."""
    return with_constants(job, {name: constant})


def with_constants(job: Job, changed: Mapping[str, Constant]) -> Job:
    """The job with other constants in those places."""
    owned: dict[str, dict[str, Any]] = {}
    for name, constant in changed.items():
        owner, _, field = name.rpartition(".")
        owned.setdefault(owner, {})[field] = constant
    cluster = job.cluster
    cluster = replace(
        cluster,
        device=replace(cluster.device, **owned.pop("device", {})),
        **owned.pop("", {}),
    )
    job = replace(
        job,
        habits=replace(job.trainer, **owned.pop("trainer")) if "trainer" in owned else job.habits,
        nature=replace(job.nature, **owned.pop("nature", {})),
    )
    tiers = tuple(replace(tier, **owned.get(tier.name, {})) for tier in cluster.tiers)
    return replace(job, cluster=replace(cluster, tiers=tiers))


def formula_spread(priced: Estimate) -> Floats:
    """Standard deviation of the logarithm of step seconds that the formulas themselves leave.

        phi = sqrt(phi_0^2 + sum over parts i of (phi_i t_i / t)^2)

    Returns
    -------
    shape (n_plans,)
    """
    step_s = priced.step_s
    variance = np.full_like(step_s, FORMULA_SPREAD**2)
    for part, spread in PART_SPREADS.items():
        variance += (spread * getattr(priced.time, part) / step_s) ** 2
    return np.sqrt(variance)


def step_interval_s(job: Job, plans: Plans) -> tuple[Floats, Floats]:
    """Lower and upper step seconds that should hold with 90 %.

    Returns
    -------
    two arrays of shape (n_plans,), seconds
    """
    priced = estimate(job, plans)
    middle_s, variance = priced.step_s, formula_spread(priced) ** 2
    for name, constant in constants(job).items():
        if constant.spread:
            low_s, high_s = (
                estimate(with_constant(job, name, bound), plans).step_s for bound in bounds(name, constant)
            )
            variance += np.log(high_s / low_s) ** 2 / 4
    factor = np.exp(Z_SCORE * np.sqrt(variance))
    return middle_s / factor, middle_s * factor


def step_sigma(job: Job, plans: Plans, priced: Estimate) -> Floats:
    """Standard deviation of the logarithm of predicted step seconds; `priced` is the plans' estimate.

    Returns
    -------
    shape (n_plans,)
    """
    return np.sqrt(formula_spread(priced) ** 2 + constants_variance(job, plans, priced.step_s))


def constants_variance(job: Job, plans: Plans, step_s: Floats) -> Floats:
    """What the constants' own spreads add to the variance of the logarithm of step seconds.

    Returns
    -------
    shape (n_plans,)
    """
    variance = np.zeros_like(step_s)
    reached = replace(job, cluster=_reached(job.cluster))
    for name, constant in constants(reached).items():
        if constant.spread and name not in TIMELESS:
            low, _ = bounds(name, constant)
            worse = with_constant(job, name, low)
            variance += np.log(estimate(worse, plans).step_s / step_s) ** 2
    return variance


def _reached(cluster: ClusterSpec) -> ClusterSpec:
    """The cluster without the constants of tiers that lie beyond all of its devices."""
    sizes = [tier.size or cluster.n_devices for tier in cluster.tiers]
    first = next((i for i, size in enumerate(sizes) if size >= cluster.n_devices), len(sizes) - 1)
    outermost = replace(cluster.tiers[first], size=None)
    return replace(cluster, tiers=(*cluster.tiers[:first], outermost))


def bounds(name: str, constant: Constant) -> tuple[Constant, Constant]:
    """One spread down and up on the scale of ratios; an efficiency stays within what is possible."""
    high = constant.value * (1 + constant.spread)
    low = constant.value / (1 + constant.spread)
    if name.endswith(("efficiency", "overlap", "wave_exponent")):
        high = min(high, 1.0)
    return replace(constant, value=low), replace(constant, value=high)
