"""What is asked of the cluster: sequence length, global batch, precision, optimizer."""

from dataclasses import dataclass
from enum import StrEnum

from search_spaces.errors import check
from search_spaces.framework import framework_named
from search_spaces.state import FP32_STATE, TrainingState


class Precision(StrEnum):
    """Number format of the matrix products; fp8 has a scale a tensor, mxfp8 one for every 32 entries.

    tf32 keeps everything in fp32 and multiplies with 10 bits of each mantissa.
    """

    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    MXFP8 = "mxfp8"
    NVFP4 = "nvfp4"
    TF32 = "tf32"
    FP32 = "fp32"

    @property
    def is_wide(self) -> bool:
        """Whether all that is kept takes 32 bits."""
        return self in (Precision.TF32, Precision.FP32)


class CudaGraphs(StrEnum):
    """What the host launches as one recorded graph: nothing, a layer's static parts, or the whole step.

    The number of tokens an expert gets is known on the device only: recording a whole step takes expert
    kernels that read it there, fused ones.
    """

    NONE = "none"
    LAYERS = "layers"
    STEP = "step"


class AttentionFlops(StrEnum):
    """How model FLOPs count the attention scores: the whole square, or its causal half."""

    FULL = "full"
    CAUSAL = "causal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One training job's fixed part; `global_batch` counts sequences of `seq_len` tokens per step.

    `state` None stands for what the framework keeps.  `memory_share` is how much of a device a plan may be
    predicted to use: of 34 published runs (benchmarks/data) predicted to use 0.9 to 1, 28 failed and 3
    crawled.
    `fp8_dispatch`: tokens travel to their experts, and gradients back to them, in 8 bits.
    `launch_blocking`: the host waits for every kernel (CUDA_LAUNCH_BLOCKING=1, a debugging aid).
    """

    seq_len: int
    global_batch: int
    precision: Precision = Precision.BF16
    state: TrainingState | None = None
    memory_share: float = 0.9
    attention_flops: AttentionFlops = AttentionFlops.CAUSAL
    flash_attention: bool = True
    framework: str = "any"
    expert_imbalance: float = 1.0
    fp8_dispatch: bool = False
    cuda_graphs: CudaGraphs = CudaGraphs.NONE
    launch_blocking: bool = False
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
        check(
            0 < self.memory_share <= 1,
            "Workload.memory_share must be above 0 and at most 1",
            self.memory_share,
        )
        for name in ("train_tokens", "device_hour_price"):
            value = getattr(self, name)
            check(
                value is None or 0 < value < float("inf"),
                f"Workload.{name} must be positive and finite",
                value,
            )

    @property
    def training_state(self) -> TrainingState:
        """Bytes a parameter takes: as asked, else as the precision and the framework have it."""
        if self.state is not None:
            return self.state
        profile = framework_named(self.framework)
        if self.precision is Precision.FP16 and profile.state_in_fp16 is not None:
            return profile.state_in_fp16
        return FP32_STATE if self.precision.is_wide else profile.state

    @property
    def tokens_per_step(self) -> int:
        """Tokens the cluster consumes in one optimizer step."""
        return self.seq_len * self.global_batch
