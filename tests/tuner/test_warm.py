"""Warm start and calibration from studies: what carries over, what is kept, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.uncertainty import cluster_constants
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec, StudyChanged, UnknownName
from tests.tuner.cli import complaint, meshtune
from tests.tuner.studies import config, storage_url
from tuner import study
from tuner.fidelity import PredictedBy
from tuner.view import load_study
from tuner.warm import evidence_document, evidence_of, learned_candidates, stored_evidence

OTHER = {"workload": {"global_batch": 128}, "cluster": {"devices": 32}}


def run(storage, name="first", *, trials=6, **changes):
    tables = {"study": {"name": name, **changes.pop("study", {})}, "budget": {"trials": trials}, **changes}
    return study.tune(config(storage, **tables))


@pytest.fixture(scope="module")
def past(tmp_path_factory):
    storage = storage_url(tmp_path_factory.mktemp("past"), "sqlite")
    run(storage, trials=10)
    return storage


def errors(result):
    return [abs(np.log(trial.predicted.step_s / trial.outcome.step_s)) for trial in result.view.measured]


def warm(past, storage, **changes):
    return run(storage, "second", study={"warm_start": ["first"], "warm_storage": past}, **OTHER, **changes)


def test_a_warm_study_predicts_its_first_trials_better(past, tmp_path):
    started = warm(past, storage_url(tmp_path, "sqlite"))
    cold = run(storage_url(tmp_path, "journal"), "second", **OTHER)
    assert {trial.predicted.origin for trial in started.view.measured} == {PredictedBy.LEARNED}
    assert np.median(errors(started)) < np.median(errors(cold))


def test_it_goes_on_without_the_storage_of_the_others(past, tmp_path):
    storage = storage_url(tmp_path, "sqlite")
    before = warm(past, storage, trials=2)
    config_now = study.stored_config("second", storage)
    assert config_now.warm_storage is None
    after = study.resume("second", storage, budget=study.Budget(trials=4))
    assert len(after.view.measured) == 4
    assert after.view.trials[0].predicted == before.view.trials[0].predicted
    assert {trial.predicted.origin for trial in after.view.measured} == {PredictedBy.LEARNED}


def test_the_studies_to_start_from_are_inputs(past, tmp_path):
    storage = storage_url(tmp_path, "sqlite")
    warm(past, storage, trials=1)
    with pytest.raises(StudyChanged, match="another warm_start"):
        run(storage, "second", **OTHER)


def test_evidence_survives_the_study_it_is_kept_in(past):
    view = load_study("first", past)
    evidence = evidence_of([view], view.inputs.cluster)
    assert stored_evidence({"meshtune_warm": evidence_document(evidence)}, "s") == evidence
    assert stored_evidence({}, "s") is None


def test_of_one_other_job_only_the_constants_carry_over(past):
    view = load_study("first", past)
    evidence = evidence_of([view], view.inputs.cluster)
    inputs = config(past, **OTHER).inputs
    candidates = study.shortlist(inputs).candidates
    again, by = learned_candidates(inputs.job, candidates, evidence, inputs.objective)
    assert set(by.values()) == {PredictedBy.LEARNED}
    assert len(again) == len(candidates)
    assert (np.diff(again.score) >= 0).all()


def memory_errors(result):
    trials = result.view.measured
    return [
        abs(np.log(trial.predicted.peak_memory_bytes / trial.outcome.peak_memory_bytes)) for trial in trials
    ]


def test_memory_readings_carry_over_to_another_job(past, tmp_path):
    started = warm(past, storage_url(tmp_path, "sqlite"))
    cold = run(storage_url(tmp_path, "journal"), "second", **OTHER)
    assert np.median(memory_errors(started)) < 0.5 * np.median(memory_errors(cold))


def test_a_study_kept_before_readings_were_is_read(past):
    evidence = evidence_of([load_study("first", past)], load_study("first", past).inputs.cluster)
    document = evidence_document(evidence)
    for each in document["studies"]:
        del each["peak_memory_bytes"]
    old = stored_evidence({"meshtune_warm": document}, "s")
    cluster = load_study("first", past).inputs.cluster
    assert old.steps(cluster) == evidence.steps(cluster)
    assert not old.memory(cluster).helped


def spoiled(evidence, change):
    (one,) = evidence.studies
    return replace(evidence, studies=(replace(one, **change(one)),))


@pytest.mark.parametrize(
    "change",
    [
        lambda one: {"step_s": (100 * one.step_s[0], *one.step_s[1:])},
        lambda one: {"peak_memory_bytes": (100 * one.peak_memory_bytes[0], *one.peak_memory_bytes[1:])},
        lambda one: {"peak_memory_bytes": (0.0,) * len(one.plans)},
        lambda one: {name: getattr(one, name) * 3 for name in ("plans", "step_s", "peak_memory_bytes")},
    ],
    ids=["a step a hundred times off", "a reading a hundred times off", "no reading", "all trials thrice"],
)
def test_odd_evidence_moves_the_candidates_little(past, change):
    inputs = config(past, **OTHER).inputs
    view = load_study("first", past)
    evidence = evidence_of([view], view.inputs.cluster)
    candidates = study.shortlist(inputs).candidates
    learned = [
        learned_candidates(inputs.job, candidates, each, inputs.objective)[0].estimate
        for each in (evidence, spoiled(evidence, change))
    ]
    for name in ("step_s", "peak_memory_bytes"):
        good, odd = (np.sort(getattr(each, name)) for each in learned)
        assert np.median(np.abs(np.log(odd / good))) < 0.1


def test_constant_trials_are_learned_without_a_crash(past):
    inputs = config(past, **OTHER).inputs
    view = load_study("first", past)
    same = spoiled(
        evidence_of([view], view.inputs.cluster),
        lambda one: {"step_s": (1.0,) * len(one.plans), "peak_memory_bytes": (1e10,) * len(one.plans)},
    )
    candidates = study.shortlist(inputs).candidates
    again, _ = learned_candidates(inputs.job, candidates, same, inputs.objective)
    assert np.isfinite(again.estimate.step_s).all()
    assert np.isfinite(again.estimate.peak_memory_bytes).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_evidence_that_is_no_number_is_refused(past, bad):
    view = load_study("first", past)
    evidence = spoiled(
        evidence_of([view], view.inputs.cluster), lambda one: {"step_s": (bad, *one.step_s[1:])}
    )
    with pytest.raises(InvalidSpec, match="must be positive and finite"):
        evidence.steps(view.inputs.cluster)


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"warm_start": ["first"], "prior": "simulated"}, "prior must be analytic"),
        ({"warm_start": ["first", "first"]}, "each study once"),
    ],
)
def test_what_cannot_be_is_refused(past, asked, match):
    with pytest.raises(InvalidSpec, match=match):
        config(past, study=asked)


def test_a_study_that_does_not_exist_is_named(past, tmp_path):
    asked = {"warm_start": ["frist"], "warm_storage": past}
    with pytest.raises(UnknownName, match="first"):
        run(storage_url(tmp_path, "sqlite"), "second", study=asked, **OTHER)


def test_a_study_of_another_machine_is_refused(past):
    with pytest.raises(InvalidSpec, match="must be of the new study's machine"):
        evidence_of([load_study("first", past)], load_cluster("dgx-h100", 16))


def test_too_few_trials_are_refused(tmp_path):
    storage = storage_url(tmp_path, "sqlite")
    view = run(storage, trials=2).view
    with pytest.raises(InvalidSpec, match="must have 3 measured trials; got 2"):
        evidence_of([view], view.inputs.cluster)


def test_a_machine_is_calibrated_from_a_studys_trials(past, tmp_path):
    out = tmp_path / "fitted.toml"
    words = ["calibrate", "--from-study", "first", "--storage", past, "-o", str(out), "--json"]
    found = meshtune(*words).document
    assert (found["rows"], found["cluster"]) == (10, "dgx-a100")
    held = found["held_back"]
    assert held["fitted_mean_error"] <= held["preset_mean_error"]
    assert cluster_constants(load_cluster(str(out), 64))


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--from-study", "first", "--from", "x.csv"], "one of --from and --from-study"),
        (["--from-study", "first", "--all"], "--all must come with --from"),
        (["--from-study", "first", "--most-devices", "8"], "10 rows: more than 8 devices"),
        (["--most-devices", "8"], "--most-devices must come with"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(past, tmp_path, words, match):
    storage = ["--storage", past] if "--from-study" in words else []
    answer = meshtune("calibrate", *words, *storage, "-o", str(tmp_path / "c.toml"))
    assert answer.code == 2
    assert match in complaint(answer)
