"""What probes found as a JSON document, and as the cluster file with a comment for every plain number."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from search_spaces.cluster_file import cluster_toml
from tuner.probing import ProbeReport
from tuner.report.documents import document
from tuner.report.words import percent


def probe_toml(report: ProbeReport) -> str:
    """The cluster file: what holds no origin of its own has it as a comment, and so has what has no key."""
    figures = report.fitted.figures
    notes = {each.name: f"measured, spread {percent(each.after.spread)}" for each in figures}
    plain = {name: note for name, note in notes.items() if name.rpartition(".")[2] not in _constants(report)}
    heads = [f"# measured by meshtune calibrate: {report.n_ranks} at once on {report.facts.words()}"]
    heads += [f"# beside each other: {words}" for words in overlap_words(report)]
    return "\n".join([*heads, "", cluster_toml(report.fitted.cluster, plain)])


def _constants(report: ProbeReport) -> set[str]:
    """Names of fields that hold their origin themselves."""
    return {
        name.rpartition(".")[2]
        for name in report.fitted.not_measured.keys() | {each.name for each in report.fitted.figures}
        if not name.endswith("_per_s") and "peak_flops_per_s" not in name
    }


def overlap_words(report: ProbeReport) -> list[str]:
    """`all-reduce of 2 (machine): products take 1.20 times as long, it takes 1.85 times as long`."""
    return [
        f"{each.group}: products take {each.compute_slowdown:.2f} times as long, "
        f"the collective {each.collective_slowdown:.2f} times"
        for each in report.fitted.overlaps
    ]


def probe_document(report: ProbeReport, out: Path) -> dict[str, Any]:
    """What `calibrate --json` prints without runs; errors and spreads are fractions."""
    fitted = report.fitted
    body = {
        "cluster": fitted.cluster.name,
        "file": str(out),
        "probes_file": str(report.file.path),
        "machine": asdict(report.facts) | {"formats": list(report.facts.formats)},
        "devices": report.n_ranks,
        "ended": str(report.ended),
        "probes": {"all": len(report.cases), "measured": len(report.file.results)},
        "failed": report.file.failed,
        "missing": report.missing,
        "constants": [
            {"name": each.name, "before": each.before, "after": asdict(each.after), "probes": each.n_probes}
            for each in fitted.figures
        ],
        "overlap": [asdict(each) for each in fitted.overlaps],
        "not_measured": dict(fitted.not_measured),
        "remarks": list(fitted.remarks),
        "comparisons": [
            {
                "group": each.group,
                "kind": each.result.kind,
                "what": dict(each.result.what),
                "measured_s": each.measured_s,
                "spread": each.result.spread(),
                "before_s": each.before_s,
                "predicted_s": each.predicted_s,
            }
            for each in report.comparisons
        ],
    }
    return document("measure", body)
