"""The golden logs, and reading them."""

from pathlib import Path

from runners.logs import READERS, load_reader
from runners.logs.account import Account
from runners.logs.clues import Clues
from runners.logs.figures import Expected
from runners.logs.lines import lines_of
from runners.logs.summary import summary_of

LOGS = Path(__file__).parents[2] / "data" / "logs"
FAILURES = LOGS / "failures"


def trainer_of(path):
    """The trainer whose name begins the file's."""
    return next(name for name in sorted(READERS, key=len, reverse=True) if path.name.startswith(name))


def read(name, **expected):
    """What a golden log says."""
    path = LOGS / f"{name}.log"
    account = Account(load_reader(trainer_of(path)))
    with path.open("rb") as stream:
        for line in lines_of(stream):
            account.feed(line)
    return summary_of(account, Expected(**expected))


def read_text(trainer, text, **expected):
    """What a log of this text says."""
    account = account_of(trainer, text)
    return summary_of(account, Expected(**expected))


def account_of(trainer, text):
    account = Account(load_reader(trainer))
    for line in lines_of(Stream(text.encode())):
        account.feed(line)
    return account


def clues_of(path, trainer="megatron-lm"):
    """Account and clues of a failed run's log."""
    account, clues = Account(load_reader(trainer)), Clues()
    with path.open("rb") as stream:
        for line in lines_of(stream):
            account.feed(line)
            clues.feed(line, account.n_steps_seen)
    return account, clues


class Stream:
    """A file of bytes that gives a few of them at a time, so that lines end anywhere."""

    def __init__(self, data, most=7):
        self.data, self.most = data, most

    def read(self, n):
        n = min(n, self.most)
        piece, self.data = self.data[:n], self.data[n:]
        return piece
