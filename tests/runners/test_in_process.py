import os
import signal
from contextlib import closing

import psutil
import pytest

from objectives.outcome import Cause, Measured
from runners.in_process import InProcessExecutor
from runners.protocol import RunnerRecipe, run_all
from search_spaces.errors import InvalidSpec
from tests.runners.jobs import PLANS, llama_job
from tests.runners.misbehaving import (
    EXIT,
    GOOD,
    KILLED,
    LEAK,
    LOST,
    OOM,
    RAISE,
    SLEEP,
    Misbehaving,
    Unbuildable,
    alive,
    below,
    collect,
    gone,
)


@pytest.fixture
def runner(tmp_path):
    return Misbehaving(tmp_path / "diary")


@pytest.fixture
def executor(runner):
    with closing(InProcessExecutor(runner, n_slots=2, time_limit_s=20)) as executor:
        yield executor


def outcome_of(executor, plan):
    executor.submit(0, plan)
    return collect(executor, 1)[0]


def test_nothing_starts_before_the_first_plan(runner):
    before = below(os.getpid())
    InProcessExecutor(runner).close()
    assert below(os.getpid()) == before


def test_a_quick_plan_overtakes_a_slow_one(runner):
    with closing(InProcessExecutor(runner, n_slots=2, time_limit_s=3)) as executor:
        executor.submit(0, SLEEP)
        executor.submit(1, GOOD)
        assert list(collect(executor, 2)) == [1, 0]


def test_more_plans_than_slots_are_queued_and_all_answered(executor):
    for ticket in range(7):
        executor.submit(ticket, GOOD)
    assert sorted(collect(executor, 7)) == list(range(7))


def test_the_outcomes_are_those_of_the_runner_itself():
    recipe = RunnerRecipe(kind="simulated", job=llama_job())
    with closing(InProcessExecutor(recipe, n_slots=2)) as executor:
        assert run_all(executor, PLANS) == recipe.build().run(PLANS)


def test_waiting_with_nothing_to_wait_for_gives_nothing(executor):
    assert executor.wait(timeout_s=0.01) == []


@pytest.mark.parametrize(
    ("plan", "message", "last_words"),
    [
        (EXIT, "the trial ended with exit status 7", "about to leave"),
        (RAISE, "the trial ended with exit status 1", "ValueError: a bug in the trial"),
        (KILLED, "the trial was killed by SIGKILL", ""),
    ],
    ids=["exit", "raise", "killed"],
)
def test_a_trial_that_dies_is_a_crash_with_its_last_words_and_is_not_retried(
    executor, runner, plan, message, last_words
):
    failed = outcome_of(executor, plan)
    assert failed.cause is Cause.CRASH
    assert failed.message.startswith(message)
    assert last_words in failed.log_tail
    assert runner.attempts(plan) == [0]


def test_an_out_of_memory_plan_is_not_retried(executor, runner):
    assert outcome_of(executor, OOM).cause is Cause.OUT_OF_MEMORY
    assert runner.attempts(OOM) == [0]


def test_a_trial_beyond_its_limit_is_killed_and_says_what_it_said(runner):
    with closing(InProcessExecutor(runner, n_slots=1, time_limit_s=0.5)) as executor:
        failed = outcome_of(executor, SLEEP)
        assert (failed.cause, failed.message) == (Cause.TIMEOUT, "the trial did not end within 0.5 s")
        assert failed.log_tail == "still here"
        assert gone([pid for _, pid in runner.tries(SLEEP)], timeout_s=2)


def test_what_a_trial_leaves_behind_in_another_session_is_killed(executor, runner):
    assert isinstance(outcome_of(executor, LEAK), Measured)
    leaked = int(runner.diary.with_suffix(".leaked").read_text())
    assert gone([leaked], timeout_s=2)


def test_a_machine_lost_again_and_again_is_tried_three_times(executor, runner):
    assert outcome_of(executor, LOST).cause is Cause.LOST_MACHINE
    assert runner.attempts(LOST) == [0, 1, 2]


def test_a_trial_whose_server_is_killed_is_tried_again_and_finishes(tmp_path):
    runner = Misbehaving(tmp_path / "diary", patience_s=0.5)
    with closing(InProcessExecutor(runner, n_slots=1)) as executor:
        executor.submit(0, GOOD)
        trial = runner.wait_for_try(GOOD)
        os.kill(psutil.Process(trial).ppid(), signal.SIGKILL)
        assert isinstance(collect(executor, 1)[0], Measured)
        assert runner.attempts(GOOD) == [0, 1]
        assert not alive(trial)


def test_a_runner_that_cannot_be_built_is_an_error_of_wait(tmp_path):
    with closing(InProcessExecutor(Unbuildable(tmp_path))) as executor:
        executor.submit(0, GOOD)
        with pytest.raises(InvalidSpec, match="a runner must be buildable; got one that is not"):
            collect(executor, 1)


def test_closing_kills_the_trials_that_run_and_may_be_repeated(executor, runner):
    executor.submit(0, SLEEP)
    trial = runner.wait_for_try(SLEEP)
    server = psutil.Process(trial).ppid()
    executor.close()
    executor.close()
    assert gone([trial, server], timeout_s=2)


def test_an_executor_needs_a_slot(runner):
    with pytest.raises(InvalidSpec, match="an executor needs at least one slot; got 0"):
        InProcessExecutor(runner, n_slots=0)
