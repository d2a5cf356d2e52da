"""One embedded Ray for all tests that leave it whole; those that kill it, or its owner, start their own."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from objectives.outcome import Cause, Measured
from runners.on_ray import OnRay, RayExecutor
from runners.on_ray_words import Reservation
from runners.protocol import RunnerRecipe
from search_spaces.errors import InvalidSpec, RunnerError
from tests.runners.jobs import PLANS, llama_job
from tests.runners.misbehaving import (
    EXIT,
    GOOD,
    LEAK,
    LOST,
    OOM,
    SLEEP,
    Misbehaving,
    alive,
    below,
    collect,
    gone,
)

pytestmark = pytest.mark.ray
ROOT = Path(__file__).parents[2]
LIMIT_S = 4.0


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return Misbehaving(tmp_path_factory.mktemp("ray") / "diary", patience_s=0.3)


@pytest.fixture(scope="module")
def executor(runner):
    with closing(RayExecutor(runner, n_slots=3, time_limit_s=LIMIT_S, grace_s=3)) as executor:
        yield executor


@pytest.fixture(autouse=True)
def empty_diary(runner):
    runner.diary.unlink(missing_ok=True)


def workers(executor):
    """Ray's worker processes that hold our actors."""
    everyone = psutil.Process(executor.host_pid).children(recursive=True)
    return [process for process in everyone if "TrialActor" in " ".join(process.cmdline())]


def worker_of(executor, trial):
    parents = {process.pid for process in psutil.Process(trial).parents()}
    (worker,) = [process for process in workers(executor) if process.pid in parents]
    return worker


def named(executor, name):
    everyone = psutil.Process(executor.host_pid).children(recursive=True)
    (process,) = [process for process in everyone if process.name() == name]
    return process


def gcs_address(executor):
    """HOST:PORT as the raylet was told."""
    words = named(executor, "raylet").cmdline()
    return next(word.partition("=")[2] for word in words if word.startswith("--gcs-address="))


def test_ray_starts_with_the_first_plan_and_not_before(runner):
    before = below(os.getpid())
    with closing(RayExecutor(runner)) as idle:
        assert (idle.host_pid, below(os.getpid())) == (None, before)


def test_the_process_of_the_study_never_imports_ray():
    code = "import sys, runners.on_ray; print('ray' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout == "False\n"


def test_plans_run_side_by_side_and_a_quick_one_overtakes_a_slow_one(executor, runner):
    executor.submit(0, SLEEP)
    executor.submit(1, GOOD)
    arrived = collect(executor, 2)
    assert list(arrived) == [1, 0]
    assert isinstance(arrived[1], Measured)


def test_a_trial_beyond_its_limit_is_killed_and_not_retried(executor, runner):
    executor.submit(0, SLEEP)
    failed = collect(executor, 1)[0]
    assert (failed.cause, failed.log_tail) == (Cause.TIMEOUT, "still here")
    ((attempt, trial),) = runner.tries(SLEEP)
    assert attempt == 0
    assert gone([trial], timeout_s=2)


def test_a_failure_of_the_plan_is_not_retried(executor, runner):
    executor.submit(0, OOM)
    executor.submit(1, EXIT)
    arrived = collect(executor, 2)
    assert [arrived[i].cause for i in range(2)] == [Cause.OUT_OF_MEMORY, Cause.CRASH]
    assert runner.attempts(OOM) == runner.attempts(EXIT) == [0]


def test_a_machine_lost_again_and_again_is_tried_three_times(executor, runner):
    executor.submit(0, LOST)
    assert collect(executor, 1)[0].cause is Cause.LOST_MACHINE
    assert runner.attempts(LOST) == [0, 1, 2]


def test_what_a_trial_leaves_behind_in_another_session_is_killed(executor, runner):
    executor.submit(0, LEAK)
    assert isinstance(collect(executor, 1)[0], Measured)
    assert gone([int(runner.diary.with_suffix(".leaked").read_text())], timeout_s=2)


def test_a_trial_whose_ray_worker_is_killed_is_tried_again_and_finishes(executor, runner):
    executor.submit(0, GOOD)
    trial = runner.wait_for_try(GOOD)
    worker_of(executor, trial).kill()
    assert isinstance(collect(executor, 1)[0], Measured)
    assert runner.attempts(GOOD) == [0, 1]
    assert gone([trial], timeout_s=5)


def test_a_worker_that_keeps_no_limit_is_killed_from_outside(executor, runner):
    executor.submit(0, SLEEP)
    trial = runner.wait_for_try(SLEEP)
    psutil.Process(trial).parent().suspend()  # the trial's server, which keeps the inner limit
    failed = collect(executor, 1)[0]
    assert failed.cause is Cause.TIMEOUT
    assert "did not answer" in failed.message
    assert runner.attempts(SLEEP) == [0]
    assert gone([trial], timeout_s=5)


@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_when_ray_itself_is_killed_it_starts_again_and_what_ran_is_tried_again(executor, runner, victim):
    executor.submit(0, GOOD)
    runner.wait_for_try(GOOD)
    host = executor.host_pid
    named(executor, victim).kill()
    assert isinstance(collect(executor, 1)[0], Measured)
    assert runner.attempts(GOOD) == [0, 1]
    assert executor.host_pid != host
    assert not alive(host)


