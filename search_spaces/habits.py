"""How a trainer uses a device: operations it issues, bytes it moves, the attention kernel it calls.

Fitted to published measured runs of each trainer (benchmarks/data), one number for all its models and sizes;
a trainer without runs takes the assumed row.  None of them is a speed of a device or a network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from search_spaces.cluster import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What a trainer's code adds to the arithmetic.

    The host issues `operations_per_layer` operations for one layer's forward pass, `tp_operations` more with
    tensor parallelism, `backward_operations` times as many for its backward pass, and `pass_operations` for a
    micro-batch beside its layers.  `traffic` is the bytes of its memory-bound kernels over the least that
    fused ones would move; `logits_bytes` those of the loss per token and vocabulary entry, over all passes.
    `attention` is its attention kernel's rate over the device's.
    """

    origin: Origin = Origin.ASSUMED
    operations_per_layer: float = 40.0
    tp_operations: float = 8.0
    backward_operations: float = 1.2
    pass_operations: float = 30.0
    traffic: float = 1.6
    logits_bytes: float = 16.0
    attention: float = 1.0


ASSUMED_HABITS = Habits()
HABITS: Mapping[str, Habits] = MappingProxyType(
    {
        "megatron-lm": Habits(origin=Origin.FITTED, traffic=1.3),
        "megatron-deepspeed": Habits(
            origin=Origin.FITTED,
            operations_per_layer=58.0,
            tp_operations=4.0,
            backward_operations=0.65,
            traffic=1.2,
        ),
        "nemo": Habits(origin=Origin.FITTED, traffic=1.8),
        "nanotron": Habits(
            origin=Origin.FITTED,
            operations_per_layer=94.0,
            tp_operations=9.0,
            backward_operations=1.1,
            traffic=1.7,
            logits_bytes=40.0,
        ),
        "fsdp": Habits(origin=Origin.FITTED, traffic=2.1, attention=0.5),
        "internevo": Habits(origin=Origin.FITTED, traffic=1.8),
    }
)


def habits_of(framework: str) -> Habits:
    """A trainer's habits, or the assumed ones."""
    return HABITS.get(framework, ASSUMED_HABITS)
