"""DeepSpeed really trains from an exported launch on two CPU processes, and its log is read as an outcome."""

import os
from pathlib import Path

import pytest

from objectives.outcome import Measured
from runners.command import CommandRunner
from search_spaces.plan import Plan, Plans
from tests.runners.launchers.cases import CHECKS, job

JOB = job("gpt2", "dgx-a100", 2, 16, 1024)

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(900)]


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_an_exported_json_trains_and_is_measured(zero, launcher_python, tmp_path):
    bin_folder = str(Path(launcher_python).absolute().parent)
    runner = CommandRunner(
        JOB,
        launcher="deepspeed",
        launcher_options={"program": str(CHECKS / "train_deepspeed.py")},
        reader="deepspeed",
        environment={"PATH": f"{bin_folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        trials_folder=str(tmp_path),
        n_steps=12,
        time_limit_s=200.0,
    )
    (found,) = runner.run(Plans.of([Plan(dp=2, micro_batch=2, zero=zero)]))
    assert isinstance(found, Measured), found
    assert found.effective["micro_batch"] == 2
    assert found.effective["global_batch"] == 16
    assert found.effective["steps"][1] == 12
    assert f"trained 12 steps at ZeRO {zero}" in found.log_tail
    assert 0 < found.step_s < 60
