"""Faults for real in studies of real trials: each ends as what it was, the study goes on, nothing is left."""

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from objectives.outcome import Cause, Measured
from runners.in_process import InProcessExecutor
from tests.runners.misbehaving import gone
from tests.runners.torch_study import (
    Strike,
    Traces,
    listening,
    ranks_below,
    tables,
    torch_config,
    trial_servers,
    wait_for_ranks,
)
from tuner.budget import Stop
from tuner.config import config_from_tables
from tuner.events import TrialFinished, TrialStarted
from tuner.study import tune
from tuner.view import State

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
GROUPS = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def traces(tmp_path, monkeypatch):
    yield (found := Traces(tmp_path / "t", monkeypatch))
    assert found.left() == {}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One warm executor for the studies of several tests; nothing is left when it is closed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        traces = Traces(tmp_path_factory.mktemp("shared") / "t", monkeypatch)
        recipe = torch_config(tmp_path_factory.mktemp("recipe")).inputs.recipe
        with closing(InProcessExecutor(recipe, n_slots=1)) as executor:
            yield executor, traces
        assert traces.left() == {}


@pytest.fixture
def executor(shared):
    executor, traces = shared
    yield executor
    assert (ranks_below(), traces.scratch) == ([], [])


def struck(executor, config, strike, n_trials=2):
    """The study after it was struck at."""
    result = tune(config, executor=executor, on_event=strike)
    assert strike.done()
    assert (result.stop, len(result.view.finished)) == (Stop.TRIALS, n_trials)
    return result.view


def outcomes(view):
    return [trial.outcome for trial in view.finished]


def test_a_killed_rank_is_a_crash_and_the_study_goes_on(executor, tmp_path):
    first, second = outcomes(struck(executor, torch_config(tmp_path), Strike(lambda ranks: ranks[1].kill())))
    assert (first.cause, "rank 1 was killed by SIGKILL" in first.message) == (Cause.CRASH, True)
    assert isinstance(second, Measured), second


def test_a_rank_that_sleeps_for_ever_is_a_hang_and_the_study_goes_on(executor, tmp_path):
    first, second = outcomes(
        struck(executor, torch_config(tmp_path), Strike(lambda ranks: ranks[0].suspend()))
    )
    assert (first.cause, "rank 0 told of no progress for 6 s" in first.message) == (Cause.HANG, True)
    assert isinstance(second, Measured), second


def test_a_killed_trial_server_is_a_lost_machine_and_its_plan_is_tried_again(executor, tmp_path):
    view = struck(executor, torch_config(tmp_path), Strike(lambda _: trial_servers()[0].kill()))
    assert all(isinstance(outcome, Measured) for outcome in outcomes(view))
    assert len({trial.plan.key for trial in view.finished}) == 2


@contextmanager
def memory_group(limit_bytes):
    """A group of processes that the kernel gives so much memory, and kills in beyond it."""
    folder = GROUPS / f"meshtune-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError:
        pytest.skip("this user may make no memory group")
    try:
        yield folder
    finally:
        folder.rmdir()


def test_a_rank_killed_by_the_kernel_is_out_of_memory_and_the_study_goes_on(executor, tmp_path):
    with memory_group(limit_bytes=64 * 1024) as group:
        blow = Strike(lambda ranks: (group / "cgroup.procs").write_text(str(ranks[1].pid)))
        first, second = outcomes(struck(executor, torch_config(tmp_path), blow))
    assert first.cause is Cause.OUT_OF_MEMORY, first
    assert "rank 1 was killed by the kernel" in first.message
    assert first.effective["failed"]["rank"] == 1
    assert isinstance(second, Measured), second


def test_a_rank_at_its_limit_of_memory_is_out_of_memory_and_the_study_goes_on(executor, tmp_path):
    def tighten(ranks):
        resource.prlimit(ranks[1].pid, resource.RLIMIT_DATA, (2**20, 2**20))

    first, second = outcomes(struck(executor, torch_config(tmp_path), Strike(tighten)))
    assert (first.cause, first.message.startswith("rank 1")) == (Cause.OUT_OF_MEMORY, True), first
    assert isinstance(second, Measured), second


