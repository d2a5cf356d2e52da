"""Joules of a simulated step: each rank's busy and idle seconds, times what it draws in them."""

from collections.abc import Mapping

import numpy as np

from objectives.cost.energy import STATES, draws_w, product_share, state_seconds
from objectives.cost.step import estimate
from objectives.metrics import Job
from search_spaces.plan import Floats, Plan, Plans


def rank_energy_j(job: Job, plan: Plan, parts_s: Mapping[str, Floats]) -> Floats:
    """Joules that one device of each simulated rank draws in a step; shape (n_devices,).

    `parts_s` are the seconds of every device by part, as a `SimulatedStep` has them.  Products have the share
    of computing that the closed form gives them, and the device's own update that of the offload; what no
    activity fills is idle.
    """
    one = Plans.of([plan])
    priced = estimate(job, one)
    products = product_share(job, one, priced.pass_share * priced.time.compute_s)
    offload_s = np.maximum(priced.time.offload_s, np.finfo(np.float64).tiny)
    visited_s = parts_s["offload_s"] * priced.visited_s / offload_s
    seconds = state_seconds(parts_s, products, np.sum(list(parts_s.values()), axis=0), visited_s=visited_s)
    return np.asarray(sum(draws_w(job, one, state) * seconds[state] for state in STATES))


def simulated_devices_w(job: Job, plan: Plan, parts_s: Mapping[str, Floats]) -> float:
    """Mean watts of all devices of the job: a rank stands for its tp x cp x dp symmetric ones."""
    step_s = float(np.sum([part[0] for part in parts_s.values()]))
    return float(rank_energy_j(job, plan, parts_s).mean() * plan.world_size / step_s)
