"""Probes of one device: matrix products, attention, memory, launches, copies.

`prepare` allocates and answers a measurement that takes a stopwatch and gives readings by name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from runners.probes.cases import What
from runners.probes.device import FORMATS, Device, reserve_bytes
from runners.probes.timing import WARM_UPS, Stopwatch
from search_spaces.units import MIB

Readings = dict[str, list[float]]
Measure = Callable[[Stopwatch], Readings]
ISSUED = 200  # operations issued in one timing: fewer than an accelerator's queue holds
LAYER_WIDTH, LAYER_TOKENS, LAYER_HEADS = 64, 8, 2
ROW_ENTRIES = 1024
SWEPT_BYTES = 64 * MIB  # more than caches hold


def prepare(kind: str, what: What, device: Device) -> Measure:
    """The measurement of a case of one device."""
    return KERNELS[kind](what, device)


def product(what: What, device: Device) -> Callable[[], object]:
    """A product x w^T as a linear layer's, without allocation."""
    rows, columns, depth = (int(what[name]) for name in ("rows", "columns", "depth"))
    if what["format"] == "fp8":
        return _fp8_product(device, rows, columns, depth)
    name = str(what["format"])
    x, w = device.random(rows, depth, format_=name), device.random(columns, depth, format_=name)
    out = torch.empty(rows, columns, device=device.where, dtype=FORMATS[name])
    return lambda: torch.mm(x, w.t(), out=out)


def _fp8_product(device: Device, rows: int, columns: int, depth: int) -> Callable[[], object]:
    x = device.random(rows, depth, format_="fp32").to(torch.float8_e4m3fn)
    w = device.random(columns, depth, format_="fp32").to(torch.float8_e4m3fn)
    one = torch.ones((), device=device.where)
    return lambda: torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _product(what: What, device: Device) -> Measure:
    call = product(what, device)
    return lambda watch: {"s": watch.samples(call)}


