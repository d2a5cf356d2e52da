"""What more trials are worth: what was stated against what came true, edge cases, and stopping by it."""

import time

import numpy as np
import optuna
import pytest

from objectives.outcome import Cause, Failed, OutcomeOrigin
from search_spaces.errors import InvalidSpec
from tests.tuner import studies
from tests.tuner.hidden_cluster import candidate_table, hidden_cluster, job, tell, told
from tuner import study as study_module
from tuner.budget import Budget, Stop
from tuner.samplers import make_sampler
from tuner.samplers.prospects import N_DRAWS, threshold
from tuner.worth import Worth, stored_worth, worth_document

BETTER_BY = 0.02
CRASH = Failed(cause=Cause.CRASH, message="rank 1 ended", origin=OutcomeOrigin.SIMULATED)


def sampler_of(table, *, metrics=("step_time",), seed=0):
    return make_sampler("meshtune", candidates=table, metrics=metrics, seed=seed, job=job())


def worth_after(n_trials, *, metrics=("step_time",), table=None, outcome=None, seed=0):
    """What more is worth after so many trials on a hidden cluster, or with one outcome for all."""
    table = candidate_table().take(slice(0, 200)) if table is None else table
    sampler, cluster = sampler_of(table, metrics=metrics, seed=seed), hidden_cluster(table, seed)
    study = optuna.create_study(sampler=sampler, directions=["minimize"] * len(metrics))
    for _ in range(n_trials):
        trial = study.ask(fixed_distributions=sampler.table.distributions)
        row = sampler.table.row_of(trial.params)
        tell(study, trial, cluster.outcome(row) if outcome is None else outcome, metrics=metrics)
    return sampler.worth(study, BETTER_BY)


def forecasts(seed, n_trials):
    """(stated probability, whether it came true, stated gain, true gain) after each trial of one study."""
    table = candidate_table()
    cluster, sampler = hidden_cluster(table, seed), sampler_of(table, seed=seed)
    study, rows, told_of = optuna.create_study(sampler=sampler), [], []
    for _ in range(n_trials):
        rows.append(told(study, sampler, cluster))
        ran = [row for row in rows if cluster.fits[row]]
        worth = sampler.worth(study, BETTER_BY)
        if worth is None:
            continue
        untried = np.isin(np.arange(len(table)), rows, invert=True) & cluster.fits
        best = min(ran, key=lambda row: cluster.outcome(row).step_s)
        gain = 1 - cluster.step_s[untried].min() / cluster.step_s[best]
        told_of.append((worth.probability, gain > BETTER_BY, worth.expected_gain, max(gain, 0.0)))
    return told_of


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_stated_probability_comes_true_about_as_often():
    # Seeds that nothing was chosen on: how probabilities are drawn was settled on those below 124.
    found = np.array([each for seed in range(200, 224) for each in forecasts(seed, 16)], dtype=float)
    stated, true = found[:, 0], found[:, 1]
    base = true.mean()
    assert abs(stated.mean() - base) < 0.1
    assert ((stated - true) ** 2).mean() < 0.8 * base * (1 - base)  # it tells studies apart
    for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 0.9), (0.9, 1.01)):
        among = (stated >= low) & (stated < high)
        # Sixteen forecasts of one study rise and fall together: 24 studies leave about a fifth to chance.
        assert among.sum() < 12 or abs(stated[among].mean() - true[among].mean()) < 0.2
    assert abs(found[:, 2].mean() - found[:, 3].mean()) < 0.02


def test_few_trials_leave_much_and_many_leave_little():
    early, late = worth_after(2), worth_after(24)
    assert early.probability > 0.5 > late.probability
    assert early.expected_gain > late.expected_gain
    assert (early.n_trials, late.n_trials, late.n_untried) == (2, 24, 176)


def test_nothing_is_said_before_anything_was_measured():
    assert worth_after(0) is None
    assert worth_after(3, outcome=CRASH) is None


def test_nothing_is_left_when_every_candidate_was_tried():
    worth = worth_after(4, table=candidate_table().take(slice(0, 4)))
    assert (worth.probability, worth.expected_gain, worth.n_untried) == (0.0, 0.0, 0)


