"""Drivers are killed, interrupted and doubled; the study must not mind."""

import random
import signal
import time

import psutil
import pytest

from objectives.outcome import Measured, OutcomeOrigin
from tests.tuner import studies
from tests.tuner.studies import (
    NAME,
    STORAGES,
    config,
    finished_plans,
    running_plans,
    start_driver,
    twice,
    view,
    wait_for,
)
from tuner.budget import Budget, Stop
from tuner.study import resume
from tuner.view import State

SLOW = {"executor": "in-process", "parallel": 2, "options": {"seconds_per_trial": 0.2}}


@pytest.fixture(params=STORAGES)
def storage(request, tmp_path):
    return studies.storage_url(tmp_path, request.param)


def kill(driver):
    """SIGKILL, and the bystander's view of the study right after."""
    driver.kill()
    driver.communicate()


def test_a_study_whose_driver_was_killed_goes_on_where_it_stopped(storage, tmp_path):
    driver = start_driver(tmp_path, storage, runner=SLOW, budget={"trials": 8})
    wait_for(driver, "finished", 3)
    kill(driver)
    before, after = view(storage), resume(NAME, storage).view
    assert 3 <= len(before.finished) < 8
    assert after.finished[: len(before.finished)] == before.finished
    assert len(after.finished) == 8
    assert twice(finished_plans(after)) == []
    again = {trial.plan.key: trial.attempt for trial in after.finished if trial.attempt > 1}
    assert again == dict.fromkeys(running_plans(before), 2)


def test_a_driver_killed_again_and_again_finishes_its_budget_exactly(tmp_path):
    storage, rng = studies.storage_url(tmp_path, "sqlite"), random.Random(7)
    kept = ()
    for _ in range(3):
        driver = start_driver(tmp_path, storage, runner=SLOW, budget={"trials": 10})
        wait_for(driver, "started", 1)
        time.sleep(rng.uniform(0, 0.5))
        kill(driver)
        now = view(storage).finished
        assert all(trial in now for trial in kept)
        kept = now
    after = resume(NAME, storage).view
    assert len(after.finished) == 10
    assert all(trial in after.finished for trial in kept)
    assert twice(finished_plans(after)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_driver_hands_its_plans_over_at_once(number, tmp_path):
    storage = studies.storage_url(tmp_path, "journal")
    slower = {**SLOW, "options": {"seconds_per_trial": 0.8}}
    driver = start_driver(tmp_path, storage, runner=slower, budget={"trials": 5})
    wait_for(driver, "started", 3)
    driver.send_signal(number)
    driver.communicate(timeout=120)
    stopped = view(storage)
    assert driver.returncode == 130
    assert (stopped.counts[State.RUNNING], stopped.waiting) == (0, stopped.counts[State.LOST])
    assert stopped.waiting > 0
    assert len(resume(NAME, storage).view.finished) == 5


def test_two_drivers_share_a_study_and_never_try_one_plan_twice(storage, tmp_path):
    drivers = [start_driver(tmp_path, storage, runner=SLOW, budget={"trials": 12}) for _ in range(2)]
    outputs = [driver.communicate(timeout=240) for driver in drivers]
    assert [driver.returncode for driver in drivers] == [0, 0], outputs
    after = view(storage)
    assert len(after.finished) == 12
    assert twice(finished_plans(after)) == []
    assert all("finished" in out for out, _ in outputs)


def test_a_driver_takes_over_what_another_one_left_when_it_was_killed(tmp_path):
    storage = studies.storage_url(tmp_path, "sqlite")
    first, second = (start_driver(tmp_path, storage, runner=SLOW, budget={"trials": 12}) for _ in range(2))
    wait_for(first, "finished", 2)
    wait_for(first, "started", 1)  # so that it has a trial under way
    kill(first)
    out, err = second.communicate(timeout=240)
    after = view(storage)
    assert second.returncode == 0, err
    assert "reaped" in out
    assert (len(after.finished), after.counts[State.RUNNING]) == (12, 0)
    assert twice(finished_plans(after)) == []


def test_an_outcome_that_was_written_but_not_told_is_told_by_the_next_driver(storage):
    book, table = studies.open_book(storage)
    number = studies.declared_trial(book, table)
    measured = Measured(
        step_s=0.5, step_spread_s=0.0, peak_memory_bytes=100.0, origin=OutcomeOrigin.SIMULATED
    )
    book.write_outcome(number, measured)
    after = resume(NAME, storage, machine=config(storage).machine, budget=Budget(trials=3)).view
    trial = after.trials[number]
    assert (trial.state, trial.outcome, trial.values) == (State.MEASURED, measured, {"step_time": 0.5})
    assert len(after.finished) == 3


def test_a_driver_that_died_while_it_chose_a_plan_holds_nobody_up(storage):
    book, table = studies.open_book(storage)
    book.ask(table.distributions)
    after = resume(NAME, storage, machine=config(storage).machine, budget=Budget(trials=3)).view
    assert [trial.state for trial in after.trials] == [State.WITHDRAWN] + 3 * [State.MEASURED]


def ray_processes(driver):
    return psutil.Process(driver.pid).children(recursive=True)


@pytest.mark.ray
def test_a_killed_ray_worker_costs_nothing_and_a_killed_ray_can_be_resumed(tmp_path):
    storage = studies.storage_url(tmp_path, "sqlite")
    on_ray = {"executor": "ray", "parallel": 2, "options": {"seconds_per_trial": 0.4}}
    driver = start_driver(tmp_path, storage, runner=on_ray, budget={"trials": 10})
    wait_for(driver, "finished", 1)
    actors = [each for each in ray_processes(driver) if "".join(each.cmdline()).startswith("ray::TrialActor")]
    actors[0].kill()
    wait_for(driver, "finished", 4)
    assert driver.poll() is None
    for process in ray_processes(driver):
        process.kill()
    kill(driver)
    before = view(storage)
    result = resume(NAME, storage, machine=config(storage).machine)
    assert all(trial in result.view.finished for trial in before.finished)
    assert (result.stop, len(result.view.finished)) == (Stop.TRIALS, 10)
    assert twice(finished_plans(result.view)) == []
