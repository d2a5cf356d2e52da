"""Trials as batch jobs of a real Slurm: what each state of a job becomes, and that nothing is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from objectives.outcome import Cause, Failed, Measured
from runners.protocol import RunnerRecipe, run_all
from runners.slurm.batch import SbatchExecutor
from runners.slurm.choice import Slurm
from search_spaces.errors import RunnerError
from search_spaces.plan import Plan, Plans
from tests.runners import fake_trainer
from tests.runners.jobs import llama_job, tiny_job
from tests.runners.misbehaving import collect
from tests.runners.slurm_machine import JOB_TABLES

pytestmark = pytest.mark.slurm
TWO_NODES = Plan(tp=8, dp=2, sequence_parallel=True)
OTHERS = Plans.of([Plan(tp=8, dp=2, sequence_parallel=True, micro_batch=n) for n in (1, 2, 4)])


@pytest.fixture
def make(slurm, tmp_path):
    """Makes executors; every one is closed, and then no job and no file may be left."""
    made = []

    def new(recipe, *, table=None, **options):
        chosen = {"folder": str(tmp_path / "shared"), "poll_s": 0.2, "gpus_per_node": 0, **(table or {})}
        made.append(SbatchExecutor(recipe, Slurm(**chosen), **options))
        return made[-1]

    yield new
    for executor in made:
        executor.close()
    assert slurm.jobs_of_ours() == []
    assert not (tmp_path / "shared").exists()


def recipe(*words, **options):
    """The fake trainer on the first of two nodes; the other one only waits for it."""
    command = [
        "bash",
        "-c",
        'test "$NODE_RANK" = 1 || exec "$@"',
        "x",
        sys.executable,
        fake_trainer.__file__,
        *words,
    ]
    given = {"command": command, "reader": "json-lines", "n_steps": 8, "grace_s": 0.5, **options}
    return RunnerRecipe(kind="command", job=llama_job(16, 64), options=given)


def wait_for(executor, condition):
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline
        assert executor.wait(0.1) == []


def test_every_plan_is_measured_in_a_job_of_its_own(make, tmp_path):
    kept = tmp_path / "kept"
    executor = make(recipe("measured", "8", "{micro_batch}e9", trials_folder=str(kept)), n_slots=3)
    found = run_all(executor, OTHERS)
    assert [outcome.peak_memory_bytes for outcome in found] == [1e9, 2e9, 4e9], found
    assert len(list(kept.glob("*/log.txt"))) == 3


@pytest.mark.torch
def test_the_built_in_trainer_runs_in_a_job(make):
    options = {"n_steps": 2, "n_warmup": 1, "device": "cpu"}
    executor = make(RunnerRecipe(kind="torch", job=tiny_job(), options=options))
    (found,) = run_all(executor, Plans.of([Plan(dp=2)]))
    assert isinstance(found, Measured), found


@pytest.mark.parametrize(
    ("words", "cause", "message"),
    [
        (("crash", "3", "7"), Cause.CRASH, "ended with exit status 7"),
        (("out_of_device_memory", "1"), Cause.OUT_OF_MEMORY, "device memory, 2.25 GiB short"),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else None,
)
def test_a_failure_in_a_job_is_an_outcome_with_its_cause(make, words, cause, message):
    (found,) = run_all(make(recipe(*words)), Plans.of([TWO_NODES]))
    assert isinstance(found, Failed)
    assert (found.cause, message in found.message) == (cause, True), found
    assert found.log_tail


def test_the_trial_s_limit_holds_in_its_job(make):
    (found,) = run_all(make(recipe("hang", "3"), time_limit_s=3.0), Plans.of([TWO_NODES]))
    assert (found.cause, "3 s" in found.message) == (Cause.TIMEOUT, True)


def at_second_try(attempts):
    """A command that notes every attempt, sleeps at the first and measures at the next."""
    script = f"echo {{attempt}} >> {attempts}; test {{attempt}} = 0 && exec sleep 60; " \
        f'test "$NODE_RANK" = 1 || {sys.executable} {fake_trainer.__file__} measured 8'  # fmt: skip
    return ["bash", "-c", script]


def test_a_cancelled_job_is_submitted_again(make, slurm, tmp_path):
    attempts = tmp_path / "attempts"
    executor = make(recipe(command=at_second_try(attempts)))
    executor.submit(0, TWO_NODES)
    wait_for(executor, attempts.exists)
    slurm.call("scancel", *executor.jobs)
    assert isinstance(collect(executor, 1)[0], Measured)
    assert set(attempts.read_text().split()) == {"0", "1"}


def test_a_job_cancelled_each_time_is_given_up_as_no_fault_of_the_plan(make, slurm):
    executor = make(recipe("hang", "3"), max_lost_retries=1)
    executor.submit(0, TWO_NODES)
    for _ in range(2):
        wait_for(executor, lambda: bool(executor.jobs))
        slurm.wait_for(executor.jobs[0], "RUNNING")
        slurm.call("scancel", *executor.jobs)
        before = executor.jobs
        while executor.jobs == before and not (found := executor.wait(0.1)):
            pass
    ((_, outcome),) = found or executor.wait(20)
    assert (outcome.cause, outcome.message) == (
        Cause.PREEMPTED,
        "the job was cancelled from outside (2 attempts)",
    )
    assert not outcome.cause.is_counted


def test_a_preempted_job_is_submitted_again(make, slurm, tmp_path):
    attempts, urgent = tmp_path / "attempts", tmp_path / "urgent.sh"
    urgent.write_text("#!/bin/sh\nsleep 1\n")
    executor = make(recipe(command=at_second_try(attempts)))
    executor.submit(0, TWO_NODES)
    wait_for(executor, attempts.exists)
    (job,) = executor.jobs
    slurm.call("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", urgent)
    assert isinstance(collect(executor, 1)[0], Measured)
    assert set(attempts.read_text().split()) == {"0", "1"}
    assert "JobState=PREEMPTED" in slurm.call("scontrol", "show", "job", job)


def test_a_node_that_fails_under_a_job_is_no_fault_of_the_plan(make, slurm, tmp_path):
    attempts = tmp_path / "attempts"
    executor = make(recipe(command=at_second_try(attempts)))
    executor.submit(0, TWO_NODES)
    wait_for(executor, attempts.exists)
    (job,) = executor.jobs
    slurm.call("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    assert isinstance(collect(executor, 1)[0], Measured)
    assert "JobState=NODE_FAIL" in slurm.call("scontrol", "show", "job", job)


def test_a_job_that_slurm_ends_at_its_limit_is_a_timeout(make, slurm):
    """Slurm's shortest limit is a minute: the end is moved to a few seconds away, once the trial runs."""
    executor = make(recipe("hang", "3"))
    executor.submit(0, TWO_NODES)
    wait_for(executor, lambda: bool(slurm.steps()))
    slurm.call("scontrol", "update", f"JobId={executor.jobs[0]}", "EndTime=now+5seconds")
    found = collect(executor, 1)[0]
    assert found.cause in (Cause.TIMEOUT, Cause.PREEMPTED), found


