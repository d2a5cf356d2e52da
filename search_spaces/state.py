"""Bytes that training keeps for a parameter."""

from dataclasses import dataclass

from search_spaces.errors import check


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Bytes a parameter takes while training.

    Default: 16-bit weights, gradients accumulated in fp32, fp32 master weights and two Adam moments,
    18 bytes.  `update_gradient_bytes` hold the gradients again as the optimizer reads them.
    """

    weight_bytes: float = 2.0
    gradient_bytes: float = 4.0
    master_bytes: float = 4.0
    moment_bytes: float = 8.0
    update_gradient_bytes: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            check(0 <= value < float("inf"), f"TrainingState.{name} must be finite and not negative", value)

    @property
    def optimizer_bytes(self) -> float:
        """Master weights, moments, and gradients as the optimizer reads them: what ZeRO-1 shards."""
        return self.kept_bytes + self.update_gradient_bytes

    @property
    def kept_bytes(self) -> float:
        """Master weights and moments: what stays from step to step, on the host where it is offloaded."""
        return self.master_bytes + self.moment_bytes


MIXED_PRECISION_STATE = TrainingState()
FP32_STATE = TrainingState(weight_bytes=4.0, gradient_bytes=4.0, master_bytes=0.0, moment_bytes=8.0)
