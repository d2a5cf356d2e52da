"""Studies of energy: the front holds a fastest and another, thriftiest plan, with what was measured."""

from dataclasses import replace

import pytest

from objectives.valuing import outcome_energy_j
from tests.tuner.cli import meshtune
from tests.tuner.studies import read_study
from tuner.budget import Budget
from tuner.presets import preset_path
from tuner.study import tune


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    storage = f"sqlite:///{tmp_path_factory.mktemp('energy') / 'energy.db'}"
    config = read_study(preset_path("energy"))
    return storage, tune(replace(config, storage=storage, budget=Budget(trials=10)))


def test_the_fastest_and_the_thriftiest_trial_differ(result):
    _, ended = result
    front = ended.view.pareto_front
    fastest = min(front, key=lambda trial: trial.values["step_time"])
    thriftiest = min(front, key=lambda trial: trial.values["energy_per_token"])
    assert fastest.plan != thriftiest.plan
    assert thriftiest.values["energy_per_token"] < 0.9 * fastest.values["energy_per_token"]
    assert thriftiest.plan.power_cap_w > 0
    assert fastest.plan.power_cap_w == 0


def test_values_of_trials_are_their_own_joules(result):
    _, ended = result
    job = ended.view.inputs.job
    for trial in ended.view.measured:
        joules = outcome_energy_j(job, trial.plan, trial.outcome)
        per_token = joules / job.workload.tokens_per_step
        assert trial.values["energy_per_token"] == pytest.approx(per_token)
        assert trial.outcome.energy_j < joules  # hosts and cards come on top


def test_the_report_shows_the_front_and_the_energy(result):
    storage, _ = result
    report = meshtune("report", "energy", "--storage", storage)
    assert report.code == 0
    assert all(words in report.out for words in ("Pareto front", "energy_per_token", "kWh a step", "cap"))


@pytest.mark.parametrize("metric", ["energy_per_token", "tflop_per_kj", "energy_per_step"])
def test_rank_takes_metrics_of_energy(metric):
    words = "rank --model qwen3-8b --cluster alps --devices 8 --global-batch 64 --seq-len 2048 --set cp=1"
    answer = meshtune(
        *words.split(), "--set", "power_cap_w=0,500", "--metric", metric, "--top", "2", "--no-simulate"
    )
    assert answer.code == 0
    assert "J/token" in answer.out
    assert "cap500W" in answer.out
    assert "W a device" in answer.out


def test_estimate_explains_where_the_joules_go():
    words = "estimate --model qwen3-8b --cluster alps --devices 8 --global-batch 64 --seq-len 2048"
    answer = meshtune(*words.split(), "--plan", "dp=8 micro_batch=2 zero=1 power_cap_w=500", "--explain")
    assert answer.code == 0
    assert "where it goes" in answer.out
    document = meshtune(*words.split(), "--plan", "dp=8 micro_batch=2 zero=1", "--json").document
    assert set(document["energy_j"]) == {"compute", "memory", "communication", "idle", "host", "nic"}


def test_an_explained_study_of_energy_speaks_of_its_quantity(result):
    storage, _ = result
    answer = meshtune("explain", "energy", "--storage", storage)
    assert answer.code == 0


def test_a_capped_plan_is_exported_with_what_the_site_has_to_do(tmp_path):
    words = (
        "export --model qwen3-8b --cluster alps --devices 8 --global-batch 64 --seq-len 2048 --to megatron-lm"
    )
    plan = "dp=8 micro_batch=2 zero=1 power_cap_w=500"
    assert meshtune(*words.split(), "--plan", plan, "-o", str(tmp_path / "out")).code == 0
    assert "sudo bash power.sh" in (tmp_path / "out" / "README.txt").read_text()
    assert "\n    nvidia-smi -pl 500\n" in (tmp_path / "out" / "power.sh").read_text()


@pytest.mark.parametrize("launcher", ["megatron-lm", "torchtitan", "llm-foundry"])
def test_launchers_without_it_refuse_an_overlapped_offload_by_name(launcher, tmp_path):
    words = (
        f"export --model qwen3-8b --cluster alps --devices 8 --global-batch 64 --seq-len 2048 --to {launcher}"
    )
    plan = "dp=8 micro_batch=2 zero=3 offload_optimizer=true overlap_offload=true"
    answer = meshtune(*words.split(), "--plan", plan, "-o", str(tmp_path / "out"))
    assert (answer.code, "overlap_offload=true" in answer.err) == (2, True)


def test_deepspeed_takes_an_overlapped_offload(tmp_path):
    words = (
        "export --model llama-3-8b --cluster alps --devices 8 --global-batch 64 --seq-len 2048 --to deepspeed"
    )
    plan = "dp=8 micro_batch=2 zero=3 offload_optimizer=true overlap_offload=true"
    answer = meshtune(*words.split(), "--plan", plan, "-o", str(tmp_path / "out"))
    assert answer.code == 0
    assert '"super_offload": true' in (tmp_path / "out" / "ds_config.json").read_text()
