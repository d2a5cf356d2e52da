"""The verb validate: its document, its page, its table, and what it says of bad input."""

import csv
import re
from pathlib import Path

import jsonschema
import pytest

from tests.tuner.cli import complaint, meshtune
from tests.tuner.schemas import COUNT, FINITE, NUMBER, TEXT, document, many, maybe, record

FILE = Path(__file__).parents[2] / "benchmarks" / "data" / "measurements.csv"
INTERVAL = {"type": "array", "items": FINITE, "minItems": 2, "maxItems": 2}
FIGURES = (
    "median_ape", "mean_ape", "p90_ape", "bias", "pair_order", "regret", "coverage", "memory_mean_ape",
    "memory_median_ape", "failed_auc",
)  # fmt: skip
VALIDATE = document(
    "validate",
    rows=COUNT,
    used=COUNT,
    left_out=COUNT,
    rejected=many(record(id=TEXT, line=COUNT, reason=TEXT)),
    groups=many(
        record(
            by=TEXT, name=TEXT, n=COUNT, n_memory=COUNT, n_failed=COUNT,
            **{name: maybe(NUMBER) for name in FIGURES},
        ),
        1,
    ),
    predictions=many(
        record(
            id=TEXT, outcome=TEXT, step_time_s=maybe(FINITE), predicted_s=FINITE, interval_s=INTERVAL,
            peak_memory_bytes=maybe(FINITE), predicted_bytes=FINITE, notes=many(TEXT), readings=COUNT,
        ),
        1,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    with FILE.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def runs(rows, tmp_path_factory):
    """Every fiftieth row, and one that contradicts itself."""
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    write(path, [*rows[::50], {**rows[-1], "step_time_s": "1e-9", "outcome": "ok"}])
    return path


@pytest.fixture(scope="module")
def answer(runs):
    return meshtune("validate", runs, "--json", "--html", runs.parent / "page.html")


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_document_has_the_documented_form(answer):
    assert answer.code == 0
    jsonschema.validate(answer.document, VALIDATE)


def test_the_counts_add_up(answer):
    found = answer.document
    assert found["rows"] == found["used"] + found["left_out"] + len(found["rejected"])
    assert len(found["predictions"]) == found["used"]


def test_a_bad_row_is_told_with_its_line(answer, runs):
    line = len(runs.read_text().splitlines())
    assert f"line {line}: step_time_s of 1e-09" in answer.err


def test_open_rows_are_counted_and_their_readings_told(rows, tmp_path):
    path = write(tmp_path / "runs.csv", [rows[0], rows[1] | {"recompute": "unknown"}])
    found = meshtune("validate", path, "--json").document["predictions"]
    assert [each["readings"] for each in found] == [1, 3]
    assert "recompute not stated" in " ".join(found[1]["notes"])
    words = " ".join(meshtune("validate", path).out.split())
    assert "1 may mean several plans: their intervals span them all" in words


def test_the_page_has_the_plots_and_needs_no_network(answer, runs):
    page = (runs.parent / "page.html").read_text()
    assert page.count('class="plot"') == 3
    assert '"type": "log"' in page
    assert '"type": "histogram"' in page
    assert "src=" not in page[: page.index("<script>")]


def test_the_legend_gives_each_colour_its_sources(answer, runs):
    page = (runs.parent / "page.html").read_text()
    legends = re.findall(r'<li><i style="background:(#[0-9a-f]{6})"></i>([^<]+)</li>', page)
    sources = {group["name"] for group in answer.document["groups"] if group["by"] == "source"}
    named = {name for _, names in legends for name in names.split(", ")}
    assert named <= sources
    assert named


def test_the_screen_shows_every_grouping(runs):
    answer = meshtune("validate", runs)
    for word in ("source", "accelerator", "model kind", "parallelism", "framework", "regret", "in 80 %"):
        assert word in answer.out


def test_all_counts_what_is_left_out(runs, answer):
    every = meshtune("validate", runs, "--all", "--json").document
    assert every["left_out"] == 0
    assert every["used"] == answer.document["used"] + answer.document["left_out"]


def test_one_cluster_for_every_row(rows, tmp_path):
    path = write(tmp_path / "runs.csv", [row for row in rows if row["id"] == "vtrain-multi-0000"])
    as_said, faster = (
        meshtune("validate", path, "--json", *flags).document["predictions"][0]["predicted_s"]
        for flags in ([], ["--cluster", "dgx-h100"])
    )
    assert faster < as_said


def test_nothing_to_compare_is_a_no(rows, tmp_path):
    path = write(tmp_path / "runs.csv", [row | {"suspect": "1"} for row in rows[:3]])
    answer = meshtune("validate", path, "--json")
    assert (answer.code, answer.document["used"]) == (1, 0)
    assert "no row can be compared" in answer.err


def test_bad_input_is_one_sentence(tmp_path, runs):
    assert "must be a readable text file" in complaint("validate", tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert "must have the columns" in complaint("validate", tmp_path / "other.csv")
    assert "the output must" in complaint("validate", runs, "--html", tmp_path)
    assert "cluster must be one of" in complaint("validate", runs, "--cluster", "dgx-h1000")
