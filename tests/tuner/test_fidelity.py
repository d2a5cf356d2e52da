"""The engine as a fidelity before trials: what it corrects, that it is kept, and that a study gains by it."""

import json

import numpy as np
import pytest

from objectives.simulator.step import simulate_step
from search_spaces.errors import StudyChanged, UnknownName
from search_spaces.plan import Plans
from tests.tuner import studies
from tests.tuner.studies import NAME, config
from tuner import fidelity
from tuner.budget import Budget
from tuner.events import Simulated
from tuner.fidelity import (
    PRIOR_ATTRIBUTE,
    PredictedBy,
    predicted_again,
    prior_document,
    simulated_prior,
    stored_prior,
)
from tuner.inputs import inputs_to_document, refuse_changes
from tuner.shortlist import shortlist
from tuner.study import resume, tune

# Schedules whose closed forms are estimates: here the engine has another favourite.
SPACE = studies.SPACE | {
    "tp": [2, 4], "pp": [4], "zero": [1], "vpp": [1, 2], "overlap_dp": [True], "optimizer_sync": ["barrier"],
    "sequence_parallel": [False, True],
    "schedule": ["1f1b", "zb-h1", "zb-h2", "zb-v", "v-half", "v-min", "dualpipe", "dualpipe-v"],
}  # fmt: skip
JOB = {
    "model": {"preset": "llama-3-8b"}, "cluster": {"preset": "dgx-h100", "devices": 32},
    "workload": {"seq_len": 4096, "global_batch": 64}, "space": SPACE,
}  # fmt: skip
TRUE_TO_THE_ENGINE = dict(hidden=0.0, noise=0.0, straggler_probability=0.0, n_steps=1)


def inputs(**changes):
    return config("sqlite:///x.db", **JOB, **changes).inputs


@pytest.fixture(scope="module")
def job():
    return inputs().job


@pytest.fixture(scope="module")
def candidates():
    return shortlist(inputs()).candidates


@pytest.fixture(scope="module")
def step_s(job, candidates):
    return simulated_prior(job, candidates)


def test_the_engine_has_another_favourite(candidates, step_s):
    assert len(step_s) == len(candidates) > 20
    assert min(step_s, key=step_s.get) != candidates.plans.row(0).key


def test_simulated_candidates_are_predicted_as_simulated(job, candidates, step_s):
    again, by = predicted_again(job, candidates, step_s, ["step_time"])
    assert set(by.values()) == {PredictedBy.SIMULATED}
    wanted = [simulate_step(job, plan).step_s for plan in again.plans]
    np.testing.assert_allclose(again.estimate.step_s, wanted, rtol=1e-12)
    assert np.all(np.diff(again.score) >= 0)


def test_shares_stay_those_of_the_closed_form(job, candidates, step_s):
    again, _ = predicted_again(job, candidates, step_s, ["step_time"])

    def shares(table):
        share = table.estimate.time.bubble_s / table.estimate.step_s
        return dict(zip(table.plans.keys(), share, strict=True))

    assert shares(again) == pytest.approx(shares(candidates))


def test_the_others_are_corrected_by_what_was_simulated(job, candidates, step_s):
    keys = candidates.plans.keys()
    some = {key: step_s[key] for key in keys[::2]}
    again, by = predicted_again(job, candidates, some, ["step_time"])
    others = [key for key in keys if by[key] is PredictedBy.CORRECTED]
    assert set(others) == set(keys[1::2])
    found = dict(zip(again.plans.keys(), again.estimate.step_s, strict=True))
    closed = dict(zip(keys, candidates.estimate.step_s, strict=True))

    def error(expected):
        return np.median([abs(np.log(expected[key] / step_s[key])) for key in others])

    assert error(found) < 0.5 * error(closed)


def test_nothing_simulated_corrects_nothing(job, candidates):
    again, by = predicted_again(job, candidates, {}, ["step_time"])
    np.testing.assert_array_equal(again.estimate.step_s, candidates.estimate.step_s)
    assert set(by.values()) == {PredictedBy.CORRECTED}


def test_a_metric_to_maximise_is_ordered_the_other_way(job, candidates, step_s):
    maximised = shortlist(inputs(objective={"metric": "mfu"})).candidates
    again, _ = predicted_again(job, maximised, step_s, ["mfu"])
    assert again.plans.row(0).key == min(step_s, key=step_s.get)


