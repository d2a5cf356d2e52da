"""The table of real runs in the repository: read whole, predicted, and searched by replays of its trials."""

import json

import numpy as np
import optuna
import pytest

from benchmarks import bench_real
from benchmarks.bench_real import QUIET_SHARE, TABLE, by_job, errors, processor_share, runs_of, search
from objectives.measurements import read_measurements
from objectives.measurements.writing import COLUMNS
from objectives.validation import predict
from tests.tuner.cli import meshtune

SEEDS = 20
quiet = pytest.mark.skipif(
    processor_share(TABLE) < QUIET_SHARE, reason="the table was taken while others used its machine"
)


@pytest.fixture(scope="module")
def runs():
    return runs_of(TABLE)


@pytest.fixture(scope="module")
def all_runs(runs):
    (found,) = (each for each in errors(predict(runs)) if each.by == bench_real.ALL)
    return found


@pytest.fixture(scope="module")
def searches(runs):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return [search(name, own, TABLE, SEEDS) for name, own in by_job(runs).items()]


def test_every_row_is_a_run_of_its_own_plan(runs):
    found = read_measurements(TABLE)
    assert found.rejected == ()
    assert len(found.runs) == len(runs) >= 150
    assert len({(id(run.job), run.plan.key) for run in runs}) == len(runs)
    assert TABLE.read_text().partition("\n")[0] == ",".join(COLUMNS)


def test_it_holds_what_a_space_of_real_plans_should(runs):
    plans = [run.plan for run in runs]
    assert set(by_job(runs)) == {f"small-{kind} on {n}" for kind in ("dense", "moe") for n in (2, 4)}
    for axis in ("dp", "tp", "pp", "cp", "ep", "vpp", "micro_batch"):
        assert {getattr(plan, axis) > 1 for plan in plans} == {True, False}
    assert {plan.zero for plan in plans} == {0, 1, 2, 3}
    assert len({plan.schedule for plan in plans if plan.pp > 1}) >= 4
    assert len({plan.recompute for plan in plans}) >= 2


def test_its_machine_was_measured(runs):
    for cluster in {run.job.cluster.name: run.job.cluster for run in runs}.values():
        for name in ("gemm_efficiency", "attention_efficiency", "memory_efficiency", "kernel_launch_s"):
            assert getattr(cluster.device, name).origin == "measured"
        assert cluster.tiers[0].latency_s.origin == "measured"
        assert cluster.device.is_host


def test_validate_says_what_the_benchmark_says(all_runs):
    answer = meshtune("validate", TABLE, "--json")
    assert answer.code == 0, answer.err
    (group,) = (each for each in answer.document["groups"] if each["by"] == "all")
    for name in ("n", "median_ape", "mean_ape", "pair_order", "regret"):
        assert group[name] == pytest.approx(getattr(all_runs, name))


def test_a_search_ends_with_a_plan_near_the_best(searches):
    for each in searches:
        assert 1 <= each.trials.min() <= each.trials.max() <= each.n_plans - each.n_near + 1


def test_the_processors_share_is_that_of_the_rows(tmp_path):
    extra = {"busy_s": 0.9, "cores": "2", "n_threads": 1, "plan": "dp=4"}
    path = tmp_path / "runs.csv"
    cells = json.dumps(extra).replace('"', '""')
    path.write_text(f'step_time_s,extra\n0.5,"{cells}"\n1.0,"{cells}"\n,"{cells}"\n')
    assert processor_share(path) == pytest.approx(np.mean([0.9, 0.45]))


@quiet
def test_the_model_predicts_the_runs(all_runs):
    assert all_runs.median_ape <= 0.18
    assert all_runs.pair_order >= 0.8


@quiet
def test_most_searches_take_few_trials(searches):
    assert np.mean(np.concatenate([each.trials for each in searches]) <= bench_real.TRIALS) >= 0.95
