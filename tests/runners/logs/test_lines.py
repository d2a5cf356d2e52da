"""Bytes as lines: every line end, colours, lines cut off or far too long, in little memory."""

import tracemalloc

import pytest

from runners.logs import load_reader
from runners.logs.account import MOST_STEPS, Account
from runners.logs.lines import MOST_LINE_BYTES, LineSplitter, lines_of, speaker
from search_spaces.units import MB
from tests.runners.logs.reading import Stream


def texts(data, most=7):
    return [line.text for line in lines_of(Stream(data, most))]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("most", [1, 3, 100])
def test_every_line_end_ends_one_line(end, most):
    assert texts(end.join([b"one", b"two", b""]), most) == ["one", "two"]


@pytest.mark.parametrize(
    "colour", [b"\x1b[32m", b"\x1b[38;2;180;60;0m", b"\x1b[0m", b"\x1b[2;3m", b"\x1b]0;t\x07"]
)
def test_colours_are_taken_off(colour):
    assert texts(colour + b"step: 1" + colour + b"\n") == ["step: 1"]


def test_bytes_that_are_no_text_do_not_stop_the_reading():
    assert texts(b"\xff\xfe loss\nnext\n") == ["�� loss", "next"]


def test_the_last_line_without_an_end_is_not_whole():
    lines = list(lines_of(Stream(b"whole\ncut of")))
    assert [(line.text, line.is_whole) for line in lines] == [("whole", True), ("cut of", False)]


def test_a_number_cut_off_is_not_read():
    account = Account(load_reader("json-lines"))
    for line in lines_of(Stream(b'{"step": 1, "step_s": 2.5}\n{"step": 2, "step_s": 25}')):
        account.feed(line)
    assert [record.step for record in account.records] == [1]


def test_a_line_far_too_long_is_cut_and_the_next_one_is_read():
    splitter = LineSplitter()
    lines = [line for _ in range(9) for line in splitter.feed(b"x" * MOST_LINE_BYTES)]
    lines += splitter.feed(b"end\nnext\n")
    assert [(len(line.text), line.is_whole) for line in lines] == [(MOST_LINE_BYTES, False), (4, True)]


@pytest.mark.parametrize(
    ("text", "rank", "rest"),
    [
        ("[rank3]: step", 3, "step"),
        ("[rank3]:[E1218 20:27] x", 3, "[E1218 20:27] x"),
        ("12: [rank12]: step", 12, "step"),
        ("[1,5]<stderr>: step", 5, "step"),
        ("[default2]:step", None, "step"),
        ("step: 3", None, "step: 3"),
    ],
)
def test_who_speaks_is_read_from_what_launchers_write_before_a_line(text, rank, rest):
    assert speaker(text) == (rank, rest)


class Endless:
    """So many bytes of a log, made when they are asked for."""

    def __init__(self, n_bytes):
        self.left, self.step = n_bytes, 0

    def read(self, n):
        lines = []
        while self.left > 0 and sum(map(len, lines)) < n:
            self.step += 1
            line = f'{{"step": {self.step}, "step_s": 1.5, "words": "{"x" * 200}"}}\n'.encode()
            self.left -= len(line)
            lines.append(line)
        return b"".join(lines)


def test_a_long_log_is_read_in_little_memory():
    account = Account(load_reader("json-lines"))
    tracemalloc.start()
    for line in lines_of(Endless(8 * MB)):
        account.feed(line)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert account.n_lines > 3 * MOST_STEPS
    assert len(account.records) == MOST_STEPS
    assert peak < 10 * MB  # the last 10,000 steps; what a log of any length takes
