"""Seconds that the cost model's own formulas give a probe, so that fit and forecast share one convention."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from objectives.cost import collectives
from objectives.cost.collectives import Line, group_members
from objectives.cost.kernels import attention_s, gemm_s, memory_bound_s, width_factor
from objectives.cost.layers import ATTENTION_BACKWARD_OVER_FORWARD
from objectives.metrics import Job
from runners.probes.cases import MOVED
from runners.probes.record import Result
from search_spaces.cluster import ClusterSpec, DeviceSpec, TierSpec, assumed
from search_spaces.habits import ASSUMED_HABITS
from search_spaces.local_cluster import local_cluster
from search_spaces.model_presets import load_model
from search_spaces.workload import Precision, Workload

ENDLESS = 1e30  # a rate that never binds
ONE = assumed(1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A probe's median seconds against the formula's; `group` is what reports put together."""

    group: str
    result: Result
    measured_s: float
    before_s: float
    predicted_s: float

    @property
    def error(self) -> float:
        """Relative error of the fitted machine."""
        return self.predicted_s / self.measured_s - 1

    @property
    def error_before(self) -> float:
        """Relative error of the machine as it was known before."""
        return self.before_s / self.measured_s - 1


def predicted_s(cluster: ClusterSpec, result: Result) -> float | None:
    """Seconds that the formulas give the probe on that machine; None for what they do not price."""
    formula = FORMULAS.get(result.kind)
    return formula(cluster, result) if formula else None


def compare(before: ClusterSpec, after: ClusterSpec, results: Mapping[str, Result]) -> list[Comparison]:
    """Every probe that a formula prices on both machines."""
    found = []
    for result in results.values():
        here, there = predicted_s(after, result), predicted_s(before, result)
        if here is not None and there is not None:
            group = group_words(result)
            found.append(
                Comparison(
                    group=group, result=result, measured_s=result.median(), before_s=there, predicted_s=here
                )
            )
    return sorted(found, key=lambda each: (list(FORMULAS).index(each.result.kind), each.group))


def group_words(result: Result) -> str:
    """`product fp32`, `all_reduce of 2 (machine)`."""
    what = result.what
    match result.kind:
        case "product":
            return f"product {what['format']}"
        case "attention":
            return f"attention {what['format']}, {what['passes']}"
        case "memory":
            return f"memory {what['kernel']}"
        case _:
            apart = "" if what["stride"] == 1 else f", {what['stride']} apart"
            return f"{result.text('operation').replace('_', '-')} of {what['n']}{apart} ({what['tier']})"


def product_flops(device: DeviceSpec, result: Result) -> float:
    """FLOPs that the formula charges a product at the full rate: tiles rounded up, their start, waves."""
    precision = Precision(result.text("format"))
    bare = replace(
        device,
        peak_flops_per_s={precision: 1.0},
        memory_bandwidth_bytes_per_s=ENDLESS,
        gemm_efficiency=ONE,
        sustained_efficiency=ONE,
        memory_efficiency=ONE,
        fp8_gemm_efficiency=None,
        fp4_gemm_efficiency=None,
    )
    return _product_s(bare, result)


def attention_flops(result: Result) -> float:
    """FLOPs of causal attention as the cost model counts them: 2 a (d + d) s^2 / 2, and 2.5 times back."""
    s, rows = result.number("seq_len"), result.number("batch") * result.number("heads")
    forward = 2.0 * rows * 2 * result.number("width") * s * s / 2
    return forward * (1 + ATTENTION_BACKWARD_OVER_FORWARD * (result.what["passes"] == "both"))


def moved_bytes(result: Result) -> float:
    """Bytes that a memory kernel reads and writes."""
    return float(MOVED[result.text("kernel")] * result.number("bytes"))


def lines_of(cluster: ClusterSpec, result: Result) -> list[tuple[float, Line]]:
    """Lines of which the fastest prices a collective, each with how often it is run through."""
    n, stride = np.array([result.number("n")]), np.array([result.number("stride")])
    members = group_members(n, stride, cluster.tiers)
    match result.what["operation"]:
        case "all_reduce":
            ring = collectives.ring_line(cluster, n, members)
            return [(2.0, ring), (1.0, collectives.tree_line(cluster, n, members))]
        case "all_to_all":
            return [(1.0, collectives.all_to_all_line(cluster, n, members))]
        case "send":
            names = [tier.name for tier in cluster.tiers]
            return [(1.0, collectives.send_line(cluster, np.array([names.index(result.text("tier"))])))]
        case _:
            return [(1.0, collectives.ring_line(cluster, n, members))]


def unit_tier(tier: TierSpec) -> TierSpec:
    """The tier with a latency of one and a bandwidth of one: lines over it are coefficients."""
    ratio = tier.pair_bandwidth_bytes_per_s / tier.bandwidth_bytes_per_s
    return replace(
        tier, bandwidth_bytes_per_s=1.0, pair_bandwidth_bytes_per_s=ratio, latency_s=ONE, efficiency=ONE
    )


def one_tier(tier: TierSpec, device: DeviceSpec | None = None) -> ClusterSpec:
    """A machine of one tier, for the formulas of single collectives and kernels."""
    local = local_cluster()
    return replace(local, device=device or local.device, tiers=(tier,))


def _job(device: DeviceSpec, precision: Precision) -> Job:
    """A job for the formulas of single kernels, which read no more of it than device and number format."""
    return Job(
        model=load_model("gpt2"),
        cluster=one_tier(local_cluster().tiers[0], device),
        workload=Workload(seq_len=1, global_batch=1, precision=precision),
        habits=replace(ASSUMED_HABITS, attention=ONE),
    )


def _product_s(device: DeviceSpec, result: Result) -> float:
    rows, columns, depth = (np.array([float(result.number(name))]) for name in ("rows", "columns", "depth"))
    return float(gemm_s(_job(device, Precision(result.text("format"))), rows, columns, depth)[0])


def _price_product(cluster: ClusterSpec, result: Result) -> float | None:
    """A probe's product runs alone: what a step takes of its rate is left out."""
    if Precision(result.text("format")) not in cluster.device.peak_flops_per_s:
        return None
    return _product_s(replace(cluster.device, sustained_efficiency=ONE), result)


def _price_attention(cluster: ClusterSpec, result: Result) -> float | None:
    precision = Precision(result.text("format"))
    if precision not in cluster.device.peak_flops_per_s:
        return None
    usual = replace(cluster.device, exponential_share=0.0)
    seconds = float(attention_s(_job(usual, precision), np.array([attention_flops(result)]))[0])
    return seconds * width_factor(cluster.device, result.number("width"))


def _price_memory(cluster: ClusterSpec, result: Result) -> float:
    precision = next(iter(cluster.device.peak_flops_per_s))
    return float(memory_bound_s(_job(cluster.device, precision), np.array([moved_bytes(result)]))[0])


def _price_collective(cluster: ClusterSpec, result: Result) -> float | None:
    if result.text("tier") not in [tier.name for tier in cluster.tiers]:
        return None
    n_bytes = np.array([float(result.number("bytes"))])
    return min(times * float(line.seconds(n_bytes)[0]) for times, line in lines_of(cluster, result))


FORMULAS: Mapping[str, Callable[[ClusterSpec, Result], float | None]] = {
    "product": _price_product,
    "attention": _price_attention,
    "memory": _price_memory,
    "collective": _price_collective,
}
