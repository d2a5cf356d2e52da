"""Probes of several ranks: collectives over sizes and groups, and what overlap with computation costs.

Sizes follow the formulas of `objectives.cost.collectives`: the whole buffer of a gather, a scatter or a sum;
what one rank sends in all of an exchange, its own part included; one message of a send.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from runners.probes.cases import COLLECTIVES, Parameter, What
from runners.probes.device import Device
from runners.probes.kernels import Measure, Readings, product
from runners.probes.layout import group_of, members
from runners.probes.timing import Stopwatch

PRODUCTS_FIT = 20  # products that shall fit beside one collective
MOST_PRODUCTS = 2000
BESIDE_SHAPE = 256


@dataclass(slots=True, kw_only=True)
class World:
    """All ranks: this one's place, its device, and the process groups made so far."""

    rank: int
    n_ranks: int
    device: Device
    _groups: dict[tuple[int, int], Any] = field(default_factory=dict)

    def group(self, what: What) -> Any:
        """The group of that form with this rank, or None; every rank makes all of them, in one order."""
        n, stride = int(what["n"]), int(what["stride"])
        if (n, stride) not in self._groups:
            backend = "gloo" if self.device.where.type != "cuda" else "nccl"
            all_ranks = members(n, stride, self.n_ranks)
            groups = [dist.new_group(ranks, backend=backend) for ranks in all_ranks]
            own = group_of(self.rank, all_ranks)
            self._groups[n, stride] = None if own is None else groups[own]
        return self._groups[n, stride]

    def agree(self, value: float) -> float:
        """The largest of all ranks' values."""
        told = torch.tensor([value], dtype=torch.float64)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        return float(told[0])


def prepare(kind: str, what: What, world: World) -> Measure:
    """The measurement of a case of all ranks."""
    return {"collective": _collective, "overlap": _overlap}[kind](what, world)


def _collective(what: What, world: World) -> Measure:
    group = world.group(what)
    call = operation(what, world.device, group) if group is not None else _idle
    hops = 2 if what["operation"] == "send" else 1
    return lambda watch: {"s": [each / hops for each in watch.samples(call)]} if group else _listen(watch)


def _idle() -> None:
    pass


def _listen(watch: Stopwatch) -> Readings:
    """A rank without a group keeps step with the others."""
    watch.samples(_idle)
    return {}


def operation(what: What, device: Device, group: Any) -> Callable[[], object]:
    """One collective of that many bytes over the group; `send` goes there and back.

    Sums are of zeros, which stay finite however often they are added.
    """
    name, n = str(what["operation"]), dist.get_world_size(group)
    if name not in COLLECTIVES:
        raise ValueError(f"no such collective: {name}")
    dtype = device.main_format
    whole = -(-int(what["bytes"]) // (dtype.itemsize * n)) * n
    full = torch.zeros(whole, dtype=dtype, device=device.where)
    part = torch.zeros(whole // n, dtype=dtype, device=device.where)
    other = torch.empty_like(full)
    calls: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(full, group=group),
        "all_gather": lambda: dist.all_gather_into_tensor(full, part, group=group),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, full, group=group),
        "all_to_all": lambda: dist.all_to_all_single(other, full, group=group),
        "send": lambda: _there_and_back(full, group),
    }
    return calls[name]


def _there_and_back(message: Any, group: Any) -> None:
    ranks = dist.get_process_group_ranks(group)
    if dist.get_rank() == ranks[0]:
        dist.send(message, ranks[1], group=group)
        dist.recv(message, ranks[1], group=group)
    else:
        dist.recv(message, ranks[0], group=group)
        dist.send(message, ranks[0], group=group)


def _overlap(what: What, world: World) -> Measure:
    """Products and an all-reduce, each alone and then beside the other."""
    group = world.group(what)
    size = BESIDE_SHAPE if world.device.kind == "cpu" else 8 * BESIDE_SHAPE
    shape: dict[str, Parameter] = dict.fromkeys(("rows", "columns", "depth"), size)
    compute = product({**shape, "format": what["format"]}, world.device)
    reduce = operation(what, world.device, group) if group is not None else _idle
    n = -(-int(what["bytes"]) // world.device.main_format.itemsize)
    buffer = torch.zeros(n, dtype=world.device.main_format, device=world.device.where)

    def start() -> Any:
        return dist.all_reduce(buffer, group=group, async_op=True)

    def measure(watch: Stopwatch) -> Readings:
        part = watch.for_window(watch.window_s / 3)
        alone = part.samples(compute)
        reduce_alone = part.samples(reduce)
        beside, reduce_beside = _beside(watch, compute, start if group is not None else None)
        if group is None:
            return {}
        return {
            "compute_alone_s": alone,
            "compute_beside_s": beside,
            "collective_alone_s": reduce_alone,
            "collective_beside_s": reduce_beside,
        }

    return measure


def _beside(
    watch: Stopwatch, compute: Callable[[], object], start: Callable[[], Any] | None
) -> tuple[list[float], list[float]]:
    """Seconds of products while a collective runs, and of the collective meanwhile."""
    products: list[float] = []
    collectives: list[float] = []

    def once() -> None:
        handle, begin = start() if start else None, watch.clock()
        while handle is not None and not handle.is_completed() and len(products) < MOST_PRODUCTS:
            before = watch.clock()
            compute()
            _wait_for_products(watch)
            products.append(watch.clock() - before)
        if handle is not None:
            collectives.append(watch.clock() - begin)
            handle.wait()

    watch.for_window(watch.window_s / 3).samples(once)
    return products[PRODUCTS_FIT // 4 :] or products, collectives[1:] or collectives


def _wait_for_products(watch: Stopwatch) -> None:
    """Wait for the stream of products alone: waiting for the whole device would wait for the collective."""
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
