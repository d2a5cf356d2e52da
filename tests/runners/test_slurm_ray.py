"""The script that brings Ray up on an allocation: linted, and run on a real Slurm of two nodes."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs/examples/slurm/ray.sbatch"
STUDY = """
[study]
name = "onray"
storage = "sqlite:///study.db"
[model]
preset = "llama-3-8b"
[cluster]
preset = "dgx-h100"
devices = 16
[workload]
global_batch = 64
seq_len = 8192
[space]
tp = [8]
pp = [1]
zero = [1]
[budget]
trials = 2
"""


def test_shellcheck_has_nothing_to_say():
    command = [Path(sys.executable).with_name("shellcheck"), "--shell=bash", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""


@pytest.mark.slurm
@pytest.mark.ray
def test_a_study_runs_on_the_ray_of_an_allocation_and_leaves_nothing(slurm, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("python3", "ray"):
        (tools / name).symlink_to(Path(sys.executable).with_name("python" if name == "python3" else name))
    (tools / "meshtune").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tuner "$@"\n')
    (tools / "meshtune").chmod(0o755)
    setup = f'export PATH="{Path(sys.executable).parent}:$PATH:{tools}" PYTHONPATH="{ROOT}"\n'
    (tmp_path / "setup.sh").write_text(setup + f'meshtune() {{ "{tools}/meshtune" "$@"; }}\n')
    words = ["--parsable", "--wait", "--nodes=2", f"--output={tmp_path}/out.txt"]
    place = f"--export=ALL,MESHTUNE_SETUP={tmp_path}/setup.sh,MESHTUNE_SHARED={tmp_path}"
    done = subprocess.run(
        ["sbatch", *words, place, SCRIPT, tmp_path / "study.toml"],
        cwd=tmp_path, env=slurm.environment, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    said = (tmp_path / "out.txt").read_text()
    assert done.returncode == 0, said + done.stderr
    assert "Ray runs on 2 of 2 nodes" in said
    assert list(tmp_path.glob(".meshtune-ray-*")) == []
    assert slurm.steps() == []
