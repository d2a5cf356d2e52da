"""Figures of one source only: seconds of two devices, or of proxies and the real thing, are never mixed."""

import math
from dataclasses import replace

import pytest

from objectives.outcome import Cause, Failed, Measured, OutcomeOrigin, outcome_to_dict
from search_spaces.errors import RunnerError
from tests.tuner import studies
from tests.tuner.hidden_cluster import candidate_table, job
from tests.tuner.studies import config, view
from tuner.samplers.candidates import CandidateTable
from tuner.samplers.history import Lesson, LessonReader, of_one_source
from tuner.study import tune
from tuner.view import State

CPU, GPU = {"device": "cpu"}, {"device": "NVIDIA H100"}
PROXY = {**CPU, "proxy": {"layers": [2, 32]}, "predicted": {"step_s": 0.5, "peak_memory_bytes": 4e8}}
TABLE = candidate_table()


def measured(step_s=1.0, **effective):
    return Measured(
        step_s=step_s,
        step_spread_s=0.0,
        peak_memory_bytes=8e8,
        origin=OutcomeOrigin.MEASURED,
        effective=effective,
    )


class Devices:
    """An executor whose trials run on one device after the other."""

    def __init__(self, *devices):
        self.n_slots, self.devices, self.arrived = 1, list(devices), []

    def submit(self, ticket, plan):
        self.arrived.append((ticket, measured(**self.devices.pop(0))))

    def wait(self, timeout_s):
        arrived, self.arrived = self.arrived, []
        return arrived

    def close(self):
        self.arrived.clear()


@pytest.fixture
def storage(tmp_path):
    return studies.storage_url(tmp_path, "journal")


def test_a_study_of_one_device_does_not_go_on_with_another(storage):
    with pytest.raises(RunnerError, match="measured on, cpu; got a trial on NVIDIA H100"):
        tune(config(storage), executor=Devices(CPU, CPU, GPU))
    study = view(storage)
    assert {trial.outcome.effective["device"] for trial in study.measured} == {"cpu"}
    assert (len(study.measured), study.counts[State.LOST], study.waiting) == (2, 1, 1)
    after = tune(config(storage), executor=Devices(*6 * [CPU])).view
    assert len(after.measured) == 6


def test_runners_that_tell_no_device_are_let_be(storage):
    assert len(tune(config(storage), executor=Devices({}, CPU, {}, CPU, {}, {})).view.measured) == 6


@pytest.fixture
def reader():
    return LessonReader(CandidateTable(candidates=TABLE), metrics=("step_time",), job=job())


def lesson(reader, outcome, row=3):
    import optuna

    trial = optuna.trial.create_trial(
        value=1.0, user_attrs={"outcome": outcome_to_dict(outcome)}, params={}, distributions={}
    )
    return reader.read(trial, row)


def test_a_proxy_is_compared_with_what_was_predicted_of_the_proxy(reader):
    found = lesson(reader, measured(1.0, **PROXY))
    assert found.log_time == pytest.approx(math.log(1.0 / 0.5))
    assert found.log_memory == pytest.approx(math.log(2.0))
    assert found.source == "cpu by proxy"


def test_a_plan_itself_is_compared_with_its_own_prediction(reader):
    found = lesson(reader, measured(1.0, **CPU))
    assert found.log_time == pytest.approx(-math.log(TABLE.estimate.step_s[3]))
    assert found.source == "cpu"


def test_a_proxy_without_a_prediction_of_its_own_teaches_no_ratio(reader):
    assert lesson(reader, measured(**{**PROXY, "predicted": {}})).log_time is None


def test_a_proxy_s_memory_says_nothing_about_the_plan_s(reader):
    failed = Failed(cause=Cause.OUT_OF_MEMORY, message="full", origin=OutcomeOrigin.MEASURED, effective=PROXY)
    assert lesson(reader, failed) is None
    assert lesson(reader, replace(failed, effective=CPU)).memory_is_bound


def lessons(*sources):
    return [Lesson(row=i, log_time=0.1, ran=True, source=source) for i, source in enumerate(sources)]


@pytest.mark.parametrize(
    ("sources", "kept"),
    [
        (["cpu", "cpu", "gpu"], [0, 1]),
        (["cpu", "gpu"], [1]),
        (["", "", ""], [0, 1, 2]),
        (["cpu by proxy", "cpu", "cpu by proxy"], [0, 2]),
        ([], []),
    ],
)
def test_a_surrogate_learns_from_the_source_of_most_lessons(sources, kept):
    assert [each.row for each in of_one_source(lessons(*sources))] == kept


def test_that_a_plan_fails_is_learnt_from_any_source():
    mixed = [*lessons("cpu", "cpu", "gpu"), Lesson(row=9, ran=False, source="gpu")]
    assert [each.row for each in of_one_source(mixed)] == [0, 1, 9]
