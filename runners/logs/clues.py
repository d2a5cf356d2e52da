"""Evidence of why a run failed, line by line: sentences that only the failure itself writes.

A clue is a whole sentence of the program that failed, at its place: an exception at the end of a traceback,
a watchdog with its work item, a message of Slurm.  The words "error" and "out of memory" alone are no clue.
A clue that steps follow was survived, and a later one of its kind takes its place.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from runners.logs.lines import Line, speaker
from runners.logs.sentences import (
    ANYWHERE,
    ARGPARSE,
    EXCEPTION,
    OUT_OF_MEMORY,
    TRACEBACK,
    TRIGGERS,
    USAGE,
    Kind,
    is_exception,
    kind_at_start,
    kind_named,
    short_bytes,
)

_STEPS_SURVIVED = 2  # one more step may have been printed by another rank before it noticed
_MOST_TEXT = 300
_ROOT = re.compile(r"Root Cause \(first observed failure\):")
_ROOT_RANK = re.compile(r"\s+rank +: (?P<rank>\d+) \(local_rank: \d+\)")
_ROOT_EXIT = re.compile(r"\s+exitcode +: (?P<status>-?\d+) \(pid: \d+\)")
_SRUN_EXIT = re.compile(
    r"srun: error: \S+: tasks? (?P<rank>\d+)[\d,-]*: "
    r"(?:Exited with exit code (?P<status>\d+)"
    r"|(?P<signal>Killed|Terminated|Segmentation fault|Aborted|Bus error))"
)
_SIGNALS = {"Killed": -9, "Terminated": -15, "Segmentation fault": -11, "Aborted": -6, "Bus error": -7}


@dataclass(frozen=True, slots=True, kw_only=True)
class Clue:
    """A sentence of a log, who wrote it, and how many steps the log had before it."""

    kind: Kind
    text: str
    line: int
    n_steps: int
    rank: int | None = None
    short_bytes: float = 0.0


class Clues:
    """What a log has given away so far; feed it every line with the number of steps before it."""

    def __init__(self) -> None:
        self.n_lines = 0
        self.n_steps = 0
        self.root_rank: int | None = None
        self.root_status: int | None = None
        self._found: dict[Kind, Clue] = {}
        self._open: set[int | None] = set()
        self._has_usage = False
        self._is_root = False

    def feed(self, line: Line, n_steps: int) -> None:
        """Take one line, whole or not."""
        self.n_lines += 1
        self.n_steps = n_steps
        if not self._may_matter(line.text):
            return
        rank, text = speaker(line.text)
        for clue in self._clues(rank, text):
            known = self._found.get(clue.kind)
            if known is None or self._is_survived(known):
                self._found[clue.kind] = clue
        self._watch_exits(text)

    def clue(self, kind: Kind) -> Clue | None:
        """The first clue of the kind that the run did not survive."""
        found = self._found.get(kind)
        return None if found is None or self._is_survived(found) else found

    def _may_matter(self, text: str) -> bool:
        """Nearly all lines hold no word of any clue: looking for words is much faster than for sentences."""
        return bool(self._open) or self._is_root or any(word in text for word in TRIGGERS)

    def _is_survived(self, clue: Clue) -> bool:
        return self.n_steps - clue.n_steps >= _STEPS_SURVIVED

    def _clues(self, rank: int | None, text: str) -> Iterator[Clue]:
        if match := OUT_OF_MEMORY.match(text):
            self._open.discard(rank)
            yield self._clue(Kind.DEVICE_MEMORY, rank, text, short_bytes=short_bytes(match))
            return
        kind = kind_at_start(text)
        if kind is Kind.ABORTED and self.root_status is not None:
            return  # srun ends the other tasks of a step in which one has ended
        if kind is not None:
            self._open.discard(rank)
            yield self._clue(kind, rank, text)
            return
        for kind, pattern in ANYWHERE:
            if match := pattern.search(text):
                said = match.groupdict().get("rank")
                yield self._clue(kind, int(said) if said else rank, text)
        if kind := self._kind_of_exception(rank, text) or self._kind_of_usage(text):
            yield self._clue(kind, rank, text)

    def _kind_of_exception(self, rank: int | None, text: str) -> Kind | None:
        """The line that ends a traceback, if this is it."""
        if TRACEBACK.match(text.lstrip()):
            self._open.add(rank)
            return None
        match = EXCEPTION.match(text)
        if rank not in self._open or match is None or not is_exception(match["name"]):
            return None
        self._open.discard(rank)
        return kind_named(match["name"].rpartition(".")[2], text)

    def _kind_of_usage(self, text: str) -> Kind | None:
        if USAGE.match(text):
            self._has_usage = True
        return Kind.REFUSED if self._has_usage and ARGPARSE.match(text) else None

    def _clue(self, kind: Kind, rank: int | None, text: str, *, short_bytes: float = 0.0) -> Clue:
        words = text.strip()[:_MOST_TEXT]
        return Clue(
            kind=kind,
            text=words,
            line=self.n_lines,
            n_steps=self.n_steps,
            rank=rank,
            short_bytes=short_bytes,
        )

    def _watch_exits(self, text: str) -> None:
        """Which rank ended first, and how, as torchrun or srun report it."""
        if _ROOT.match(text.lstrip()):
            self._is_root = True
        elif self._is_root and (match := _ROOT_RANK.match(text)):
            self.root_rank = int(match["rank"])
        elif self._is_root and (match := _ROOT_EXIT.match(text)):
            self.root_status, self._is_root = int(match["status"]), False
        elif self.root_status is None and (match := _SRUN_EXIT.match(text)):
            self.root_rank = int(match["rank"])
            self.root_status = _SIGNALS[match["signal"]] if match["signal"] else int(match["status"])
