"""Joules of a plan's step: lines for a screen, cells of a table, and a document for programs."""

from dataclasses import fields

import numpy as np

from objectives.cost.energy import StepEnergy, step_energy
from objectives.cost.result import Estimate
from objectives.metrics import ENERGY_METRICS, METRICS, Job
from search_spaces.plan import Plans
from tuner.report.words import percent


def energy_lines(job: Job, plans: Plans, priced: Estimate) -> list[tuple[str, str]]:
    """The first plan's joules in every metric of energy, its watts, and where they go."""
    first = plans.take(slice(0, 1))
    energy = step_energy(job, first, priced.take(slice(0, 1)))
    total = energy.total_j
    values = [
        f"{float(job.energy_values(name, total, first)[0]):,.3g} {METRICS[name].unit}"
        for name in ENERGY_METRICS
    ]
    used = float(np.ravel(job.used_share(first))[0]) * job.cluster.n_devices
    each_w = float(energy.devices_j[0]) / float(priced.step_s[0]) / used
    parts = energy_document(energy, 0)
    shares = ", ".join(f"{name} {percent(joules / float(total[0]))}" for name, joules in parts.items())
    return [("energy", f"{', '.join(values)}; {each_w:,.0f} W a device"), ("where it goes", shares)]


def energy_document(energy: StepEnergy, i: int) -> dict[str, float]:
    """Joules of plan i by component and state; the unit stands in the key around them."""
    return {each.name.removesuffix("_j"): float(getattr(energy, each.name)[i]) for each in fields(StepEnergy)}


def shows_energy(metric: str, plans: Plans) -> bool:
    """Whether a screen speaks of energy: the metric is of energy, or a plan has a power cap."""
    return metric in ENERGY_METRICS or bool(plans.power_cap_w.any())
