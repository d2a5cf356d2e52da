"""The facts of a whole log, gathered line by line; what is kept does not grow with the log.

Several ranks may print the same step: the slowest one's seconds count, and the fullest one's bytes.
"""

import math
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import islice

from runners.logs.facts import (
    ClaimFact,
    Disturbance,
    DisturbanceFact,
    Fact,
    LogReader,
    MemoryFact,
    ProgressFact,
    SkippedTotalFact,
    StepFact,
)
from runners.logs.lines import Line, speaker

MOST_STEPS = 10_000  # of a longer log only the last ones are kept
_MOST_STEPS_BACK = 3  # ranks may be so many steps apart; a number further back is a second run
_LIVE_TICK_S = 0.01  # assumed: a line is read so soon after it was written


@dataclass(slots=True, kw_only=True, eq=False)
class StepRecord:
    """What the log says about one step so far."""

    step: int
    fact: StepFact
    disturbed_by: set[Disturbance] = field(default_factory=set)
    ranks: set[int | None] = field(default_factory=set)


class Account:
    """What a log has said so far: steps, memory, settings, disturbances."""

    def __init__(self, reader: LogReader) -> None:
        self.reader = reader
        self.n_lines = 0
        self.n_steps_seen = 0
        self.n_restarts = 0
        self.n_skipped = 0
        self.n_nan_in_a_row = 0
        self.memory: dict[str, MemoryFact] = {}
        self.claims: dict[str, dict[str, int]] = {}
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        self.records: deque[StepRecord] = deque(maxlen=MOST_STEPS)
        self._pending: set[Disturbance] = set()
        self._grade = 0
        self._progress = 0
        self._has_bars = False

    @property
    def last_step(self) -> int:
        """Number of the last step that the log has (0: none)."""
        return self.records[-1].step if self.records else 0

    def feed(self, line: Line, *, at_s: float | None = None) -> None:
        """Take one line; `at_s` is when it arrived, for a log that is read as it is written."""
        self.n_lines += 1
        if not line.is_whole:
            return  # a number that is cut off is another number
        rank, text = speaker(line.text)
        for fact in self._facts(text):
            self._take(fact, rank, at_s)

    def _facts(self, text: str) -> list[Fact]:
        try:
            return list(self.reader.read(text))
        except (ValueError, OverflowError):
            return []  # it only looked like a step: a date or a number in it cannot be

    def _take(self, fact: Fact, rank: int | None, at_s: float | None) -> None:
        match fact:
            case StepFact():
                self._step(fact, rank, at_s)
            case ProgressFact():
                self._bar(fact, at_s)
            case MemoryFact():
                self.memory[fact.kind] = _fuller(self.memory.get(fact.kind), fact)
            case ClaimFact():
                self.claims.setdefault(fact.name, {})[fact.source] = fact.value
            case DisturbanceFact():
                self._disturb(fact.kind)
            case SkippedTotalFact():
                self._skipped(fact.n_skipped)

    def _skipped(self, n_skipped: int) -> None:
        """The running total: whoever skipped the new ones, it was since the last step line or in it."""
        if n_skipped > self.n_skipped:
            self._disturb(Disturbance.SKIPPED, n_skipped=n_skipped - self.n_skipped)
            if self.records:
                self.records[-1].disturbed_by.add(Disturbance.SKIPPED)

    def _disturb(self, kind: Disturbance, *, n_skipped: int = 1) -> None:
        self._pending.add(kind)
        self.n_skipped += n_skipped if kind is Disturbance.SKIPPED else 0

    def _bar(self, fact: ProgressFact, at_s: float | None) -> None:
        self._progress = fact.step
        if self._grade > 0 or fact.step <= 0:
            return
        self._has_bars = True
        clock_s, tick_s = (fact.clock_s, fact.tick_s) if at_s is None else (at_s, _LIVE_TICK_S)
        if not self.records or fact.step > self.last_step:
            self._add(fact.step, StepFact(clock_s=clock_s, tick_s=tick_s), None)

    def _step(self, fact: StepFact, rank: int | None, at_s: float | None) -> None:
        self._watch_loss(fact)
        if fact.grade < self._grade or (self._has_bars and fact.grade == 0 and fact.step is None):
            return
        if fact.grade > self._grade:
            self._grade = fact.grade
            self.records.clear()
            self.n_steps_seen = 0
        if fact.step_s is None and fact.clock_s is None and fact.samples_per_s is None and at_s is not None:
            fact = _with_clock(fact, at_s)
        step = self._number(fact)
        if self._is_restart(step, rank):
            self.records.clear()
            self.n_restarts += 1
        known = self._known(step)
        if known is None:
            self._add(step, fact, rank)
        else:
            known.fact = _merged(known.fact, fact)
            known.ranks.add(rank)

    def _add(self, step: int, fact: StepFact, rank: int | None) -> None:
        record = StepRecord(step=step, fact=fact, disturbed_by=self._pending, ranks={rank})
        self._pending = set()
        if fact.n_skipped:
            record.disturbed_by.add(Disturbance.SKIPPED)
            self.n_skipped += fact.n_skipped
        self.records.append(record)
        self.n_steps_seen += 1

    def _number(self, fact: StepFact) -> int:
        """The step's number: its own, the progress bar's, or the next."""
        if fact.step is not None:
            return fact.step
        return max(self._progress, self.last_step + 1)

    def _known(self, step: int) -> StepRecord | None:
        recent = islice(reversed(self.records), _MOST_STEPS_BACK + 1)
        return next((record for record in recent if record.step == step), None)

    def _is_restart(self, step: int, rank: int | None) -> bool:
        if not self.records or step > self.last_step:
            return False
        known = self._known(step)
        return known is None or (rank is not None and rank in known.ranks)

    def _watch_loss(self, fact: StepFact) -> None:
        is_nan = fact.n_nan > 0 or (fact.loss is not None and not math.isfinite(fact.loss))
        if is_nan and not fact.n_skipped and Disturbance.SKIPPED not in self._pending:
            self.n_nan_in_a_row += 1
        elif fact.loss is not None:
            self.n_nan_in_a_row = 0
        if fact.loss is not None and not is_nan:
            self.first_loss = fact.loss if self.first_loss is None else self.first_loss
            self.last_loss = fact.loss


def _fuller(one: MemoryFact | None, other: MemoryFact) -> MemoryFact:
    return one if one is not None and one.peak_bytes >= other.peak_bytes else other


def _with_clock(fact: StepFact, at_s: float) -> StepFact:
    return StepFact(step=fact.step, clock_s=at_s, tick_s=_LIVE_TICK_S, loss=fact.loss, grade=fact.grade)


def _merged(one: StepFact, other: StepFact) -> StepFact:
    """Two ranks on the same step: the slower and the fuller one counts."""
    slower = other if (other.step_s or 0) > (one.step_s or 0) else one
    peaks = [each.peak_bytes for each in (one, other) if each.peak_bytes is not None]
    return replace(slower, peak_bytes=max(peaks, default=None), n_skipped=max(one.n_skipped, other.n_skipped))
