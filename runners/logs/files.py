"""A whole log file: its figures, and the cause of its failure if it failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from runners.logs import READERS, load_reader
from runners.logs.account import Account
from runners.logs.clues import Clues
from runners.logs.figures import Expected, LogSummary
from runners.logs.lines import lines_of
from runners.logs.summary import summary_of
from runners.logs.verdict import STEPS_OF_NAN, Case, Ending, Finding, verdict_of
from runners.logs.window import WARMUP_STEPS
from search_spaces.errors import InvalidSpec

LINES_TO_TELL = 20_000  # a log that has no step in so many lines tells its trainer by nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReading:
    """What a log says, and why its run failed (None: nothing in it, nor its status, says that it did)."""

    summary: LogSummary
    finding: Finding | None


def read_log_file(
    path: Path,
    trainer: str | None,
    expected: Expected,
    *,
    warmup_steps: int = WARMUP_STEPS,
    status: int | None = None,
) -> LogReading:
    """Read a log line by line; without a trainer, by the reader that finds most in it.

    `status` is the exit status of the run, where it is known.

    Raises
    ------
    UnknownName
        No reader has this trainer's name.
    InvalidSpec
        The file cannot be read, or no trainer was named and none's lines are in it.
    """
    account, clues = Account(load_reader(trainer or trainer_of(path))), Clues()
    with _opened(path) as stream:
        for line in lines_of(stream):
            account.feed(line)
            clues.feed(line, account.n_steps_seen)
    case = Case(clues=clues, ending=Ending(status=status), is_nan=account.n_nan_in_a_row >= STEPS_OF_NAN)
    return LogReading(
        summary=summary_of(account, expected, warmup_steps=warmup_steps), finding=verdict_of(case)
    )


def trainer_of(path: Path) -> str:
    """Whose log this is: the reader that finds most steps, and among several the most settings, in it.

    Raises
    ------
    InvalidSpec
        The file cannot be read, or no reader finds a step or a setting in its first lines.
    """
    accounts = {name: Account(load_reader(name)) for name in READERS}
    with _opened(path) as stream:
        for line in islice(lines_of(stream), LINES_TO_TELL):
            for account in accounts.values():
                account.feed(line)
    found = {name: (each.n_steps_seen, len(each.claims)) for name, each in accounts.items()}
    best = max(found, key=lambda name: found[name])
    if found[best] == (0, 0):
        must = f"{path} must hold lines of a trainer that is known"
        raise InvalidSpec(must, "none", hint=f"name it with --trainer: {', '.join(READERS)}")
    return best


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise InvalidSpec(f"{path} must be a readable log", (error.strerror or str(error)).lower()) from None
