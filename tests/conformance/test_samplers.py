"""Optuna's own conformance suite for samplers, and what every sampler over a candidate table must keep."""

import functools

import numpy as np
import optuna
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from search_spaces.errors import UnknownName
from search_spaces.plan import KNOB_NAMES
from tests.tuner.hidden_cluster import candidate_table, hidden_cluster, job, tell, told
from tuner.samplers import SAMPLERS, make_sampler
from tuner.samplers.candidates import TableExhausted, params_from_plan, plan_from_params

NAMES = [pytest.param(name, marks=pytest.mark.torch if name == "gp" else ()) for name in SAMPLERS]


@functools.cache
def table(n_rows=None):
    return candidate_table().take(slice(n_rows))


def build(name, *, seed=0, n_rows=None, metrics=("step_time",)):
    return make_sampler(name, candidates=table(n_rows), metrics=metrics, seed=seed, job=job())


class OfEverySampler:
    @pytest.fixture(params=NAMES)
    def sampler(self, request):
        """A factory, as Optuna's cases want it."""
        return functools.partial(build, request.param)


class TestOptunaBasic(OfEverySampler, BasicSamplerTestCase):
    """Optuna: any distribution, NaN values, conditional and dynamic spaces."""


class TestOptunaRelative(OfEverySampler, RelativeSamplerTestCase):
    """Optuna: relative sampling of foreign spaces."""


class TestOptunaMultiObjective(OfEverySampler, MultiObjectiveSamplerTestCase):
    """Optuna: two directions."""


def ask(study, sampler):
    return study.ask(fixed_distributions=sampler.table.distributions)


