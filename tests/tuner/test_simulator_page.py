"""docs/simulator.md: its table says what the code says."""

from pathlib import Path

import pytest

from objectives.cost.pipeline import EXACT
from search_spaces.plan import Schedule
from tuner.rescore import FORM_ERRORS

PAGE = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text(encoding="utf-8")


def table():
    """Cells of the rows between the marks, by their first cell."""
    body = PAGE.split("<!-- agreement: begin -->\n")[1].split("<!-- agreement: end -->")[0]
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in body.splitlines()[2:]]
    return {row[0]: row for row in rows}


def test_every_schedule_has_a_row():
    assert list(table()) == ["no pipeline", *map(str, Schedule)]


@pytest.mark.parametrize("schedule", Schedule)
def test_a_row_says_where_the_closed_form_is_exact(schedule):
    assert table()[str(schedule)][1] == EXACT[schedule]


@pytest.mark.parametrize("schedule", Schedule)
def test_closeness_rests_on_the_errors_that_were_measured(schedule):
    assert FORM_ERRORS[schedule] == pytest.approx(float(table()[str(schedule)][-1]), abs=0.02)


def test_where_assumptions_hold_the_two_agree_to_a_thousandth():
    worst = [float(row[3].removesuffix(" %")) for row in table().values() if row[3]]
    assert len(worst) >= 4
    assert max(worst) <= 0.1
