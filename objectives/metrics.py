"""Metrics of a step and their direction; every one follows from step seconds and peak bytes.

    MFU = model FLOPs / (step seconds * devices * dense peak)          recomputation not counted
    HFU = hardware FLOPs / (step seconds * devices * dense peak)       recomputation counted

Plans may differ in the devices they use and the sequences of a step; all metrics but the step time and the
peak compare them, each per device and sequence.  The FLOPs are in `objectives.cost.flops`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

import numpy as np

from objectives.cost.flops import hardware_over_model_flops, model_flops_per_step
from objectives.cost.nature import NATURE, Nature
from search_spaces.cluster import ClusterSpec
from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.habits import Habits, habits_of
from search_spaces.model import ModelSpec
from search_spaces.plan import Floats, Plan, Plans
from search_spaces.rule import Context
from search_spaces.units import HOUR_S, KILO, KWH_J, MILLION, TFLOPS
from search_spaces.workload import Workload


class Goal(StrEnum):
    """Which way is better."""

    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure of merit, its unit and its direction."""

    name: str
    unit: str
    goal: Goal


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric(name="step_time", unit="s", goal=Goal.MINIMIZE),
            Metric(name="tokens_per_s_per_device", unit="tokens/s/device", goal=Goal.MAXIMIZE),
            Metric(name="mfu", unit="fraction of dense peak", goal=Goal.MAXIMIZE),
            Metric(name="hfu", unit="fraction of dense peak", goal=Goal.MAXIMIZE),
            Metric(name="peak_memory", unit="bytes", goal=Goal.MINIMIZE),
            Metric(name="cost", unit="currency/million tokens", goal=Goal.MINIMIZE),
            Metric(name="energy_per_token", unit="J/token", goal=Goal.MINIMIZE),
            Metric(name="tflop_per_kj", unit="model TFLOP/kJ", goal=Goal.MAXIMIZE),
            Metric(name="energy_per_step", unit="kWh/step", goal=Goal.MINIMIZE),
            Metric(name="max_seq_len", unit="tokens", goal=Goal.MAXIMIZE),
        )
    }
)


# Metrics of a step's joules; every other one but the peak memory follows from its seconds.
ENERGY_METRICS = ("energy_per_token", "tflop_per_kj", "energy_per_step")
# Metrics that a shorter step of the same plan always improves.
TIME_METRICS = ("step_time", "tokens_per_s_per_device", "mfu", "hfu", "cost")


