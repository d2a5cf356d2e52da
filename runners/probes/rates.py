"""A table of rates measured elsewhere, as probes: products, attention, memory, collectives, one row each.

kind         columns beside it                                      rate instead of `seconds`
gemm         format, rows, columns, depth                           tflops
attention    format, seq_len, batch, heads, width, passes           tflops (causal; passes: forward or both)
memory       kernel (copy, triad, softmax, gelu), bytes             gb_per_s
all_to_all, all_reduce, all_gather, reduce_scatter, p2p
             n, stride (1), bytes                                   gb_per_s: bytes over seconds

A group is `n` devices that lie `stride` apart; `bytes` is what a device sends in an all-to-all or to its
peer, and the whole buffer of the others.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from objectives.measurements.cells import BadRow, Cells, read_cells
from runners.probes.cases import MOVED, Parameter
from runners.probes.predictions import attention_flops, moved_bytes
from runners.probes.record import Result
from search_spaces.cluster import ClusterSpec
from search_spaces.errors import InvalidSpec, check
from search_spaces.units import GB, TFLOPS
from search_spaces.workload import Precision

COLLECTIVES: Mapping[str, str] = MappingProxyType(
    {name: name for name in ("all_to_all", "all_reduce", "all_gather", "reduce_scatter")} | {"p2p": "send"}
)
KINDS = ("gemm", "attention", "memory", *COLLECTIVES)
COLUMNS = (
    "kind", "format", "rows", "columns", "depth", "seq_len", "batch", "heads", "width", "passes", "kernel",
    "n", "stride", "bytes", "seconds", "tflops", "gb_per_s",
)  # fmt: skip
PASSES = ("forward", "both")
MOST_OF_RATED = (
    1.5  # assumed: above any boost of the clock over the rated one, below sparse products' factor 2
)


def read_rates(path: Path, cluster: ClusterSpec) -> list[Result]:
    """Every row of the table as a probe of that machine; rows of the same case are its repeats.

    Raises
    ------
    InvalidSpec
        The file is no such table, or a row of it says nothing that can be used.
    """
    found: dict[str, Result] = {}
    for cells in read_cells(path, ("kind",)):
        try:
            result = _result(cells, cluster)
        except BadRow as error:
            raise InvalidSpec(
                f"{path.name}, line {cells.line}: every row must be a rate", str(error)
            ) from None
        before = found.get(result.key)
        seconds = [*(before.readings["s"] if before else ()), *result.readings["s"]]
        found[result.key] = Result(kind=result.kind, what=result.what, readings={"s": seconds})
    check(
        bool(found),
        f"{path.name} must hold at least one rate",
        "no rows",
        hint=f"columns: {', '.join(COLUMNS)}",
    )
    return list(found.values())


def _result(cells: Cells, cluster: ClusterSpec) -> Result:
    kind = cells.text("kind")
    if cells.fault:
        raise BadRow(cells.fault)
    if kind not in KINDS:
        raise BadRow(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    made = {"gemm": _gemm, "attention": _attention, "memory": _memory}.get(kind)
    bare = made(cells) if made else _collective(cells, kind, cluster)
    seconds = _seconds(cells, bare)
    if bare.kind in ("product", "attention"):
        _check_rated(bare, seconds, cluster)
    return Result(kind=bare.kind, what=bare.what, readings={"s": [seconds]})


def _check_rated(bare: Result, seconds: float, cluster: ClusterSpec) -> None:
    """No kernel passes the rated peak by so much: the unit, the format or the device is another one."""
    rated = cluster.device.peak_flops_per_s.get(Precision(str(bare.what["format"])))
    reached = WORK[bare.kind](bare) / seconds
    if rated is not None and reached > MOST_OF_RATED * rated:
        raise BadRow(
            f"{reached / TFLOPS:.4g} TFLOP/s cannot be: {cluster.device.name} is rated at "
            f"{rated / TFLOPS:.4g} in {bare.what['format']}"
        )


def _gemm(cells: Cells) -> Result:
    what: dict[str, Parameter] = {"format": _format(cells)}
    return _bare("product", what | {name: cells.needed(name) for name in ("rows", "columns", "depth")})


def _attention(cells: Cells) -> Result:
    passes = cells.text("passes") or "both"
    if passes not in PASSES:
        raise BadRow(f"passes must be forward or both; got {passes!r}")
    what: dict[str, Parameter] = {"format": _format(cells)}
    shape = {name: cells.needed(name) for name in ("seq_len", "batch", "heads", "width")}
    return _bare("attention", what | shape | {"passes": passes})


def _memory(cells: Cells) -> Result:
    kernel = cells.text("kernel") or "copy"
    if kernel not in MOVED:
        raise BadRow(f"kernel must be one of {', '.join(MOVED)}; got {kernel!r}")
    return _bare("memory", {"kernel": kernel, "bytes": cells.needed("bytes")})


def _collective(cells: Cells, kind: str, cluster: ClusterSpec) -> Result:
    n, stride = cells.needed("n") if kind != "p2p" else 2, cells.count("stride") or 1
    if n < 2:
        raise BadRow(f"n must be at least 2; got {n}")
    if cluster.max_devices is not None and n * stride > cluster.max_devices:
        raise BadRow(
            f"{n} devices, {stride} apart, are more than the {cluster.max_devices} of {cluster.name}"
        )
    tier = next(tier for tier in cluster.tiers if tier.size is None or tier.size >= n * stride)
    what: dict[str, Parameter] = {"operation": COLLECTIVES[kind], "bytes": cells.needed("bytes")}
    return _bare("collective", what | {"tier": tier.name, "n": n, "stride": stride})


def _bare(kind: str, what: Mapping[str, Parameter]) -> Result:
    return Result(kind=kind, what=what, readings={})


def _seconds(cells: Cells, bare: Result) -> float:
    """Seconds as stated, or from the one rate that the row states."""
    stated = [name for name in ("seconds", "tflops", "gb_per_s") if cells.number(name)]
    if len(stated) != 1:
        raise BadRow(
            f"one of seconds, tflops and gb_per_s must be above 0; got {' and '.join(stated) or 'none'}"
        )
    value = cells.number(stated[0])
    assert value is not None
    if stated[0] == "seconds":
        return value
    work, unit = WORK[bare.kind], TFLOPS if bare.kind in ("product", "attention") else GB
    if (stated[0] == "tflops") != (unit == TFLOPS):
        raise BadRow(f"{stated[0]} is no rate of a {cells.text('kind')}")
    return work(bare) / (value * unit)


WORK: Mapping[str, Callable[[Result], float]] = MappingProxyType(
    {
        "product": lambda each: 2.0 * each.number("rows") * each.number("columns") * each.number("depth"),
        "attention": attention_flops,
        "memory": moved_bytes,
        "collective": lambda each: float(each.number("bytes")),
    }
)


def _format(cells: Cells) -> str:
    name = cells.text("format") or str(Precision.BF16)
    if name not in list(Precision):
        raise BadRow(f"format must be one of {', '.join(Precision)}; got {name!r}")
    return name


def largest_group(results: Iterable[Result]) -> int:
    """Devices that the widest collective spans; 1 without any."""
    spans = [each.number("n") * each.number("stride") for each in results if each.kind == "collective"]
    return max(spans, default=1)
