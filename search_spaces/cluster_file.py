"""A cluster as the TOML file that `load_cluster` reads back; the format is docs/cluster-file.md's."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from search_spaces.cluster import ClusterSpec, Constant, DeviceSpec
from search_spaces.cluster_presets import device_names, load_device
from search_spaces.units import MILLION

NOT_WRITTEN = ("n_devices",)  # a file describes a machine, not a job
DELETE = "\x7f"  # the one control character that JSON leaves as it is and TOML forbids


def cluster_toml(cluster: ClusterSpec, notes: Mapping[str, str] = MappingProxyType({})) -> str:
    """The whole machine as text; an accelerator that is a preset's is named, any other is spelled out.

    `notes` are comments for numbers that hold no origin of their own, by place: `node.bandwidth_bytes_per_s`.
    """
    table = _table(cluster)
    tiers, device = table.pop("tiers"), cluster.device
    lines = [*_lines(table)]
    if _is_preset(device):
        lines.append(f"device = {_value(device.name)}")
    if cluster.power is not None:
        lines += ["", "[power]", *_lines(_table(cluster.power))]
    if not _is_preset(device):
        table = _table(device)
        peaks = table.pop("peak_flops_per_s")
        lines += ["", "[device]", *_lines(table, notes, "device.")]
        lines += ["", "[device.peak_flops_per_s]", *_lines(peaks, notes, "device.peak_flops_per_s.")]
        if device.power is not None:
            lines += ["", "[device.power]", *_lines(_table(device.power))]
    for tier in tiers:
        lines += ["", "[[tiers]]", *_lines(_table(tier), notes, f"{tier.name}.")]
    return "\n".join(lines) + "\n"


def _is_preset(device: DeviceSpec) -> bool:
    return device.name in device_names() and load_device(device.name) == device


def _table(spec: Any) -> dict[str, Any]:
    """A spec's fields; what is None is left out, as the reader expects."""
    values = {each.name: getattr(spec, each.name) for each in fields(spec) if each.name not in NOT_WRITTEN}
    return {name: value for name, value in values.items() if value is not None}


def _lines(
    table: Mapping[str, Any], notes: Mapping[str, str] = MappingProxyType({}), owner: str = ""
) -> Iterable[str]:
    """A line for each value; a spec that needs a table of its own is written elsewhere."""
    for name, value in table.items():
        if not is_dataclass(value) or isinstance(value, Constant):
            note = f"  # {notes[owner + name]}" if owner + name in notes else ""
            yield f"{name} = {_value(value)}{note}"


def _value(value: Any) -> str:
    if isinstance(value, Constant):
        pairs = (f"{name} = {_value(each)}" for name, each in _table(value).items())
        return "{ " + ", ".join(pairs) + " }"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(str(value), ensure_ascii=False).replace(DELETE, "\\u007f")
    if isinstance(value, float) and value >= MILLION:
        return np.format_float_scientific(value, trim="-", exp_digits=1)
    return repr(value)
