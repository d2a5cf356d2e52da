"""All of learning on steps whose truth is known, with nonsense among them, and the benchmark's figures."""

from dataclasses import replace

import numpy as np
import optuna
import pytest

from benchmarks.learning import median_error, order_beyond, pair_order
from objectives.calibration import exposure_of
from objectives.outcome import Cause, Failed, Measured, OutcomeOrigin
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Plan, Plans
from tests.objectives.test_calibration import steps_of
from tests.objectives.test_holdups import steps as held_up_steps
from tests.tuner.hidden_cluster import candidate_table, job, tell
from tuner.features import job_features
from tuner.learned import Forecast, LearnedModel, Priced
from tuner.samplers import make_sampler

SEEN, NEW = steps_of(seed=0), steps_of(seed=7)
Z80 = 1.2816


@pytest.fixture(scope="module")
def new():
    return Priced.of(NEW)


@pytest.fixture(scope="module")
def good(new):
    return learned(SEEN).forecast(new)


def learned(steps):
    return LearnedModel.of(Priced.of(steps))


def times(step, factor):
    return replace(step, step_s=step.step_s * factor)


def test_it_predicts_steps_it_never_saw(new, good):
    left = new.linear.measured - good.log_s
    assert median_error(left) < 0.03
    assert median_error(left) < 0.5 * median_error(new.linear.measured - new.linear.start)
    assert 0.7 < np.mean(np.abs(left) < Z80 * good.std) <= 1.0


def test_few_devices_tell_of_many():
    large = Priced.of(steps_of(32, seed=3))
    forecast = learned(SEEN).forecast(large)
    left = large.linear.measured - forecast.log_s
    assert median_error(left) < 0.05
    assert np.mean(np.abs(left) < Z80 * forecast.std) > 0.7
    assert (forecast.trust < 1).all()  # no step on so many devices was learned from


@pytest.mark.parametrize(
    "spoiled",
    [
        [*SEEN[:-1], times(SEEN[-1], 100.0)],
        [*SEEN[:-1], times(SEEN[-1], 0.01)],
        [*SEEN, *SEEN, *SEEN],
        [*SEEN, *[SEEN[3]] * 20],
    ],
    ids=["a hundred times slower", "a hundred times faster", "all rows thrice", "one row twenty times more"],
)
def test_odd_rows_move_a_good_prediction_by_less_than_its_spread(new, good, spoiled):
    now = learned(spoiled).forecast(new)
    moved = np.abs(now.log_s - good.log_s)
    assert (moved < Z80 * np.maximum(now.std, good.std)).mean() > 0.95
    assert np.median(moved) < 0.01 + np.median(good.std)


def test_steps_that_all_took_as_long_are_learned_without_a_crash(new):
    forecast = learned([replace(step, step_s=1.0) for step in SEEN]).forecast(new)
    assert np.isfinite(forecast.log_s).all()
    assert np.isfinite(forecast.std).all()


@pytest.mark.parametrize("step_s", [np.nan, np.inf, 0.0, -1.0])
def test_a_step_time_that_is_none_is_refused(step_s):
    with pytest.raises(InvalidSpec, match="must be positive and finite"):
        replace(SEEN[0], step_s=step_s)


def test_the_same_steps_give_the_same_forecast(new, good):
    np.testing.assert_array_equal(learned(SEEN).forecast(new).log_s, good.log_s)


def failed(cause):
    return Failed(cause=cause, message="no", origin=OutcomeOrigin.SIMULATED)


def measured(step_s):
    return Measured(step_s=step_s, step_spread_s=0.0, peak_memory_bytes=5e10, origin=OutcomeOrigin.SIMULATED)


@pytest.mark.parametrize(
    "outcome",
    [failed(Cause.OUT_OF_MEMORY), failed(Cause.CRASH), measured(1.0), np.inf, 1e300, 0.0, -1.0],
    ids=["all out of memory", "all crash", "constant", "infinite", "huge", "zero", "negative"],
)
def test_a_study_of_nothing_but_that_goes_on_with_other_plans(outcome):
    sampler = make_sampler(
        "meshtune", candidates=candidate_table(), metrics=("step_time",), seed=0, job=job()
    )
    study, rows = optuna.create_study(sampler=sampler), []
    for _ in range(15):
        trial = study.ask(fixed_distributions=sampler.table.distributions)
        rows.append(sampler.table.row_of(trial.params))
        if isinstance(outcome, float):
            study.tell(trial, outcome)
        else:
            tell(study, trial, outcome)
    assert len(set(rows)) == len(rows)


def test_a_forecast_of_two_kinds_has_the_quantiles_of_both():
    one = np.ones(3)
    forecast = Forecast(
        regular_log_s=0 * one,
        std=0.1 * one,
        held_up_log_s=2 * one,
        held_up_std=0.1 * one,
        chance=np.array([0.0, 0.2, 0.7]),
        calibrated_log_s=0 * one,
        trust=one,
    )
    np.testing.assert_array_equal(forecast.log_s, [0, 0, 2])
    np.testing.assert_allclose(forecast.quantile(0.9), [0.128, 2.0, 2.107], atol=0.01)
    np.testing.assert_array_equal(forecast.covers(2 * one, 0.8), [False, True, True])


def test_plans_on_many_nodes_are_foretold_to_wait():
    found, held = held_up_steps(6)
    model = LearnedModel.of(Priced.of(found))
    forecast = model.forecast(Priced.of(found))
    able = exposure_of(found).messages > 0
    assert model.calibration.held_up == tuple(held)
    assert (forecast.chance[able] > 0.05).all()
    assert (forecast.chance[~able] == 0).all()
    assert forecast.covers(np.log([step.step_s for step in found]), 0.95).mean() > 0.8


def test_pairs_beyond_noise_are_those_that_differ_by_more():
    measured, said = np.array([0.0, 0.02, 0.5, 0.0]), np.array([0.0, -1.0, 1.0, 9.0])
    jobs = np.array([0, 0, 0, 1])
    assert order_beyond(measured, said, jobs, 0.03) == 1.0
    assert order_beyond(measured, said, jobs, 0.0) == pytest.approx(2 / 3)
    assert np.isnan(order_beyond(measured, said, jobs, 1.0))


def test_pairs_count_within_a_job_and_ties_half():
    measured_s, said = np.array([1.0, 2.0, 3.0, 1.0]), np.array([1.0, 1.0, 2.0, 9.0])
    assert pair_order(measured_s, said, np.array([0, 0, 0, 1])) == pytest.approx(2.5 / 3)
    assert median_error(np.log([1.25, 0.5, 1.0])) == pytest.approx(0.2)


def test_a_plan_on_some_nodes_is_seen_as_a_job_of_its_own_devices_and_sequences():
    whole = job()
    plan = Plan(dp=8, nodes=1, n_microbatches=2)
    seen = job_features(whole, Plans.of([plan, Plan(dp=whole.cluster.n_devices)]))
    assert seen[0].tolist() == job_features(whole.of_plan(plan), Plans.of([Plan(dp=8)]))[0].tolist()
    assert seen[1].tolist() != seen[0].tolist()
    assert 2 ** seen[0][3:5] == pytest.approx([8, 16])
