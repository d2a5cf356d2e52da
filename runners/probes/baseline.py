"""The machine as it is known before it is measured: a preset, a user's file, or what the system reports."""

import re
from dataclasses import dataclass, replace
from typing import Any

from runners.probes.cases import Facts
from search_spaces.cluster import ClusterSpec, DeviceSpec, TierSpec, assumed
from search_spaces.cluster_presets import (
    CLUSTER_DEFAULTS,
    DEVICE_DEFAULTS,
    INNER_TIER_DEFAULTS,
    OUTER_TIER_DEFAULTS,
    device_names,
    load_cluster,
    load_device,
)
from search_spaces.errors import check
from search_spaces.local_cluster import local_cluster
from search_spaces.units import GB, TFLOPS
from search_spaces.workload import Precision

GUESS = "before any measurement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A machine before its probes.

    Where nobody states a peak (`device_is_rated`) or a bandwidth (`network_is_rated`), the fastest probe
    stands for it; where somebody does, it stays, and the probes say how much of it programs reach.
    """

    cluster: ClusterSpec
    device_is_rated: bool
    network_is_rated: bool


def baseline(given: str | None, facts: Facts, *, n_ranks: int, n_local: int) -> Baseline:
    """What is known of the machine that `n_ranks` devices, `n_local` a node, are part of.

    Raises
    ------
    InvalidSpec
        The cluster named is another machine than this one.
    """
    if given is not None and given != "local":
        cluster = load_cluster(given, 1)
        _check_same(cluster, facts, given)
        rated = not facts.on_cpu
        return Baseline(cluster=cluster, device_is_rated=rated, network_is_rated=rated)
    check(given is None or facts.on_cpu, "the cluster local must be measured on processors", facts.device)
    if facts.on_cpu:
        cluster = _processors(facts, n_ranks=n_ranks, n_local=n_local)
        return Baseline(cluster=cluster, device_is_rated=False, network_is_rated=False)
    preset = preset_of(facts)
    device = load_device(preset) if preset else _unknown_device(facts)
    cluster = _around(device, n_ranks=n_ranks, n_local=n_local)
    return Baseline(cluster=cluster, device_is_rated=preset is not None, network_is_rated=False)


def preset_of(facts: Facts) -> str | None:
    """The accelerator preset that the driver's name means, by its words and then by memory: `NVIDIA H200`."""
    if facts.on_cpu:
        return None
    words = set(re.findall(r"[A-Z]*\d+[A-Z]*", facts.device.upper()))
    named = [name for name in device_names() if name.split("-")[0].upper() in words]
    return min(named, key=lambda name: abs(load_device(name).memory_bytes - facts.memory_bytes), default=None)


def _check_same(cluster: ClusterSpec, facts: Facts, given: str) -> None:
    device, here = cluster.device.name, preset_of(facts)
    must = f"the cluster {given} must be the machine that is measured"
    hint = "leave --cluster out, or name one with this accelerator"
    if facts.on_cpu:
        check(device not in device_names(), f"{must}: it has {device}", facts.device, hint=hint)
    elif device in device_names():
        check(here == device, f"{must}: it has {device}", facts.device, hint=hint)


def _processors(facts: Facts, *, n_ranks: int, n_local: int) -> ClusterSpec:
    """The cluster `local`, divided among so many processes."""
    local = local_cluster()
    tier = replace(local.tiers[0], size=n_local if n_ranks > n_local > 1 else None)
    tiers = (tier,) if n_ranks <= n_local else (*((tier,) if n_local > 1 else ()), _fabric())
    return replace(
        local,
        device=replace(
            local.device,
            source="memory as the operating system reports it, an equal share each; power assumed",
            memory_bytes=facts.memory_bytes / n_local,
            processes_per_core=max(n_local / facts.n_cores, 1.0),
        ),
        devices_per_node=n_local,
        max_devices=n_ranks,
        tiers=tiers,
    )


def _around(device: DeviceSpec, *, n_ranks: int, n_local: int) -> ClusterSpec:
    """A machine of which only the accelerator is known: what joins it is assumed until measured."""
    node = TierSpec(
        name="node",
        size=n_local if n_ranks > n_local else None,
        bandwidth_bytes_per_s=device.host_bandwidth_bytes_per_s,
        pair_bandwidth_bytes_per_s=device.host_bandwidth_bytes_per_s,
        devices_per_link=1,
        **INNER_TIER_DEFAULTS,
    )
    tiers = (node,) if n_ranks <= n_local else (*((node,) if n_local > 1 else ()), _fabric())
    return ClusterSpec(
        name="this machine",
        source=GUESS,
        device=device,
        n_devices=1,
        devices_per_node=n_local,
        tiers=tiers,
        max_devices=n_ranks,
        power=None,
        **CLUSTER_DEFAULTS,
    )


def _fabric() -> TierSpec:
    """Between nodes: 100 Gb/s for each device until it is measured."""
    each = 12.5 * GB
    return TierSpec(
        name="fabric",
        size=None,
        bandwidth_bytes_per_s=each,
        pair_bandwidth_bytes_per_s=each,
        devices_per_link=1,
        **OUTER_TIER_DEFAULTS,
    )


def _unknown_device(facts: Facts) -> DeviceSpec:
    """An accelerator that is no preset: its driver's facts, and speeds that only the probes will tell."""
    constants: dict[str, Any] = {**DEVICE_DEFAULTS, "gemm_efficiency": assumed(0.7, GUESS, spread=0.5)}
    return DeviceSpec(
        name=re.sub(r"[^a-z0-9]+", "-", facts.device.lower()).strip("-") or "accelerator",
        source=f"the driver of {facts.device}; speeds assumed",
        memory_bytes=facts.memory_bytes,
        memory_bandwidth_bytes_per_s=1000 * GB,
        peak_flops_per_s={Precision(each): 100 * TFLOPS for each in facts.formats},
        host_bandwidth_bytes_per_s=32 * GB,
        power_w=400.0,
        n_multiprocessors=facts.n_multiprocessors,
        **constants,
    )
