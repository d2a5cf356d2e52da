"""What several tests of this folder share."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.runners.slurm_machine import SlurmMachine, stop


@pytest.fixture(scope="session")
def running_slurm():
    """A real Slurm of four nodes on this machine, for the tests marked so."""
    with tempfile.TemporaryDirectory(prefix="meshtune-slurm-") as folder:  # a socket's path must be short
        machine = SlurmMachine(Path(folder))
        daemons = machine.start()
        try:
            machine.wait_until_idle()
            yield machine
        finally:
            stop(daemons)


@pytest.fixture
def slurm(running_slurm, monkeypatch):
    """The same with no job on it, as this process sees it: outside of any allocation."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, running_slurm.environment[name])
    yield running_slurm
    running_slurm.clear()
    running_slurm.resume_nodes()


@pytest.fixture
def allocation(slurm, tmp_path, monkeypatch):
    """The same inside a job that has all four nodes, as its batch script would see it."""
    script = tmp_path / "hold.sh"
    script.write_text("#!/bin/sh\nexec sleep 300\n")
    asked = ("--nodes=4", "--exclusive", "--no-kill", "--output=/dev/null")
    job = slurm.call("sbatch", "--parsable", *asked, script).strip()
    slurm.wait_for(job, "RUNNING")
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[1-4]")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "4")
    return slurm
