"""Campaigns and studies with proxies on Ray and a real Slurm: killed with trials under way, then resumed."""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.runners.faked_cluster import faked_cluster
from tests.runners.misbehaving import gone
from tests.tuner.studies import SPACE, twice
from tuner.view import State, load_study

pytestmark = pytest.mark.timeout(280)
ROOT = Path(__file__).parents[2]
OPTIONS = "options = { hidden = 0.3, seconds_per_trial = 1.5 }\n"
RAY = pytest.param("ray", marks=pytest.mark.ray)
PLACES = [RAY, *(pytest.param(place, marks=pytest.mark.slurm) for place in ("steps", "jobs"))]
NARROW = {name: values for name, values in SPACE.items() if name not in ("tp", "pp")}
WIDE = {"cp": [1], "offload_optimizer": [False], "recompute": ["none"]}  # proxies go first
CAMPAIGN = """
[cluster]
preset = "dgx-a100"
devices = 32
[workload]
seq_len = 1024
global_batch = 64
[campaign]
share = "even"
[campaign.families.wide]
model = { preset = "gpt2" }
nodes = [1, 2]
space = { tp = [1, 2], pp = 1 }
[campaign.families.deep]
model = { preset = "mpt-1b" }
nodes = 1
space = { tp = 1, pp = [1, 2] }
"""
PROXIED = """
[model]
preset = "llama-3-8b"
[cluster]
preset = "dgx-h100"
devices = 64
[workload]
seq_len = 8192
global_batch = 128
"""
FIDELITIES = 'fidelities = ["few-layers", "few-devices", "full"]\nproxy_devices = 8\n'


def toml(value):
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("True", "true").replace(
        "False", "false"
    )  # fmt: skip


def storage(folder):
    return f"sqlite:///{folder}/study.db"


def study_file(folder, runner, *, is_campaign, trials):
    """A campaign of three members, or a study with proxies."""
    space = (NARROW if is_campaign else WIDE).items()
    knobs = "".join(f"{name} = {toml(values)}\n" for name, values in space)
    head = f'[study]\nname = "demo"\nstorage = "{storage(folder)}"\n' + ("" if is_campaign else FIDELITIES)
    body = f"[space]\n{knobs}[runner]\nparallel = 3\n{OPTIONS}{runner}[budget]\ntrials = {trials}\n"
    file = folder / "study.toml"
    file.write_text(head + body + (CAMPAIGN if is_campaign else PROXIED))
    return file


@contextmanager
def a_place(place, request, monkeypatch, *, nodes=0):
    """The keys of [runner] for a place; then nothing of ours may be left there."""
    if place == "ray":
        with tempfile.TemporaryDirectory(prefix="mt-", dir="/tmp") as scratch:  # sockets lie in it
            monkeypatch.setenv("TMPDIR", scratch)
            with faked_cluster(4) as cluster:
                monkeypatch.setenv("RAY_AUTH_TOKEN", cluster.token)
                yield f'executor = "ray"\naddress = "{cluster.address}"\n'
            assert list(Path(scratch).glob("meshtune-*")) == []
        return
    slurm = request.getfixturevalue("allocation" if place == "steps" else "slurm")
    yield f'executor = "slurm"\nslurm = {{ poll_s = 0.3, gpus_per_node = 0, nodes = {nodes} }}\n'
    assert (slurm.jobs_of_ours(), slurm.steps()) == ([], [])


def tuner_words(*words):
    return [sys.executable, "-m", "tuner", *map(str, words)]


def killed_midway(folder, file, names):
    """Runs the file's studies until two trials have finished, and kills them with others under way."""
    with subprocess.Popen(
        tuner_words("tune", file), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as driver:  # fmt: skip
        said = []
        for line in driver.stderr:
            said.append(line)
            if sum("trial " in each for each in said) == 2:
                break
        else:
            raise AssertionError("".join(said))
        while not any(view.counts[State.RUNNING] for view in views(folder, names)):
            time.sleep(0.1)
        below = [process.pid for process in psutil.Process(driver.pid).children(recursive=True)]
        driver.kill()
    assert gone(below)
    for alive in folder.glob("meshtune-slurm/*/alive"):  # as a quarter of an hour later
        os.utime(alive, (0, 0))


def resumed(folder):
    words = tuner_words("resume", "demo", "--storage", storage(folder))
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def views(folder, names):
    return [load_study(name, storage(folder)) for name in names]


def tried(view):
    return [f"{trial.plan.key} {trial.fidelity}" for trial in view.finished]


def kill_and_go_on(folder, file, names):
    """Views of the studies as the killed driver left them, and at the end."""
    killed_midway(folder, file, names)
    before = views(folder, names)
    said = resumed(folder)
    after = views(folder, names)
    for old, new in zip(before, after, strict=True):
        assert set(tried(old)) <= set(tried(new))
        assert not twice(tried(new))
        assert new.counts[State.RUNNING] == 0
    assert sum(each.counts[State.RUNNING] for each in before) > 0
    return said, after


@pytest.mark.parametrize("place", PLACES)
def test_a_campaign_is_killed_and_goes_on(place, request, tmp_path, monkeypatch):
    with a_place(place, request, monkeypatch) as runner:
        file = study_file(tmp_path, runner, is_campaign=True, trials=8)
        names = ["demo/wide/1n", "demo/wide/2n", "demo/deep/1n"]
        said, after = kill_and_go_on(tmp_path, file, names)
    assert "best of all" in said
    assert sum(len(each.finished) for each in after) == 8
    assert all(each.finished for each in after)
    assert list(tmp_path.glob("meshtune-slurm/*")) == []


@pytest.mark.parametrize("place", PLACES)
def test_a_study_with_proxies_is_killed_and_goes_on(place, request, tmp_path, monkeypatch):
    with a_place(place, request, monkeypatch, nodes=1) as runner:
        file = study_file(tmp_path, runner, is_campaign=False, trials=6)
        said, (after,) = kill_and_go_on(tmp_path, file, ["demo"])
    assert "proxies" in said
    assert len(after.finished) == 6
    assert after.by_proxy
    assert all(trial.device_s > 0 for trial in after.by_proxy)
    assert after.best.fidelity == "full"
    assert list(tmp_path.glob("meshtune-slurm/*")) == []