def metric_named(name: str) -> Metric:
    """The metric of that name."""
    if name not in METRICS:
        raise UnknownName("a metric", name, METRICS)
    return METRICS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Model, cluster and workload: everything about a job but its plan.

    `habits` None stands for those of the workload's framework; they and `nature` are here to be varied.
    """

    model: ModelSpec
    cluster: ClusterSpec
    workload: Workload
    habits: Habits | None = None
    nature: Nature = NATURE

    @property
    def trainer(self) -> Habits:
        """How the trainer uses the device; a processor that also carries the messages hides none of them."""
        habits = self.habits or habits_of(self.workload.framework)
        return habits.without_overlap() if self.cluster.device.is_host else habits

    @property
    def context(self) -> Context:
        """What rules are asked about."""
        return Context(model=self.model, cluster=self.cluster, workload=self.workload)

    def under_cap(self, cap_w: float) -> "Job":
        """The job with every device under a power cap (0: none)."""
        return replace(self, cluster=self.cluster.under_cap(cap_w)) if cap_w else self

    def of_plan(self, plan: Plan) -> "Job":
        """The job as one plan runs it: on its own nodes, with its own sequences in a step."""
        n_devices, batch = self.cluster.n_devices, self.workload.global_batch
        if plan.nodes:
            n_devices = plan.nodes * self.cluster.devices_per_node
        if plan.n_microbatches:
            batch = plan.micro_batch * plan.n_microbatches * plan.dp
        if (n_devices, batch) == (self.cluster.n_devices, self.workload.global_batch):
            return self
        workload = replace(self.workload, global_batch=batch)
        return replace(self, cluster=self.cluster.with_devices(n_devices), workload=workload)

    def values(
        self,
        metric: str,
        step_s: Floats,
        peak_memory_bytes: Floats,
        plans: Plans,
        energy_j: Floats | None = None,
    ) -> Floats:
        """A metric of many plans from their step seconds, peak bytes and joules; shape (n_plans,).

        The joules are asked for by `ENERGY_METRICS` alone; of max_seq_len see `objectives.valuing`.
        """
        if metric in ENERGY_METRICS:
            assert energy_j is not None, "a metric of energy needs the joules of a step"
            return self.energy_values(metric, energy_j, plans)
        comparable_s = self.comparable_s(metric, step_s, plans)
        match metric_named(metric).name:
            case "max_seq_len":
                raise InvalidSpec("max_seq_len must be asked of plans", "a step time and a peak alone")
            case "step_time":
                return step_s
            case "peak_memory":
                return peak_memory_bytes
            case "tokens_per_s_per_device":
                return self.workload.tokens_per_step / comparable_s / self.cluster.n_devices
            case "mfu" | "hfu":
                return self.mfu(comparable_s)
            case _:
                return self.cost_per_million_tokens(comparable_s)

    def comparable_s(self, metric: str, step_s: Floats, plans: Plans) -> Floats:
        """Step seconds to which a metric of time is proportional, or inversely so; shape (n_plans,).

            step_s (n / N) (B / b)  less what recomputation adds to the FLOPs, for HFU

        n of N devices and b of B sequences: the seconds of the whole batch on all devices at the same pace.
        """
        if metric in ("step_time", "peak_memory"):
            return step_s
        found = step_s * self.used_share(plans) / self.batch_share(plans)
        if metric == "hfu":
            found = found / hardware_over_model_flops(self.model, self.workload, plans)
        return found

    def used_share(self, plans: Plans) -> Floats | float:
        """Share of the cluster's devices that each plan uses."""
        if not plans.nodes.any():
            return 1.0
        used = plans.nodes * self.cluster.devices_per_node / self.cluster.n_devices
        return np.where(plans.nodes > 0, used, 1.0)

    def batch_share(self, plans: Plans) -> Floats | float:
        """Sequences of each plan's step over the global batch."""
        if not plans.n_microbatches.any():
            return 1.0
        sequences = plans.micro_batch * plans.n_microbatches * plans.dp
        return np.where(plans.n_microbatches > 0, sequences / self.workload.global_batch, 1.0)

    def energy_values(self, metric: str, energy_j: Floats, plans: Plans) -> Floats:
        """J a token, model TFLOP a kJ, or kWh a step from the joules of a step of the whole job."""
        if metric == "energy_per_step":
            return energy_j / KWH_J
        of_batch_j: Floats = energy_j / self.batch_share(plans)
        if metric == "energy_per_token":
            return of_batch_j / self.workload.tokens_per_step
        return model_flops_per_step(self.model, self.workload) / TFLOPS / (of_batch_j / KILO)

    def mfu(self, step_s: Floats) -> Floats:
        """Model FLOPs utilisation, attention counted as the workload says."""
        peak = self.cluster.device.peak(self.workload.precision)
        return model_flops_per_step(self.model, self.workload) / (step_s * self.cluster.n_devices * peak)

    def cost_per_million_tokens(self, step_s: Floats) -> Floats:
        """Price of a million tokens: device-hours of a step times their price, over its tokens."""
        price = self.workload.device_hour_price
        if price is None and self.cluster.device_hour_price is not None:
            price = self.cluster.device_hour_price.value
        if price is None:
            raise InvalidSpec(
                "the metric cost needs a price per device-hour",
                "none",
                hint="set [workload] device_hour_price or the cluster's device_hour_price",
            )
        device_hours = step_s * self.cluster.n_devices / HOUR_S
        return device_hours * price / (self.workload.tokens_per_step / MILLION)
