"""What is measured: one `Case` for each kernel and shape, collective and size, in order of need.

A budget that ends early leaves out the last ones, so the least that a constant needs stands first.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runners.probes.layout import Group
from search_spaces.units import KIB, MIB

Parameter = str | int
What = Mapping[str, Parameter]
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
# Rows, columns and depth of products: tokens of a micro-batch times the matrices of a layer.
CPU_SHAPES = (
    (512, 512, 512), (512, 1024, 256), (256, 256, 256), (1024, 1024, 1024),
    (512, 256, 1024), (128, 768, 256), (256, 1024, 1024), (1024, 512, 2048),
)  # fmt: skip
GPU_SHAPES = (
    (8192, 8192, 8192), (4096, 4096, 4096), (8192, 14336, 4096), (4096, 12288, 4096),
    (8192, 4096, 14336), (2048, 4096, 4096), (2048, 1024, 8192), (16384, 8192, 1024),
)  # fmt: skip
# Sequence length, batch: heads of 64 or 128 entries.
CPU_LENGTHS = ((256, 4), (1024, 1), (128, 8), (512, 2))
GPU_LENGTHS = ((4096, 2), (8192, 1), (2048, 4), (16384, 1))
MOVED = {"copy": 2, "triad": 3, "softmax": 2, "gelu": 2}  # tensors that a kernel reads and writes
CPU_BYTES, GPU_BYTES = (64 * MIB, 4 * MIB, 16 * MIB), (1024 * MIB, 64 * MIB, 256 * MIB)
# Below 32 MiB: larger results lie in pages that the allocator gives back and gets anew each time.
CPU_MESSAGES = (4 * MIB, 4 * KIB, 256 * KIB, 16 * MIB, 32 * KIB)
GPU_MESSAGES = (64 * MIB, 8 * KIB, MIB, 256 * MIB, 64 * KIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to measure; `need` 0 comes first, `weight` is its share of the budget."""

    kind: str
    what: What
    need: int = 0
    weight: float = 1.0

    @property
    def key(self) -> str:
        """Its name in the probes file."""
        return " ".join([self.kind, *(f"{name}={value}" for name, value in self.what.items())])

    def text(self) -> str:
        """As JSON, for the other ranks."""
        return json.dumps({"kind": self.kind, "what": dict(self.what)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the first rank says of its machine.

    `formats` are the number formats that its products take; `n_devices` the node's accelerators, or cores.
    """

    kind: str
    device: str
    torch: str
    formats: tuple[str, ...]
    memory_bytes: float
    n_multiprocessors: int
    n_devices: int
    n_cores: int

    @property
    def on_cpu(self) -> bool:
        """Whether processes on cores stand for devices."""
        return self.kind == "cpu"

    def words(self) -> str:
        """One line for sources and screens."""
        if not self.torch:  # a table of rates measured elsewhere
            return self.device
        return f"{self.device}, {self.n_cores} cores, torch {self.torch}"


def facts_of(answer: Mapping[str, Any]) -> Facts:
    """Facts from a rank's answer or a probes file."""
    return Facts(**{**answer, "formats": tuple(answer["formats"])})


def cases_for(facts: Facts, groups: Sequence[Group]) -> list[Case]:
    """Everything that this machine can be asked, the most needed first."""
    cases = [*_alone(facts), *_together(facts, groups)]
    return sorted(cases, key=lambda case: case.need)


def _alone(facts: Facts) -> Iterator[Case]:
    yield Case(kind="reserve", what={})
    yield Case(kind="launch", what={"of": "layer"})
    yield from _memory_cases(facts)
    yield from _product_cases(facts)
    yield from _attention_cases(facts)
    yield Case(kind="launch", what={"of": "operation"}, need=1)
    for direction in ("to_host", "from_host") if not facts.on_cpu else ("memory",):
        n_bytes = (CPU_BYTES if facts.on_cpu else GPU_BYTES)[0]
        yield Case(kind="copy", what={"direction": direction, "bytes": n_bytes})


def _memory_cases(facts: Facts) -> Iterator[Case]:
    for i, n_bytes in enumerate(CPU_BYTES if facts.on_cpu else GPU_BYTES):
        for kernel in MOVED:
            need = 0 if i == 0 and kernel in ("copy", "softmax") else 1 + i
            yield Case(kind="memory", what={"kernel": kernel, "bytes": n_bytes}, need=need)


def _product_cases(facts: Facts) -> Iterator[Case]:
    shapes = CPU_SHAPES if facts.on_cpu else GPU_SHAPES
    for i, (rows, columns, depth) in enumerate(shapes):
        for precision in facts.formats:
            what: What = {"format": precision, "rows": rows, "columns": columns, "depth": depth}
            yield Case(kind="product", what=what, need=0 if i < 2 else 1 + i // 4)
    rows, columns, depth = shapes[0]
    main: What = {"format": main_formats(facts)[0], "rows": rows, "columns": columns, "depth": depth}
    yield Case(kind="sustained", what=main, need=1, weight=4.0)


def _attention_cases(facts: Facts) -> Iterator[Case]:
    heads, width = (4, 64) if facts.on_cpu else (32, 128)
    for i, (seq_len, batch) in enumerate(CPU_LENGTHS if facts.on_cpu else GPU_LENGTHS):
        for precision in main_formats(facts):
            for passes in ("forward", "both"):
                need = 0 if i == 0 and passes == "both" else 1 + i // 2
                what: What = {"format": precision, "seq_len": seq_len, "batch": batch, "heads": heads,
                        "width": width, "passes": passes}  # fmt: skip
                yield Case(kind="attention", what=what, need=need)


def main_formats(facts: Facts) -> tuple[str, ...]:
    """The formats that training uses here: bf16, and on processors fp32."""
    wanted = ("fp32", "bf16") if facts.on_cpu else ("bf16",)
    return tuple(each for each in wanted if each in facts.formats) or facts.formats[:1]


def _together(facts: Facts, groups: Sequence[Group]) -> Iterator[Case]:
    for group in groups:
        for i, n_bytes in enumerate(CPU_MESSAGES if facts.on_cpu else GPU_MESSAGES):
            for operation in COLLECTIVES:
                if operation == "send" and group.n > 2:
                    continue
                need = 0 if i < 2 and group.is_largest else 1 if i < 4 else 2
                what = {"operation": operation, "bytes": n_bytes, **group.what()}
                yield Case(kind="collective", what=what, need=need + (not group.is_pure))
    for group in groups:
        if group.is_largest and group.is_pure:
            n_bytes = (CPU_MESSAGES if facts.on_cpu else GPU_MESSAGES)[3]
            what = {"operation": "all_reduce", "bytes": n_bytes, **group.what()}
            yield Case(kind="overlap", what={**what, "format": main_formats(facts)[0]}, need=1, weight=2.0)
