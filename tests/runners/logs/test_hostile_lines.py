"""Lines that nobody meant: whatever bytes a log holds, reading it ends soon and raises nothing."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.logs import READERS, load_reader
from runners.logs.account import Account
from runners.logs.clues import Clues
from runners.logs.figures import Expected
from runners.logs.lines import MOST_LINE_BYTES, lines_of
from runners.logs.summary import summary_of
from runners.logs.verdict import Case, Ending, verdict_of
from tests.runners.logs.reading import FAILURES, LOGS, Stream

GOLDEN = [
    line for path in [*LOGS.glob("*.log"), *FAILURES.glob("*.log")] for line in path.read_bytes().splitlines()
]
KNOWN = Expected(global_batch=64, seq_len=4096, n_devices=8, peak_flops_per_s=1e15, model_flops_per_step=1e16)


def read_all(name, data):
    account, clues = Account(load_reader(name)), Clues()
    for line in lines_of(Stream(data, most=4096)):
        account.feed(line, at_s=None)
        clues.feed(line, account.n_steps_seen)
    summary_of(account, KNOWN)
    verdict_of(Case(clues=clues, ending=Ending(status=1)))


@st.composite
def broken_logs(draw):
    """Golden lines in any order, cut anywhere, with bytes put in."""
    pieces = []
    for line in draw(st.lists(st.sampled_from(GOLDEN), max_size=12)):
        start, end = sorted(draw(st.tuples(st.integers(0, len(line)), st.integers(0, len(line)))))
        pieces += [
            line[:start],
            draw(st.binary(max_size=4)),
            line[end:],
            draw(st.sampled_from([b"\n", b"\r", b""])),
        ]
    return b"".join(pieces)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60)
@given(data=broken_logs())
def test_broken_lines_raise_nothing(name, data):
    read_all(name, data)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "line",
    [
        b'{"step": 1, "step_s": 1e999, "loss": NaN, "peak_memory_bytes": -1}',
        b'{"step": 1e3, "step_s": "x"}',
        b"[titan] 2026-13-41 99:00:00,000 - root - INFO - "
        b"step:  1  loss: 1.0  grad_norm: 1  memory:  1.0GiB(1.0%)  tps: 1  tflops: 1  mfu: 1%",
        b" iteration " + b"9" * 5000 + b"/ 10 | elapsed time per iteration (ms): 1.5 |",
        b" iteration 1/ 10 | elapsed time per iteration (ms): 1.2.3.4 |",
        b"iteration: 1 / 2 | time_per_iteration_ms: --1 | lm_loss: inf",
        b"epoch=0/micro_step=1/global_step=1, CurrSamplesPerSec=1e+e",
    ],
)
def test_numbers_that_cannot_be_raise_nothing(name, line):
    read_all(name, (line + b"\n") * 9)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "letter", [b"a", b" ", b"{", b"1.", b"|", b"a.", b"'a': ", b"iteration: 1 / 2 | a", b"Error"]
)
def test_long_lines_of_one_thing_are_read_soon(name, letter):
    began = time.process_time()
    read_all(name, (letter * MOST_LINE_BYTES)[: MOST_LINE_BYTES - 1] + b"\n")
    assert time.process_time() - began < 5.0  # seconds of this process alone; all are far below one
