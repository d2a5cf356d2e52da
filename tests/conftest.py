"""What every test shares: the optional parts are skipped in one place, with the reason."""

import importlib.util
import os

import hypothesis
import pytest

from tests.runners.slurm_machine import why_not

LAUNCHER_PYTHON = "MESHTUNE_LAUNCHER_PYTHON"

# Wall clock is noise on a shared machine, and a red run must be repeatable.
hypothesis.settings.register_profile("meshtune", deadline=None, derandomize=True)
hypothesis.settings.load_profile("meshtune")


def missing_parts() -> dict[str, str]:
    """Markers whose tests cannot run here, each with what would make them run."""
    missing = {}
    if LAUNCHER_PYTHON not in os.environ:
        missing["launcher"] = f"{LAUNCHER_PYTHON} is not set; `make test` sets it"
    if importlib.util.find_spec("torch") is None:
        missing["torch"] = "the torch extra is not installed"
    if no_slurm := why_not():
        missing["slurm"] = no_slurm
    return missing


def pytest_collection_modifyitems(items):
    missing = missing_parts()
    for item in items:
        for marker in missing.keys() & {mark.name for mark in item.iter_markers()}:
            item.add_marker(pytest.mark.skip(reason=missing[marker]))


@pytest.fixture
def launcher_python() -> str:
    """The interpreter of the environment that holds Megatron-LM, DeepSpeed and torchtitan."""
    return os.environ[LAUNCHER_PYTHON]
