"""What Meshtune knows by name, as tables and JSON rows; every row carries its source."""

from dataclasses import asdict, fields, is_dataclass
from importlib import import_module
from inspect import getdoc
from typing import Any

from rich.console import Group, RenderableType

from objectives.uncertainty import cluster_constants
from runners.launchers import LAUNCHERS, load_launcher
from search_spaces.cluster import ClusterSpec, Constant
from search_spaces.model import ModelSpec
from search_spaces.parameters import active_parameters, parameters_without_embeddings, total_parameters
from search_spaces.units import TFLOPS, gb, gib
from tuner.report.tables import facts, table
from tuner.report.words import count


def model_row(model: ModelSpec) -> dict[str, Any]:
    """A model with its parameter counts."""
    return {
        "name": model.name,
        "source": model.source,
        "total_parameters": total_parameters(model),
        "active_parameters": active_parameters(model),
        "parameters_without_embeddings": parameters_without_embeddings(model),
        "spec": asdict(model),
    }


def models_table(models: list[ModelSpec]) -> RenderableType:
    """All models, one a line."""
    columns = ["model", ">parameters", ">active", ">layers", ">d_model", ">heads/kv", "…source"]
    return table(columns, [_model_line(model) for model in models])


def _model_line(model: ModelSpec) -> list[str]:
    heads = f"{model.attention.n_heads}/{model.attention.n_kv_heads}"
    counts = [count(total_parameters(model)), count(active_parameters(model)) if model.moe else ""]
    return [model.name, *counts, str(model.n_layers), str(model.d_model), heads, model.source]


def model_details(model: ModelSpec) -> RenderableType:
    """One model: its counts and all its fields."""
    counts = [
        ("parameters", f"{total_parameters(model):,}"),
        ("active for one token", f"{active_parameters(model):,}"),
        ("without embeddings", f"{parameters_without_embeddings(model):,}"),
    ]
    return facts([("model", model.name), ("source", model.source), *counts, *_spec_facts(model)])


def _spec_facts(spec: object, prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for field in fields(spec):  # type: ignore[arg-type]
        value = getattr(spec, field.name)
        if is_dataclass(value) and not isinstance(value, Constant):
            rows += _spec_facts(value, f"{prefix}{field.name}.")
        elif field.name not in ("name", "source") and value is not None:
            rows.append((prefix + field.name, str(value)))
    return rows


def cluster_row(cluster: ClusterSpec) -> dict[str, Any]:
    """A cluster as it is described, without a number of devices."""
    spec = asdict(cluster)
    del spec["n_devices"]
    return {"name": cluster.name, "source": cluster.source, "spec": spec}


def clusters_table(clusters: list[ClusterSpec]) -> RenderableType:
    """All clusters, one a line."""
    columns = ["cluster", "device", ">memory", ">a node", ">at most", "…network, innermost first (GB/s)"]
    return table(columns, [_cluster_line(cluster) for cluster in clusters])


def _cluster_line(cluster: ClusterSpec) -> list[str]:
    tiers = ", ".join(f"{tier.name} {gb(tier.bandwidth_bytes_per_s):g}" for tier in cluster.tiers)
    most = f"{cluster.max_devices:,}" if cluster.max_devices else ""
    memory = f"{gib(cluster.device.memory_bytes):.0f} GiB"
    return [cluster.name, cluster.device.name, memory, str(cluster.devices_per_node), most, tiers]


def cluster_details(cluster: ClusterSpec) -> RenderableType:
    """One cluster: device, tiers, and the origin of each constant."""
    device = cluster.device
    peaks = ", ".join(f"{name} {peak / TFLOPS:g}" for name, peak in device.peak_flops_per_s.items())
    head = facts([
        ("cluster", cluster.name),
        ("source", cluster.source),
        ("devices a node", str(cluster.devices_per_node)),
        ("device", device.name),
        ("device source", device.source),
        ("memory", f"{gib(device.memory_bytes):.1f} GiB"),
        ("memory bandwidth", f"{gb(device.memory_bandwidth_bytes_per_s):,.0f} GB/s"),
        ("dense peak TFLOP/s", peaks),
    ])  # fmt: skip
    tiers = table(
        ["tier", ">devices", ">GB/s a device", ">GB/s to one other"],
        [
            [
                tier.name,
                str(tier.size or "all"),
                f"{gb(tier.bandwidth_bytes_per_s):g}",
                f"{gb(tier.pair_bandwidth_bytes_per_s):g}",
            ]
            for tier in cluster.tiers
        ],
    )
    rows = [
        [
            where,
            f"{constant.value:.4g}",
            str(constant.origin),
            f"{100 * constant.spread:.0f} %",
            constant.source,
        ]
        for where, constant in cluster_constants(cluster).items()
    ]
    return Group(head, "", tiers, "", table(["constant", ">value", "origin", ">spread", "~source"], rows))


def launcher_rows(name: str | None = None) -> list[dict[str, Any]]:
    """Launchers, or the one of that name, with what the module says of itself and its source."""
    names = [load_launcher(name).name] if name else list(LAUNCHERS)
    rows = []
    for each in names:
        title, _, rest = str(getdoc(import_module(LAUNCHERS[each].partition(":")[0]))).partition("\n\n")
        rows.append({"name": each, "title": " ".join(title.split()), "source": " ".join(rest.split())})
    return rows


def launchers_table(rows: list[dict[str, Any]]) -> RenderableType:
    """Launchers, one a line."""
    return table(
        ["launcher", "~what is written, and after which source"], [[r["name"], _told(r)] for r in rows]
    )


def _told(row: dict[str, Any]) -> str:
    return f"{row['title']} {row['source']}"