class TestEverySampler(OfEverySampler):
    def test_a_trial_holds_the_whole_plan(self, sampler):
        ours = sampler()
        trial = ask(optuna.create_study(sampler=ours), ours)
        assert trial.params.keys() == set(KNOB_NAMES)
        assert params_from_plan(plan_from_params(trial.params)) == trial.params
        assert ours.table.row_of(trial.params) is not None

    def test_no_candidate_is_proposed_twice_and_then_the_table_is_exhausted(self, sampler):
        ours = sampler(n_rows=12)
        study = optuna.create_study(sampler=ours)
        cluster = hidden_cluster(table(12), 0)
        assert sorted(told(study, ours, cluster) for _ in range(12)) == list(range(12))
        assert ours.n_untried(study) == 0
        with pytest.raises(TableExhausted, match="none is left to propose"):
            ask(study, ours)

    def test_running_trials_are_not_proposed_again(self, sampler):
        ours = sampler(n_rows=12)
        study = optuna.create_study(sampler=ours)
        rows = [ours.table.row_of(ask(study, ours).params) for _ in range(12)]
        assert sorted(rows) == list(range(12))

    @pytest.mark.parametrize("state", [optuna.trial.TrialState.FAIL, optuna.trial.TrialState.PRUNED])
    def test_failed_and_pruned_trials_are_not_proposed_again(self, sampler, state):
        ours = sampler(n_rows=12)
        study = optuna.create_study(sampler=ours)
        for _ in range(11):
            study.tell(ask(study, ours), state=state)
        assert ours.n_untried(study) == 1
        assert ours.table.row_of(ask(study, ours).params) is not None

    def test_waiting_plans_are_left_to_whoever_takes_them(self, sampler):
        ours = sampler(n_rows=2)
        study = optuna.create_study(sampler=ours)
        study.enqueue_trial(ours.table.params(0))
        assert ours.n_untried(study) == 1
        assert [ours.table.row_of(ask(study, ours).params) for _ in range(2)] == [0, 1]

    def test_knobs_fixed_by_enqueueing_are_kept_and_the_rest_makes_a_candidate(self, sampler):
        ours = sampler()
        study = optuna.create_study(sampler=ours)
        study.enqueue_trial({"tp": 4, "schedule": "gpipe"})
        params = ask(study, ours).params
        assert (params["tp"], params["schedule"]) == (4, "gpipe")
        assert ours.table.row_of(params) is not None

    def test_fixed_knobs_that_no_candidate_has_are_refused(self, sampler):
        ours = sampler()
        study = optuna.create_study(sampler=ours)
        study.enqueue_trial({"tp": 1, "pp": 1})
        with pytest.raises(TableExhausted, match="0 of them with the trial's fixed knobs"):
            ask(study, ours)

    def test_the_same_seed_makes_the_same_study(self, sampler):
        cluster = hidden_cluster(table(), 1)
        runs = []
        for _ in range(2):
            ours = sampler(seed=7)
            study = optuna.create_study(sampler=ours)
            runs.append([told(study, ours, cluster) for _ in range(14)])
        assert runs[0] == runs[1]

    def test_a_resumed_study_goes_on_as_if_it_had_not_stopped(self, sampler):
        cluster = hidden_cluster(table(), 2)
        whole, halves = optuna.create_study(), optuna.create_study()
        for study, restarts in ((whole, {0}), (halves, {0, 6, 11})):
            for n in range(14):
                if n in restarts:
                    study.sampler = sampler(seed=3)
                told(study, study.sampler, cluster)
        assert [trial.params for trial in whole.trials] == [trial.params for trial in halves.trials]

    def test_parameters_of_others_live_beside_the_plan(self, sampler):
        ours = sampler()
        study = optuna.create_study(sampler=ours)
        for _ in range(3):
            trial = ask(study, ours)
            study.tell(trial, trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True))
        assert all("learning_rate" in trial.params for trial in study.trials)

    def test_trials_of_a_foreign_space_do_not_disturb(self, sampler):
        ours = sampler()
        study = optuna.create_study(sampler=ours)
        study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=5)
        assert ours.table.row_of(ask(study, ours).params) is not None

    @pytest.mark.parametrize("directions", [["minimize", "minimize"], ["maximize", "minimize"]])
    def test_two_objectives_with_failures(self, sampler, directions):
        metrics = ("step_time" if directions[0] == "minimize" else "tokens_per_s_per_device", "peak_memory")
        ours, cluster = sampler(metrics=metrics), hidden_cluster(table(), 2)
        study = optuna.create_study(directions=directions, sampler=ours)
        for _ in range(14):
            trial = ask(study, ours)
            row = ours.table.row_of(trial.params)
            tell(study, trial, cluster.outcome(row), metrics=metrics)
        assert len({ours.table.row_of(trial.params) for trial in study.trials}) == 14

    def test_two_drivers_on_one_study_never_choose_the_same_plan(self, sampler, tmp_path):
        storage = f"sqlite:///{tmp_path / 'study.db'}"
        first = optuna.create_study(study_name="shared", storage=storage, sampler=sampler(n_rows=20))
        second = optuna.load_study(study_name="shared", storage=storage, sampler=sampler(n_rows=20))
        for study in (first, second) * 3:
            ask(study, study.sampler)
        rows = [first.sampler.table.row_of(trial.params) for trial in first.trials]
        assert len(set(rows)) == 6


def test_a_claim_is_seen_before_the_params_are_written():
    ours = build("best_first", n_rows=3)
    study = optuna.create_study(sampler=ours)
    trial = study.ask()
    assert trial.relative_params["tp"] == ours.table.params(0)["tp"]
    assert ours.table.row_of(ask(study, ours).params) == 1


def test_who_finds_the_row_claimed_by_another_chooses_anew(monkeypatch):
    ours, storage = build("best_first", n_rows=3), optuna.storages.InMemoryStorage()
    mine = optuna.create_study(study_name="shared", storage=storage, sampler=ours)
    theirs = optuna.load_study(study_name="shared", storage=storage, sampler=build("best_first", n_rows=3))
    other, choose = theirs.ask(), ours.choose

    def choose_while_the_other_claims(*args, **kwargs):
        row = choose(*args, **kwargs)
        assert other.relative_params["tp"] == ours.table.params(0)["tp"]
        return row

    monkeypatch.setattr(ours, "choose", choose_while_the_other_claims)
    assert ours.table.row_of(ask(mine, ours).params) == 1


def test_an_unknown_sampler_is_an_error_with_the_nearest_name():
    with pytest.raises(UnknownName, match="did you mean 'random'"):
        build("randm")


def test_the_space_has_every_knob_and_a_stable_order():
    distributions = build("meshtune").table.distributions
    assert list(distributions) == list(KNOB_NAMES)
    assert distributions["tp"].choices == tuple(np.unique(table().plans.tp).tolist())
    assert distributions["cp"].choices == (1,)
