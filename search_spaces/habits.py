"""How a trainer uses a device: operations it issues, bytes it moves, its attention kernel, what it overlaps.

Fitted to published measured runs of each trainer (benchmarks/data), one number for all its models and sizes;
a trainer without runs takes the assumed row.  None of them is a speed of a device or a network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from search_spaces.cluster import Constant, Origin, assumed

PUBLISHED_RUNS = "fitted to published measured runs (benchmarks/data)"
OWN_RUNS = "fitted to runs of the built-in trainer on processors (benchmarks/data/local)"


def fitted(value: float, spread: float = 0.2, source: str = PUBLISHED_RUNS) -> Constant:
    """A habit fitted to runs of its trainer."""
    return Constant(value=value, origin=Origin.FITTED, source=source, spread=spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What a trainer's code adds to the arithmetic, and what it hides.

    The host issues `operations_per_layer` operations for one layer's forward pass, `tp_operations` more with
    tensor parallelism, `backward_operations` times as many for its backward pass; each local expert
    of a layer adds `expert_operations`, and `block_scale_operations` where numbers have a scale for every
    block.  `message_operations` are those that the device waits for at each message between stages:
    Megatron-LM synchronizes after every batch of sends and receives.  Where a pipeline leaves the node, every
    rank of a tensor-parallel group holds the others up for `peer_operations` in each forward layer.  A step
    whose optimizer is sharded issues `shard_operations` for every layer and replica, which copy the pieces of
    each parameter into and out of the buffers that travel.  Where each layer's weights and gradients travel
    by themselves, the host issues `layer_share_operations` around each such message.  A ring of unfused
    blocks moves `ring_score_bytes` for every score of its forward pass.  None: it does not.

    `traffic` is the bytes of its memory-bound kernels over the least that fused ones would move,
    `expert_traffic` that of routed experts (permutations, activation); `regroup_traffic` is the bytes that
    a deduplicated exchange moves beside it over those of a plain one (None: its own kernels lay them out);
    `logits_bytes` those of the loss per token and vocabulary entry, over all passes; `accumulation_bytes`
    what adding a micro-batch's gradients to the earlier ones moves per parameter.
    `attention` is its attention kernel's rate over the device's.
    `tp_overlap`, `cp_overlap`, `dp_overlap` and `ep_overlap` are the shares of communication that hide behind
    computation where it is overlapped; the rest is what the two slow each other down by.
    """

    operations_per_layer: Constant = assumed(40.0, "Megatron-LM's layer with fused kernels, counted", 0.5)
    tp_operations: Constant = assumed(8.0, "two collectives and their bookkeeping each way", 0.5)
    backward_operations: Constant = assumed(1.2, "autograd issues about what the forward pass did", 0.3)
    message_operations: Constant = assumed(0.0, "messages on a stream of their own", 0.5)
    peer_operations: Constant = assumed(0.0, "hosts run ahead of their devices, none waits for another", 0.0)
    traffic: Constant = assumed(1.6, "between fused and eager kernels", 0.25)
    accumulation_bytes: Constant = assumed(0.0, "the weight product adds to them as it ends", 0.0)
    logits_bytes: Constant = assumed(16.0, "fp32 loss: written, read and differentiated", 0.4)
    attention: Constant = assumed(0.85, "between the device's own rate and what most trainers reach", 0.2)
    tp_overlap: Constant = assumed(0.8, "all but the first and last piece", 0.2)
    cp_overlap: Constant = assumed(0.9, "all but the first exchange", 0.1)
    dp_overlap: Constant = assumed(0.9, "all but the last bucket", 0.1)
    shard_operations: Constant = assumed(0.0, "parameters lie in one buffer, cut without copies", 0.0)
    ring_score_bytes: Constant | None = None
    layer_share_operations: Constant | None = None
    ep_overlap: Constant = assumed(0.6, "as Megatron-LM", 0.2)
    block_scale_operations: Constant = assumed(5.5, "as Megatron-LM: casts and swizzled scales", 0.5)
    expert_operations: Constant = assumed(7.5, "as Megatron-LM: products, casts, copies", 0.5)
    expert_traffic: Constant = assumed(3.1, "as Megatron-LM: permutations and activation unfused", 0.3)
    regroup_traffic: Constant | None = None

    def without_overlap(self) -> "Habits":
        """The same trainer where messages take the time of what computes."""
        names = ("tp_overlap", "cp_overlap", "dp_overlap", "ep_overlap")
        return replace(self, **dict.fromkeys(names, _NOTHING_BESIDE))


