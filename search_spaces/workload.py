"""What is asked of the cluster: sequence length, global batch, precision, optimizer."""

from dataclasses import dataclass
from enum import StrEnum

from search_spaces.errors import check


class Precision(StrEnum):
    """Number format of the matrix products."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    FP32 = "fp32"


class AttentionFlops(StrEnum):
    """How model FLOPs count the attention scores: the whole square, or its causal half."""

    FULL = "full"
    CAUSAL = "causal"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Bytes a parameter takes while training; each is a vector entry the user may set.

    Default: 16-bit weights, fp32 gradients accumulated, fp32 master weights and two Adam moments = 18 bytes
    (Megatron-LM); DeepSpeed fp16 keeps 16-bit gradients = 16 bytes.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One training job's fixed part; `global_batch` counts sequences of `seq_len` tokens per step."""

    seq_len: int
    global_batch: int
    precision: Precision = Precision.BF16
    state: TrainingState = TrainingState()
    attention_flops: AttentionFlops = AttentionFlops.CAUSAL
    flash_attention: bool = True
    framework: str = "any"
    expert_imbalance: float = 1.0
    train_tokens: float | None = None
    device_hour_price: float | None = None

    def __post_init__(self) -> None:
        check(self.seq_len > 0, "Workload.seq_len must be a positive number of tokens", self.seq_len)
        check(
            self.global_batch > 0,
            "Workload.global_batch must be a positive number of sequences",
            self.global_batch,
        )
        check(
            1.0 <= self.expert_imbalance < float("inf"),
            "Workload.expert_imbalance is hottest over mean expert load and must be finite and at least 1",
            self.expert_imbalance,
        )
        for name in ("train_tokens", "device_hour_price"):
            value = getattr(self, name)
            check(
                value is None or 0 < value < float("inf"),
                f"Workload.{name} must be positive and finite",
                value,
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens the cluster consumes in one optimizer step."""
        return self.seq_len * self.global_batch