def _sustained(what: What, device: Device) -> Measure:
    """The product alone and between kernels that move memory, as in a training step."""
    call = product(what, device)
    moved = torch.ones(SWEPT_BYTES // 4, device=device.where)
    other = torch.empty_like(moved)

    def measure(watch: Stopwatch) -> Readings:
        alone = watch.for_window(watch.window_s / 4).samples(call)
        both = Interleaved(call, lambda: torch.mul(moved, 1.01, out=other), device)
        watch.for_window(watch.window_s * 3 / 4).samples(both)
        return {"alone_s": alone, "s": both.seconds[WARM_UPS:]}

    return measure


class Interleaved:
    """A call timed by itself each time after another that is not."""

    def __init__(self, call: Callable[[], object], other: Callable[[], object], device: Device) -> None:
        self._call, self._other, self._device = call, other, device
        self.seconds: list[float] = []

    def __call__(self) -> None:
        """Both, one after the other."""
        self._other()
        self._device.synchronize()
        start = self._device.clock()
        self._call()
        self._device.synchronize()
        self.seconds.append(self._device.clock() - start)


def _attention(what: What, device: Device) -> Measure:
    shape = [int(what[name]) for name in ("batch", "heads", "seq_len", "width")]
    q, k, v = (device.random(*shape, format_=str(what["format"])) for _ in range(3))
    if what["passes"] == "forward":

        def forward() -> object:
            with torch.no_grad():
                return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        return lambda watch: {"s": watch.samples(forward)}
    for each in (q, k, v):
        each.requires_grad_()
    gradient = torch.ones_like(q)

    def both() -> object:
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.autograd.grad(out, [q, k, v], gradient)

    return lambda watch: {"s": watch.samples(both)}


def _memory(what: What, device: Device) -> Measure:
    """Kernels that write into what is there: fresh pages of a processor cost more than the kernel."""
    entries = int(what["bytes"]) // device.main_format.itemsize
    a = torch.full((entries // ROW_ENTRIES, ROW_ENTRIES), 0.5, device=device.where, dtype=device.main_format)
    b, c = torch.ones_like(a), torch.empty_like(a)
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: c.copy_(a),
        "triad": lambda: torch.add(a, b, alpha=1.5, out=c),
        "softmax": lambda: torch.softmax(a, -1, out=c),
        "gelu": lambda: torch.ops.aten.gelu.out(a, out=c),
    }
    call = calls[str(what["kernel"])]
    return lambda watch: {"s": watch.samples(call)}


def _copy(what: What, device: Device) -> Measure:
    n = int(what["bytes"])
    pinned = device.kind != "cpu" and device.where.type == "cuda"
    host = torch.ones(n, dtype=torch.uint8, pin_memory=pinned)
    there = torch.empty(n, dtype=torch.uint8, device=device.where)
    source, target = (there, host) if what["direction"] == "to_host" else (host, there)
    return lambda watch: {"s": watch.samples(lambda: target.copy_(source, non_blocking=True))}


def _launch(what: What, device: Device) -> Measure:
    if what["of"] == "operation":
        x = device.random(1)
        return lambda watch: {"s": _issued(watch, lambda: x.add_(1.0), 1, device)}
    layer = tiny_layer(device)
    n = count_operations(layer)
    return lambda watch: {"s": _issued(watch, layer, n, device), "operations": [float(n)]}


def _issued(watch: Stopwatch, call: Callable[[], object], n_operations: int, device: Device) -> list[float]:
    """Host seconds to issue one operation: the device is waited for before and after, not in between."""
    times = max(1, ISSUED // n_operations)
    issue = Issue(call, times, device)
    watch.samples(issue)
    return [each / (times * n_operations) for each in issue.seconds[WARM_UPS:]]


class Issue:
    """Calls issued in a row, and the host's seconds for them."""

    def __init__(self, call: Callable[[], object], times: int, device: Device) -> None:
        self._call, self._times, self._device = call, times, device
        self.seconds: list[float] = []

    def __call__(self) -> None:
        """Issue them on an idle device."""
        self._device.synchronize()
        start = self._device.clock()
        for _ in range(self._times):
            self._call()
        self.seconds.append(self._device.clock() - start)


def tiny_layer(device: Device) -> Callable[[], object]:
    """A transformer layer's forward pass, autograd on, so small that only issuing it takes time."""
    h, dtype = LAYER_WIDTH, device.main_format
    at = {"device": device.where, "dtype": dtype}
    norms = [torch.nn.LayerNorm(h, **at) for _ in range(2)]
    qkv, out = torch.nn.Linear(h, 3 * h, **at), torch.nn.Linear(h, h, **at)
    up, down = torch.nn.Linear(h, 4 * h, **at), torch.nn.Linear(4 * h, h, **at)
    x = device.random(1, LAYER_TOKENS, h).requires_grad_()

    def layer() -> object:
        parts = qkv(norms[0](x)).chunk(3, dim=-1)
        q, k, v = (each.view(1, LAYER_TOKENS, LAYER_HEADS, -1).transpose(1, 2) for each in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        y = x + out(mixed.reshape(1, LAYER_TOKENS, h))
        return y + down(functional.gelu(up(norms[1](y))))

    return layer


class _Counter(TorchDispatchMode):  # type: ignore[misc]  # torch is not seen by the type check
    """Counts what torch dispatches, views too: the host takes about as long for each."""

    def __init__(self) -> None:
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += 1
        return func(*args, **(kwargs or {}))


def count_operations(call: Callable[[], object]) -> int:
    """Operations that torch dispatches for a call."""
    with _Counter() as counter:
        call()
    return int(counter.n)


def _reserve(what: What, device: Device) -> Measure:
    return lambda watch: {"bytes": [reserve_bytes(device)]}


KERNELS: Mapping[str, Callable[[What, Device], Measure]] = {
    "product": _product,
    "sustained": _sustained,
    "attention": _attention,
    "memory": _memory,
    "copy": _copy,
    "launch": _launch,
    "reserve": _reserve,
}
