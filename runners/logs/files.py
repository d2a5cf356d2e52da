"""A whole log file: its figures, and the cause of its failure if it failed."""

from dataclasses import dataclass
from pathlib import Path

from runners.logs import load_reader
from runners.logs.account import Account
from runners.logs.clues import Clues
from runners.logs.figures import Expected, LogSummary
from runners.logs.lines import lines_of
from runners.logs.summary import summary_of
from runners.logs.verdict import STEPS_OF_NAN, Case, Ending, Finding, verdict_of
from runners.logs.window import WARMUP_STEPS
from search_spaces.errors import InvalidSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReading:
    """What a log says, and why its run failed (None: nothing in it, nor its status, says that it did)."""

    summary: LogSummary
    finding: Finding | None


def read_log_file(
    path: Path,
    trainer: str,
    expected: Expected,
    *,
    warmup_steps: int = WARMUP_STEPS,
    status: int | None = None,
) -> LogReading:
    """Read a log once, line by line; `status` is the exit status of the run, where it is known.

    Raises
    ------
    UnknownName
        No reader has this trainer's name.
    InvalidSpec
        The file cannot be read.
    """
    account, clues = Account(load_reader(trainer)), Clues()
    try:
        with path.open("rb") as stream:
            for line in lines_of(stream):
                account.feed(line)
                clues.feed(line, account.n_steps_seen)
    except OSError as error:
        raise InvalidSpec(f"{path} must be a readable log", (error.strerror or str(error)).lower()) from None
    case = Case(clues=clues, ending=Ending(status=status), is_nan=account.n_nan_in_a_row >= STEPS_OF_NAN)
    return LogReading(
        summary=summary_of(account, expected, warmup_steps=warmup_steps), finding=verdict_of(case)
    )
