"""Factors of memory's parts from readings whose truth is known, and from nonsense."""

from dataclasses import fields, replace

import numpy as np
import pytest

from objectives.calibration import calibrate_memory
from objectives.cost.result import StepMemory

N = 40
TRUTH = {"activations_bytes": 1.2, "reserve_bytes": 0.6}


def predicted(seed=0, n=N):
    rng = np.random.default_rng(seed)
    return StepMemory(**{field.name: rng.uniform(1e9, 1e10, n) for field in fields(StepMemory)})


def read(memory, noise=0.01, seed=1):
    truth = replace(memory, **{name: getattr(memory, name) * factor for name, factor in TRUTH.items()})
    return truth.total_bytes * np.exp(noise * np.random.default_rng(seed).standard_normal(N))


def error(memory, measured):
    return np.median(np.abs(np.log(measured / memory.total_bytes)))


def test_other_jobs_are_priced_better_after_readings():
    found = calibrate_memory(predicted(), read(predicted()))
    other = predicted(seed=5)
    assert found.helped
    assert found.factors["activations_bytes"] == pytest.approx(1.2, abs=0.05)
    assert error(found.applied(other), read(other)) < 0.5 * error(other, read(other))


@pytest.mark.parametrize("n", [0, 2])
def test_few_readings_change_nothing(n):
    found = calibrate_memory(predicted(n=n), predicted(n=n).total_bytes * 2)
    assert (found.helped, found.n_readings) == (False, n)


@pytest.mark.parametrize("seed", range(5))
def test_readings_that_follow_no_rule_change_nothing(seed):
    noise = np.exp(0.3 * np.random.default_rng(seed).standard_normal(N))
    assert not calibrate_memory(predicted(), predicted().total_bytes * noise).helped


@pytest.mark.parametrize("factor", [100.0, 0.01])
def test_one_reading_a_hundred_times_off_does_little_harm(factor):
    measured = read(predicted())
    good = calibrate_memory(predicted(), measured).applied(predicted(5)).total_bytes
    measured[3] *= factor
    odd = calibrate_memory(predicted(), measured).applied(predicted(5)).total_bytes
    assert np.abs(np.log(odd / good)).max() < 0.03


def test_constant_readings_are_finite():
    found = calibrate_memory(predicted(), np.full(N, 3e10))
    assert np.isfinite(found.applied(predicted()).total_bytes).all()
