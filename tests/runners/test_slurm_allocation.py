"""Trials inside an allocation of a real Slurm: nodes of their own, every failure an outcome, nothing left."""

import json
import signal
import sys
import time

import psutil
import pytest

from objectives.outcome import Cause, Failed, Measured
from runners.protocol import RunnerRecipe, run_all
from runners.slurm.allocation import AllocationExecutor
from runners.slurm.choice import Slurm, Tasks
from search_spaces.errors import RunnerError
from search_spaces.plan import Plan, Plans
from tests.runners import fake_trainer
from tests.runners.jobs import llama_job, tiny_job
from tests.runners.misbehaving import collect
from tests.runners.slurm_machine import JOB_TABLES
from tests.tuner.cli import meshtune

pytestmark = pytest.mark.slurm
TWO_NODES = Plan(tp=8, dp=2, sequence_parallel=True)
OTHERS = [Plan(tp=8, dp=2, sequence_parallel=True, micro_batch=n) for n in (1, 2, 4)]


@pytest.fixture
def make(allocation, tmp_path):
    """Makes executors in the allocation; every one is closed, and then no step may be left."""
    made = []

    def new(recipe, *, slurm=None, **options):
        chosen = {"folder": str(tmp_path / "shared"), **(slurm or {})}
        made.append(AllocationExecutor(recipe, Slurm(**chosen), **options))
        return made[-1]

    yield new
    for executor in made:
        executor.close()
    assert allocation.steps() == []
    assert not list((tmp_path / "shared").glob("*")) if made else True


def recipe(*words, n_devices=16, **options):
    """The fake trainer on the nodes; two of them unless said otherwise."""
    command = [sys.executable, fake_trainer.__file__, *words]
    given = {"command": command, "reader": "json-lines", "n_steps": 8, "grace_s": 0.5, **options}
    return RunnerRecipe(kind="command", job=llama_job(n_devices, 64), options=given)


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def first_task(*words):
    """A shell that trains on the first node and only waits for it on the others."""
    trainer = f"{sys.executable} {fake_trainer.__file__} {' '.join(words)}"
    said = 'echo "$SLURM_NODEID $MASTER_ADDR $NODE_RANK $SLURMD_NODENAME" >> {folder}/said'
    return ["bash", "-c", f'{said}; test "$SLURM_NODEID" = 0 || exit 0; exec {trainer}']


def test_every_trial_has_two_nodes_of_its_own(make, tmp_path):
    diary = tmp_path / "diary"
    words = f'echo "$(date +%s.%N) begin {{micro_batch}} $SLURMD_NODENAME" >> {diary}; sleep 0.5; ' \
        f'echo "$(date +%s.%N) end {{micro_batch}} $SLURMD_NODENAME" >> {diary}; ' \
        f'test "$SLURM_NODEID" = 1 || {sys.executable} {fake_trainer.__file__} measured 8'  # fmt: skip
    executor = make(recipe(command=["bash", "-c", words]), n_slots=4)
    assert executor.n_slots == 2
    found = run_all(executor, Plans.of(OTHERS))
    assert all(isinstance(outcome, Measured) for outcome in found), found
    rows = sorted(line.split() for line in diary.read_text().splitlines())
    used: dict[str, str] = {}
    for _, what, trial, node in rows:
        if what == "begin":
            assert node not in used
            used[node] = trial
        else:
            assert used.pop(node) == trial
    assert {node for *_, node in rows} == {"node1", "node2", "node3", "node4"}
    assert len(rows) == 2 * 2 * 3


def test_the_nodes_know_each_other(make, tmp_path):
    kept = tmp_path / "kept"
    executor = make(recipe(command=first_task("measured", "8"), trials_folder=str(kept)))
    (found,) = run_all(executor, Plans.of([TWO_NODES]))
    assert isinstance(found, Measured)
    (said,) = kept.glob("*/said")
    rows = sorted(line.split() for line in said.read_text().splitlines())
    assert rows == [["0", "node1", "0", "node1"], ["1", "node1", "1", "node2"]]
    assert found.effective["command"][:2] == ["srun", found.effective["command"][1]]
    assert json.loads(next(kept.glob("*/plan.json")).read_text())["nodelist"] == "node1,node2"


