"""The verb calibrate: the file it writes, its document, its table, and what it says of bad input."""

import csv
from pathlib import Path

import jsonschema
import pytest

from search_spaces.cluster import Origin
from search_spaces.cluster_presets import load_cluster
from tests.tuner.cli import JOB, complaint, meshtune
from tests.tuner.schemas import COUNT, FINITE, NUMBER, TEXT, document, many, maybe, record

FILE = Path(__file__).parents[2] / "benchmarks" / "data" / "measurements.csv"
CONSTANT = record(value=FINITE, origin={"enum": list(Origin)}, source=TEXT, spread=FINITE)
CALIBRATE = document(
    "calibrate",
    cluster=TEXT,
    file=TEXT,
    rows=COUNT,
    used=COUNT,
    left_out={"type": "object", "additionalProperties": COUNT},
    rejected=many(record(id=TEXT, line=COUNT, reason=TEXT)),
    helped={"type": "boolean"},
    kept_share={"type": "number", "minimum": 0, "maximum": 1},
    scatter=FINITE,
    held_back=record(
        n_folds=COUNT,
        preset_median_error=FINITE,
        preset_mean_error=FINITE,
        fitted_median_error=FINITE,
        fitted_mean_error=FINITE,
    ),
    constants=many(record(name=TEXT, before=CONSTANT, after=CONSTANT, determined={"type": "boolean"}), 1),
    undetermined=many(TEXT),
    held_up=maybe(record(wait_s=FINITE, lines=many(COUNT))),
    correlated=many(record(first=TEXT, second=TEXT, correlation=NUMBER)),
    outliers=many(record(id=TEXT, line=COUNT, step_time_s=FINITE, predicted_s=FINITE)),
)


@pytest.fixture(scope="module")
def rows():
    """Runs of one trainer on H100 nodes, a fifth slower than measured: a machine that a fit must find."""
    with FILE.open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["id"].startswith("mosaic-00")]
    slowed = [
        {**row, "step_time_s": str(1.2 * float(row["step_time_s"])), "tokens_per_s_per_gpu": ""}
        for row in found
        if row["accelerator"] == "H100-80" and row["outcome"] == "ok"
    ]
    return slowed[::3]


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    write(folder / "runs.csv", [*rows, other(rows[0], accelerator="A100-80"), other(rows[0], dp="3")])
    return folder


@pytest.fixture(scope="module")
def answer(folder):
    words = ("--from", folder / "runs.csv", "--cluster", "dgx-h100", "-o", folder / "mine.toml", "--json")
    return meshtune("calibrate", *words)


def other(row, **cells):
    """The row with other cells and no id, which must differ from row to row."""
    return row | {"id": ""} | cells


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_document_has_the_documented_form(answer):
    assert answer.code == 0
    jsonschema.validate(answer.document, CALIBRATE)


def test_every_row_is_used_left_out_or_rejected(answer, rows):
    found = answer.document
    assert found["rows"] == found["used"] + sum(found["left_out"].values()) + len(found["rejected"])
    assert found["used"] == len(rows)
    assert "left out: 1 rows: accelerator A100-80, not h100-80" in answer.err
    assert f"line {len(rows) + 3}: " in answer.err


def test_rows_held_back_are_predicted_better(answer):
    held = answer.document["held_back"]
    assert held["fitted_median_error"] < held["preset_median_error"]
    assert held["fitted_mean_error"] < held["preset_mean_error"]


def test_the_file_is_a_cluster_with_the_fitted_constants(answer, folder):
    machine, preset = load_cluster(str(folder / "mine.toml"), 64), load_cluster("dgx-h100", 64)
    fitted = {each["name"]: each["after"] for each in answer.document["constants"]}
    attention = machine.device.attention_efficiency
    assert (
        attention.value
        == fitted["device.attention_efficiency"]["value"]
        < preset.device.attention_efficiency.value
    )
    assert attention.origin is Origin.FITTED
    assert attention.spread < preset.device.attention_efficiency.spread
    assert "runs of runs.csv" in attention.source
    assert (machine.name, machine.memory_reserve_bytes) == ("mine", preset.memory_reserve_bytes)
    assert machine.tiers[1].latency_s == preset.tiers[1].latency_s


def test_other_verbs_take_the_file(answer, folder):
    flags = [str(folder / "mine.toml") if word == "dgx-h100" else word for word in JOB]
    words = ("--plan", "tp=2 pp=1 dp=8 micro_batch=1 zero=1 sequence_parallel=true", "--json")
    mine, preset = (meshtune("estimate", *job, *words).document["step_time_s"] for job in (flags, JOB))
    assert mine > preset


