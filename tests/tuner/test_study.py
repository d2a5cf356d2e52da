"""A study keeps its budget, tells failures for what they are, and refuses to go on as another study."""

from collections import Counter

import optuna
import pytest
from optuna.trial import TrialState

from objectives.outcome import Cause, Failed, Measured, OutcomeOrigin
from search_spaces.errors import InvalidSpec, NoLegalPlan, RunnerError, StudyChanged, UnknownName
from tests.tuner import studies
from tests.tuner.studies import NAME, config, finished_plans, optuna_trials, twice, view
from tuner import tell
from tuner.budget import Budget, Stop
from tuner.events import Progress, Ranked, Stopped, TrialFinished, TrialStarted
from tuner.inputs import fingerprint, inputs_to_document, refuse_changes
from tuner.storage import open_storage
from tuner.study import resume, stored_config, tune
from tuner.view import State, load_study

SIMULATED = OutcomeOrigin.SIMULATED


@pytest.fixture
def storage(tmp_path):
    return studies.storage_url(tmp_path, "journal")


def with_options(**options):
    return {"runner": {"executor": "in-process", "parallel": 2, "options": options}}


@pytest.mark.parametrize("sampler", ["meshtune", "best_first", "random", "tpe"])
def test_a_study_tries_as_many_plans_as_its_budget_and_none_twice(sampler, storage):
    result = tune(config(storage, study={"sampler": sampler}))
    assert result.stop is Stop.TRIALS
    assert len(result.view.finished) == 6
    assert twice(finished_plans(result.view)) == []


def test_a_study_that_is_done_starts_nothing_when_resumed(storage):
    before = tune(config(storage)).view
    heard = []
    after = resume(NAME, storage, on_event=heard.append)
    assert (after.stop, after.view) == (Stop.TRIALS, before)
    assert [event for event in heard if isinstance(event, TrialStarted)] == []


def test_a_larger_budget_goes_on_with_the_same_study(storage):
    before = tune(config(storage)).view
    after = resume(NAME, storage, budget=Budget(trials=9)).view
    assert after.trials[:6] == before.trials
    assert len(after.finished) == after.budget_trials == 9


def test_a_study_ends_when_every_candidate_was_tried(storage):
    narrow = {"space": {"tp": [1], "pp": [1], "micro_batch": [1, 2], "zero": [1]}, "budget": {"trials": 50}}
    result = tune(config(storage, **narrow))
    assert result.stop is Stop.EXHAUSTED
    assert len(result.view.finished) == result.ledger.feasible == 4


def test_a_study_ends_when_its_hours_are_over_and_hands_over_what_runs(storage):
    slow = {**with_options(seconds_per_trial=30.0), "budget": {"trials": 6, "hours": 0.5 / 3600}}
    result = tune(config(storage, **slow))
    assert result.stop is Stop.HOURS
    assert (result.view.counts[State.LOST], result.view.waiting) == (2, 2)


def test_plans_that_crash_count_and_are_told_as_violated_constraints(storage):
    result = tune(config(storage, **with_options(crash_probability=1.0)))
    assert [trial.outcome.cause for trial in result.view.finished] == 6 * [Cause.CRASH]
    told = [(trial.state, trial.values, trial.constraints) for trial in optuna_trials(storage)]
    assert told == 6 * [(TrialState.PRUNED, None, {"runs": 1.0})]
    assert result.view.best is None


def test_a_plan_that_the_machine_lost_is_tried_twice_more_and_never_counted(storage):
    with pytest.raises(RunnerError, match="a machine must finish some trial; got 10 lost in a row"):
        tune(config(storage, **with_options(lost_machine_probability=1.0)))
    study = view(storage)
    assert study.finished == ()
    tries = Counter(trial.plan.key for trial in study.trials if trial.outcome is not None)
    assert max(tries.values()) == 3
    assert {trial.attempt for trial in study.trials} == {1, 2, 3}


def test_a_trial_carries_what_its_figure_rests_on(storage):
    tune(config(storage))
    attributes = optuna_trials(storage)[0].user_attrs
    assert {"plan", "predicted", "outcome", "versions", "lease", "attempt"} <= attributes.keys()
    assert attributes["outcome"]["origin"] == "simulated"
    assert attributes["versions"].keys() >= {"meshtune", "optuna", "numpy"}
    assert attributes["predicted"]["step_s"] > 0


def test_several_metrics_give_a_front_that_optuna_sees_too(storage):
    result = tune(config(storage, objective={"metric": ["step_time", "peak_memory"]}, budget={"trials": 12}))
    front = {trial.number for trial in result.view.pareto_front}
    theirs = optuna.load_study(study_name=NAME, storage=open_storage(storage)).best_trials
    assert front == {trial.number for trial in theirs}
    assert all(trial.values.keys() == {"step_time", "peak_memory"} for trial in result.view.measured)


@pytest.mark.parametrize("metric", ["tokens_per_s_per_device", "mfu"])
def test_a_metric_to_maximise_has_its_largest_value_as_best(metric, storage):
    study = tune(config(storage, objective={"metric": metric})).view
    assert study.best.values[metric] == max(trial.values[metric] for trial in study.measured)
    assert study.best.outcome.step_s == min(trial.outcome.step_s for trial in study.measured)