@contextmanager
def small_disk(folder):
    """A folder with room for little, for temporary files; only root can make one."""
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=False)
    if made.returncode:
        pytest.skip("this user may mount nothing")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(path):
    """Write until the disk is full."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1024)):
            pass


def test_a_full_disk_is_the_machine_s_fault_and_the_plan_is_tried_again(traces, tmp_path, monkeypatch):
    with small_disk(tmp_path / "d") as disk:
        monkeypatch.setenv("TMPDIR", str(disk))
        monkeypatch.setattr(tempfile, "tempdir", None)
        ballast = disk / "ballast"

        def listen(event):
            if isinstance(event, TrialFinished):
                is_first = event.trial.number == 0  # a server that starts on a full disk takes another one
                fill(ballast) if is_first else ballast.unlink(missing_ok=True)

        view = tune(torch_config(tmp_path), on_event=listen).view
        assert sorted(path.name for path in disk.iterdir()) == []
    lost = [trial for trial in view.trials if trial.state is State.LOST]
    assert [trial.outcome.cause for trial in lost] == [Cause.LOST_MACHINE]
    assert all(isinstance(outcome, Measured) for outcome in outcomes(view))
    assert len(view.finished) == 2


RENDEZVOUS = """
import json, sys
import torch.distributed as dist
store = dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=True)
for step in range(1, 9):
    print(json.dumps(dict(step=step, step_s=0.01, loss=5.0, peak_memory_bytes=1e9)), flush=True)
"""


def test_a_taken_port_is_the_machine_s_fault_and_the_plan_is_tried_again(traces, tmp_path):
    taken = socket.create_server(("0.0.0.0", 0), reuse_port=False)
    document = tables(tmp_path)
    (tmp_path / "train.py").write_text(RENDEZVOUS)
    command = [sys.executable, str(tmp_path / "train.py"), str(taken.getsockname()[1])]
    options = {"command": command, "reader": "json-lines", "n_steps": 8, "grace_s": 0.2}
    document["runner"] = {**document["runner"], "kind": "command", "options": options}
    lost = []

    def listen(event):
        if isinstance(event, TrialFinished) and event.trial.state is State.LOST:
            lost.append(event.trial.outcome)
            taken.close()

    view = tune(config_from_tables(document, folder=tmp_path), on_event=listen).view
    taken.close()
    assert [(each.cause, "port is taken" in each.message) for each in lost] == [(Cause.LOST_MACHINE, True)]
    assert [type(outcome) for outcome in outcomes(view)] == [Measured, Measured]


@pytest.mark.parametrize(
    "sent",
    [
        signal.SIGINT,
        *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGTERM, signal.SIGKILL)),
    ],
    ids=lambda sent: sent.name,
)
def test_an_ended_driver_leaves_nothing(sent, traces, tmp_path):
    command = [sys.executable, "-m", "tests.runners.torch_study", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as driver:
        ranks = wait_for_ranks(root=driver.pid)
        below = [process.pid for process in psutil.Process(driver.pid).children(recursive=True)]
        if sent is signal.SIGINT:
            os.killpg(driver.pid, sent)  # a terminal sends it to everybody of the session that it knows
        else:
            driver.send_signal(sent)
        out, _ = driver.communicate(timeout=240)
    assert ("interrupted" in out) is (sent is not signal.SIGKILL)
    assert gone([*below, *(rank.pid for rank in ranks)])
    assert listening(below) == []


READY_S = 0.1


def crowding():
    """How many times longer than alone a process waits for its work on this machine, right now; from 1."""
    began_s, used_s = time.perf_counter(), time.process_time()
    while time.process_time() - used_s < 0.2:
        pass
    return max((time.perf_counter() - began_s) / 0.2, 1.0)


def test_ranks_run_within_a_tenth_of_a_second_after_the_first_trial(executor, tmp_path):
    crowded = crowding()
    view = tune(torch_config(tmp_path, n_trials=3), executor=executor).view
    ready_s = [outcome.effective["ready_s"] for outcome in outcomes(view)]
    assert min(ready_s[1:]) < READY_S * max(crowded, crowding()), ready_s


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_ray_worker_and_a_killed_ray_are_lost_machines_and_the_study_goes_on(traces, tmp_path):
    document = tables(tmp_path, n_trials=3)
    document["runner"] = {**document["runner"], "executor": "ray", "resources": {"CPU": 1}}
    blows, strikes, servers = iter([kill_worker, kill_raylet]), [], []

    def listen(event):
        if isinstance(event, TrialStarted) and (blow := next(blows, None)):
            strikes.append(Strike(blow))
            strikes[-1](event)
        if isinstance(event, TrialFinished):
            servers.append([each.pid for each in trial_servers()])

    view = tune(config_from_tables(document, folder=tmp_path), on_event=listen).view
    assert [strike.done() for strike in strikes] == [True, True]
    assert [type(outcome) for outcome in outcomes(view)] == [Measured] * 3
    assert len({trial.plan.key for trial in view.finished}) == 3
    assert servers[-1] == servers[-2]  # a worker keeps its server
    assert outcomes(view)[-1].effective["ready_s"] < READY_S * max(crowding(), 2.0)


def kill_worker(ranks):
    next(each for each in ranks[0].parents() if "TrialActor" in " ".join(each.cmdline())).kill()


def kill_raylet(ranks):
    next(each for each in ranks[0].parents() if each.name() == "raylet").kill()
