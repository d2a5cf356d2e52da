"""A metric of plans, priced or tried: as `Job.values` answers, and those that ask for the plans."""

import numpy as np

from objectives.cost.energy import step_energy
from objectives.cost.result import Estimate
from objectives.cost.step import estimate
from objectives.longest import MAX_SEQ_LEN, longest_sequence
from objectives.metrics import ENERGY_METRICS, Job
from objectives.outcome import Measured
from search_spaces.plan import Bools, Floats, Plan, Plans


def metric_values(
    job: Job, metric: str, plans: Plans, priced: Estimate, *, among: Bools | None = None
) -> Floats:
    """The metric of every plan from its estimate; shape (n_plans,).

    Rows that are not `among` those asked for may be NaN where a metric takes long.
    """
    if metric == MAX_SEQ_LEN:
        rows = np.arange(len(plans)) if among is None else np.flatnonzero(among)
        values = np.full(len(plans), np.nan)
        values[rows] = longest_sequence(job, plans.take(rows), peak_bytes=priced.peak_memory_bytes[rows])
        return values
    energy_j = step_energy(job, plans, priced).total_j if metric in ENERGY_METRICS else None
    return job.values(metric, priced.step_s, priced.peak_memory_bytes, plans, energy_j)


def outcome_value(job: Job, metric: str, plan: Plan | None, outcome: Measured) -> float:
    """The metric of a plan that ran.

    Without a plan: of one on all devices, with the whole batch, that recomputes nothing; metrics of energy
    and the longest sequence need theirs.
    """
    step_s, peak_bytes = np.array([outcome.step_s]), np.array([outcome.peak_memory_bytes])
    if metric == MAX_SEQ_LEN:
        assert plan is not None, "the longest sequence needs the plan"
        return float(longest_sequence(job, Plans.of([plan]), peak_bytes=peak_bytes)[0])
    energy_j = None
    if metric in ENERGY_METRICS:
        assert plan is not None, "a metric of energy needs the plan"
        energy_j = np.array([outcome_energy_j(job, plan, outcome)])
    return float(job.values(metric, step_s, peak_bytes, Plans.of([plan or Plan()]), energy_j)[0])


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
