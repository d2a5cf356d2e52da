"""How far a predicted step time may be off: the formulas are simple, and constants known only so well.

    sigma^2 = phi^2 + sum over constants c of  ( ln t(c up) - ln t(c down) )^2 / 4
    interval = t exp(-z sigma) ... t exp(+z sigma)

`step_sigma` takes ( ln t(c down) - ln t )^2 instead: half the work where many jobs are priced.

phi is the error of the formulas themselves, fitted to published runs.  Assumes independent constants.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from objectives.cost.reserve import memory_bounds_bytes
from objectives.cost.step import estimate
from objectives.metrics import Job
from search_spaces.cluster import ClusterSpec, Constant
from search_spaces.plan import Floats, Plans

COVERAGE, Z_SCORE = 0.9, 1.645
# What is left of the error on benchmarks/data where every constant is fitted, as a standard deviation.
FORMULA_SPREAD = 0.08
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
    owner, _, field = name.rpartition(".")
    changed: dict[str, Any] = {field: constant}
    cluster = job.cluster
    match owner:
        case "":
            return replace(job, cluster=replace(cluster, **changed))
        case "device":
            return replace(job, cluster=replace(cluster, device=replace(cluster.device, **changed)))
        case "trainer":
            return replace(job, habits=replace(job.trainer, **changed))
        case "nature":
            return replace(job, nature=replace(job.nature, **changed))
    tiers = [replace(tier, **changed) if tier.name == owner else tier for tier in cluster.tiers]
    return replace(job, cluster=replace(cluster, tiers=tuple(tiers)))


def step_interval_s(job: Job, plans: Plans) -> tuple[Floats, Floats]:
    """Lower and upper step seconds that should hold with 90 %.

    Returns
    -------
    two arrays of shape (n_plans,), seconds
    """
    middle_s = estimate(job, plans).step_s
    variance = np.full_like(middle_s, FORMULA_SPREAD**2)
    for name, constant in constants(job).items():
        if constant.spread:
            low_s, high_s = (
                estimate(with_constant(job, name, bound), plans).step_s for bound in _bounds(name, constant)
            )
            variance += np.log(high_s / low_s) ** 2 / 4
    factor = np.exp(Z_SCORE * np.sqrt(variance))
    return middle_s / factor, middle_s * factor


def step_sigma(job: Job, plans: Plans, step_s: Floats) -> Floats:
    """Standard deviation of the logarithm of predicted step seconds.

    Returns
    -------
    shape (n_plans,)
    """
    variance = np.full_like(step_s, FORMULA_SPREAD**2)
    reached = replace(job, cluster=_reached(job.cluster))
    for name, constant in constants(reached).items():
        if constant.spread and name not in TIMELESS:
            low, _ = _bounds(name, constant)
            worse = with_constant(job, name, low)
            variance += np.log(estimate(worse, plans).step_s / step_s) ** 2
    return np.sqrt(variance)


def _reached(cluster: ClusterSpec) -> ClusterSpec:
    """The cluster without the constants of tiers that lie beyond all of its devices."""
    sizes = [tier.size or cluster.n_devices for tier in cluster.tiers]
    first = next((i for i, size in enumerate(sizes) if size >= cluster.n_devices), len(sizes) - 1)
    outermost = replace(cluster.tiers[first], size=None)
    return replace(cluster, tiers=(*cluster.tiers[:first], outermost))


def _bounds(name: str, constant: Constant) -> tuple[Constant, Constant]:
    """One spread down and up on the scale of ratios; an efficiency stays within what is possible."""
    high = constant.value * (1 + constant.spread)
    low = constant.value / (1 + constant.spread)
    if name.endswith(("efficiency", "overlap", "wave_exponent")):
        high = min(high, 1.0)
    return replace(constant, value=low), replace(constant, value=high)


def memory_interval_bytes(job: Job, plans: Plans) -> tuple[Floats, Floats]:
    """Least and most peak bytes of every plan: it surely fits below the device's memory, it cannot above.

    Returns
    -------
    two arrays of shape (n_plans,), bytes
    """
    return memory_bounds_bytes(job, estimate(job, plans).memory)