def test_the_file_predicts_its_own_runs_better(answer, folder):
    medians = [
        meshtune("validate", folder / "runs.csv", "--cluster", name, "--json").document["groups"][0][
            "median_ape"
        ]
        for name in ("dgx-h100", folder / "mine.toml")
    ]
    assert medians[1] < medians[0] / 2


def test_the_screen_says_what_is_left_open(folder):
    answer = meshtune(
        "calibrate", "--from", folder / "runs.csv", "--cluster", "dgx-h100", "-o", folder / "again.toml"
    )
    for words in (
        "median error",
        "determined",
        "device.attention_efficiency",
        "without effect",
        "fabric.latency_s",
    ):
        assert words in answer.out
    assert "wrote " in answer.err


def test_a_slip_of_the_unit_is_named(rows, tmp_path):
    slipped = {**rows[4], "id": "slip", "step_time_s": str(60 * float(rows[4]["step_time_s"]))}
    path = write(tmp_path / "runs.csv", [*rows, slipped])
    found = meshtune(
        "calibrate", "--from", path, "-o", tmp_path / "a.toml", "--cluster", "dgx-h100", "--json"
    )
    assert "slip" in [each["id"] for each in found.document["outliers"]]


def test_without_a_name_the_rows_must_agree_on_their_machine(rows, tmp_path):
    path = write(tmp_path / "runs.csv", rows)
    assert meshtune("calibrate", "--from", path, "-o", tmp_path / "a.toml", "--json").document["used"] == len(
        rows
    )
    path = write(tmp_path / "runs.csv", [*rows, other(rows[0], accelerator="A100-80", step_time_s="99")])
    said = complaint("calibrate", "--from", path, "-o", tmp_path / "b.toml")
    assert "the rows must agree on their machine; got 2 machines: " in said
    assert "name one with --cluster" in said
    assert not (tmp_path / "b.toml").exists()


def test_a_fit_that_does_not_help_is_a_no_and_the_machine_as_it_was(rows, tmp_path):
    mixed = [
        {**row, "step_time_s": str(float(row["step_time_s"]) * (5 if i % 2 else 0.3))}
        for i, row in enumerate(rows)
    ]
    path = write(tmp_path / "runs.csv", mixed)
    answer = meshtune(
        "calibrate", "--from", path, "--cluster", "dgx-h100", "-o", tmp_path / "same.toml", "--json"
    )
    assert answer.code in (0, 1)
    held = answer.document["held_back"]
    assert held["fitted_median_error"] <= held["preset_median_error"]
    if not answer.document["helped"]:
        assert answer.code == 1
        assert "holds dgx-h100 as it was" in answer.err
        same, preset = load_cluster(str(tmp_path / "same.toml"), 8), load_cluster("dgx-h100", 8)
        assert (same.device, same.tiers) == (preset.device, preset.tiers)


def test_bad_input_is_one_sentence(rows, tmp_path):
    path, out = write(tmp_path / "runs.csv", rows), tmp_path / "a.toml"
    assert "must be a readable text file" in complaint(
        "calibrate", "--from", tmp_path / "none.csv", "-o", out
    )
    assert "cluster must be one of" in complaint(
        "calibrate", "--from", path, "--cluster", "dgx-h1000", "-o", out
    )
    assert "must be a .toml file" in complaint("calibrate", "--from", path, "-o", tmp_path / "a.txt")
    assert "none that can be used; " in complaint(
        "calibrate", "--from", path, "--cluster", "frontier", "-o", out
    )
    few = write(tmp_path / "few.csv", rows[:2])
    assert "needs 3 measured steps; got 2" in complaint("calibrate", "--from", few, "-o", out)
    assert not out.exists()


def test_runs_that_something_held_up_are_told_apart_and_counted(tmp_path):
    """Published runs of one cluster, some of which took seconds longer than any constant explains."""
    with FILE.open(newline="") as file:
        published = [
            row for row in csv.DictReader(file) if "Playbook" in row["source"] and row["step_time_s"]
        ]
    path = write(tmp_path / "runs.csv", published[::12])
    words = ("calibrate", "--from", path, "-o", tmp_path / "mine.toml")
    found = meshtune(*words, "--json").document
    jsonschema.validate(found, CALIBRATE)
    assert 0.1 < found["held_up"]["wait_s"] < 1.0
    waiting = len(found["held_up"]["lines"])
    assert 3 <= waiting < found["used"] / 2
    assert f"held up          {waiting} runs, set apart" in meshtune(*words).out
