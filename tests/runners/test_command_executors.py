"""The command runner behind both executors: outcomes arrive, limits hold, and closing leaves nothing."""

import os
import signal
import sys
import time

import pytest

from objectives.outcome import Cause, Failed, Measured
from runners.in_process import InProcessExecutor
from runners.on_ray import RayExecutor
from runners.protocol import RunnerRecipe, run_all
from search_spaces.plan import Plan, Plans
from tests.runners import fake_trainer
from tests.runners.jobs import FITS, llama_job
from tests.runners.misbehaving import collect, gone

OTHER = Plan(tp=8, dp=8, sequence_parallel=True, micro_batch=2)


@pytest.fixture(params=["in-process", pytest.param("ray", marks=pytest.mark.ray)])
def make(request):
    """Makes an executor of a recipe; every one of them is closed at the end."""
    made = []

    def new(recipe, **options):
        kind = InProcessExecutor if request.param == "in-process" else RayExecutor
        made.append(kind(recipe, **options))
        return made[-1]

    yield new
    for executor in made:
        executor.close()


def recipe(*words, **options):
    return RunnerRecipe(
        kind="command",
        job=llama_job(),
        options={
            "command": [sys.executable, fake_trainer.__file__, *words],
            "reader": "json-lines",
            "n_steps": 8,
            "grace_s": 0.2,
            **options,
        },
    )


def test_every_plan_is_measured_with_its_own_words(make):
    found = run_all(make(recipe("measured", "8", "{micro_batch}e9")), Plans.of([FITS, OTHER]))
    assert [outcome.peak_memory_bytes for outcome in found] == [1e9, 2e9]
    assert all(isinstance(outcome, Measured) for outcome in found)


def test_a_limit_of_the_runner_comes_with_the_log(make):
    (found,) = run_all(make(recipe("hang", "3", step_limit_s=0.5), time_limit_s=60.0), Plans.of([FITS]))
    assert isinstance(found, Failed)
    assert (found.cause, '"step": 3' in found.log_tail) == (Cause.HANG, True)


def test_the_outer_limit_leaves_nothing_of_a_command(make, tmp_path):
    diary = tmp_path / "diary"
    (found,) = run_all(
        make(recipe("leaves_children_and_hangs", "3", str(diary)), time_limit_s=3.0), Plans.of([FITS])
    )
    assert found.cause is Cause.TIMEOUT
    assert gone([int(pid) for pid in diary.read_text().split()])


def test_closing_leaves_nothing_of_a_command_that_runs(make, tmp_path):
    diary = tmp_path / "diary"
    executor = make(recipe("leaves_children_and_hangs", "3", str(diary)))
    executor.submit(0, FITS)
    deadline = time.monotonic() + 240
    while len(diary.read_text().split() if diary.exists() else []) < 4:
        assert time.monotonic() < deadline
        executor.wait(0.1)
    executor.close()
    assert gone([int(pid) for pid in diary.read_text().split()])


def test_killing_the_trial_s_server_leaves_nothing_of_a_command(tmp_path):
    diary = tmp_path / "diary"
    executor = InProcessExecutor(
        recipe("leaves_children_and_hangs", "3", str(diary)), n_slots=1, max_lost_retries=0
    )
    executor.submit(0, FITS)
    deadline = time.monotonic() + 240
    while len(diary.read_text().split() if diary.exists() else []) < 4:
        assert time.monotonic() < deadline
        executor.wait(0.1)
    ((_, process),) = executor._slots
    os.kill(process.pid, signal.SIGKILL)
    assert collect(executor, 1)[0].cause is Cause.LOST_MACHINE
    assert gone([int(pid) for pid in diary.read_text().split()])
    executor.close()


def test_a_preempted_command_is_tried_again(make, tmp_path):
    executor = make(recipe("preempted", str(tmp_path / "attempts"), "{attempt}"))
    executor.submit(0, FITS)
    assert isinstance(collect(executor, 1)[0], Measured)
    assert (tmp_path / "attempts").read_text().split() == ["0", "1", "2"]
