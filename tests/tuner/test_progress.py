"""What a person sees while a study runs."""

import io

import pytest
from rich.console import Console

from objectives.outcome import Cause, Failed, Measured, OutcomeOrigin
from objectives.ranking import Ledger
from search_spaces.plan import Plan
from tuner.budget import Stop
from tuner.events import Progress, Ranked, Stopped, TrialFinished, TrialsReaped
from tuner.progress import picture, showing
from tuner.view import Predicted, State, TrialRecord

SIMULATED = OutcomeOrigin.SIMULATED
MEASURED = Measured(step_s=10.0, step_spread_s=0.1, peak_memory_bytes=2**30, origin=SIMULATED)
LEDGER = Ledger(enumerated=1000, removed={}, too_large=0, feasible=100, priced=100)
OUT_OF_MEMORY = Failed(cause=Cause.OUT_OF_MEMORY, message="rank 3: 2.1 GiB short\nmore", origin=SIMULATED)


def record(outcome=MEASURED, state=State.MEASURED):
    return TrialRecord(
        number=7, state=state, plan=Plan(tp=8, dp=2), outcome=outcome, attempt=1, started=None, ended=None,
        predicted=Predicted(step_s=9.0, peak_memory_bytes=2.0**30), values={"step_time": 10.0, "mfu": 0.41},
    )  # fmt: skip


def progress(**changes):
    counts = {State.RUNNING: 4, State.MEASURED: 12, State.FAILED: 2, State.LOST: 0, State.WITHDRAWN: 0}
    given = {"metric": "step_time", "best": record(), "left_s": 200.0, **changes}
    return Progress(counts=counts, n_finished=14, budget_trials=40, elapsed_s=100.0, **given)


def drawn(part):
    console = Console(file=io.StringIO(), width=200)
    console.print(part)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "words",
    ["10.00 s (predicted 9.00 s, -10.0 %): tp8 pp1 dp2 mb1", "4 running, 12 measured, 2 failed", "14 of 40",
     "1 min 40 s gone",
     "3 min 20 s left"],
)  # fmt: skip
def test_the_picture_shows_the_best_the_states_and_the_time(words):
    assert words in drawn(picture(progress()))


def test_the_picture_knows_when_nothing_is_known():
    text = drawn(picture(progress(best=None, left_s=None)))
    assert "none yet" in text
    assert "unknown left" in text


def test_a_metric_other_than_time_is_shown_with_its_unit():
    assert "0.41 fraction of dense peak, 10.00 s" in drawn(picture(progress(metric="mfu")))


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (TrialFinished(trial=record()),
         "trial 7: 10.00 s (predicted 9.00 s, -10.0 %), 1.0 GiB: tp8 pp1 dp2 mb1\n"),
        (TrialFinished(trial=record(OUT_OF_MEMORY, State.FAILED)),
         "trial 7: out of memory (rank 3: 2.1 GiB short): tp8 pp1 dp2 mb1\n"),
        (TrialsReaped(numbers=(1, 2)), "took over from a driver that is gone: trial 1, 2\n"),
        (Stopped(why=Stop.INTERRUPTED), "stopped: interrupted\n"),
        (Ranked(ledger=LEDGER, n_candidates=50),
         "100 of 1 k plans are legal and fit; the best 50 are candidates\n"),
        (progress(), ""),
    ],
)  # fmt: skip
def test_without_a_terminal_an_event_is_a_line_or_nothing(event, line):
    console = Console(file=io.StringIO(), width=40)
    with showing(console) as hear:
        hear(event)
    assert console.file.getvalue() == line


def test_on_a_terminal_the_picture_is_gone_at_the_end_and_the_lines_stay():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with showing(console) as hear:
        hear(progress())
        hear(TrialFinished(trial=record()))
    assert "trial 7: 10.00 s" in console.file.getvalue()
