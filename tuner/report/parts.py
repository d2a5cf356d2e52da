"""The parts of a step's time and of a device's memory: label and colour, the same on every picture."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from objectives.cost.result import StepMemory, StepTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One summand of a total, as a reader sees it."""

    field: str
    label: str
    colour: str


def _table(*rows: tuple[str, str, str]) -> Mapping[str, Part]:
    return MappingProxyType(
        {field: Part(field=field, label=label, colour=colour) for field, label, colour in rows}
    )


# Useful work is blue, memory work teal, communication warm, waiting grey: the eye adds them up by kind.
TIME_PARTS = _table(
    ("compute_s", "compute", "#2563eb"),
    ("recompute_s", "recompute", "#93b4f5"),
    ("tp_comm_s", "tp communication", "#ea580c"),
    ("cp_comm_s", "cp communication", "#f59e0b"),
    ("ep_comm_s", "ep communication", "#dc2626"),
    ("launch_s", "waiting for the host", "#cbd5e1"),
    ("pp_comm_s", "pp communication", "#fb7185"),
    ("bubble_s", "pipeline bubble", "#94a3b8"),
    ("dp_comm_s", "dp communication", "#b45309"),
    ("optimizer_s", "optimizer", "#0d9488"),
    ("offload_s", "offload", "#5eead4"),
    ("fixed_s", "fixed and stragglers", "#475569"),
)
MEMORY_PARTS = _table(
    ("weights_bytes", "weights", "#2563eb"),
    ("gradients_bytes", "gradients", "#7c3aed"),
    ("optimizer_bytes", "optimizer", "#0d9488"),
    ("activations_bytes", "activations", "#ea580c"),
    ("logits_bytes", "logits", "#f59e0b"),
    ("buffers_bytes", "buffers", "#94a3b8"),
    ("reserve_bytes", "reserve", "#475569"),
)


def time_by_part(time: StepTime, i: int) -> dict[str, float]:
    """Seconds of plan i by part, in the order of the table."""
    return {name: float(getattr(time, name)[i]) for name in TIME_PARTS}


def memory_by_part(memory: StepMemory, i: int) -> dict[str, float]:
    """Bytes of plan (or stage) i by part, in the order of the table."""
    return {name: float(getattr(memory, name)[i]) for name in MEMORY_PARTS}
