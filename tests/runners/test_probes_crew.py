"""Ranks as processes: they answer together, and one that dies is told, blamed and replaced."""

import pytest

pytest.importorskip("torch")

from runners.probes.cases import Case
from runners.probes.crew import CaseFailed, Crew, CrewLost, Interrupted

pytestmark = pytest.mark.torch
OPERATION = Case(kind="launch", what={"of": "operation"})
SUM = Case(
    kind="collective", what={"operation": "all_reduce", "bytes": 4096, "tier": "machine", "n": 2, "stride": 1}
)


@pytest.fixture(scope="module")
def crew():
    with Crew(kind="cpu", n_expected=3) as crew:
        crew.join(3)
        yield crew


def test_kernels_give_readings_of_every_rank(crew):
    assert len(crew.ask(OPERATION, 0.01)["s"]) >= 9


def test_a_rank_without_a_group_keeps_step(crew):
    readings = crew.ask(SUM, 0.01)["s"]
    assert len(readings) >= 3
    assert all(value > 0 for value in readings)


def test_a_case_that_a_rank_cannot_measure_is_told_and_the_next_one_works(crew):
    wrong = Case(kind="product", what={"format": "fp32", "rows": 2, "columns": 2, "depth": -1})
    with pytest.raises(CaseFailed, match="negative dimension"):
        crew.ask(wrong, 0.01)
    assert crew.ask(OPERATION, 0.01)["s"]


@pytest.mark.parametrize("which", [0, 2])
def test_a_rank_that_is_killed_is_blamed_and_all_start_again(crew, which):
    crew._children[which].process.kill()
    with pytest.raises(CrewLost, match="exit status -9"):
        crew.ask(SUM, 0.01)
    assert crew.restart()
    assert crew.ask(SUM, 0.01)["s"]


def test_a_user_who_wants_to_stop_is_heard_while_ranks_start():
    with pytest.raises(Interrupted), Crew(kind="cpu", stopped=lambda: True) as crew:
        crew.join(1)
    assert crew._children == []
