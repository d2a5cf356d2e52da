"""What a calibration on a few rows brings on the others, on real rows."""

from pathlib import Path

import numpy as np
import pytest

from objectives.calibration import after_rows, calibrate, calibrated_runs, timed_steps
from objectives.measurements import read_measurements
from objectives.validation import accuracy, jobs_of, predict

FILE = Path(__file__).parents[2] / "benchmarks" / "data" / "measurements.csv"


@pytest.fixture(scope="module")
def runs():
    """Two sources of the same accelerator, one too small to draw from."""
    found = [run for run in read_measurements(FILE).runs if run.trusted]
    multi = [run for run in found if run.labels["source"] == "vtrain-multi"]
    return multi[:24] + [run for run in found if run.labels["source"] == "korthikanti"]


@pytest.fixture(scope="module")
def found(runs):
    return after_rows(runs, n_rows=10, seeds=(0, 1))


def test_every_large_group_has_its_figures(found):
    assert [(each.source, each.accelerator, each.n_fitted) for each in found] == [
        ("vtrain-multi", "A100-80", 10)
    ]
    (group,) = found
    assert (group.before.by, group.after.by) == ("before", "after")
    assert group.before.n == group.after.n == 2 * group.n_held


def test_runs_of_two_draws_are_not_compared(runs, found):
    timed = [run for run in runs if run.labels["source"] == "vtrain-multi" and run.step_s]
    alone = after_rows(runs, n_rows=10, seeds=(0,))[0]
    assert alone.n_held == found[0].n_held == len(timed) - 10
    assert 0 <= found[0].before.pair_order <= 1


def test_the_same_seeds_give_the_same_figures(runs, found):
    (again,), (group,) = after_rows(runs, n_rows=10, seeds=(0, 1)), found
    assert (again.before, again.after) == (group.before, group.after)
    np.testing.assert_array_equal(again.errors, group.errors)
    assert len(again.errors) == 2 * again.n_held


def test_calibrated_runs_keep_their_jobs_together(runs):
    calibration = calibrate(timed_steps(runs[:10]))
    after = calibrated_runs(runs, calibration)
    assert jobs_of(after) == jobs_of(runs)
    figures = [accuracy("", "", predict(each[:10])).median_ape for each in (runs, after)]
    assert figures[1] <= figures[0]
