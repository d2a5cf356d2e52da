"""A study's finished trials as a measurements file, for `validate`, `calibrate --from` and replays."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from objectives.measurements.writing import Provenance, measurements_text, row_of
from search_spaces.cluster_file import cluster_toml
from search_spaces.cluster_presets import cluster_names
from tuner.ran import what_ran
from tuner.view import StudyView


def study_rows(
    view: StudyView, *, cluster: str, source: str = "", facts: dict[str, str] | None = None
) -> list[dict[str, str]]:
    """A row for each trial that counts, failures and proxies too.

    `cluster` is a preset's name or a file beside them; `facts` are of the machine, and stand in each row's
    `extra`.
    """
    return [
        row_of(
            *what_ran(view, trial),
            trial.outcome,
            Provenance(
                id=f"{view.name}-{trial.number}",
                source=source or view.name,
                cluster=cluster,
                date=trial.ended.date().isoformat() if trial.ended else "",
                facts=facts or {},
            ),
        )
        for trial in view.finished
        if trial.plan is not None and trial.outcome is not None
    ]


def write_rows(rows: Iterable[dict[str, str]], path: Path) -> None:
    """The file, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(measurements_text(rows), encoding="utf-8")
    partial.replace(path)


def write_studies(views: Sequence[StudyView], path: Path) -> None:
    """All trials of some studies of one machine in one file; a machine that is no preset lies beside it."""
    machine = views[0].inputs.cluster
    cluster = machine.name
    if cluster not in cluster_names():
        beside = path.with_suffix(".cluster.toml")
        beside.write_text(cluster_toml(machine), encoding="utf-8")
        cluster = beside.name
    write_rows([row for view in views for row in study_rows(view, cluster=cluster)], path)
