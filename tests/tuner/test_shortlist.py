"""The candidate table of a study: what is priced, or what was recorded."""

import csv

import pytest

from tests.tuner.cli import JOB, meshtune

COLUMNS = ["n_gpus", "tp", "pp", "dp", "micro_batch", "zero_stage", "seq_parallel", "outcome", "step_time_s"]
RECORDED = [
    [16, 2, 1, 8, 1, 1, 1, "ok", 9.0],
    [16, 4, 1, 4, 1, 1, 1, "ok", 8.0],
    [16, 2, 2, 4, 1, 1, 1, "ok", 7.5],
    [16, 4, 2, 2, 1, 1, 1, "oom", ""],
]


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "runs.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *RECORDED])
    return path


def replayed(recording, *words):
    storage = f"sqlite:///{recording.parent / 'studies.db'}"
    options = ["--runner", "replay", "--runner-option", f"path={recording}", "--executor", "in-process"]
    return meshtune(
        "tune", *JOB, *words, *options, "--trials", "10", "--storage", storage, "--name", "replayed", "--json"
    )


def test_a_replayed_study_tries_what_was_recorded_and_nothing_else(recording):
    answer = replayed(recording)
    assert answer.code == 0, answer.err
    trials = answer.document["trials"]
    tried = sorted(trial["state"] for trial in trials if trial["plan"] and trial["outcome"])
    assert tried == ["failed", "measured", "measured", "measured"]
    assert answer.document["best"]["values"] == {"step_time": 7.5}


def test_a_recording_outside_the_space_is_one_sentence(recording):
    answer = replayed(recording, "--set", "tp=8")
    assert answer.code == 2
    assert "the recording must hold a plan of the space; got none of 4 plans" in answer.err
