"""Targets, baselines and the page of benchmarks/accuracy.py, on a few rows and made-up numbers."""

import csv
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.accuracy import LATER, find, limit_words, markdown, page, read_blind
from benchmarks.baselines import noise_floor, trivial
from benchmarks.calibrated import Calibrated
from benchmarks.rows import DATA, trusted_runs
from benchmarks.targets import MEASURES, Target, read_table, schedule_order
from objectives.measurements import read_measurements
from objectives.validation import Accuracy, Prediction
from search_spaces.plan import Schedule

TARGETS, PEERS = read_table()


def named(target):
    return f"{target.measure} of {' '.join(target.sources) or 'all'}"


@pytest.fixture(scope="module")
def few_rows(tmp_path_factory):
    """Every row of the small sources, and no other."""
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    with DATA.open() as whole, path.open("w") as part:
        reader = csv.DictReader(whole)
        writer = csv.DictWriter(part, reader.fieldnames)
        writer.writeheader()
        writer.writerows(row for row in reader if row["source_group"] in ("korthikanti", "zero-bubble"))
    return path


@pytest.fixture(scope="module")
def runs(few_rows):
    return [run for run in trusted_runs(few_rows) if run.step_s]


def exactly(run, factor=1.0):
    """A prediction that is off by a factor."""
    assert run.step_s
    low, high = run.step_s / 2, run.step_s * 2
    return Prediction(
        run=run,
        step_s=run.step_s * factor,
        low_s=low,
        high_s=high,
        peak_memory_bytes=run.peak_memory_bytes or 1.0,
        printed_bytes=run.peak_memory_bytes or 1.0,
    )


@pytest.mark.parametrize("target", TARGETS, ids=named)
def test_a_target_can_be_measured_and_missed(target):
    known = {field.name for field in fields(Accuracy)} | set(MEASURES)
    assert target.measure.removeprefix("calibrated_") in known
    assert target.at_least is not None or target.at_most is not None
    assert isinstance(target.why, str) or set(target.why) == set(target.sources)


@pytest.mark.parametrize(
    ("low", "high", "value", "holds"),
    [(None, 0.1, 0.1, True), (None, 0.1, 0.11, False), (0.9, None, 0.8, False), (0.75, 0.85, 0.9, False)],
)
def test_a_target_holds_within_its_limits(low, high, value, holds):
    target = Target(measure="mean_ape", words="", why="", at_least=low, at_most=high)
    assert target.holds(value) is holds


def test_limits_are_said_in_per_cent():
    assert (
        limit_words(Target(measure="coverage", words="", why="", at_least=0.75, at_most=0.85))
        == "75.0 % to 85.0 %"
    )


def test_the_page_holds_every_part(few_rows):
    found = find(few_rows, is_calibrated=False)
    text = page(found)
    for heading in (
        "Targets",
        "Step time by source",
        "Memory by source",
        "Other tools",
        "What is missed, and why",
    ):
        assert f"\n## {heading}\n" in text
    assert {line.source for line in found.reached} == {"korthikanti", "zero-bubble", "all"}
    assert "playbook" not in text


def test_a_missed_target_says_why(few_rows):
    found = find(few_rows, is_calibrated=False)
    text = page(replace(found, reached=[replace(line, value=9.0) for line in found.reached]))
    misses = text.partition("## What is missed")[2]
    assert all(line.why in misses for line in found.reached if line.target.at_most is not None)


def test_a_table_is_aligned():
    assert markdown(("name", "n"), [("a", "1"), ("long", "23")]).splitlines() == [
        "| name |  n |", "| ---- | -: |", "| a    |  1 |", "| long | 23 |",
    ]  # fmt: skip


def test_runs_alike_but_for_their_schedule_are_ordered(runs):
    first = runs[0]
    other = replace(first, plan=replace(first.plan, schedule=Schedule.ZB_H1), step_s=first.step_s * 0.9)
    assert schedule_order([exactly(first), exactly(other)]) == 1.0
    assert schedule_order([exactly(first), exactly(other, 2.0)]) == 0.0
    assert schedule_order([exactly(first)]) is None


def test_the_trivial_predictor_is_right_where_all_runs_use_the_device_alike(runs):
    alike = [replace(runs[0], step_s=runs[0].step_s), replace(runs[0], step_s=runs[0].step_s)]
    errors = trivial(alike)
    np.testing.assert_allclose(errors.seen, 0.0)
    assert np.all(np.isnan(errors.unseen))


def test_the_trivial_predictor_may_take_other_sources_alone(runs):
    elsewhere = replace(runs[0], step_s=runs[0].step_s * 2, labels={**runs[0].labels, "source": "elsewhere"})
    np.testing.assert_allclose(trivial([runs[0], elsewhere]).unseen, [1.0, -0.5])


def test_noise_is_how_far_equal_plans_lie_apart(runs):
    slower = replace(runs[0], step_s=runs[0].step_s * 1.1)
    noise = noise_floor([runs[0], slower])
    assert noise is not None
    assert (noise.n_pairs, noise.median) == (1, pytest.approx(0.1))
    assert noise_floor(runs[:1]) is None


def test_without_a_calibration_there_is_no_figure():
    assert Calibrated().figure("all", "median_ape") is None


def test_figures_after_calibration_are_of_all_rows_held_back():
    groups = [answer("a", 1, 0.3), answer("a", 3, 0.1), answer("b", 9, 0.0)]
    assert Calibrated(tuple(groups)).figure("a", "mean_ape") == pytest.approx(0.15)
    assert Calibrated(tuple(groups)).figure("all", "median_ape") == 0.0


def answer(source, n_held, figure):
    """One source and accelerator as a calibration answers it."""
    return SimpleNamespace(source=source, errors=np.full(n_held, -figure))


def test_every_blind_prediction_is_of_a_run_found_afterwards():
    runs = {run.id: run for run in read_measurements(LATER).runs}
    blind = read_blind()
    assert len(blind) > 500
    assert set(blind) <= set(runs)
    assert all(each.low_s <= each.predicted_s <= each.high_s for each in blind.values())
    assert not {run.id for run in read_measurements(DATA).runs} & set(runs)