_NOTHING_BESIDE = Constant(
    value=0.0, origin=Origin.DATASHEET, source="the processor that computes carries the messages"
)
ASSUMED_HABITS = Habits()
# Trainers that run plain PyTorch modules: between those fitted that do (FSDP's, InternEvo, nanotron).
PLAIN_PYTORCH = Habits(
    traffic=assumed(2.1, "as FSDP's trainer: norms and activations are kernels of their own", 0.25),
    attention=assumed(0.7, "between FSDP's trainer and nanotron, of like kernels", 0.25),
)
# Megatron-LM's core runs the experts of both; fitted to the runs of both together.
MEGATRON_EXPERTS: Mapping[str, Constant] = MappingProxyType(
    {
        "ep_overlap": fitted(0.6, 0.2),
        "expert_operations": fitted(7.5, 0.4),
        "block_scale_operations": fitted(5.5, 0.4),
        "expert_traffic": fitted(3.1, 0.2),
    }
)
MEGATRON_LM = Habits(
    traffic=fitted(1.0),
    attention=fitted(1.15),
    message_operations=fitted(14.0, 0.5),
    **MEGATRON_EXPERTS,
)
# The built-in trainer's own code, runners/torch_trial: counted operation by operation and byte by byte, or
# fitted to its runs on processors, since no accelerator has run it yet.
BUILT_IN = replace(
    PLAIN_PYTORCH,
    traffic=fitted(3.2, 0.3, OWN_RUNS),
    attention=fitted(0.64, 0.3, OWN_RUNS),
    operations_per_layer=assumed(55.0, "operations of a layer's forward pass, counted", 0.3),
    tp_operations=assumed(8.0, "four collectives and their copies", 0.5),
    accumulation_bytes=assumed(12.0, "fp32 sum and gradient read, sum written", 0.3),
    logits_bytes=assumed(24.0, "softmax, loss and their gradients read and write fp32 six times", 0.3),
    ring_score_bytes=assumed(45.0, "scores scaled, masked, summed, exponentiated: eleven fp32 moves", 0.3),
    layer_share_operations=fitted(990.0, 0.3, OWN_RUNS),
    expert_traffic=fitted(4.0, 0.3, OWN_RUNS),
)
FSDP = Habits(traffic=fitted(2.1), attention=fitted(0.5))
MEGATRON_DEEPSPEED = Habits(
    operations_per_layer=fitted(63.0),
    tp_operations=fitted(5.0),
    backward_operations=fitted(0.53),
    traffic=fitted(1.0),
)
HABITS: Mapping[str, Habits] = MappingProxyType(
    {
        "megatron-lm": MEGATRON_LM,
        "zero-bubble": MEGATRON_LM,
        "megatron-deepspeed": MEGATRON_DEEPSPEED,
        "megatron-deepspeed-zb": MEGATRON_DEEPSPEED,
        "deepspeed-ted": MEGATRON_DEEPSPEED,
        "nemo": Habits(traffic=fitted(1.2), attention=fitted(0.7), **MEGATRON_EXPERTS),
        "nanotron": Habits(
            operations_per_layer=fitted(80.0),
            tp_operations=fitted(9.0),
            backward_operations=fitted(1.35),
            peer_operations=fitted(45.0),
            traffic=fitted(3.1),
            accumulation_bytes=Constant(
                value=10.0,
                origin=Origin.DATASHEET,
                source="fp32 sum read and written, bf16 gradient read: nanotron, gradient_accumulator.py",
            ),
            logits_bytes=fitted(42.0),
            attention=fitted(0.74),
            tp_overlap=fitted(0.2),
            dp_overlap=fitted(0.6),
            shard_operations=fitted(3.0, 0.5),
        ),
        "torchtitan": replace(
            PLAIN_PYTORCH, traffic=fitted(2.1), attention=fitted(0.5), tp_overlap=fitted(0.45, 0.4)
        ),
        "deepspeed": PLAIN_PYTORCH,
        "x-moe": replace(
            PLAIN_PYTORCH,
            regroup_traffic=fitted(7.8, 0.3, "arXiv:2508.13337: 1 ms to pick and 2 ms to rebuild 470 MB"),
            # Each expert is a module of its own, whose gradients ZeRO copies one by one.
            expert_operations=fitted(27.0, 0.3, "arXiv:2508.13337: 12 ms a layer on 8 A100s, whatever it is"),
        ),
        "meshtune": BUILT_IN,
        "fsdp": FSDP,
        "llm-foundry": FSDP,
        "internevo": Habits(traffic=fitted(2.2), dp_overlap=fitted(0.35)),
    }
)


def habits_of(framework: str) -> Habits:
    """A trainer's habits, or the assumed ones."""
    return HABITS.get(framework, ASSUMED_HABITS)
