"""A metric of priced plans: what `Job.values` answers, with the joules where a metric needs them."""

from objectives.cost.energy import step_energy
from objectives.cost.result import Estimate
from objectives.metrics import ENERGY_METRICS, Job
from search_spaces.plan import Floats, Plans


def metric_values(job: Job, metric: str, plans: Plans, priced: Estimate) -> Floats:
    """The metric of every plan from its estimate; shape (n_plans,)."""
    energy_j = step_energy(job, plans, priced).total_j if metric in ENERGY_METRICS else None
    return job.values(metric, priced.step_s, priced.peak_memory_bytes, energy_j)