def test_when_the_host_process_is_killed_nothing_of_its_ray_survives(executor, runner):
    executor.submit(0, GOOD)
    runner.wait_for_try(GOOD)
    everyone = below(executor.host_pid)
    os.kill(executor.host_pid, signal.SIGKILL)
    assert isinstance(collect(executor, 1)[0], Measured)
    assert runner.attempts(GOOD) == [0, 1]
    assert gone(everyone)


def test_the_embedded_ray_lets_in_nobody_without_its_token(executor, runner):
    executor.submit(0, GOOD)
    collect(executor, 1)
    stranger = RayExecutor(runner, address=gcs_address(executor), answer_within_s=5)
    with closing(stranger), pytest.raises(RunnerError, match="Ray must"):
        stranger.submit(0, GOOD)


def test_a_wrapped_runner_gives_on_ray_what_it_gives_here(executor, runner, monkeypatch):
    executor.submit(0, GOOD)
    collect(executor, 1)
    monkeypatch.setenv("RAY_AUTH_TOKEN", psutil.Process(executor.host_pid).environ()["RAY_AUTH_TOKEN"])
    recipe = RunnerRecipe(kind="simulated", job=llama_job())
    on_ray = OnRay(recipe, n_slots=1, address=gcs_address(executor))
    assert on_ray.run(PLANS) == recipe.build().run(PLANS)
    assert on_ray.origin is recipe.origin


def test_with_the_token_a_running_ray_can_be_joined(executor, runner, monkeypatch):
    executor.submit(0, GOOD)
    collect(executor, 1)
    monkeypatch.setenv("RAY_AUTH_TOKEN", psutil.Process(executor.host_pid).environ()["RAY_AUTH_TOKEN"])
    with closing(RayExecutor(runner, n_slots=1, address=gcs_address(executor))) as guest:
        guest.submit(0, GOOD)
        assert isinstance(collect(guest, 1)[0], Measured)


def test_a_cluster_without_room_for_one_trial_says_what_it_has(executor, runner, monkeypatch):
    executor.submit(0, GOOD)
    collect(executor, 1)
    monkeypatch.setenv("RAY_AUTH_TOKEN", psutil.Process(executor.host_pid).environ()["RAY_AUTH_TOKEN"])
    wide = Reservation(bundles=({"CPU": 1, "GPU": 8},) * 2)
    guest = RayExecutor(runner, address=gcs_address(executor), reservation=wide)
    with (
        closing(guest),
        pytest.raises(RunnerError, match="room for one trial: CPU 2, GPU 16; got CPU 3, GPU 0"),
    ):
        guest.submit(0, GOOD)


def test_closing_leaves_no_process_and_no_folder(executor, runner):
    executor.submit(0, SLEEP)
    runner.wait_for_try(SLEEP)
    everyone, folder = [executor.host_pid, *below(executor.host_pid)], executor._folder
    assert folder.exists()
    executor.close()
    executor.close()
    assert gone(everyone, timeout_s=3)
    assert not folder.exists()


DRIVER = """
import sys
from pathlib import Path
from runners.on_ray import OnRay, RayExecutor
from tests.runners.jobs import PLANS, llama_job
from tests.runners.misbehaving import SLEEP, Misbehaving
executor = RayExecutor(Misbehaving(Path(sys.argv[1])), n_slots=1)
executor.submit(0, SLEEP)
print(executor.host_pid, executor._folder, flush=True)
executor.wait(timeout_s=60)
"""


def test_when_the_study_is_killed_ray_goes_with_it(runner):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(runner.diary)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with driver:
        host, folder = driver.stdout.readline().split()
        runner.wait_for_try(SLEEP)
        everyone = [int(host), *below(int(host))]
        driver.kill()
    assert gone(everyone)
    assert not Path(folder).exists()


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("127.0.0.1:1", "Ray must answer at 127.0.0.1:1; got .*refused"),
        ("somewhere", "Ray's address must be HOST:PORT or ray://HOST:PORT; got 'somewhere'"),
    ],
    ids=["nobody listens", "no address"],
)
def test_an_address_where_no_ray_is_found_is_one_sentence_in_bounded_time(runner, address, match):
    began = time.monotonic()
    with closing(RayExecutor(runner, address=address)) as executor, pytest.raises(RunnerError, match=match):
        executor.submit(0, GOOD)
    assert time.monotonic() - began < 25
    assert below(os.getpid()) == []


@pytest.mark.parametrize(
    ("reservation", "match"),
    [
        (dict(bundles=()), "a reservation needs at least one bundle; got none"),
        (dict(bundles=({"CPU": 0.0},)), "a bundle names resources with positive amounts; got {'CPU': 0.0}"),
        (dict(strategy="NEAR"), "a strategy is one of PACK, SPREAD, STRICT_PACK, STRICT_SPREAD; got NEAR"),
    ],
    ids=["no bundle", "nothing in it", "strategy"],
)
def test_an_impossible_reservation_cannot_be_built(reservation, match):
    with pytest.raises(InvalidSpec, match=match):
        Reservation(**reservation)