def test_a_budget_bounds_what_is_simulated(job, candidates):
    few = simulated_prior(job, candidates, budget_s=0.1)
    assert list(few) == candidates.plans.keys()[: len(few)]
    assert 1 <= len(few) < 10


def test_what_is_kept_survives_json():
    kept = json.loads(json.dumps({PRIOR_ATTRIBUTE: prior_document({"a": 1.5})}))
    assert stored_prior(kept) == {"a": 1.5}
    assert kept[PRIOR_ATTRIBUTE]["origin"] == "simulated"
    assert stored_prior({}) is None


@pytest.fixture(params=studies.STORAGES)
def storage(request, tmp_path):
    return studies.storage_url(tmp_path, request.param)


class AtOnce:
    """An executor that tries a plan as it is submitted."""

    n_slots = 1

    def __init__(self, recipe):
        self.runner, self.done = recipe.build(), []

    def submit(self, number, plan):
        self.done.append((number, self.runner.run(Plans.of([plan]))[0]))

    def wait(self, timeout_s):
        done, self.done = self.done, []
        return done

    def close(self):
        pass


def run(storage, prior, trials=3, sampler="meshtune"):
    heard = []
    runner = {"executor": "in-process", "parallel": 1, "options": TRUE_TO_THE_ENGINE}
    study = {"sampler": sampler, "prior": prior}
    chosen = config(storage, **JOB, study=study, runner=runner, budget={"trials": trials})
    executor = AtOnce(chosen.inputs.recipe)
    return tune(chosen, executor=executor, on_event=heard.append).view, heard


def test_a_study_says_what_its_predictions_are(storage):
    view, heard = run(storage, "simulated")
    assert {trial.predicted.origin for trial in view.finished} == {"simulated"}
    assert [event.n_plans > 20 for event in heard if isinstance(event, Simulated)] == [True]
    for trial in view.measured:
        assert trial.outcome.step_s == pytest.approx(trial.predicted.step_s, rel=1e-9)


def test_a_resumed_study_simulates_nothing_again(storage, monkeypatch):
    run(storage, "simulated")
    monkeypatch.setattr(fidelity, "simulated_s", lambda job, plan: pytest.fail("simulated again"))
    heard = []
    executor = AtOnce(inputs(runner={"options": TRUE_TO_THE_ENGINE}).recipe)
    after = resume(NAME, storage, budget=Budget(trials=6), executor=executor, on_event=heard.append).view
    assert [event.seconds for event in heard if isinstance(event, Simulated)] == [None]
    assert len(after.finished) == 6
    assert {trial.predicted.origin for trial in after.finished} == {"simulated"}


@pytest.mark.parametrize("sampler", ["meshtune", "best_first"])
def test_a_study_on_a_cluster_like_the_engine_finds_the_best_plan_at_least_as_soon(sampler, tmp_path, step_s):
    best_s, n_trials = min(step_s.values()), {}
    for prior in ("analytic", "simulated"):
        view, _ = run(f"sqlite:///{tmp_path / prior}.db", prior, trials=8, sampler=sampler)
        seconds = [trial.outcome.step_s for trial in view.measured]
        n_trials[prior] = next((i for i, s in enumerate(seconds, 1) if s <= best_s * (1 + 1e-9)), 99)
    assert n_trials["simulated"] == 1
    assert n_trials["analytic"] > 1


def test_the_prior_is_one_of_the_inputs(storage):
    run(storage, "analytic", trials=1)
    with pytest.raises(StudyChanged, match=r"prior was \"analytic\", now \"simulated\""):
        run(storage, "simulated", trials=1)


def test_a_study_from_before_priors_goes_on():
    given = inputs()
    stored = inputs_to_document(given)
    del stored["inputs"]["prior"], stored["fingerprints"]["prior"]
    refuse_changes(stored, given, "s")
    with pytest.raises(StudyChanged, match="another prior"):
        refuse_changes(stored, inputs(study={"prior": "simulated"}), "s")


def test_an_unknown_prior_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'simulated'"):
        inputs(study={"prior": "simulate"})


def test_candidates_are_the_same_plans_whatever_the_prior(job, candidates, step_s):
    again, _ = predicted_again(job, candidates, step_s, ["step_time"])
    assert isinstance(again.plans, Plans)
    assert sorted(again.plans.keys()) == sorted(candidates.plans.keys())
