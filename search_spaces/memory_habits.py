"""What a trainer's code keeps in memory beside the arithmetic's least: buffers, copies, 16-bit gradients."""

from dataclasses import dataclass
from enum import StrEnum

from search_spaces.errors import check


class Release(StrEnum):
    """When a schedule that splits the backward pass gives back a micro-batch's activations.

    With the gradient of the input, half of them then and half with the gradient of the weights, or all with
    the gradient of the weights.  A whole backward pass gives back all.
    """

    AT_BACKWARD_INPUT = "at-backward-input"
    HALF_AND_HALF = "half-and-half"
    AT_WEIGHT = "at-weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryHabits:
    """Bytes that one trainer holds and another does not.

    `keeps_gate`: an MLP's gate is an operation of its own and keeps its output beside both factors.
    `keeps_gathered`: with sequence parallelism a column-parallel product keeps its gathered input; else it
    gathers again.  `passing_gradient_bytes` a parameter hold 16-bit gradients beside those accumulated in
    fp32 until a backward pass ends; `layer_gradient_bytes` only those of the layer that runs, and of the
    output layer.  `step_bytes` a parameter, sharded as the optimizer's state is, live during the update.
    `whole_sequences`: with sequence parallelism, so many sequences of h entries a token lie whole on every
    rank: what products gather, and what a reduce-scatter reads.
    `kept_share` is what autograd keeps of a layer over the operands of its products and kernels.
    `keeps_cast_operands`: with fp8, a product keeps the cast copy of its input and not the 16-bit one.
    `release`: when activations go where the backward pass is split; of a layer's 34 bytes an entry the
    zero-bubble fork of Megatron-LM counts 32 as freed with the gradient of the weights.
    `fixed_bucket`: gradients pass through a bucket even where their reduction is not overlapped.
    `gradients_on_demand`: a step's first backward pass makes them, and the update gives them back; where it
    is the only one, they come as activations go.
    """

    keeps_gate: bool = False
    keeps_gathered: bool = False
    whole_sequences: float = 1.0
    kept_share: float = 1.0
    passing_gradient_bytes: float = 0.0
    layer_gradient_bytes: float = 0.0
    step_bytes: float = 0.0
    keeps_cast_operands: bool = False
    fixed_bucket: bool = False
    gradients_on_demand: bool = False
    release: Release = Release.AT_WEIGHT

    def __post_init__(self) -> None:
        names = (
            "kept_share", "whole_sequences", "passing_gradient_bytes", "layer_gradient_bytes", "step_bytes",
        )  # fmt: skip
        for name in names:
            value = getattr(self, name)
            check(0 <= value < float("inf"), f"MemoryHabits.{name} must be finite and not negative", value)


FRUGAL = MemoryHabits()
