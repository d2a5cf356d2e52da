"""What `RayExecutor` and its host process say to each other; nothing here needs Ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from objectives.metrics import Job
from objectives.outcome import Outcome
from runners.protocol import RunnerSource
from search_spaces.errors import check
from search_spaces.plan import Plan

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What one trial occupies: bundles of Ray resources, each on one node, and how they lie on the nodes."""

    bundles: tuple[Mapping[str, float], ...] = (MappingProxyType({"CPU": 1.0}),)
    strategy: str = "PACK"

    def __post_init__(self) -> None:
        check(bool(self.bundles), "a reservation needs at least one bundle", "none")
        check(self.strategy in STRATEGIES, f"a strategy is one of {', '.join(STRATEGIES)}", self.strategy)
        for bundle in self.bundles:
            is_amount = bool(bundle) and all(0 < amount < float("inf") for amount in bundle.values())
            check(is_amount, "a bundle names resources with positive amounts", dict(bundle))

    @property
    def total(self) -> dict[str, float]:
        """Sum over the bundles."""
        names = {name for bundle in self.bundles for name in bundle}
        return {name: sum(bundle.get(name, 0.0) for bundle in self.bundles) for name in sorted(names)}

    def __reduce__(self) -> tuple[object, ...]:
        return (_reservation, (tuple(dict(bundle) for bundle in self.bundles), self.strategy))


def _reservation(bundles: tuple[dict[str, float], ...], strategy: str) -> Reservation:
    return Reservation(bundles=bundles, strategy=strategy)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """How the host starts or joins Ray, and what each trial gets."""

    source: RunnerSource
    address: str | None
    n_slots: int
    reservation: Reservation
    time_limit_s: float | None
    grace_s: float
    temp_dir: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """To the host: try a plan; there are never more of them than slots."""

    ticket: int
    plan: Plan
    attempt: int
    job: Job | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """From the host: Ray answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """From the host: a trial's outcome."""

    ticket: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """From the host: a trial's worker or node is gone, not by the plan's fault."""

    ticket: int
    message: str