def test_candidates_all_alike_promise_no_more_than_noise():
    table = candidate_table().take(np.zeros(1, dtype=np.int64))
    worth = worth_after(1, table=table)
    assert worth.probability == 0.0


@pytest.mark.parametrize("metrics", [("step_time", "peak_memory"), ("peak_memory",), ("cost", "step_time")])
def test_other_objectives_have_a_worth_too(metrics):
    worths = [worth_after(n, metrics=metrics) for n in (1, 12)]
    assert all(0 <= each.probability <= 1 and 0 <= each.expected_gain < 1 for each in worths)
    assert worths[0].n_untried == 199


def test_metrics_that_follow_from_the_step_have_the_same_worth():
    assert worth_after(5, metrics=("cost",)) == worth_after(5)


def test_the_same_trials_have_the_same_worth():
    assert worth_after(6, seed=3) == worth_after(6, seed=3)


def test_a_larger_difference_is_less_likely():
    table = candidate_table().take(slice(0, 200))
    sampler, cluster = sampler_of(table), hidden_cluster(table, 1)
    study = optuna.create_study(sampler=sampler)
    for _ in range(4):
        told(study, sampler, cluster)
    chances = [sampler.worth(study, share).probability for share in (0.0, 0.02, 0.1, 0.3)]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > chances[-1]


def test_a_share_saved_is_a_difference_of_logarithms():
    assert np.exp(-threshold(0.02)) == pytest.approx(0.98)
    assert N_DRAWS % 2 == 0


@pytest.mark.slow
def test_a_hundred_thousand_candidates_take_less_than_a_tenth_of_a_second():
    table = candidate_table()
    many = table.take(np.arange(100_000) % len(table))
    sampler, cluster = sampler_of(many), hidden_cluster(table, 0)
    study = optuna.create_study(sampler=sampler)
    rng, took_s = np.random.default_rng(0), []
    for row in rng.choice(len(table), 200, replace=False):
        study.enqueue_trial(sampler.table.params(int(row)))
        tell(study, study.ask(fixed_distributions=sampler.table.distributions), cluster.outcome(int(row)))
    for _ in range(5):
        began = time.perf_counter()
        assert sampler.worth(study, BETTER_BY) is not None
        took_s.append(time.perf_counter() - began)
    assert min(took_s) < 0.1


def test_a_study_stops_when_another_plan_is_hardly_better(tmp_path):
    storage = studies.storage_url(tmp_path, "sqlite")
    budget = {"trials": 72, "stop_below": 0.5, "better_by": 0.3}
    result = study_module.tune(studies.config(storage, budget=budget, runner={"options": {"hidden": 0.0}}))
    assert result.stop is Stop.SETTLED
    assert 0 < len(result.view.finished) < 72
    assert result.view.worth.probability < 0.5
    assert result.view.worth.better_by == 0.3
    assert result.view.worth.n_trials == len(result.view.finished)


def test_a_settled_study_stays_settled_until_it_is_told_to_go_on(tmp_path):
    storage = studies.storage_url(tmp_path, "sqlite")
    budget = {"trials": 30, "stop_below": 0.5, "better_by": 0.3}
    first = study_module.tune(studies.config(storage, budget=budget))
    again = study_module.resume(studies.NAME, storage)
    assert (first.stop, again.stop) == (Stop.SETTLED, Stop.SETTLED)
    assert len(again.view.trials) == len(first.view.trials)
    on = Budget(trials=len(first.view.finished) + 2, stop_below=0.0)
    assert study_module.resume(studies.NAME, storage, budget=on).stop is Stop.TRIALS


def test_what_is_kept_with_the_study_is_read_back():
    worth = Worth(better_by=0.02, probability=0.25, expected_gain=0.01, n_trials=3, n_untried=9)
    assert stored_worth({"worth": worth_document(worth)}) == worth
    assert stored_worth({}) is stored_worth({"worth": {"probability": 1}}) is None


@pytest.mark.parametrize("key", ["stop_below", "better_by"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(key, value):
    with pytest.raises(InvalidSpec, match=f"Budget.{key} must be"):
        Budget(**{key: value})
