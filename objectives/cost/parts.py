"""Every part of a step's seconds and of a device's bytes: its formula, with which numbers, and from where.

    m  micro-batches of a step     p  pp     v  vpp     n  nodes     L  layers of a stage
    F, B  one micro-batch forward, backward through a stage, communication and waiting included
    phi  parameters on a device    D  devices that share them    w, g, o  bytes of weight, gradient, optimizer

`worked` is the same formula over the terms of `objectives.explain`, by name: a person reads it with a plan's
numbers, and a test works it out and compares it with the part.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

LEGEND = (
    "m micro-batches, p stages, v chunks of a stage, n nodes; F + B a micro-batch through a stage; "
    "phi parameters on a device, D devices that share them"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFormula:
    """How a part is computed; `worked` is empty where no short sum makes it."""

    formula: str
    worked: str
    source: str


PARTS: Mapping[str, PartFormula] = MappingProxyType({
    "compute_s": PartFormula(
        formula="m x (forward, backward to inputs and to weights) of the worst stage: products by tiles and "
        "waves, attention by FLOPs, the rest by bytes",
        worked="{m} × {compute_pass_s}",
        source="roofline: doi:10.1145/1498765.1498785; attention: arXiv:2307.08691, section 3.1",
    ),
    "recompute_s": PartFormula(
        formula="m x (the forward pass again: of layers that keep only their input, or of the attention core "
        "and the modules named)",
        worked="{m} × {recompute_pass_s}",
        source="arXiv:2205.05198, sections 4 and 5",
    ),
    "tp_comm_s": PartFormula(
        formula="m x L x 2 all-reduces each way (with sequence parallelism gathers and scatters), less what "
        "hides behind products",
        worked="{m} × {tp_comm_pass_s}",
        source="arXiv:2205.05198, section 4.2.2; rings and trees: doi:10.1177/1094342005051521",
    ),
    "cp_comm_s": PartFormula(
        formula="m x L x (keys and values around a ring, less what hides behind the attention core; or "
        "gathered before it, nothing hidden; or Ulysses' all-to-alls)",
        worked="{m} × {cp_comm_pass_s}",
        source="arXiv:2310.01889 (ring); arXiv:2407.21783, section 3.3.2 (all-gather); arXiv:2309.14509, "
        "section 3.2 (Ulysses)",
    ),
    "ep_comm_s": PartFormula(
        formula="m x expert layers x 2 all-to-alls each way of k copies of every token (or one into each "
        "domain), less what hides behind a pass the other way",
        worked="{m} × {ep_comm_pass_s}",
        source="arXiv:2006.16668, section 3.3; arXiv:2508.13337; arXiv:2412.19437, section 3.2",
    ),
    "launch_s": PartFormula(
        formula="m x max(operations x seconds to issue one - the device's own seconds, operations x seconds "
        "to start one), each way",
        worked="{m} × {launch_pass_s}",
        source="operations of each trainer: search_spaces/habits.py",
    ),
    "pp_comm_s": PartFormula(
        formula="2 m v x (a message, less the chunk that it hides behind) + 2 (p - 1) x a message; a message "
        "is what crosses, a gather over tp where ranks send parts, and the host's wait",
        worked="2 × {m} × {vpp} × {shown_send_s} + 2 × {others} × {send_s}",
        source="arXiv:2104.04473, sections 2.2 and 4.1",
    ),
    "bubble_s": PartFormula(
        formula="(p - 1) / v x (F + B) of the other stages; schedules that split the backward pass, or feed "
        "both ends, fill some of it",
        worked="{others} / {vpp} × {other_stage_s} − {filled_s}",
        source="arXiv:2104.04473, section 2.2; arXiv:2401.10241, table 1; arXiv:2405.15362; "
        "arXiv:2412.19437, table 2",
    ),
    "dp_comm_s": PartFormula(
        formula="reductions of gradients + gathers of weights (as many as the ZeRO stage asks) + tied "
        "embeddings - what hides behind passes",
        worked="{reductions} × {reduce_s} + {gathers} × {gather_s} + {tie_s} − {hidden_s}",
        source="arXiv:1910.02054, section 7; arXiv:2304.11277, section 3",
    ),
    "optimizer_s": PartFormula(
        formula="bytes that the update reads and writes, (2 o + g + w) a parameter, / memory rate + what "
        "issuing it tile by tile takes beyond that + copies of shards, layer by layer and replica by "
        "replica, x seconds to issue one",
        worked="{updated_parameters} × {updated_bytes} / {memory_bytes_per_s} + {tiles_wait_s} + "
        "{shard_copies} × {issue_s}",
        source="arXiv:1910.02054, section 3; tiles: arXiv:2303.06318",
    ),
    "offload_s": PartFormula(
        formula="gradients and weights over the host's link, and the update at its memory's rate (overlapped:"
        " what is longer than one micro-batch's passes); waits for inputs of redone layers and chunks of a "
        "sequence on the host",
        worked="",
        source="arXiv:2101.06840, section 4; arXiv:2408.16978, section 4",
    ),
    "fixed_s": PartFormula(
        formula="fixed seconds of a step + straggler share x log2(n) x all that passes take + a step's "
        "share of moving experts",
        worked="{step_fixed_s} + {straggler_per_log2} × {doublings} × {busy_s} + {migration_s}",
        source="the cluster's file",
    ),
    "weights_bytes": PartFormula(
        formula="phi w, / D with ZeRO-3, and / hpz for a second shard",
        worked="{weights_parameters} × {weight_bytes}",
        source="arXiv:1910.02054, section 5; arXiv:2306.10209, section 3.3",
    ),
    "gradients_bytes": PartFormula(
        formula="phi g, / D from ZeRO-2 on",
        worked="{gradients_parameters} × {gradient_bytes}",
        source="arXiv:1910.02054, section 5",
    ),
    "optimizer_bytes": PartFormula(
        formula="phi o, / D from ZeRO-1 on; offloaded: the transfer's buffers only",
        worked="{optimizer_parameters} × {optimizer_bytes}",
        source="arXiv:1910.02054, section 5",
    ),
    "activations_bytes": PartFormula(
        formula="micro-batches in flight on that stage x what one of them keeps",
        worked="{in_flight} × {kept_bytes}",
        source="arXiv:2205.05198, section 4; in flight: arXiv:2104.04473, section 2.2",
    ),
    "logits_bytes": PartFormula(
        formula="tokens of a micro-batch x vocabulary on a device x bytes of logits and loss an entry",
        worked="{tokens} × {logits_bytes_per_token}",
        source="arXiv:2205.05198, section 4.3",
    ),
    "buffers_bytes": PartFormula(
        formula="messages between stages, the gathered sequence, the layer being redone, layers that ZeRO "
        "holds whole, buckets of an overlapped reduction",
        worked="",
        source="arXiv:2205.05198, section 4.2.2; arXiv:2304.11277, section 3",
    ),
    "reserve_bytes": PartFormula(
        formula="what the driver, its context and libraries take",
        worked="{reserve_bytes}",
        source="the cluster's file",
    ),
})  # fmt: skip