def test_one_task_a_device_is_told_its_rank(make, tmp_path):
    said = tmp_path / "said"
    command = ["bash", "-c", f'echo "$RANK $LOCAL_RANK $WORLD_SIZE" >> {said}; '
               f'test "$RANK" != 0 || {sys.executable} {fake_trainer.__file__} measured 8']  # fmt: skip
    job_recipe = RunnerRecipe(
        kind="command",
        job=tiny_job(4),
        options={"command": command, "reader": "json-lines", "n_steps": 8},
    )
    executor = make(job_recipe, slurm={"tasks": Tasks.DEVICE, "nodes": 2})
    (found,) = run_all(executor, Plans.of([Plan(dp=4)]))
    assert isinstance(found, Measured), found
    assert sorted(said.read_text().splitlines()) == ["0 0 4", "1 1 4", "2 0 4", "3 1 4"]


@pytest.mark.parametrize(
    ("words", "cause", "message"),
    [
        (("crash", "3", "7"), Cause.CRASH, "ended with exit status 7"),
        (("killed", "3", str(int(signal.SIGKILL))), Cause.OUT_OF_MEMORY, "killed by SIGKILL"),
        (("out_of_device_memory", "1"), Cause.OUT_OF_MEMORY, "device memory, 2.25 GiB short"),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else None,
)
def test_a_failure_on_a_node_is_an_outcome_with_its_cause(make, words, cause, message):
    (found,) = run_all(make(recipe(command=first_task(*words))), Plans.of([TWO_NODES]))
    assert isinstance(found, Failed)
    assert (found.cause, message in found.message) == (cause, True), found


def test_a_program_that_no_node_has_is_a_missing_launcher(make):
    (found,) = run_all(make(recipe(command=["no-such-program-9"])), Plans.of([TWO_NODES]))
    assert (found.cause, "no-such-program-9" in found.message) == (Cause.LAUNCHER_MISSING, True)


def test_a_limit_of_a_step_ends_it_on_every_node(make, allocation):
    executor = make(recipe("hang", "3", step_limit_s=1.0))
    (found,) = run_all(executor, Plans.of([TWO_NODES]))
    assert found.cause is Cause.HANG
    assert allocation.steps() == []


def test_a_step_cancelled_from_outside_is_tried_again(make, allocation, tmp_path):
    attempts = tmp_path / "attempts"
    script = f'echo {{attempt}} >> {attempts}; test {{attempt}} = 0 && exec sleep 60; ' \
        f'test "$SLURM_NODEID" = 1 || {sys.executable} {fake_trainer.__file__} measured 8'  # fmt: skip
    executor = make(recipe(command=["bash", "-c", script]))
    executor.submit(0, TWO_NODES)
    wait_for(attempts.exists)
    allocation.call("scancel", *allocation.step_ids())
    assert isinstance(collect(executor, 1)[0], Measured)
    assert set(attempts.read_text().split()) == {"0", "1"}


def starts_a_step(process):
    """Whether this is an srun, and not its helper; one that has just ended is neither."""
    try:
        return process.name() == "srun" and process.parent().name() != "srun"
    except psutil.NoSuchProcess:
        return False


def test_an_srun_killed_by_nine_leaves_no_step(make, allocation, tmp_path):
    executor = make(recipe("hang", "3"), slurm={"nodes": 2})
    executor.submit(0, TWO_NODES)
    wait_for(lambda: len(allocation.steps()) == 1)
    (srun,) = filter(starts_a_step, psutil.Process().children(recursive=True))
    srun.kill()
    found = collect(executor, 1)[0]
    assert isinstance(found, Failed)
    assert allocation.steps() == []


def test_closing_ends_the_steps_that_run(make, allocation):
    executor = make(recipe("hang", "3"), n_slots=2)
    for i, plan in enumerate(OTHERS):
        executor.submit(i, plan)
    wait_for(lambda: len(allocation.steps()) == 2)
    executor.close()
    assert allocation.steps() == []


def test_a_trial_on_a_lost_node_is_tried_on_others(make, allocation, tmp_path):
    kept = tmp_path / "kept"
    executor = make(recipe(command=first_task("measured", "8"), trials_folder=str(kept)), n_slots=1)
    allocation.call("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    (found,) = run_all(executor, Plans.of([TWO_NODES]))
    assert isinstance(found, Measured), found
    (said,) = kept.glob("*/said")
    assert {line.split()[-1] for line in said.read_text().splitlines()} == {"node1", "node3"}


def test_a_node_lost_under_a_trial_is_no_fault_of_the_plan(make, allocation, tmp_path):
    attempts = tmp_path / "attempts"
    script = f"echo {{attempt}} >> {attempts}; test {{attempt}} = 0 && exec sleep 60; " \
        f'test "$SLURM_NODEID" = 1 || {sys.executable} {fake_trainer.__file__} measured 8'  # fmt: skip
    executor = make(recipe(command=["bash", "-c", script]))
    executor.submit(0, TWO_NODES)
    wait_for(attempts.exists)
    allocation.call("scontrol", "update", "NodeName=node2", "State=DOWN", "Reason=test")
    assert isinstance(collect(executor, 1)[0], Measured)


def test_too_few_nodes_left_end_the_study(make, allocation):
    executor = make(recipe("measured", "8"), slurm={"nodes": 4}, n_slots=1)
    allocation.call("scontrol", "update", "NodeName=node3", "State=DOWN", "Reason=test")
    executor.submit(0, TWO_NODES)
    with pytest.raises(RunnerError, match=r"enough nodes for a trial; got 3 of 4 nodes left, 4 a trial"):
        collect(executor, 1)


def test_an_allocation_that_is_gone_ends_the_study(make, allocation):
    executor = make(recipe("measured", "8"))
    allocation.clear()
    executor.submit(0, TWO_NODES)
    with pytest.raises(RunnerError, match=r"must last as long as its study; got job \d+ is cancelled"):
        collect(executor, 1)


def test_a_rank_that_ends_first_is_the_cause_whatever_srun_does_to_the_others(make):
    script = 'test "$SLURM_NODEID" = 1 && exit 7; sleep 60'
    (found,) = run_all(make(recipe(command=["bash", "-c", script])), Plans.of([TWO_NODES]))
    assert (found.cause, "rank 1 (stage 0): ended with exit status 7" in found.message) == (Cause.CRASH, True)


@pytest.mark.torch
def test_the_built_in_trainer_runs_on_the_node_of_its_trial(make):
    options = {"n_steps": 2, "n_warmup": 1, "device": "cpu"}
    executor = make(RunnerRecipe(kind="torch", job=tiny_job(), options=options), slurm={"nodes": 1})
    (found,) = run_all(executor, Plans.of([Plan(dp=2)]))
    assert isinstance(found, Measured), found
    assert found.effective["backend"] == "gloo"


def test_a_study_of_a_file_runs_in_the_allocation(allocation, tmp_path):
    text = STUDY.format(python=sys.executable, trainer=fake_trainer.__file__)
    (tmp_path / "study.toml").write_text(text)
    storage = f"sqlite:///{tmp_path}/study.db"
    answer = meshtune("tune", tmp_path / "study.toml", "--executor", "slurm", "--storage", storage, "--json")
    assert answer.code == 0, answer.err
    outcomes = [trial["outcome"] for trial in answer.document["trials"]]
    assert [outcome["step_time_s"] for outcome in outcomes] == [0.5, 0.5]
    assert allocation.steps() == []
    assert not (tmp_path / "meshtune-slurm").exists()


STUDY = (
    JOB_TABLES
    + """\
[space]
tp = [8]
pp = [1]
zero = [1]
[runner]
kind = "command"
parallel = 3
[runner.options]
command = ["bash", "-c", 'test "$NODE_RANK" = 1 || exec "$@"', "x", "{python}", "{trainer}", "measured", "8"]
reader = "json-lines"
n_steps = 8
[budget]
trials = 2
"""
)
