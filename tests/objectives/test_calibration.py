"""Calibration on steps whose truth is known: a hidden machine, planted faults, silent constants, nonsense."""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import pytest

from objectives.calibration import (
    TimedStep,
    calibrate,
    calibrated_cluster,
    log_step_s,
)
from objectives.uncertainty import cluster_constants
from search_spaces.cluster import Origin
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Plans
from search_spaces.space import SearchSpace, SpaceSpec
from tests.objectives.jobs import job_of

HIDDEN = {
    "device.gemm_efficiency": 0.93,
    "device.sustained_efficiency": 0.95,
    "device.kernel_launch_s": 1.5,
    "fabric.efficiency": 0.8,
}
NOISE = 0.02
SIZES = {"llama-3-8b": 8192, "llama-2-7b": 2048, "gpt2-xl": 1024, "mpt-7b": 4096, "mpt-1b": 2048}
JOBS = {
    name: partial(job_of, name, "dgx-h100", seq_len=seq_len, global_batch=128)
    for name, seq_len in SIZES.items()
}


def steps_of(n_nodes=8, n=40, *, hidden=HIDDEN, noise=NOISE, seed=0):
    """Steps of several models on DGX H100, priced by the formulas with hidden constants, and noise."""
    rng, found = np.random.default_rng(seed), []
    for key in JOBS:
        job, plans = narrow_plans(key, 8 * n_nodes)
        picked = rng.choice(len(plans), n // len(JOBS), replace=False)
        found += [TimedStep(job=job, plan=plans.row(int(i)), step_s=1.0) for i in picked]
    truth = log_step_s(found, hidden) + noise * rng.standard_normal(len(found))
    return [replace(step, step_s=float(np.exp(ln_s))) for step, ln_s in zip(found, truth, strict=True)]


@cache
def narrow_plans(job_key, n_devices):
    """Legal plans of a corner of the space: every axis, one micro-batch schedule."""
    job = JOBS[job_key](n_devices)
    narrowed = SpaceSpec.of(
        dict(tp=[1, 2, 8], pp=[1, 2], cp=[1], vpp=[1], micro_batch=[1, 2, 4], zero=[0, 1], recompute=["none"])
        | dict(rank_order=["tp-cp-dp-pp"], offload_optimizer=[False], first_layers=[0], last_layers=[0])
    )
    space = SearchSpace(job.model, job.cluster, job.workload, narrowed)
    return job, Plans.concatenate(list(space.chunks()))


def errors_of(steps, cluster):
    """Predicted over measured seconds, less one, on that machine."""
    there = {id(s.job): replace(s.job, cluster=cluster.with_devices(s.job.cluster.n_devices)) for s in steps}
    moved = [replace(step, job=there[id(step.job)]) for step in steps]
    return np.exp(log_step_s(moved, {})) / [step.step_s for step in steps] - 1


@pytest.fixture(scope="module")
def steps():
    return steps_of()


@pytest.fixture(scope="module")
def found(steps):
    return calibrate(steps, source="40 made-up steps")


@pytest.fixture(scope="module")
def machine(steps, found):
    return calibrated_cluster(steps[0].job.cluster, found)


def by_name(found):
    return {each.name: each for each in found.constants}


def test_steps_never_seen_are_predicted_to_the_noise(steps, machine):
    others = steps_of(seed=7, n=80)
    before, after = (np.abs(errors_of(others, each)) for each in (steps[0].job.cluster, machine))
    assert np.median(before) > 0.08
    assert np.median(after) < 0.03


def test_what_was_learned_on_eight_nodes_holds_on_thirty_two(steps, machine):
    assert np.median(np.abs(errors_of(steps_of(32, seed=3), machine))) < 0.05


@pytest.mark.parametrize("name", ["device.kernel_launch_s", "fabric.efficiency"])
def test_a_hidden_constant_is_recovered(found, name):
    each = by_name(found)[name]
    assert each.is_determined
    assert each.factor == pytest.approx(HIDDEN[name], rel=0.15)
    assert (each.fitted.origin, each.fitted.source[:32]) == (
        Origin.FITTED,
        "fitted to 40 made-up steps; befo",
    )


def test_two_constants_of_one_effect_share_its_change(found):
    product = (
        by_name(found)["device.gemm_efficiency"].factor * by_name(found)["device.sustained_efficiency"].factor
    )
    assert product == pytest.approx(0.93 * 0.95, rel=0.06)


def test_no_spread_grows(found):
    for each in found.constants:
        assert 0 < each.kept_spread <= 1
        assert each.fitted.spread <= each.preset.spread


def test_more_steps_leave_less_open(found):
    few = by_name(calibrate(steps_of(n=10)))
    some = [name for name, each in by_name(found).items() if name in few and each.is_determined]
    assert sum(by_name(found)[name].kept_spread < few[name].kept_spread for name in some) > len(some) / 2


def test_steps_inside_one_node_say_nothing_of_the_fabric():
    found = calibrate(steps_of(n_nodes=1, hidden={"device.gemm_efficiency": 0.9}))
    assert {"fabric.efficiency", "fabric.latency_s", "straggler_per_log2"} <= set(found.unfelt)
    assert set(found.unfelt) <= set(found.undetermined)


def test_what_is_not_determined_keeps_its_origin(steps, found, machine):
    before, after = cluster_constants(steps[0].job.cluster), cluster_constants(machine)
    for name in found.undetermined:
        assert (after[name].origin, after[name].spread) == (before[name].origin, before[name].spread)
    for name in found.unfelt:
        assert after[name] == before[name]
    assert after["memory_reserve_bytes"] == before["memory_reserve_bytes"]


def test_efficiencies_stay_possible():
    shares = ("device.gemm_efficiency", "fabric.efficiency", "node.efficiency")
    steps = steps_of(n=20, hidden={})
    steps = [replace(step, step_s=step.step_s / 3) for step in steps]
    machine = calibrated_cluster(steps[0].job.cluster, calibrate(steps))
    constants = cluster_constants(machine)
    assert all(constants[name].value <= 1 for name in shares)


@pytest.mark.parametrize("wrong", [{3: 1000.0}, {3: 2.0, 11: 0.4}, {0: 60.0, 20: 0.001, 31: 3.0}])
def test_planted_faults_are_named_and_do_little_harm(steps, wrong):
    faulty = [replace(step, step_s=step.step_s * wrong.get(i, 1.0)) for i, step in enumerate(steps)]
    found = calibrate(faulty)
    assert set(wrong) <= set(found.outliers)
    assert len(found.outliers) <= len(wrong) + 2
    machine = calibrated_cluster(steps[0].job.cluster, found)
    assert np.median(np.abs(errors_of(steps_of(seed=7), machine))) < 0.04


@pytest.mark.parametrize("seed", range(3))
def test_nonsense_never_leaves_held_back_steps_worse(seed):
    nonsense = steps_of(n=15, hidden={}, noise=1.0, seed=seed)
    held = calibrate(nonsense).held_back
    assert held.fitted_median_error <= held.preset_median_error
    assert held.fitted_mean_error <= held.preset_mean_error


def test_a_fit_that_does_not_help_is_the_preset():
    steps = steps_of(n=10, hidden={}, noise=0.0)
    found = calibrate(steps)
    assert not found.helped
    assert calibrated_cluster(steps[0].job.cluster, found) == steps[0].job.cluster
    assert set(found.undetermined) == {each.name for each in found.constants} | set(found.unfelt)


@pytest.mark.parametrize("n", [5, 10])
def test_few_steps_help(n):
    steps = steps_of(n=n, seed=1)
    machine = calibrated_cluster(steps[0].job.cluster, calibrate(steps))
    others = steps_of(seed=7)
    assert np.median(np.abs(errors_of(others, machine))) < np.median(
        np.abs(errors_of(others, steps[0].job.cluster))
    )


@pytest.mark.parametrize(
    "change",
    [lambda steps: steps * 3, lambda steps: [*steps, *[steps[3]] * 20]],
    ids=["all steps thrice", "one step twenty times more"],
)
def test_steps_given_again_change_no_prediction_by_much(steps, machine, change):
    again = calibrated_cluster(steps[0].job.cluster, calibrate(change(list(steps))))
    others = steps_of(seed=7)
    moved = (1 + errors_of(others, again)) / (1 + errors_of(others, machine)) - 1
    assert np.median(np.abs(moved)) < 0.02


def test_constant_outcomes_are_fitted_without_a_crash(steps):
    found = calibrate([replace(step, step_s=1.0) for step in steps])
    assert np.isfinite([each.fitted.value for each in found.constants]).all()
    assert found.held_back.fitted_mean_error <= found.held_back.preset_mean_error


def test_the_same_steps_give_the_same_fit(steps, found):
    assert calibrate(steps, source="40 made-up steps") == found


def test_too_few_steps_are_refused(steps):
    with pytest.raises(InvalidSpec, match="needs 3 measured steps; got 2"):
        calibrate(steps[:2])
    with pytest.raises(InvalidSpec, match="must be positive and finite; got 0"):
        replace(steps[0], step_s=0.0)
