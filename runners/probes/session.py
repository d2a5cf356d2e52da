"""A session of probes: every case that the budget allows, each kept as soon as it is measured."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from runners.probes.cases import Case
from runners.probes.crew import CaseFailed, CrewLost, Interrupted, Ranks
from runners.probes.record import ProbesFile, Result
from runners.probes.timing import Clock

LEAST_WINDOW_S, LONGEST_WINDOW_S = 0.01, 4.0
MOST_LOSSES = 3


class Ended(StrEnum):
    """Why a session ended."""

    DONE = "every probe is measured"
    BUDGET = "the budget ended"
    LOST = "the ranks were lost"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A probe that begins (`result` and `why` empty), was measured, or failed, and how far the session is."""

    case: Case
    n_done: int
    n_all: int
    elapsed_s: float
    left_s: float
    result: Result | None = None
    why: str = ""


OnStep = Callable[[Step], None]


@dataclass(slots=True, kw_only=True)
class Session:
    """Measures what the file lacks, the most needed first, in a budget of seconds from `start_s` on."""

    ranks: Ranks
    file: ProbesFile
    budget_s: float
    start_s: float
    on_step: OnStep = lambda step: None
    clock: Clock = time.monotonic
    date: str = ""

    def run(self, cases: Sequence[Case]) -> Ended:
        """Every case that is missing; one that fails is noted and the next is tried."""
        todo = [case for case in cases if case.key not in self.file.results]
        losses, n_before = 0, len(cases) - len(todo)
        for i, case in enumerate(todo):
            left_s = self._left_s()
            if left_s <= 0:
                return Ended.BUDGET
            try:
                self._measure(case, self._window_s(case, todo[i:]), n_before + i, len(cases))
            except Interrupted:
                return Ended.INTERRUPTED
            except CrewLost as error:
                losses += 1
                self._failed(case, error.given, n_before + i, len(cases))
                if losses == MOST_LOSSES or not self._restarted():
                    return Ended.LOST
        return Ended.DONE

    def _left_s(self) -> float:
        return self.start_s + self.budget_s - self.clock()

    def _window_s(self, case: Case, rest: Sequence[Case]) -> float:
        """Its share of what is left; allocating and warming up take about as long as measuring."""
        share = case.weight / sum(each.weight for each in rest)
        return min(max(self._left_s() * share / 2, LEAST_WINDOW_S), LONGEST_WINDOW_S)

    def _measure(self, case: Case, window_s: float, n_done: int, n_all: int) -> None:
        self.on_step(self._step(case, n_done, n_all))
        try:
            readings = self.ranks.ask(case, window_s)
            result = Result(kind=case.kind, what=case.what, readings=readings, date=self.date)
        except CaseFailed as error:
            self._failed(case, error.given, n_done, n_all)
            return
        self.file.keep(result)
        self.on_step(self._step(case, n_done + 1, n_all, result=result))

    def _failed(self, case: Case, why: str, n_done: int, n_all: int) -> None:
        self.file.give_up(case, why)
        self.on_step(self._step(case, n_done + 1, n_all, why=why))

    def _restarted(self) -> bool:
        try:
            return self.ranks.restart()
        except CrewLost:
            return False

    def _step(
        self, case: Case, n_done: int, n_all: int, *, result: Result | None = None, why: str = ""
    ) -> Step:
        now_s = self.clock()
        return Step(
            case=case,
            n_done=n_done,
            n_all=n_all,
            elapsed_s=now_s - self.start_s,
            left_s=max(0.0, self.start_s + self.budget_s - now_s),
            result=result,
            why=why,
        )
