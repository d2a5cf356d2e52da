"""Bytes that training keeps for a parameter."""

from dataclasses import dataclass

from search_spaces.errors import check


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Bytes a parameter takes while training.

    Default: 16-bit weights, gradients accumulated in fp32, fp32 master weights and two Adam moments,
    18 bytes.
    """

    weight_bytes: float = 2.0
    gradient_bytes: float = 4.0
    master_bytes: float = 4.0
    moment_bytes: float = 8.0

    def __post_init__(self) -> None:
        for name in ("weight_bytes", "gradient_bytes", "master_bytes", "moment_bytes"):
            value = getattr(self, name)
            check(0 <= value < float("inf"), f"TrainingState.{name} must be finite and not negative", value)

    @property
    def optimizer_bytes(self) -> float:
        """Master weights and moments: what ZeRO-1 shards and what optimizer offload moves."""
        return self.master_bytes + self.moment_bytes


MIXED_PRECISION_STATE = TrainingState()
FP32_STATE = TrainingState(weight_bytes=4.0, gradient_bytes=4.0, master_bytes=0.0, moment_bytes=8.0)