def test_the_listener_hears_the_whole_story(storage):
    heard = []
    tune(config(storage), on_event=heard.append)
    kinds = Counter(type(event) for event in heard)
    assert kinds[TrialStarted] == kinds[TrialFinished] == kinds[Progress] == 6
    assert (type(heard[0]), type(heard[-1])) == (Ranked, Stopped)
    last = [event for event in heard if isinstance(event, Progress)][-1]
    assert (last.n_finished, last.left_s, last.counts[State.MEASURED]) == (6, 0.0, 6)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"workload": {"global_batch": 128}}, "another workload: workload.global_batch was 64, now 128"),
        ({"cluster": {"devices": 8}}, "another cluster: cluster.n_devices was 16, now 8"),
        (
            {"model": {"preset": "gpt2-xl"}},
            r'another model: model.name was "gpt2", now "gpt2-xl"; .* and \d+ more',
        ),
        ({"space": {"tp": [1]}}, "another space: space.narrowed.tp was"),
        (
            {"objective": {"metric": "mfu"}},
            r'another objective: objective was \["step_time"\], now \["mfu"\]',
        ),
        ({"runner": {"options": {"noise": 0.5}}}, "another runner: runner.options.noise was absent, now 0.5"),
        ({"study": {"seed": 3}}, "another seed: seed was 0, now 3"),
    ],
)
def test_a_study_is_not_resumed_with_other_inputs(change, sentence, storage):
    studies.open_book(storage)
    with pytest.raises(StudyChanged, match=sentence):
        tune(config(storage, **change))
    assert view(storage).trials == ()


def test_a_field_that_an_older_meshtune_did_not_write_is_neutral(storage):
    given = config(storage).inputs
    stored = inputs_to_document(given)
    attention = dict(stored["inputs"]["model"]["attention"])
    del attention["chunked"]
    model = {**stored["inputs"]["model"], "attention": attention}
    older = {
        **stored,
        "inputs": {**stored["inputs"], "model": model},
        "fingerprints": {**stored["fingerprints"], "model": fingerprint(model)},
    }
    refuse_changes(older, given, NAME)
    attention["head_dim"] = 32
    older["fingerprints"]["model"] = fingerprint(model)
    with pytest.raises(StudyChanged, match=r"another model: model.attention.head_dim was 32, now 64\."):
        refuse_changes(older, given, NAME)


def test_where_a_study_runs_and_how_long_may_change(storage):
    studies.open_book(storage)
    result = tune(config(storage, runner={"parallel": 1}, budget={"trials": 2}))
    assert len(result.view.finished) == 2


def test_all_that_a_resume_needs_is_in_the_storage(storage):
    given = config(storage, runner={"options": {"noise": 0.1}, "time_limit_s": 5}, study={"seed": 7})
    tune(given)
    assert stored_config(NAME, storage) == given


def test_a_study_of_another_program_is_left_alone(storage):
    study = optuna.create_study(study_name=NAME, storage=open_storage(storage))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    for attempt in (lambda: tune(config(storage)), lambda: resume(NAME, storage), lambda: view(storage)):
        with pytest.raises(InvalidSpec, match="must be one that Meshtune created"):
            attempt()
    assert len(study.trials) == 2


def test_a_study_of_a_later_meshtune_is_refused(storage):
    book, _ = studies.open_book(storage)
    document = {**book.study.user_attrs["meshtune_inputs"], "version": 99}
    book.study.set_user_attr("meshtune_inputs", document)
    with pytest.raises(InvalidSpec, match="must have schema version 1; got version 99"):
        resume(NAME, storage)


def test_a_study_that_does_not_exist_is_an_error_that_names_the_nearest(storage):
    studies.open_book(storage)
    with pytest.raises(UnknownName, match=r"did you mean 'study'\?"):
        load_study("stuby", storage)


def test_a_space_without_a_legal_plan_creates_no_study(storage):
    with pytest.raises(NoLegalPlan, match="at least one plan must pass every rule"):
        tune(config(storage, space={"tp": [5]}))
    assert optuna.get_all_study_names(open_storage(storage)) == []


@pytest.mark.parametrize("short", [float("nan"), float("inf"), -1.0])
def test_a_shortfall_that_is_no_number_is_unknown(short):
    job = config("study.db").inputs.job
    failed = Failed(cause=Cause.OUT_OF_MEMORY, message="", origin=SIMULATED, short_bytes=short)
    assert tell.sound(failed, job, ["step_time"]).short_bytes == 0
    assert tell.constraints_of(tell.sound(failed, job, ["step_time"]), job) == {
        "memory": tell.UNKNOWN_SHORTFALL
    }


def test_a_figure_that_is_not_finite_is_a_failure():
    tiny = Measured(step_s=5e-324, step_spread_s=0.0, peak_memory_bytes=1.0, origin=SIMULATED)
    told = tell.sound(tiny, config("study.db").inputs.job, ["tokens_per_s_per_device"])
    assert (told.cause, told.message) == (
        Cause.INVALID,
        "a figure is not finite: tokens_per_s_per_device=inf",
    )


def test_memory_constraints_are_fractions_of_the_device():
    job = config("study.db").inputs.job
    limit = job.cluster.device.memory_bytes
    half = Measured(step_s=1.0, step_spread_s=0.0, peak_memory_bytes=limit / 2, origin=SIMULATED)
    short = Failed(cause=Cause.OUT_OF_MEMORY, message="", origin=SIMULATED, short_bytes=limit / 4)
    assert tell.constraints_of(half, job) == {"memory": -0.5}
    assert tell.constraints_of(short, job) == {"memory": 0.25}