def test_closing_cancels_what_waits_and_what_runs(make, slurm):
    executor = make(recipe("hang", "3"), n_slots=3)
    for i, plan in enumerate(OTHERS):
        executor.submit(i, plan)
    wait_for(executor, lambda: slurm.states() == ["PENDING", "RUNNING", "RUNNING"])
    executor.close()
    assert slurm.jobs() == []
    assert slurm.steps() == []


def test_a_job_that_nobody_waits_for_any_more_does_nothing(make, slurm, tmp_path):
    said = tmp_path / "said"
    executor = make(recipe("says", str(said)))
    blocker = tmp_path / "blocker.sh"
    blocker.write_text("#!/bin/sh\nsleep 60\n")
    job = slurm.call(
        "sbatch", "--parsable", "--nodes=4", "--exclusive", "--output=/dev/null", blocker
    ).strip()
    executor.submit(0, TWO_NODES)
    (alive,) = (tmp_path / "shared").glob("*/alive")
    long_ago = time.time() - 86400
    os.utime(alive, (long_ago, long_ago))
    slurm.call("scancel", job)
    slurm.wait_for(executor.jobs[0], "FAILED")
    assert not said.exists()


@pytest.mark.parametrize(
    ("table", "match"),
    [
        (
            {"partition": "no-such"},
            "Slurm must accept the trial's job; got invalid partition specified: no-such",
        ),
        ({"sbatch_flags": ("--no-such-flag",)}, "Slurm must accept the trial's job; got .*no-such-flag"),
        ({"sbatch_flags": ("--gres=gpu:8",)}, "Slurm must accept the trial's job; got .*[Ii]nvalid"),
    ],
)
def test_jobs_that_slurm_refuses_are_one_sentence(make, table, match):
    executor = make(recipe("measured", "8"), table=table)
    with pytest.raises(RunnerError, match=match):
        executor.submit(0, TWO_NODES)


def test_a_job_that_can_never_start_is_one_sentence(make):
    executor = make(recipe("measured", "8"), table={"time_limit": "20:00:00"})
    executor.submit(0, TWO_NODES)
    with pytest.raises(RunnerError, match="job must be able to start; got Slurm's reason Partition"):
        collect(executor, 1)


def test_a_job_may_wait_so_long_and_no_longer(make, slurm, tmp_path):
    blocker = tmp_path / "blocker.sh"
    blocker.write_text("#!/bin/sh\nsleep 60\n")
    slurm.call("sbatch", "--nodes=4", "--exclusive", "--output=/dev/null", blocker)
    executor = make(recipe("measured", "8"), table={"queue_limit_s": 1.0})
    executor.submit(0, TWO_NODES)
    with pytest.raises(RunnerError, match="must start within queue_limit_s = 1; got it still waits: "):
        collect(executor, 1)


def test_nodes_that_lack_the_runner_s_parts_end_the_study(make, tmp_path):
    table = {"setup_script": str(tmp_path / "setup.sh")}
    (tmp_path / "setup.sh").write_text("echo 'no modules here' >&2\nexit 127\n")
    executor = make(recipe("measured", "8"), table=table)
    executor.submit(0, TWO_NODES)
    found = collect(executor, 1)[0]
    assert (found.cause, "no modules here" in found.log_tail) == (Cause.LAUNCHER_MISSING, True)


def test_ctrl_c_cancels_the_jobs_of_a_study_and_it_can_be_resumed(slurm, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY.format(python=sys.executable, trainer=fake_trainer.__file__))
    words = [sys.executable, "-m", "tuner", "tune", str(tmp_path / "study.toml")]
    driver = subprocess.Popen(
        words, env={**slurm.environment, "PYTHONPATH": os.getcwd()}, cwd=tmp_path, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while slurm.states() != ["RUNNING", "RUNNING"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=240)
    assert driver.returncode == 130, said
    assert slurm.jobs() == []
    assert not (tmp_path / "meshtune-slurm").exists()
    assert Path(tmp_path / "study.db").exists()


STUDY = (
    JOB_TABLES
    + """\
[study]
name = "slurm"
storage = "sqlite:///study.db"
[space]
tp = [8]
pp = [1]
[runner]
kind = "command"
executor = "slurm"
parallel = 2
[runner.slurm]
gpus_per_node = 0
poll_s = 0.2
[runner.options]
command = ["{python}", "{trainer}", "hang", "3"]
reader = "json-lines"
[budget]
trials = 4
"""
)
