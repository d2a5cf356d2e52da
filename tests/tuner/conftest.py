"""What several tests of this folder share."""

import pytest

from tests.tuner.cli import JOB, NARROW, meshtune

TRIALS = 12


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory):
    """Storage of a study `demo` that `tune` has finished in this process; some of its trials failed."""
    storage = f"sqlite:///{tmp_path_factory.mktemp('studies') / 'studies.db'}"
    answer = meshtune(
        "tune", *JOB, *NARROW, "--name", "demo", "--trials", TRIALS, "--executor", "in-process",
        "--storage", storage, "--sampler", "random", "--runner-option", "crash_probability=0.3", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    return storage, answer
