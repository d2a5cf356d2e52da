"""A study of real trials, from the command line to its report."""

import json

import pytest

from tests.runners.torch_study import CONFIG
from tests.tuner.cli import meshtune

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]


def test_a_study_of_real_trials_on_this_machine(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    job = ["--hf-config", str(config), "--cluster", "local", "--devices", "2", "--global-batch", "8"]
    job += ["--seq-len", "32", "--precision", "fp32", "--framework", "meshtune"]
    space = ["--set", "tp=1,2", "--set", "cp=1", "--set", "recompute=none", "--set", "micro_batch=2,4"]
    how = ["--runner", "torch", "--executor", "in-process", "--parallel", "1", "--trials", "3"]
    options = [
        "--runner-option",
        "n_steps=2",
        "--runner-option",
        "n_warmup=1",
        "--runner-option",
        "device=cpu",
    ]
    where = ["--storage", storage, "--name", "real"]
    answer = meshtune("tune", *job, *space, *how, *options, *where, "--json")
    assert answer.code == 0, answer.err
    assert answer.document["counts"]["measured"] == 3
    assert all(trial["values"]["step_time"] > 0 for trial in answer.document["trials"])
    report = meshtune("report", "real", "--storage", storage)
    assert report.code == 0
    assert "measured" in report.out


def test_an_option_that_the_runner_does_not_have_is_refused(tmp_path):
    answer = meshtune("tune", "--runner", "torch", "--model", "gpt2", "--cluster", "local", "--devices", "2",
                      "--global-batch", "8", "--seq-len", "128", "--runner-option", "n_step=3",
                      "--storage", f"sqlite:///{tmp_path / 's.db'}")  # fmt: skip
    assert answer.code == 2
    assert "did you mean 'n_steps'" in answer.err
