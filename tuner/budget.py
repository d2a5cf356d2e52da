"""When a study stops: enough trials, enough hours, little to gain, no plan left, or the user's Ctrl-C."""

from dataclasses import dataclass
from enum import StrEnum

from search_spaces.errors import check
from search_spaces.units import HOUR_S
from tuner.worth import BETTER_BY

DEFAULT_TRIALS = 40


class Stop(StrEnum):
    """Why `tune` came back."""

    TRIALS = "all trials of the budget are done"
    HOURS = "the hours of the budget are over"
    DEVICE_HOURS = "the device-hours of the budget are spent"
    SETTLED = "another plan is hardly better any more"
    EXHAUSTED = "every candidate plan has been tried"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much to try.

    `trials` counts finished trials of the whole study, over all drivers and resumes: plans that were measured
    and plans that failed by their own fault.  `hours` is wall-clock time of one call; `device_hours` is what
    all trials of the study may hold, and makes the sampler weigh what each costs.  With `stop_below` a study
    ends where the probability that another plan saves more than the share `better_by` falls below it.
    """

    trials: int = DEFAULT_TRIALS
    hours: float | None = None
    stop_below: float | None = None
    better_by: float = BETTER_BY
    device_hours: float | None = None

    def __post_init__(self) -> None:
        check(self.trials > 0, "Budget.trials must be positive", self.trials)
        for name in ("hours", "device_hours"):
            value = getattr(self, name)
            must = f"Budget.{name} must be positive and finite"
            check(value is None or 0 < value < float("inf"), must, value)
        check(
            self.stop_below is None or 0 <= self.stop_below <= 1,
            "Budget.stop_below must be a probability from 0 to 1",
            self.stop_below,
        )
        check(0 <= self.better_by < 1, "Budget.better_by must be a share from 0 to below 1", self.better_by)

    @property
    def device_s(self) -> float:
        """Device-seconds that all trials may hold; infinite where no device-hours are set."""
        return float("inf") if self.device_hours is None else self.device_hours * HOUR_S

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of one call; infinite where no hours are set."""
        return float("inf") if self.hours is None else self.hours * HOUR_S
