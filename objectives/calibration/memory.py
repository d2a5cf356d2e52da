"""What memory readings say of the closed form's parts: a factor for each, which carries over to other jobs.

    ln M_i = ln m_i + sum over parts k of  s_ik ln f_k + noise          s_ik = m_ik / m_i

    f_k   what part k takes over what it is priced at; ln f_k ~ N(0, spread_k^2)

States are counted tensor by tensor and hardly wrong; what an allocator keeps beside them is a guess.  The
factors are kept only where readings held back are predicted better with them, by more than chance.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType

import numpy as np

from objectives.calibration.robust_fit import fit, is_better
from objectives.cost.result import StepMemory
from search_spaces.plan import Floats

# How well each part is priced, relative: assumed.
SPREADS: Mapping[str, float] = MappingProxyType({
    "weights_bytes": 0.03, "gradients_bytes": 0.05, "optimizer_bytes": 0.05, "activations_bytes": 0.2,
    "logits_bytes": 0.3, "buffers_bytes": 0.3, "reserve_bytes": 0.5,
})  # fmt: skip
SCATTER = 0.05  # of readings around the closed form, before they are looked at: assumed
FEWEST_READINGS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCalibration:
    """Factors by part of `StepMemory`, all 1 where readings give no reason for others; readings used."""

    factors: Mapping[str, float]
    n_readings: int

    @property
    def helped(self) -> bool:
        """Whether any part is priced otherwise."""
        return any(factor != 1 for factor in self.factors.values())

    def applied(self, memory: StepMemory) -> StepMemory:
        """The bytes with each part times its factor."""
        parts = {name: getattr(memory, name) * factor for name, factor in self.factors.items()}
        return replace(memory, **parts)


def calibrate_memory(memory: StepMemory, measured_bytes: Floats) -> MemoryCalibration:
    """Factors of the parts from peak bytes that were read, shape (n,); `memory` is what was predicted."""
    names = [field.name for field in fields(StepMemory)]
    none = MemoryCalibration(factors=dict.fromkeys(names, 1.0), n_readings=len(measured_bytes))
    if len(measured_bytes) < FEWEST_READINGS:
        return none
    total = memory.total_bytes
    slopes = np.column_stack([getattr(memory, name) / total for name in names])
    slopes *= [np.log1p(SPREADS[name]) for name in names]
    y = np.log(measured_bytes / total)
    fitted = fit(lambda x: slopes @ x, y, np.full(len(names), np.inf), scatter=SCATTER)
    left = np.array([y[i] - slopes[i] @ fitted.without(np.array([i])) for i in range(len(y))])
    if not is_better(left, y):
        return none
    logs = fitted.constants * np.log1p([SPREADS[name] for name in names])
    factors = {name: float(np.exp(log)) for name, log in zip(names, logs, strict=True)}
    return replace(none, factors=factors)
