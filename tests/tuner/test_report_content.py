"""What a report computes, and how it words it."""

import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from objectives.cost.result import StepMemory, StepTime
from objectives.cost.step import estimate
from objectives.metrics import METRICS, Goal
from objectives.uncertainty import Z_SCORE, constants, formula_spread, step_interval_s, with_constant
from search_spaces.plan import CpKind, ExpertTokens, OptimizerSync, Plan, Plans, Recompute, Schedule
from tests.tuner.report_example import job, plan, study_report
from tuner.report import words
from tuner.report.content import accuracy, best_so_far, pair_order, pareto_front
from tuner.report.figures import history
from tuner.report.importance import knob_importance
from tuner.report.page import page
from tuner.report.parts import MEMORY_PARTS, TIME_PARTS
from tuner.report.study_screen import summary, trials_table
from tuner.report.tables import bar


@pytest.mark.parametrize(("table", "kind"), [(TIME_PARTS, StepTime), (MEMORY_PARTS, StepMemory)])
def test_every_part_has_a_label_and_a_colour_of_its_own(table, kind):
    assert list(table) == [field.name for field in dataclasses.fields(kind)]
    assert (
        len({part.colour for part in table.values()})
        == len({part.label for part in table.values()})
        == len(table)
    )


def test_accuracy_is_that_of_the_trials_that_ran():
    errors = accuracy(study_report().complete)
    assert errors.n == 11
    assert errors.median_ape == pytest.approx(0.1)
    assert errors.bias == pytest.approx(-0.1)
    assert errors.pair_order == 1.0


def test_trials_are_counted_by_state():
    assert study_report().states == "11 measured, 1 failed, 1 running"


def test_no_trial_no_accuracy():
    assert accuracy([]) is None


@pytest.mark.parametrize(
    ("predicted", "observed", "share"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([3, 2, 1], [1, 2, 3], 0.0),
        ([1, 3, 2], [1, 2, 3], 2 / 3),
        ([1, 1], [1, 2], None),
    ],
)
def test_pair_order(predicted, observed, share):
    assert pair_order(np.array(predicted), np.array(observed)) == share


def test_the_best_so_far_never_gets_worse():
    values = best_so_far(study_report().complete, METRICS["step_time"])
    assert values == sorted(values, reverse=True)
    assert len(values) == 11


def test_the_pareto_front_is_what_brute_force_finds():
    points = np.random.default_rng(0).random((40, 2))
    front = pareto_front(points, [Goal.MINIMIZE, Goal.MAXIMIZE])
    costs = points * [1, -1]
    brute = [i for i in range(40) if not any((costs[j] <= costs[i]).all() and j != i for j in range(40))]
    assert sorted(front) == brute


def test_the_best_trial_is_the_best_by_the_first_objective():
    assert study_report().best.number == 0
    assert study_report(metrics=("peak_memory",)).best.number == 0


@pytest.mark.parametrize("evaluator", [0, 1], ids=["PED-ANOVA", "fANOVA"])
def test_the_knob_that_matters_is_the_most_important(evaluator):
    plans = [Plan(tp=tp, pp=pp, micro_batch=mb) for tp in (1, 2, 4) for pp in (1, 2) for mb in (1, 2)]
    importance = knob_importance(plans, [10.0 * p.tp + 0.1 * p.pp for p in plans], Goal.MINIMIZE)[evaluator]
    assert max(importance.shares, key=importance.shares.get) == "tp"
    assert set(importance.shares) == {"tp", "pp", "micro_batch"}


@pytest.mark.parametrize(
    ("plans", "values", "reason"),
    [
        ([plan(1, 1), plan(2, 1)], [1.0, 2.0], "2 trials ran, 8 are needed"),
        ([plan(1, 1)] * 8, [1.0] * 7 + [2.0], "all trials had the same plan"),
        ([plan(1, 1), plan(2, 1)] * 4, [1.0] * 8, "all trials had the same value"),
    ],
)
def test_importance_says_why_it_is_skipped(plans, values, reason):
    assert [one.skipped for one in knob_importance(plans, values, Goal.MINIMIZE)] == [reason] * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (words.seconds(12.345), "12.35 s"),
        (words.seconds(0.0482), "48.2 ms"),
        (words.seconds(7.1e-6), "7.1 us"),
        (words.seconds(1234.5), "1,234 s"),
        (words.duration(200), "3 min 20 s"),
        (words.duration(3900), "1 h 05 min"),
        (words.count(8_030_261_248), "8.03 B"),
        (words.count(1.01e12), "1.01 T"),
        (words.count(96), "96"),
        (words.gibibytes(2**30 * 1.5), "1.5 GiB"),
        (words.percent(0.412), "41.2 %"),
        (words.signed_percent(-0.05), "-5.0 %"),
    ],
)
def test_numbers_in_words(text, expected):
    assert text == expected


