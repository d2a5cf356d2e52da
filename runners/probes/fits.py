"""From probes to a cluster: every number that they determine, marked as measured; the others as they were."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from objectives.uncertainty import cluster_constants
from runners.probes.baseline import Baseline
from runners.probes.cases import Facts
from runners.probes.fit_device import DeviceFit, fit_device
from runners.probes.fit_network import fit_tier
from runners.probes.layout import out_of_reach
from runners.probes.predictions import group_words
from runners.probes.record import Result
from search_spaces.cluster import ClusterSpec, Constant, DeviceSpec, TierSpec
from search_spaces.workload import Precision

NO_SPEED = ("device_hour_price",)
UNASKED = {
    "step_fixed_s": "a whole training step tells it",
    "straggler_per_log2": "steps on several nodes tell it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number of the machine before and after its probes; `before` is plain where the file's is."""

    name: str
    before: float
    after: Constant
    n_probes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How much longer computation and a collective take beside each other; 1 is no longer."""

    group: str
    compute_slowdown: float
    collective_slowdown: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The machine after its probes, what changed, what stays assumed and why, and what needs saying."""

    cluster: ClusterSpec
    before: ClusterSpec
    figures: tuple[Figure, ...]
    overlaps: tuple[Overlap, ...]
    not_measured: Mapping[str, str]
    remarks: tuple[str, ...]


def source_of(facts: Facts, n_ranks: int, results: Mapping[str, Result]) -> str:
    """`probes of 2026-05-01, 2 processes at once on AMD EPYC, 2 cores, torch 2.13.0`."""
    days = sorted({each.date for each in results.values() if each.date})
    when = " to ".join(dict.fromkeys((days[0], days[-1]))) if days else "an unknown day"
    what = "process" if facts.on_cpu else "device"
    number = f"{n_ranks} {what}{'es' if facts.on_cpu and n_ranks > 1 else 's' * (n_ranks > 1)} at once"
    return f"probes of {when}, {number} on {facts.words()}"


def fit_machine(
    base: Baseline, results: Mapping[str, Result], *, facts: Facts, n_ranks: int, name: str
) -> Fitted:
    """Fit every constant that the probes determine."""
    before = base.cluster
    source = source_of(facts, n_ranks, results)
    found = list(results.values())
    fit = fit_device(before.device, found, source=source, is_rated=base.device_is_rated)
    tiers = tuple(_tier(tier, base, found, fit) for tier in before.tiers)
    cluster = replace(before, name=name, source=f"{before.source}; {source}", device=_told(fit), tiers=tiers)
    cluster = _with_reserve(cluster, found, fit)
    return Fitted(
        cluster=cluster,
        before=before,
        figures=tuple(_figures(before, cluster, fit)),
        overlaps=tuple(_overlaps(found)),
        not_measured=_open(cluster, n_ranks, fit.n_probes),
        remarks=tuple(fit.remarks),
    )


def _told(fit: DeviceFit) -> DeviceSpec:
    """The device with the origin of its plain numbers in its source, where a reader of the file finds it."""
    names = [name.removeprefix("device.") for name in fit.rates if name.startswith("device.")]
    if not names:
        return fit.device
    return replace(fit.device, source=f"{fit.device.source}; {fit.source}: {', '.join(names)}")


