"""Joules of a step: what each component draws in each state, times the seconds that it spends there.

    E = n_devices sum_state t_state P(state) + (n_nodes P_host + n_devices P_nic) t + n_nodes t_host dP_host

    compute        seconds that the FLOPs take at the best product's rate
    memory         the rest of computing, and updates on the device (a visiting state's too): bound by bytes
    communication  messages that nothing hides
    idle           bubble, waiting for the host, a lighter stage's waiting, fixed time, a host's update

Where passes of stages differ, a device spends their mean on passes and waits for the rest.  A device under a
power cap draws at most the cap.  Messages that computation hides are part of what computation draws, and
cooling and conversion are not counted.

Source: the integral of P over time and ranks with P between idle and full load, as in arXiv:2605.01938.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from objectives.cost.flops import model_flops_per_step
from objectives.cost.result import Estimate, StepTime
from objectives.cost.step import estimate
from objectives.metrics import Job
from search_spaces.plan import Floats, Plans

STATES = ("compute", "memory", "communication", "idle")
COMMUNICATES = ("tp_comm_s", "cp_comm_s", "ep_comm_s", "pp_comm_s", "dp_comm_s")
# Parts that each micro-batch pays on its stage; the rest is the same on every device.
OF_PASSES = ("compute_s", "recompute_s", "tp_comm_s", "cp_comm_s", "ep_comm_s", "launch_s")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepEnergy:
    """Joules of one step of the whole job by component and state; every part has shape (n_plans,)."""

    compute_j: Floats
    memory_j: Floats
    communication_j: Floats
    idle_j: Floats
    host_j: Floats
    nic_j: Floats

    @property
    def total_j(self) -> Floats:
        """The parts are of different components or moments, so they add."""
        total = self.compute_j.copy()
        for field in fields(self)[1:]:
            total += getattr(self, field.name)
        return total

    @property
    def devices_j(self) -> Floats:
        """What the accelerators draw: without hosts and network cards."""
        drawn: Floats = self.compute_j + self.memory_j + self.communication_j + self.idle_j
        return drawn


def step_energy(job: Job, plans: Plans, priced: Estimate) -> StepEnergy:
    """Joules of a step of every plan, from its seconds by part; see the module for what is counted."""
    time, share = priced.time, priced.pass_share
    passes = {name: share * getattr(time, name) for name in OF_PASSES}
    parts = {field.name: passes.get(field.name, getattr(time, field.name)) for field in fields(StepTime)}
    products = product_share(job, plans, parts["compute_s"])
    seconds = state_seconds(parts, products, time.total_s, visited_s=priced.visited_s)
    used, node = job.used_share(plans), job.cluster.node_power
    n_devices, n_nodes = used * job.cluster.n_devices, used * job.cluster.n_nodes
    drawn = {state: n_devices * draws_w(job, plans, state) * seconds[state] for state in STATES}
    busy_w = node.host_busy_w.value - node.host_idle_w.value
    return StepEnergy(
        **{f"{state}_j": joules for state, joules in drawn.items()},
        host_j=n_nodes * (node.host_idle_w.value * time.total_s + busy_w * priced.host_s),
        nic_j=n_devices * node.nic_w.value * time.total_s,
    )


def energy_of(job: Job, plans: Plans) -> StepEnergy:
    """Joules of a step of plans that nobody has priced yet."""
    return step_energy(job, plans, estimate(job, plans))


def state_seconds(
    parts: Mapping[str, Floats], products: Floats, total_s: Floats, *, visited_s: Floats
) -> dict[str, Floats]:
    """Seconds of one device in each state, from its seconds by part; what no part fills is idle.

    `visited_s` are those of its offload in which it updates the state itself.
    """
    arithmetic = parts["compute_s"] + parts["recompute_s"]
    compute = products * arithmetic
    communication: Floats = np.sum([parts[name] for name in COMMUNICATES], axis=0)
    memory = arithmetic - compute + parts["optimizer_s"] + visited_s
    idle = np.maximum(total_s - compute - memory - communication, 0)
    return {"compute": compute, "memory": memory, "communication": communication, "idle": idle}


def product_share(job: Job, plans: Plans, compute_s: Floats) -> Floats:
    """Share of a device's computing that is products: FLOPs at the best product's rate, at most all.

        model FLOPs / (n peak eta f) / t_compute        f: the clock's share under the plan's power cap

    Attention and head stay in 16 bits where products are narrower; here all count at the job's precision.
    """
    device, workload = job.cluster.device, job.workload
    rate = device.peak(workload.precision) * device.best_product_share(workload.precision)
    rate *= device.sustained_efficiency.value
    flops = job.batch_share(plans) * model_flops_per_step(job.model, workload)
    seconds = flops / (job.used_share(plans) * job.cluster.n_devices * rate)
    share: Floats = seconds / (_clocks(job, plans) * np.maximum(compute_s, np.finfo(np.float64).tiny))
    return np.minimum(share, 1.0)


def draws_w(job: Job, plans: Plans, state: str) -> Floats:
    """Watts of one device in a state under each plan's power cap."""
    watts = job.cluster.device.draw_w(state)
    return np.where(plans.power_cap_w > 0, np.minimum(watts, plans.power_cap_w), watts)


def _clocks(job: Job, plans: Plans) -> Floats:
    clocks = np.ones(len(plans))
    device = job.cluster.device
    full = device.peak(job.workload.precision)
    for cap_w in np.unique(plans.power_cap_w[plans.power_cap_w > 0]).tolist():
        share = device.under_cap(cap_w).peak(job.workload.precision) / full
        clocks[plans.power_cap_w == cap_w] = share
    return clocks
