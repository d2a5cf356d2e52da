"""A row's accelerator, node size and words about its network as a cluster.

4x100Gb, 8 x 400G        links of a node, Gb/s each
800 Gb/s a node          a node's links together
400 Gb/s per GPU         one device's
"""

import re
from dataclasses import replace
from pathlib import Path

from objectives.measurements.cells import BadRow, Cells
from objectives.measurements.tables import NetworkWords, WordTables
from search_spaces.cluster import ClusterSpec, Constant, Origin, TierSpec
from search_spaces.cluster_presets import cluster_names, device_names, load_cluster, load_device
from search_spaces.errors import MeshtuneError
from search_spaces.local_cluster import LOCAL
from search_spaces.units import GB

_LINKS = re.compile(r"(\d+)\s*x\s*(\d+)\s*G(?:b|\b)")  # Gb is bits, GB would be bytes
_TOTAL = re.compile(r"(\d+)\s*Gb(?:it)?/s\s*(?:a|per|/)\s*(node|GPU|device)")
_BITS = 8

Described = tuple[ClusterSpec, list[str]]  # a cluster, and what a row leaves open of it


def cluster_of(
    cells: Cells, tables: WordTables, override: str | None = None, *, folder: Path | None = None
) -> Described:
    """The row's machine with as many devices as it used, and what the row leaves open.

    `override` names one cluster for every row, whatever the row says; a row's own file lies in the folder.

    Raises
    ------
    BadRow
        An accelerator that nobody described, or devices that do not fill nodes.
    """
    n_devices = cells.needed("n_gpus")
    text = cells.text("cluster")
    try:
        if override:
            return load_cluster(override, n_devices), []
        if text in (LOCAL, *cluster_names()):
            return load_cluster(text, n_devices), []
        if text.endswith(".toml"):
            return load_cluster(str((folder or Path()) / text), n_devices), []
        return _described(cells, tables, text, n_devices)
    except MeshtuneError as error:
        raise BadRow(f"{error.must}; got {error.given}") from None


def _described(cells: Cells, tables: WordTables, text: str, n_devices: int) -> Described:
    device = tables.device(cells.text("accelerator"))
    words = tables.network(text)
    preset = (words.preset if words else "") or tables.accelerators.get(device, "")
    if device not in device_names() or not preset:
        raise BadRow(f"accelerator must be one of {', '.join(device_names())}; got {device!r}")
    base = load_cluster(preset, 1)
    notes = [] if base.device.name == device else [f"network as in {preset}, device {device}"]
    per_node = cells.count("gpus_per_node") or base.devices_per_node
    tiers = _with_node(base, per_node)
    fabric = _fabric_bytes_per_s(text, per_node)
    if not words and fabric is None and n_devices > (tiers[0].size or n_devices):
        notes.append(f"network not stated: as in {preset}")
    cluster = replace(
        base,
        device=load_device(device),
        devices_per_node=per_node,
        tiers=(*tiers[:-1], _with_fabric(tiers[-1], text, fabric, words)),
        max_devices=None,
    )
    return cluster.with_devices(n_devices), notes


def _with_node(base: ClusterSpec, per_node: int) -> tuple[TierSpec, ...]:
    """The preset's tiers, its node as large as the row's; a domain of several nodes stays what it is."""
    if per_node == base.devices_per_node:
        return base.tiers
    return tuple(
        replace(tier, size=per_node) if tier.size == base.devices_per_node else tier for tier in base.tiers
    )


def _with_fabric(
    tier: TierSpec, text: str, bytes_per_s: float | None, words: NetworkWords | None
) -> TierSpec:
    """The outermost tier with what the row's words and the table say of it."""
    named = words.fabric_bytes_per_s if words else None
    chosen = named or bytes_per_s
    if chosen and not (words and words.preset):
        tier = replace(tier, bandwidth_bytes_per_s=chosen, pair_bandwidth_bytes_per_s=chosen)
    if words and words.fabric_efficiency:
        fitted = Constant(value=words.fabric_efficiency, origin=Origin.FITTED, source=text, spread=0.3)
        tier = replace(tier, efficiency=fitted)
    return tier


def _fabric_bytes_per_s(text: str, per_node: int) -> float | None:
    """One device's share of the network, one direction, as the text states it."""
    if found := _LINKS.search(text):
        return int(found[1]) * int(found[2]) * GB / _BITS / per_node
    if found := _TOTAL.search(text):
        whole = int(found[1]) * GB / _BITS
        return whole if found[2].lower() != "node" else whole / per_node
    return None
