"""When a study stops: enough trials, enough hours, no plan left, or the user's Ctrl-C."""

from dataclasses import dataclass
from enum import StrEnum

from search_spaces.errors import check
from search_spaces.units import HOUR_S

DEFAULT_TRIALS = 40


class Stop(StrEnum):
    """Why `tune` came back."""

    TRIALS = "all trials of the budget are done"
    HOURS = "the hours of the budget are over"
    EXHAUSTED = "every candidate plan has been tried"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much to try.

    `trials` counts finished trials of the whole study, over all drivers and resumes: plans that were measured
    and plans that failed by their own fault.  `hours` is wall-clock time of one call.
    """

    trials: int = DEFAULT_TRIALS
    hours: float | None = None

    def __post_init__(self) -> None:
        check(self.trials > 0, "Budget.trials must be positive", self.trials)
        check(
            self.hours is None or 0 < self.hours < float("inf"),
            "Budget.hours must be positive and finite",
            self.hours,
        )

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of one call; infinite where no hours are set."""
        return float("inf") if self.hours is None else self.hours * HOUR_S
