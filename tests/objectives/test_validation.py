"""Figures of error on made-up numbers with known answers, and predictions of real rows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from objectives.cost.step import estimate, stage_profile
from objectives.measurements import RunOutcome, read_measurements
from objectives.measurements.tables import MemoryStage
from objectives.validation import (
    Prediction,
    accuracies,
    accuracy,
    area_under_curve,
    ordered_pairs,
    predict,
    regret,
)
from search_spaces.plan import Plans, Recompute

FILE = Path(__file__).parents[2] / "benchmarks" / "data" / "measurements.csv"


@pytest.fixture(scope="module")
def runs():
    found = read_measurements(FILE).runs
    return [run for run in found if run.trusted and run.id.startswith(("playbook-00", "vtrain-multi"))]


def made_up(run, measured_s, predicted_s, *, factor=1.1, **changes):
    """A prediction of one run with figures of the test's choice."""
    run = replace(run, step_s=measured_s, peak_memory_bytes=50.0, **changes)
    low, high = predicted_s / factor, predicted_s * factor
    return Prediction(
        run=run, step_s=predicted_s, low_s=low, high_s=high, peak_memory_bytes=60.0, printed_bytes=60.0
    )


@pytest.mark.parametrize(
    ("measured", "predicted", "right", "pairs"),
    [
        ([1, 2, 3], [1, 2, 3], 3, 3),
        ([1, 2, 3], [3, 2, 1], 0, 3),
        ([1, 2, 3], [1, 3, 2], 2, 3),
        ([1, 2, 3], [5, 5, 5], 1.5, 3),
        ([1, 1, 2], [2, 1, 3], 2, 2),
    ],
    ids=["right", "reversed", "one wrong", "no opinion", "equal runs are no pair"],
)
def test_pairs_in_the_right_order(measured, predicted, right, pairs):
    assert ordered_pairs(np.array(measured, float), np.array(predicted, float)) == (right, pairs)


def test_regret_is_what_the_choice_costs():
    assert regret(np.array([2.0, 1.0, 1.1]), np.array([3.0, 2.0, 1.0])) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("positive", "negative", "area"),
    [
        ([3, 4], [1, 2], 1.0),
        ([1, 2], [3, 4], 0.0),
        ([2, 2], [2, 2], 0.5),
        ([1, 3], [2], 0.5),
        ([], [1], None),
    ],
)
def test_area_under_the_curve(positive, negative, area):
    assert area_under_curve(np.array(positive, float), np.array(negative, float)) == area


def test_the_figures_of_a_group(runs):
    first, second, third = runs[:3]
    assert first.job is second.job is third.job
    predictions = [made_up(first, 1.0, 1.05), made_up(second, 2.0, 1.0), made_up(third, 4.0, 5.0)]
    figures = accuracy("source", "made up", predictions)
    assert figures.median_ape == pytest.approx(0.25)
    assert figures.mean_ape == pytest.approx((0.05 + 0.5 + 0.25) / 3)
    assert figures.bias == pytest.approx(0.05)
    assert figures.pair_order == pytest.approx(2 / 3)
    assert figures.regret == pytest.approx(1.0)
    assert figures.coverage == pytest.approx(1 / 3)
    assert figures.memory_mean_ape == pytest.approx(0.2)


def test_a_plan_run_twice_is_compared_by_its_median(runs):
    again = [made_up(runs[0], seconds, 1.0) for seconds in (1.0, 1.2, 9.0)]
    figures = accuracy("all", "all", [*again, made_up(runs[1], 2.0, 3.0)])
    assert (figures.pair_order, figures.n) == (1.0, 4)


def test_memory_of_rank_0_is_compared_with_the_first_stage(runs):
    # With one micro-batch a step no stage holds two, and the last of them has the loss.
    run = next(run for run in runs if run.plan.pp == 2 and run.plan.tp == 1)
    whole = run.job.workload.global_batch // run.plan.dp
    run = replace(run, plan=replace(run.plan, micro_batch=whole))
    memory = stage_profile(run.job, run.plan).memory
    assert memory.allocated_bytes[1] > memory.allocated_bytes[0]
    first, fullest = predict([run, replace(run, memory_stage=MemoryStage.FULLEST)])
    assert (first.printed_bytes, fullest.printed_bytes) == pytest.approx(memory.allocated_bytes)
    assert first.peak_memory_bytes == fullest.peak_memory_bytes == pytest.approx(memory.total_bytes[1])


def test_failed_runs_are_told_by_memory(runs):
    ran = made_up(runs[0], 1.0, 1.0)
    failed = replace(made_up(runs[1], None, 1.0, outcome=RunOutcome.FAILED), peak_memory_bytes=90.0)
    figures = accuracy("all", "all", [ran, failed])
    assert (figures.n, figures.n_failed, figures.failed_auc) == (1, 1, 1.0)


def test_a_plan_that_cannot_exist_is_beyond_all_memory(runs):
    failed = made_up(runs[0], None, 1.0, outcome=RunOutcome.FAILED, impossible="too few layers")
    assert failed.memory_share == float("inf")


def test_an_empty_group_has_no_figures():
    figures = accuracy("all", "all", [])
    assert (figures.n, figures.median_ape, figures.pair_order, figures.failed_auc) == (0, None, None, None)
    assert accuracies([]) == []


def test_predictions_are_those_of_the_cost_model_one_by_one(runs):
    few = [*runs[:3], *runs[-3:]]
    alone = [estimate(run.job, Plans.of([run.plan])) for run in few]
    for prediction, priced in zip(predict(few), alone, strict=True):
        assert prediction.step_s == pytest.approx(float(priced.step_s[0]))
        assert prediction.peak_memory_bytes == pytest.approx(float(priced.peak_memory_bytes[0]))
        assert prediction.low_s < prediction.step_s < prediction.high_s


@pytest.mark.parametrize("undecided", [False, True])
def test_an_open_run_has_an_interval_over_all_its_readings(runs, undecided):
    run = runs[0]
    readings = [replace(run.plan, recompute=kind) for kind in Recompute]
    alone = predict([replace(run, plan=plan) for plan in readings])
    others = tuple((run.job, plan) for plan in readings[1:])
    found = predict([replace(run, plan=readings[0], alternatives=others, undecided=undecided)])[0]
    assert found.low_s == pytest.approx(min(each.low_s for each in alone))
    assert found.high_s == pytest.approx(max(each.high_s for each in alone))
    fastest, slowest = (end(each.step_s for each in alone) for end in (min, max))
    assert found.step_s == pytest.approx((fastest * slowest) ** 0.5 if undecided else alone[0].step_s)


def test_readings_may_differ_in_their_job(runs):
    run = runs[0]
    unfused = replace(run.job, workload=replace(run.job.workload, flash_attention=False))
    found = predict([replace(run, alternatives=((unfused, run.plan),)), run])
    assert found[0].step_s == found[1].step_s
    assert found[0].high_s > found[1].high_s


def test_groups_cover_every_run_once_per_label(runs):
    groups = accuracies(predict(runs))
    for by in {group.by for group in groups}:
        assert sum(group.n for group in groups if group.by == by) == sum(
            run.step_s is not None for run in runs
        )
