"""Runs held up on purpose: found with their wait, set apart, foretold where nodes are many; else silence."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.calibration import TimedStep, calibrate, exposure, exposure_of, log_step_s
from objectives.calibration.holdups import find_hold_ups
from search_spaces.plan import Plan, Plans
from tests.objectives.jobs import job_of

WAIT_S, NOISE = 0.25, 0.02
PLANS = [
    f"tp={tp} pp={pp} dp={64 // (tp * pp)} micro_batch={micro_batch}"
    for tp in (1, 2, 4, 8)
    for pp in (1, 2, 4)
    for micro_batch in (1, 2)
]


def steps(n_held_up=4, wait_s=WAIT_S, seed=0):
    """Plans on eight nodes, the first few of those with a pipeline held up; and which these are."""
    job = job_of("llama-3-8b", "dgx-h100", 64, seq_len=4096, global_batch=256)
    plans = [Plan.parse(each) for each in PLANS]
    found = [TimedStep(job=job, plan=plan, step_s=1.0) for plan in plans]
    rng = np.random.default_rng(seed)
    able = np.flatnonzero([plan.pp > 1 for plan in plans])
    held = np.sort(rng.permutation(able)[:n_held_up])
    seconds = np.exp(log_step_s(found, {}))
    seconds[held] += wait_s * exposure_of(found).messages[held]
    seconds *= np.exp(NOISE * rng.standard_normal(len(found)))
    return [replace(step, step_s=float(each)) for step, each in zip(found, seconds, strict=True)], held


def search(found):
    return find_hold_ups(np.log([step.step_s for step in found]), log_step_s(found, {}), exposure_of(found))


@pytest.mark.parametrize("seed", range(3))
def test_the_wait_and_the_runs_are_found(seed):
    found, held = steps(seed=seed)
    hold_ups, mask = search(found)
    np.testing.assert_array_equal(np.flatnonzero(mask), held)
    assert hold_ups.n_runs == len(held)
    assert hold_ups.wait_s == pytest.approx(WAIT_S, rel=0.1)


@pytest.mark.parametrize("n_held_up", [0, 1, 2])
def test_few_odd_runs_are_no_hold_ups(n_held_up):
    hold_ups, mask = search(steps(n_held_up)[0])
    assert hold_ups is None
    assert not mask.any()


def test_runs_that_are_slow_by_different_waits_are_no_hold_ups():
    found, _ = steps(0)
    slow = [replace(step, step_s=step.step_s * 100.0**i) for i, step in enumerate(found[8:12], start=1)]
    assert search([*found[:8], *slow, *found[12:]])[0] is None


def test_the_constants_are_fitted_to_the_others():
    regular, (found, held) = steps(0)[0], steps(4)
    with_waits, without = calibrate(found), calibrate(regular)
    assert with_waits.held_up == tuple(held)
    assert without.hold_ups is None
    assert [each.factor for each in with_waits.constants] == pytest.approx(
        [each.factor for each in without.constants], rel=0.05
    )


def test_the_chance_grows_with_the_nodes_and_needs_a_message():
    hold_ups, _ = search(steps()[0])
    plans = Plans.of([Plan.parse("tp=8 pp=2 dp=4 micro_batch=1")])
    chances = [
        hold_ups.chance(exposure(job_of("llama-3-8b", "dgx-h100", 64 * n, global_batch=256), plans))[0]
        for n in (1, 2, 4, 8)
    ]
    assert chances == sorted(chances)
    assert chances[-1] > 2 * chances[0]
    alone = Plans.of([Plan.parse("tp=8 pp=1 dp=8 micro_batch=1")])
    job = job_of("llama-3-8b", "dgx-h100", 64, global_batch=256)
    assert hold_ups.chance(exposure(job, alone)) == 0


@pytest.mark.parametrize(
    ("plan", "messages"),
    [
        ("tp=8 pp=1 dp=8 micro_batch=4", 0),
        ("tp=8 pp=2 dp=4 micro_batch=64", 2),
        ("tp=8 pp=2 dp=4 micro_batch=16", 2 * 4),
        ("tp=4 pp=4 dp=4 micro_batch=16", 2 * 3 + 4 * 3),
    ],
)
def test_messages_in_a_row_are_counted(plan, messages):
    job = job_of("llama-3-8b", "dgx-h100", 64, global_batch=256)
    assert exposure(job, Plans.of([Plan.parse(plan)])).messages == messages
