"""Verbs that list what is known, with sources."""

from typing import Annotated, Any

import typer

from tuner.cli_flags import JsonFlag
from tuner.cli_output import show, show_json

Name = Annotated[
    str | None, typer.Argument(metavar="[NAME]", help="One of them, in detail.", show_default=False)
]


def models(name: Name = None, *, json: JsonFlag = False) -> None:
    """Model presets: their shapes, parameter counts and sources."""
    from search_spaces.model_presets import load_model, model_names
    from tuner.report import known

    loaded = [load_model(each) for each in ([name] if name else model_names())]
    if json:
        _show_table("models", [known.model_row(model) for model in loaded])
    else:
        show(known.model_details(loaded[0]) if name else known.models_table(loaded))


def clusters(name: Name = None, *, json: JsonFlag = False) -> None:
    """Cluster presets: device, node, network tiers and where each constant comes from."""
    from search_spaces.cluster_presets import cluster_names, load_cluster
    from tuner.report import known

    loaded = [load_cluster(each, n_devices=1) for each in ([name] if name else cluster_names())]
    if json:
        _show_table("clusters", [known.cluster_row(cluster) for cluster in loaded])
    else:
        show(known.cluster_details(loaded[0]) if name else known.clusters_table(loaded))


def launchers(name: Name = None, *, json: JsonFlag = False) -> None:
    """Training programs whose launch files can be written."""
    from tuner.report import known

    rows = known.launcher_rows(name)
    if json:
        _show_table("launchers", rows)
    else:
        show(known.launchers_table(rows))


def _show_table(kind: str, rows: list[dict[str, Any]]) -> None:
    show_json({"schema": f"meshtune.{kind}", "version": 1, kind: rows})