def test_a_plan_in_short_form():
    plan = Plan(
        tp=8, pp=4, dp=2, cp=2, cp_kind=CpKind.ULYSSES, vpp=2, schedule=Schedule.INTERLEAVED, zero=1,
        recompute=Recompute.FULL, recompute_every=2, first_layers=7, sequence_parallel=True, overlap_dp=True,
        overlap_tp=True, offload_optimizer=True,
    )  # fmt: skip
    expected = (
        "tp8 pp4 dp2 vpp2 cp2-ulysses mb1 zero1 sp interleaved recompute-full/2 first7 offload overlap-dp+tp"
    )
    assert words.plan_words(plan) == expected


@pytest.mark.parametrize(("share", "cells"), [(0, ""), (1, "████"), (0.5, "██"), (2, "████"), (1 / 32, "▏")])
def test_bars(share, cells):
    assert bar(share, 4) == cells


def printed(renderable):
    console = Console(width=120, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def test_an_exactly_known_cluster_leaves_the_formulas_own_interval():
    asked, plans = job(), Plans.of([plan(2, 2)])
    low, high = step_interval_s(asked, plans)
    assert low[0] < high[0]
    for name, constant in constants(asked).items():
        asked = with_constant(asked, name, dataclasses.replace(constant, spread=0.0))
    low, high = step_interval_s(asked, plans)
    assert high[0] / low[0] == pytest.approx(np.exp(2 * Z_SCORE * formula_spread(estimate(asked, plans))[0]))


def test_the_training_is_told_in_days_where_its_tokens_are_known():
    known = study_report()
    workload = dataclasses.replace(known.job.workload, train_tokens=1e12)
    asked = dataclasses.replace(known, job=dataclasses.replace(known.job, workload=workload))
    days = 1e12 / workload.tokens_per_step * asked.best.measured.step_s / 86_400
    assert f"{days:,.1f} days for 1 T tokens" in printed(summary(asked))
    assert "days for" not in printed(summary(known))


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": 2},
        {"n_microbatches": 8},
        {"pipeline_limit": 4},
        {"extra_warmup": 1},
        {"offload_bucket": 4_000_000},
        {"coalesced_buckets": 4},
        {"optimizer_tile": 1_000_000},
        {"optimizer_sync": OptimizerSync.POST_VALIDATION},
        {"expert_tokens": ExpertTokens.DUPLICATED},
        {"overlap_ep": True},
        {"keep_received": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_plans_that_differ_in_a_knob_differ_in_words(change):
    plan = Plan(tp=2, pp=2, dp=2, ep=2)
    assert words.plan_words(dataclasses.replace(plan, **change)) != words.plan_words(plan)


def test_one_is_no_plural():
    assert (words.number_of(1, "trial"), words.number_of(1024, "trial")) == ("1 trial", "1,024 trials")


def test_a_metric_that_no_column_has_gets_its_own():
    report = study_report(metrics=("hfu", "peak_memory"))
    console = Console(width=140, file=io.StringIO())
    console.print(trials_table(report, report.ranked[:1]))
    (best,) = report.ranked[:1]
    assert "HFU" in console.file.getvalue()
    assert words.percent(best.values[0]) in console.file.getvalue()
    assert "HFU, simulated" in page(report)


def test_the_history_has_room_for_its_first_and_last_trial():
    report = study_report(30)
    axis = history(report)["layout"]["xaxis"]
    last = report.trials[-1].number
    assert (axis["range"], axis["tick0"]) == ([-0.5, last + 0.5], 0)
    assert isinstance(axis["dtick"], int)


def test_before_any_trial_ran_its_column_is_of_what_will_be_observed():
    report = study_report(0)
    console = Console(width=140, file=io.StringIO())
    console.print(trials_table(report, report.trials))
    head = console.file.getvalue().splitlines()[0]
    assert head.split()[:4] == ["trial", "plan", "predicted", "observed"]
