"""A study of the longest sequence: told in tokens, led to the plan that holds most, learnt from as others."""

import numpy as np
import pytest

from objectives.longest import MAX_SEQ_LEN, longest_sequence
from objectives.outcome import Measured, OutcomeOrigin
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Plan, Plans
from tests.tuner.cli import meshtune
from tests.tuner.studies import config, storage_url
from tuner.samplers.goals import memory_offset
from tuner.shortlist import shortlist
from tuner.study import tune
from tuner.tell import sound, values_of

LLAMA = dict(
    model={"preset": "llama-3-8b"},
    cluster={"preset": "dgx-a100", "devices": 8},
    workload={"seq_len": 8192, "global_batch": 8, "framework": "deepspeed"},
    space={"tp": [1, 2, 4, 8], "cp": [1, 2, 4, 8], "pp": 1, "recompute": ["none", "full"], "zero": [1, 3],
           "offload_checkpoints": [False, True]},
    objective={"metric": MAX_SEQ_LEN},
)  # fmt: skip


def study_of(folder, **changes):
    return config(storage_url(folder, "sqlite"), **{**LLAMA, **changes})


def measured(peak_bytes):
    return Measured(
        step_s=1.0, step_spread_s=0.0, peak_memory_bytes=peak_bytes, origin=OutcomeOrigin.MEASURED
    )


def test_the_first_trial_is_the_plan_predicted_to_hold_most(tmp_path):
    found = tune(study_of(tmp_path, study={"sampler": "meshtune"}, budget={"trials": 5}))
    candidates = shortlist(study_of(tmp_path).inputs).candidates
    assert found.view.trials[0].plan.key == candidates.plans.row(0).key
    assert candidates.plans.offload_checkpoints[0]
    best = found.view.best
    assert best.values[MAX_SEQ_LEN] == max(trial.values[MAX_SEQ_LEN] for trial in found.view.measured)
    assert best.values[MAX_SEQ_LEN] > 8192


def test_a_trial_is_told_the_length_that_its_peak_leaves(tmp_path):
    job, plan = study_of(tmp_path).inputs.job, Plan.parse("tp=8 recompute=full")
    told = [values_of(measured(peak), job, [MAX_SEQ_LEN], plan)[0] for peak in (8e9, 10e9, 20e9)]
    assert told == sorted(told, reverse=True)
    expected = longest_sequence(job, Plans.of([plan]), peak_bytes=np.array([10e9]))
    assert told[1] == expected[0]
    assert sound(measured(10e9), job, [MAX_SEQ_LEN], plan) == measured(10e9)


def test_fewer_bytes_by_the_metric_are_a_longer_sequence(tmp_path):
    inputs = study_of(tmp_path).inputs
    candidates = shortlist(inputs).candidates
    sought = np.log(candidates.estimate.peak_memory_bytes) + memory_offset(
        inputs.job, candidates, (MAX_SEQ_LEN,)
    )
    lengths = longest_sequence(inputs.job, candidates.plans)
    assert np.argsort(sought, kind="stable").tolist() == np.argsort(-lengths, kind="stable").tolist()
    assert not memory_offset(inputs.job, candidates, ("step_time", "peak_memory")).any()


def test_it_and_the_peak_are_one_measurement(tmp_path):
    with pytest.raises(InvalidSpec, match="must name peak_memory or max_seq_len"):
        study_of(tmp_path, objective={"metric": [MAX_SEQ_LEN, "peak_memory"]})


def test_rank_shows_it_on_the_screen_and_in_the_document():
    job = "--model llama-3-8b --cluster dgx-a100 --devices 8 --global-batch 8 --seq-len 8192"
    asked = f"{job} --metric {MAX_SEQ_LEN} --top 2 --set tp=8 --set pp=1 --set recompute=full"
    words = ["rank", *asked.split()]
    screen, document = meshtune(*words), meshtune(*words, "--json").document
    assert "longest sequence" in screen.out
    lengths = [row[MAX_SEQ_LEN] for row in document["best"]]
    assert lengths == sorted(lengths, reverse=True)
    assert f"{lengths[0]:,}" in screen.out
