"""Folders of killed owners: removed by the next owner, others' left alone."""

import os
import tempfile
import time
from pathlib import Path

import pytest

from runners.owned_folder import _here, owned_folder
from runners.slurm.allocation import session_folder
from runners.slurm.choice import Slurm
from runners.slurm.trial import ALIVE, ORPHAN_S, is_orphaned
from runners.trial_process import TrialProcess
from tests.runners.misbehaving import GOOD, Misbehaving
from tests.tuner.studies import ended_process


def named(prefix, owner, end="abcdefg_", like=None):
    """The name that a folder of another process would have, here or where `like` is."""
    where = (
        (like or owned_folder(prefix, Path(tempfile.mkdtemp()))).name.removeprefix(prefix).partition("-")[0]
    )
    return f"{prefix}{where}-{owner}-{end}"


def test_folders_of_the_dead_go_and_all_others_stay(tmp_path):
    dead = ended_process()
    others = [
        named("mine-", os.getpid()),
        named("yours-", dead),
        named("mine-", "nobody"),
        named("mine-", "\u00b2"),
        named("mine-", "9" * 20),
        f"mine-{dead}-abcdefg_",
        f"mine-0a1b2c-{dead}-abcdefg_",
        named("mine-other-", dead),
    ]
    for name in (gone := named("mine-", dead), *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "what it wrote").touch()
    link = tmp_path / named("mine-", dead, end="linklink")
    link.symlink_to(tmp_path / others[0], target_is_directory=True)
    fresh = owned_folder("mine-", tmp_path)
    assert fresh.name == named("mine-", os.getpid(), end=fresh.name[-8:])
    assert gone not in os.listdir(tmp_path)
    assert set(os.listdir(tmp_path)) == {fresh.name, link.name, *others}
    assert (tmp_path / others[0] / "what it wrote").exists()


def test_processes_of_another_host_are_not_ours_to_judge(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "login-900000001")
    _here.cache_clear()
    theirs = tmp_path / named("study-", ended_process())
    theirs.mkdir()
    monkeypatch.setattr("socket.gethostname", lambda: "login")
    _here.cache_clear()
    owned_folder("study-", tmp_path)
    assert theirs.exists()
    monkeypatch.undo()
    _here.cache_clear()


def test_a_trial_process_clears_up_behind_a_killed_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / named("meshtune-trials-", ended_process())
    left.mkdir()
    process = TrialProcess(Misbehaving(tmp_path / "diary"))
    process.run(GOOD)
    assert not left.exists()
    process.close()
    assert not list(tmp_path.glob("meshtune-trials-*"))


@pytest.mark.parametrize(("age_s", "stays"), [(0, True), (2 * ORPHAN_S, False)])
def test_the_folder_of_a_killed_driver_of_jobs_stays_until_none_may_start(tmp_path, age_s, stays):
    left = tmp_path / named("study-", ended_process())
    left.mkdir()
    (left / ALIVE).touch()
    os.utime(left / ALIVE, (time.time() - age_s,) * 2)
    session_folder(Slurm(folder=str(tmp_path)))
    assert left.exists() is stays
    assert is_orphaned(left) is not stays
