"""Schedules written as CSV and read back, and what is said of a wrong file."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.simulator.program import Op, Pass, round_robin, v_shape
from objectives.simulator.schedules import SCHEDULES, csv_of, program, program_of_csv, read_csv, write_csv
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Schedule

WRITABLE = [each for each in SCHEDULES if each not in (Schedule.DUALPIPE, Schedule.MESSAGE_DRIVEN)]


@pytest.mark.parametrize("schedule", WRITABLE)
@pytest.mark.parametrize(("p", "m"), [(1, 2), (2, 4), (4, 8), (4, 12)])
def test_a_file_read_back_is_the_same_program(schedule, p, m, tmp_path):
    made = program(schedule, p, m, 2 if schedule is Schedule.INTERLEAVED else 1)
    write_csv(made, tmp_path / "schedule.csv")
    read = read_csv(tmp_path / "schedule.csv")
    assert read.n_microbatches == m
    np.testing.assert_array_equal(read.stage, made.stage)
    assert [read.order(i) for i in range(p)] == [made.order(i) for i in range(p)]


def test_a_small_schedule_looks_like_this():
    assert csv_of(program("1f1b", 2, 2)) == "0F0,0F1,0B0,0B1\n1F0,1B0,1F1,1B1\n"
    assert csv_of(program("zb-h1", 2, 2)) == "0F0,0F1,0I0,0W0,0I1,0W1\n1F0,1I0,1F1,1I1,1W0,1W1\n"
    assert csv_of(program("dualpipe-v", 1, 3)).startswith(
        "0F0,1F0,0F1,1B0,(1F1;0B0)OVERLAP_F_B,(0F2;1B1)OVERLAP_F_B"
    )


def test_stages_are_found_from_the_cells():
    np.testing.assert_array_equal(program_of_csv(csv_of(program("zb-v", 3, 6))).stage, v_shape(3))
    np.testing.assert_array_equal(
        program_of_csv(csv_of(program("interleaved", 3, 6, 2))).stage, round_robin(3, 2)
    )
    odd = program_of_csv("2F0,2B0\n0F0,0B0\n1F0,1B0\n")
    assert odd.stage.tolist() == [[2], [0], [1]]


def test_idle_cells_spaces_and_blank_last_lines_say_nothing():
    plain = program_of_csv("0F0,0B0\n1F0,1B0")
    airy = program_of_csv(" 0F0 ,,,0B0\r\n,1F0, 1B0,\r\n\r\n")
    assert [airy.order(i) for i in range(2)] == [plain.order(i) for i in range(2)]


WRONG = {
    "missing": ("0F0,0B0\n1F0\n", r"line 2: rank 1: B\(micro-batch 0, chunk 0\), stage 1 is missing"),
    "missing forward": (
        "0F0,0F1,0B0,0B1\n1F0,1B0,1B1\n",
        r"line 2: rank 1: F\(micro-batch 1, chunk 0\), stage 1 is missing",
    ),
    "missing weight": (
        "0F0,0B0\n1F0,1I0\n",
        r"line 2: rank 1: W\(micro-batch 0, chunk 0\), stage 1 is missing",
    ),
    "doubled": (
        "0F0,0B0,0F0\n1F0,1B0\n",
        r"line 1, cell 3 \(0F0\): rank 0: F\(micro-batch 0, chunk 0\), stage 0 comes a second time",
    ),
    "doubled weight": (
        "0F0,0B0\n1F0,1B0,,1W0\n",
        r"line 2, cell 4 \(1W0\): rank 1: W\(micro-batch 0.* comes a second time",
    ),
    "doubled in a pair": (
        "0F0,(1F0;0B0)OVERLAP_F_B,1B0,(0F1;1B0)OVERLAP_F_B,(1F1;0B1)OVERLAP_F_B,1B1",
        r"line 1, cell 4 \(\(0F1;1B0\)OVERLAP_F_B\): rank 0: F&B\(.* comes a second time",
    ),
    "too early": (
        "0B0,0F0\n1F0,1B0\n",
        r"line 1, cell 1 \(0B0\): rank 0: B\(micro-batch 0.* comes before its forward pass",
    ),
    "weight too early": (
        "0F0,0W0,0I0\n1F0,1B0\n",
        r"line 1, cell 2 \(0W0\): rank 0: W\(micro-batch 0.* comes before its gradient of the input",
    ),
    "impossible micro-batch": (
        "0F0,0B0\n1F0,1B0\n2F0,2B0,2F7\n",
        r"line 3, cell 3 \(2F7\): rank 2: F\(micro-batch 7, chunk 0\), stage 2 does not exist",
    ),
    "impossible letter": ("0F0,0B0\n1F0,1Q0\n", r"got '1Q0' in .*, line 2, cell 2 \(rank 1\)"),
    "message": (
        "0F0,0SEND_F0,0B0\n1F0,1B0",
        r"got '0SEND_F0' in .*, line 1, cell 2 \(rank 0\)\.\nhint: a file of format compute_only",
    ),
    "pair of the wrong kind": ("(0F0;0W0)OVERLAP_F_B", r"got '\(0F0;0W0\)OVERLAP_F_B' in .*, line 1, cell 1"),
    "a huge number": ("0F12345678901,0B0", r"got '0F12345678901' in .*, line 1, cell 1 \(rank 0\)"),
    "a stage on two ranks": (
        "0F0,0B0\n0F0,1B0\n",
        r"got 0F0 in .*, line 2, cell 1 \(rank 1\), but stage 0 is on rank 0, line 1",
    ),
    "a stage on no rank": (
        "0F0,0B0\n2F0,2B0\n",
        r"up to its last, 2, of 2F0 in .*, line 2, cell 1 \(rank 1\); "
        "got none of stage 1: 1F0 and all others are missing",
    ),
    "ranks that wait for each other": (
        "0F0,0B0,0F1,0B1\n1F1,1B1,,1F0,1B0\n",
        r"got rank 0 \(.*, line 1\) at 0B0 \(cell 2\) waits for 1B0 \(cell 5\) of rank 1 \(.*, line 2\); ",
    ),
    "uneven stages": ("0F0,0B0,2F0,2B0\n1F0,1B0\n", "equally many of the 3 stages; got 2 on rank 0, line 1"),
    "a rank without passes": ("0F0,0B0\n\n1F0,1B0\n", "for every rank; got none for rank 1 in line 2"),
    "nothing": ("\n\n", "must hold a row of passes for every rank; got no row"),
    "no text": ("0F0,\x000B0", r"must be comma-separated text|got '\\x000B0' in"),
}


@pytest.mark.parametrize(("text", "match"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_told_by_rank_pass_and_line(text, match):
    with pytest.raises(InvalidSpec, match=match):
        program_of_csv(text)


@given(st.sampled_from(WRITABLE), st.data())
def test_a_file_with_one_cell_lost_or_doubled_never_passes(schedule, data):
    rows = [row.split(",") for row in csv_of(program(schedule, 3, 6)).splitlines()]
    rank = data.draw(st.integers(0, 2))
    at = data.draw(st.integers(0, len(rows[rank]) - 1))
    cell = rows[rank].pop(at) if data.draw(st.booleans()) else rows[rank][at]
    if len(rows[rank]) > at and rows[rank][at] == cell:
        rows[rank].append(cell)
    with pytest.raises(InvalidSpec, match=rf"line {rank + 1}.*: rank {rank}: "):
        program_of_csv("\n".join(map(",".join, rows)))


@given(st.text(alphabet="01F2BIW,;()\nOVERLAP_F_B 9", max_size=60))
def test_no_text_whatever_ends_in_anything_but_a_program_or_a_sentence(text):
    try:
        made = program_of_csv(text)
    except InvalidSpec:
        return
    assert program_of_csv(csv_of(made)).order(0) == made.order(0)


@pytest.mark.parametrize(
    ("schedule", "match"),
    [
        (
            Schedule.DUALPIPE,
            r"one copy of the model; got 2 copies, fed from both ends\.\nhint: .*dualpipe-v",
        ),
        (
            Schedule.MESSAGE_DRIVEN,
            r"a fixed order; got one that arrivals decide\.\nhint: write schedule=1f1b",
        ),
    ],
)
def test_what_the_format_has_no_words_for_is_refused(schedule, match):
    with pytest.raises(InvalidSpec, match=match):
        csv_of(program(schedule, 4, 8))


def test_a_mark_of_the_encoding_is_no_part_of_the_first_pass(tmp_path):
    path = tmp_path / "marked.csv"
    path.write_text("0F0,0B0\n1F0,1B0\n", encoding="utf-8-sig")
    assert read_csv(path).order(0) == (Op(Pass.FORWARD, 0), Op(Pass.BACKWARD, 0))


def test_a_file_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(InvalidSpec, match=r"a schedule file must be readable text; got .*nowhere\.csv"):
        read_csv(tmp_path / "nowhere.csv")
