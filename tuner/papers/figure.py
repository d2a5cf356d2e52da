"""One published figure beside ours, and the paper it comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from search_spaces.errors import check


class Kind(StrEnum):
    """What a figure must do: be the same number, be near it, or stand in the same order."""

    EXACT = "exact"
    RATIO = "ratio"
    ORDER = "order"


class Provenance(StrEnum):
    """Where the published number was read."""

    ABSTRACT = "abstract"
    SOURCE = "source"  # the paper's text, the authors' code, logs or documentation
    SECOND_HAND = "second-hand"  # a third party's review or summary
    DERIVED = "derived"  # computed from such numbers


# How far ours may lie from the published number, as a share of it.
WITHIN: Mapping[Kind, float] = MappingProxyType({Kind.EXACT: 0.001, Kind.RATIO: 0.25, Kind.ORDER: 0.0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A published number and ours: `ratio = ours / published`, reached if within a stated share of 1.

    For an order, `published` counts the comparisons that were published and `ours` those that come out the
    same way.  `note` says why a figure is missed, or what had to be assumed; `is_headline` marks the one that
    stands for the system in the summary.
    """

    system: str
    what: str
    unit: str
    published: float
    ours: float
    kind: Kind
    provenance: Provenance
    source: str
    note: str = ""
    within: float | None = None
    is_headline: bool = False

    def __post_init__(self) -> None:
        check(self.published != 0, f"{self.what}: a published figure must not be 0", self.published)

    @property
    def ratio(self) -> float:
        """Ours by the published one."""
        return float(self.ours) / float(self.published)

    @property
    def is_reached(self) -> bool:
        """Whether ours is as near as its kind asks."""
        within = WITHIN[self.kind] if self.within is None else self.within
        return abs(self.ratio - 1.0) <= within + 1e-12


def figure_of(system: str, source: str, provenance: Provenance, kind: Kind) -> Callable[..., Figure]:
    """A maker of one system's figures of a kind: `make(what, unit, published, ours, **others)`."""

    def make(what: str, unit: str, published: float, ours: float, **others: Any) -> Figure:
        given: dict[str, Any] = {"provenance": provenance, "source": source, "kind": kind}
        return Figure(system=system, what=what, unit=unit, published=published, ours=ours, **(given | others))

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """A system: where it was published, the studies that come with it, and its figures when asked for."""

    name: str
    title: str
    source: str
    figures: Callable[[], tuple[Figure, ...]]
    presets: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What prints its figures."""
        return f"meshtune papers {self.name}"
