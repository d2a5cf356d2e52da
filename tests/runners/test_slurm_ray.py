"""The script that brings Ray up on an allocation: linted, and run on a real Slurm of two nodes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runners.slurm_machine import JOB_TABLES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs/examples/slurm/ray.sbatch"
STUDY = (
    JOB_TABLES
    + """\
[study]
name = "onray"
storage = "sqlite:///study.db"
[space]
tp = [8]
pp = [1]
zero = [1]
[budget]
trials = 2
"""
)


def test_shellcheck_has_nothing_to_say():
    command = [Path(sys.executable).with_name("shellcheck"), "--shell=bash", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout == ""


# What stands in for meshtune: before it starts, a stranger without the token knocks at the same Ray.
KNOCKING = """#!/bin/bash
stat -c %a "$RAY_AUTH_TOKEN_PATH" >{folder}/mode
env -u RAY_AUTH_MODE -u RAY_AUTH_TOKEN_PATH HOME={folder} "{python}" -c \
  'import ray, sys; ray.init(address=sys.argv[1]); print("let in")' "${{@: -1}}" >{folder}/stranger 2>&1
exec "{python}" -m tuner "$@"
"""


@pytest.mark.slurm
@pytest.mark.ray
def test_a_study_runs_on_the_ray_of_an_allocation_and_leaves_nothing(slurm, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "meshtune").write_text(KNOCKING.format(folder=tmp_path, python=sys.executable))
    (tools / "meshtune").chmod(0o755)
    path = f"{tools}:{Path(sys.executable).parent}"
    (tmp_path / "setup.sh").write_text(f'export PATH="{path}:$PATH" PYTHONPATH="{ROOT}"\n')
    words = ["--parsable", "--time=5", "--nodes=2", f"--output={tmp_path}/out.txt", f"--chdir={tmp_path}"]
    place = f"--export=ALL,MESHTUNE_SETUP={tmp_path}/setup.sh,MESHTUNE_SHARED={tmp_path}"
    job = slurm.call("sbatch", *words, place, SCRIPT, tmp_path / "study.toml").strip()
    slurm.wait_for(job, "COMPLETED", patience_s=250)
    said = (tmp_path / "out.txt").read_text()
    assert "Ray runs on 2 of 2 nodes" in said
    assert "stopped: all trials of the budget are done" in said
    assert (tmp_path / "mode").read_text() == "600\n"
    assert "uthenticat" in (tmp_path / "stranger").read_text()
    assert "let in" not in (tmp_path / "stranger").read_text()
    assert list(tmp_path.glob(".meshtune-ray-*")) == []
    assert slurm.steps() == []
