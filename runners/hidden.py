"""A machine that differs from its description: simulated trials run on it, and a tuner has to learn it."""

from dataclasses import dataclass, replace

import numpy as np

from objectives.metrics import Job
from search_spaces.cluster import Constant, DeviceSpec, TierSpec
from search_spaces.errors import check


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenMachine:
    """The job on the true machine, and how much activations outgrow their formula there (fragmentation)."""

    job: Job
    activation_growth: float


def hidden_machine(job: Job, *, seed: int, hidden: float) -> HiddenMachine:
    """Every constant of the cluster times its own factor in [1 - hidden, 1 + hidden], fixed by the seed.

    An efficiency never exceeds 1; activations only grow, by at most half of `hidden`.
    """
    check(0 <= hidden < 1, "the hidden factor must be at least 0 and below 1", hidden)
    draw = _Draw(np.random.default_rng([seed, 0x4D54]), hidden)
    cluster = job.cluster
    true = replace(
        cluster,
        device=draw.device(cluster.device),
        tiers=tuple(draw.tier(tier) for tier in cluster.tiers),
        step_fixed_s=draw.any(cluster.step_fixed_s),
        straggler_per_log2=draw.any(cluster.straggler_per_log2),
        memory_reserve_bytes=draw.any(cluster.memory_reserve_bytes),
    )
    return HiddenMachine(job=replace(job, cluster=true), activation_growth=1 + draw.fraction() / 2)


class _Draw:
    """Factors from one generator, in a fixed order."""

    def __init__(self, rng: np.random.Generator, hidden: float) -> None:
        self._rng, self._hidden = rng, hidden

    def fraction(self) -> float:
        return float(self._rng.uniform(0, self._hidden))

    def any(self, constant: Constant) -> Constant:
        factor = 1 + float(self._rng.uniform(-self._hidden, self._hidden))
        return replace(constant, value=constant.value * factor)

    def efficiency(self, constant: Constant) -> Constant:
        drawn = self.any(constant)
        return replace(drawn, value=min(1.0, drawn.value))

    def device(self, device: DeviceSpec) -> DeviceSpec:
        return replace(
            device,
            gemm_efficiency=self.efficiency(device.gemm_efficiency),
            sustained_efficiency=self.efficiency(device.sustained_efficiency),
            attention_efficiency=self.efficiency(device.attention_efficiency),
            memory_efficiency=self.efficiency(device.memory_efficiency),
            kernel_launch_s=self.any(device.kernel_launch_s),
        )

    def tier(self, tier: TierSpec) -> TierSpec:
        return replace(tier, efficiency=self.efficiency(tier.efficiency), latency_s=self.any(tier.latency_s))
