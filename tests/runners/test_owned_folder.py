"""Folders of killed owners: removed by the next owner, others' left alone."""

import os

from runners.owned_folder import owned_folder
from runners.trial_process import TrialProcess
from tests.runners.misbehaving import GOOD, Misbehaving
from tests.tuner.studies import ended_process


def test_folders_of_the_dead_go_and_all_others_stay(tmp_path):
    dead, living = tmp_path / f"mine-{ended_process()}-abc", tmp_path / f"mine-{os.getpid()}-abc"
    others = [tmp_path / f"yours-{ended_process()}-abc", tmp_path / "mine-nobody-abc"]
    for each in (dead, living, *others):
        each.mkdir()
        (each / "what it wrote").touch()
    link = tmp_path / f"mine-{ended_process()}-link"
    link.symlink_to(living, target_is_directory=True)
    fresh = owned_folder("mine-", tmp_path)
    assert fresh.name.startswith(f"mine-{os.getpid()}-")
    assert {each.name for each in tmp_path.iterdir()} == {
        each.name for each in (fresh, living, link, *others)
    }
    assert (living / "what it wrote").exists()


def test_a_trial_process_clears_up_behind_a_killed_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"meshtune-trials-{ended_process()}-abc"
    left.mkdir()
    process = TrialProcess(Misbehaving(tmp_path / "diary"))
    process.run(GOOD)
    assert not left.exists()
    process.close()
    assert not list(tmp_path.glob("meshtune-trials-*"))
