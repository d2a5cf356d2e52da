"""A metric of plans, priced or tried: as `Job.values` answers, with the joules where it needs them."""

import numpy as np

from objectives.cost.energy import step_energy
from objectives.cost.result import Estimate
from objectives.cost.step import estimate
from objectives.metrics import ENERGY_METRICS, Job
from objectives.outcome import Measured
from search_spaces.plan import Floats, Plan, Plans


def metric_values(job: Job, metric: str, plans: Plans, priced: Estimate) -> Floats:
    """The metric of every plan from its estimate; shape (n_plans,)."""
    energy_j = step_energy(job, plans, priced).total_j if metric in ENERGY_METRICS else None
    return job.values(metric, priced.step_s, priced.peak_memory_bytes, energy_j)


def outcome_value(job: Job, metric: str, plan: Plan | None, outcome: Measured) -> float:
    """The metric of a plan that ran; `plan` is asked for by metrics of energy alone."""
    step_s, peak_bytes = np.array([outcome.step_s]), np.array([outcome.peak_memory_bytes])
    energy_j = None
    if metric in ENERGY_METRICS:
        assert plan is not None, "a metric of energy needs the plan"
        energy_j = np.array([outcome_energy_j(job, plan, outcome)])
    return float(job.values(metric, step_s, peak_bytes, energy_j)[0])


def outcome_energy_j(job: Job, plan: Plan, outcome: Measured) -> float:
    """Joules of a step that ran: its devices' as measured, else by the model's watts, as hosts and cards.

    The model's watts hold for the plan, and the measured seconds say for how long.
    """
    one = Plans.of([plan])
    priced = estimate(job, one)
    energy = step_energy(job, one, priced)
    scale = outcome.step_s / float(priced.step_s[0])
    beside = float((energy.host_j + energy.nic_j)[0]) * scale
    devices = float(energy.devices_j[0]) * scale if outcome.energy_j is None else outcome.energy_j
    return devices + beside
