"""Clusters by name, or from a user's own small TOML file.

A file says what is known of a machine; constants that it leaves out take the assumed values below, so that
ten lines suffice.  The format is described in docs/cluster-file.md.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from search_spaces.cluster import ClusterSpec, Constant, DeviceSpec, Origin, assumed
from search_spaces.documents import build, read_toml
from search_spaces.errors import InvalidSpec, UnknownName, suggest_keys
from search_spaces.local_cluster import LOCAL, local_cluster
from search_spaces.power import DevicePower, NodePower
from search_spaces.units import GB, US

PRESETS = Path(__file__).parent / "presets"

DEVICE_DEFAULTS: Mapping[str, Constant] = MappingProxyType({
    "gemm_efficiency": assumed(0.7, "default: between MI250X (0.6) and A100 (0.87)"),
    "sustained_efficiency": assumed(0.9, "default: as H100", spread=0.1),
    "attention_efficiency": assumed(0.45, "default: fused attention stays below plain products", spread=0.3),
    "memory_efficiency": assumed(0.8, "default: large element-wise kernels", spread=0.1),
    "kernel_launch_s": assumed(20 * US, "default: one operation of an eager training loop", spread=0.3),
})  # fmt: skip
CLUSTER_DEFAULTS: Mapping[str, Constant] = MappingProxyType({
    "step_fixed_s": assumed(0.02, "default: data loading, logging, host synchronisation", spread=1.0),
    "straggler_per_log2": assumed(0.01, "default: 1 % for each doubling of the nodes", spread=1.0),
    "memory_reserve_bytes": assumed(2 * GB, "default: context, collective buffers, workspaces", spread=0.5),
})  # fmt: skip
INNER_TIER_DEFAULTS: Mapping[str, Constant] = MappingProxyType({
    "latency_s": assumed(2 * US, "default: one hop inside a node", spread=0.5),
    "efficiency": assumed(0.8, "default: ring collectives over a switch", spread=0.15),
})  # fmt: skip
OUTER_TIER_DEFAULTS: Mapping[str, Constant] = MappingProxyType({
    "latency_s": assumed(5 * US, "default: one network hop between nodes", spread=0.5),
    "efficiency": assumed(0.75, "default: large messages over a network", spread=0.2),
})  # fmt: skip


def cluster_names() -> list[str]:
    """Names that `load_cluster` knows."""
    return sorted([*_names("clusters"), LOCAL])


def device_names() -> list[str]:
    """Accelerators that a cluster file may name."""
    return _names("devices")


def load_cluster(name_or_path: str, n_devices: int) -> ClusterSpec:
    """A preset's or a file's machine with that many devices.

    A text that ends in `.toml` or holds a slash is a path.

    Raises
    ------
    UnknownName
        A preset, device or key that does not exist; the nearest one is suggested.
    InvalidSpec
        A file that does not describe a machine, or a machine that cannot have so many devices.
    """
    if name_or_path == LOCAL:
        return local_cluster().with_devices(n_devices)
    if name_or_path.endswith(".toml") or "/" in name_or_path or os.sep in name_or_path:
        path = Path(name_or_path)
    elif name_or_path in cluster_names():
        path = PRESETS / "clusters" / f"{name_or_path}.toml"
    else:
        raise UnknownName("cluster", name_or_path, cluster_names())
    table: dict[str, Any] = {"name": path.stem, "source": f"the user's file {path.name}", **read_toml(path)}
    return cluster_from_table(table, name_or_path).with_devices(n_devices)


def load_device(name: str) -> DeviceSpec:
    """A preset accelerator."""
    if name not in device_names():
        raise UnknownName("device", name, device_names())
    where = f"device {name}"
    table = read_toml(PRESETS / "devices" / f"{name}.toml")
    return build(DeviceSpec, _with_power(table, DevicePower, where), where)


def cluster_from_table(table: Mapping[str, Any], where: str) -> ClusterSpec:
    """One device of a machine described by a TOML table; `with_devices` says how many there are."""
    if "n_devices" in table:
        must = f"{where} must describe a machine, not a job"
        raise InvalidSpec(must, "the key n_devices", hint="say how many with --devices")
    suggest_keys(where, table, [key for key in ClusterSpec.__dataclass_fields__ if key != "n_devices"])
    filled = _with_power(_with_constants(table, CLUSTER_DEFAULTS, where), NodePower, where)
    filled["n_devices"] = 1
    filled.setdefault("max_devices", None)
    device = filled.get("device")
    if isinstance(device, str):
        filled["device"] = _plain(load_device(device))
    elif isinstance(device, dict):
        filled["device"] = _with_power(_with_constants(device, DEVICE_DEFAULTS, where), DevicePower, where)
    if isinstance(filled.get("tiers"), list):
        filled["tiers"] = _tiers(filled["tiers"], where)
    return build(ClusterSpec, filled, where)


def _names(folder: str) -> list[str]:
    return sorted(path.stem for path in (PRESETS / folder).glob("*.toml"))


def _tiers(tiers: list[Any], where: str) -> list[Any]:
    return [_tier(tier, where, outermost=tier is tiers[-1]) for tier in tiers]


def _tier(tier: Any, where: str, *, outermost: bool) -> Any:
    if not isinstance(tier, dict):
        return tier
    filled = _with_constants(tier, OUTER_TIER_DEFAULTS if outermost else INNER_TIER_DEFAULTS, where)
    filled.setdefault("devices_per_link", 1)
    if "bandwidth_bytes_per_s" in filled:
        filled.setdefault("pair_bandwidth_bytes_per_s", filled["bandwidth_bytes_per_s"])
    if outermost:
        filled.setdefault("size", None)
    return filled


def _with_constants(table: Mapping[str, Any], defaults: Mapping[str, Constant], where: str) -> dict[str, Any]:
    """The table with every constant spelled out: left out is the default, a plain number is assumed."""
    filled = dict(table)
    names = [*defaults, "device_hour_price"]
    for name in names:
        value = filled.get(name, defaults.get(name))
        if value is not None:
            filled[name] = _spelled_out(value, where)
    return filled


def _with_power(table: Mapping[str, Any], kind: type[DevicePower | NodePower], where: str) -> dict[str, Any]:
    """The table with what it says of power spelled out; what it leaves out is left to the defaults."""
    power = table.get("power")
    if not isinstance(power, dict):
        return dict(table)
    suggest_keys(f"{where}: power", power, list(kind.__dataclass_fields__))
    return {**table, "power": {name: _spelled_out(value, where) for name, value in power.items()}}


def _spelled_out(value: Any, where: str) -> Any:
    """A constant as a document holds it; a plain number counts as assumed."""
    if isinstance(value, Constant):
        return _plain(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"value": value, "origin": Origin.ASSUMED, "source": f"given in {where}", "spread": 0.2}
    return value


def _plain(spec: Any) -> Any:
    """A spec as the tables and lists that a document would hold."""
    if hasattr(spec, "__dataclass_fields__"):
        return {name: _plain(getattr(spec, name)) for name in spec.__dataclass_fields__}
    return spec
