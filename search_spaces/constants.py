"""A number that knows where it comes from."""

from dataclasses import dataclass
from enum import StrEnum

from search_spaces.errors import check


class Origin(StrEnum):
    """Where a constant comes from, weakest last."""

    MEASURED = "measured"
    FITTED = "fitted"
    DATASHEET = "datasheet"
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A number that knows its origin; `spread` is a relative standard deviation."""

    value: float
    origin: Origin
    source: str = ""
    spread: float = 0.0

    def __post_init__(self) -> None:
        check(0 <= self.value < float("inf"), "a constant must be finite and not negative", self.value)
        must = "a constant's spread must be finite and not negative"
        check(0 <= self.spread < float("inf"), must, self.spread)


def assumed(value: float, source: str = "", spread: float = 0.2) -> Constant:
    """A constant that nobody measured: the weakest origin."""
    return Constant(value=value, origin=Origin.ASSUMED, source=source, spread=spread)