def _tier(tier: TierSpec, base: Baseline, results: list[Result], fit: DeviceFit) -> TierSpec:
    """A tier with the line of its own collectives; those over several tiers only check it."""
    pure = [each for each in results if each.kind == "collective" and _is_pure(each, tier, base.cluster)]
    if not pure:
        return tier
    line = fit_tier(tier, pure)
    if line.latency_s is not None:
        tier = replace(tier, latency_s=fit.measured(line.latency_s, line.latency_spread))
        fit.n_probes[f"{tier.name}.latency_s"] = len(pure)
    if line.bandwidth_bytes_per_s is None:
        return tier
    rated = tier.bandwidth_bytes_per_s
    if not base.network_is_rated:
        ratio = line.fastest_bytes_per_s / rated
        pair = ratio * tier.pair_bandwidth_bytes_per_s
        tier = replace(tier, bandwidth_bytes_per_s=line.fastest_bytes_per_s, pair_bandwidth_bytes_per_s=pair)
        for name, value in (("bandwidth", line.fastest_bytes_per_s), ("pair_bandwidth", pair)):
            place = f"{tier.name}.{name}_bytes_per_s"
            fit.rates[place], fit.n_probes[place] = fit.measured(value, line.bandwidth_spread), len(pure)
    share = line.bandwidth_bytes_per_s / tier.bandwidth_bytes_per_s
    if share > 1:
        fit.remarks.append(f"{tier.name}.efficiency would be {share:.2f}: the rated bandwidth is too low")
    fit.n_probes[f"{tier.name}.efficiency"] = len(pure)
    return replace(tier, efficiency=fit.measured(min(share, 1.0), line.bandwidth_spread))


def _is_pure(result: Result, tier: TierSpec, cluster: ClusterSpec) -> bool:
    """Whether its groups have one member in each domain inside the tier."""
    inner = [each.size for each in cluster.tiers[: cluster.tiers.index(tier)]]
    return result.what["tier"] == tier.name and result.number("stride") == (inner[-1] if inner else 1)


def _with_reserve(cluster: ClusterSpec, results: list[Result], fit: DeviceFit) -> ClusterSpec:
    readings = [each for each in results if each.kind == "reserve"]
    if not readings:
        return cluster
    fit.n_probes["memory_reserve_bytes"] = 1
    reserve = fit.measured(max(readings[0].readings["bytes"]), readings[0].spread("bytes"))
    return replace(cluster, memory_reserve_bytes=reserve)


def _figures(before: ClusterSpec, after: ClusterSpec, fit: DeviceFit) -> Iterator[Figure]:
    """Plain numbers first, then constants, as the file has them."""
    known, found = cluster_constants(before), cluster_constants(after)
    for name, rate in fit.rates.items():
        yield Figure(name=name, before=_plain(before, name), after=rate, n_probes=fit.n_probes[name])
    for name, constant in found.items():
        if name in fit.n_probes:
            was = known[name].value if name in known else 0.0
            yield Figure(name=name, before=was, after=constant, n_probes=fit.n_probes[name])


def _plain(cluster: ClusterSpec, name: str) -> float:
    """A plain number by its place; 0 where it was not there."""
    owner, _, field = name.partition(".")
    if owner == "device":
        field, _, precision = field.partition(".")
        if precision:
            return cluster.device.peak_flops_per_s.get(Precision(precision), 0.0)
        return float(getattr(cluster.device, field))
    return float(next(getattr(tier, field) for tier in cluster.tiers if tier.name == owner))


def _overlaps(results: list[Result]) -> Iterator[Overlap]:
    for each in results:
        if each.kind == "overlap":
            yield Overlap(
                group=group_words(each),
                compute_slowdown=each.median("compute_beside_s") / each.median("compute_alone_s"),
                collective_slowdown=each.median("collective_beside_s") / each.median("collective_alone_s"),
            )


def _open(cluster: ClusterSpec, n_ranks: int, measured: Mapping[str, int]) -> dict[str, str]:
    """Constants that no probe of this run stands behind, and why."""
    far = out_of_reach(cluster, n_ranks)
    why = {name: UNASKED[name] for name in UNASKED}
    reasons = {}
    for name, constant in cluster_constants(cluster).items():
        if name in measured or name in NO_SPEED:
            continue
        tier = name.rpartition(".")[0]
        reason = (
            f"{n_ranks} at once do not reach this tier" if tier in far else why.get(name, "not probed yet")
        )
        reasons[name] = f"{constant.origin}: {reason}"
    return reasons
