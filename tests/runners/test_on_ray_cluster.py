"""Trials on a cluster of several nodes, of which one may go in the middle of a trial."""

import importlib.util
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from objectives.outcome import Measured
from runners.on_ray import RayExecutor
from runners.on_ray_words import Reservation
from search_spaces.errors import RunnerError
from tests.runners.faked_cluster import faked_cluster
from tests.runners.misbehaving import GOOD, SLEEP, Misbehaving, Seeing, collect, gone

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
GROUPS = """
import sys, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level=40)
print(*(group["state"] for group in ray.util.placement_group_table().values()))
"""


@pytest.fixture
def runner(tmp_path):
    return Misbehaving(tmp_path / "diary", patience_s=5.0)


def node_of(cluster, trial):
    """Number of the node whose raylet is above the trial's process."""
    above = {process.pid for process in psutil.Process(trial).parents()}
    (node,) = [i for i, raylet in enumerate(cluster.raylets) if raylet in above]
    return node


def test_a_trial_whose_node_is_lost_is_tried_again_on_another_and_finishes(runner, monkeypatch):
    with faked_cluster(2) as cluster:
        monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
        with closing(RayExecutor(runner, address=cluster.address, n_slots=1)) as executor:
            executor.submit(0, GOOD)
            first = runner.wait_for_try(GOOD)
            lost = node_of(cluster, first)
            cluster.remove(lost)
            while len(runner.tries(GOOD)) < 2:
                assert executor.wait(0.1) == []
            assert node_of(cluster, runner.wait_for_try(GOOD, n_tries=2)) == 1 - lost
            assert isinstance(collect(executor, 1)[0], Measured)
            assert runner.attempts(GOOD) == [0, 1]
            assert gone([first])
        everyone = [process.pid for process in psutil.Process(cluster.process.pid).children(recursive=True)]
    assert gone(everyone)


def group_states(cluster):
    """States of all placement groups that the cluster ever had."""
    command = [sys.executable, "-W", "ignore", "-c", GROUPS, cluster.address]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **token}, capture_output=True, text=True, check=True
    )
    return sorted(done.stdout.split())


def test_each_trial_has_a_group_of_its_own_and_the_worker_stays_warm(tmp_path, monkeypatch):
    runner = Misbehaving(tmp_path / "diary")
    with faked_cluster(1) as cluster:
        monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
        with closing(RayExecutor(runner, address=cluster.address, n_slots=1)) as executor:
            for ticket in range(3):
                executor.submit(ticket, GOOD)
            collect(executor, 3)
            executor.submit(3, SLEEP)
            trial = runner.wait_for_try(SLEEP)
            states = group_states(cluster)
            assert (states.count("CREATED"), set(states[1:])) == (1, {"REMOVED"})
            assert len(states) >= 4
            raylet = psutil.Process(cluster.raylets[0])
            workers = [p for p in raylet.children() if "TrialActor" in " ".join(p.cmdline())]
            assert [worker.pid for worker in workers] == [
                p.pid for p in psutil.Process(trial).parents() if p in workers
            ]


def test_a_trial_sees_the_accelerators_of_its_group_and_no_others(tmp_path):
    runner = Seeing(tmp_path / "diary", patience_s=1.0)
    one = Reservation(bundles=({"CPU": 1, "GPU": 1},))
    with closing(RayExecutor(runner, n_slots=2, reservation=one)) as executor:
        for ticket in range(2):
            executor.submit(ticket, GOOD)
        seen = [outcome.log_tail for outcome in collect(executor, 2).values()]
    assert sorted(seen) == ["0", "1"]


@pytest.mark.skipif(importlib.util.find_spec("grpc") is not None, reason="Ray's client is installed")
def test_an_address_from_outside_without_rays_client_says_how_to_get_it(runner):
    must = r"a ray:// address needs Ray's client; got no grpcio\.\nhint: pip install 'ray\[client\]'"
    with (
        closing(RayExecutor(runner, address="ray://127.0.0.1:10001")) as executor,
        pytest.raises(RunnerError, match=must),
    ):
        executor.submit(0, GOOD)
