"""What came of trying a plan: a measurement, or a failure with its cause."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from search_spaces.errors import InvalidSpec, check

LOG_TAIL_LINES = 40


class OutcomeOrigin(StrEnum):
    """How an outcome came about; figures of different origins are never mixed silently."""

    ANALYTIC = "analytic"
    SIMULATED = "simulated"
    MEASURED = "measured"


class Cause(StrEnum):
    """Why a plan has no step time.

    The plan's own fault: out of memory, hang, collective timeout, crash, nan loss, timeout, invalid.
    The machine's, so that the plan is tried again: lost machine, preempted.
    Nobody's: launcher missing, and unmeasured, for a plan that ran but whose log gives no figure to trust.
    """

    OUT_OF_MEMORY = "out of memory"
    TIMEOUT = "timeout"
    HANG = "hang"
    COLLECTIVE_TIMEOUT = "collective timeout"
    CRASH = "crash"
    NAN_LOSS = "nan loss"
    INVALID = "invalid"
    LOST_MACHINE = "lost machine"
    PREEMPTED = "preempted"
    LAUNCHER_MISSING = "launcher missing"
    UNMEASURED = "unmeasured"

    @property
    def is_machine_fault(self) -> bool:
        """Whether trying the same plan again may succeed."""
        return self in (Cause.LOST_MACHINE, Cause.PREEMPTED)

    @property
    def is_counted(self) -> bool:
        """Whether the try counts for a study's budget."""
        return not self.is_machine_fault and self is not Cause.LAUNCHER_MISSING

    @property
    def blames_plan(self) -> bool:
        """Whether the failure says something about the plan, so that a sampler may learn from it."""
        return self.is_counted and self is not Cause.UNMEASURED


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A plan that ran: median step seconds, their standard deviation, and the worst device's peak.

    `energy_j` is what all devices of the job drew in a step, hosts and network left out; None: not measured.
    `effective` is what really ran and how it was measured, as names and values, where a runner knows it.
    """

    step_s: float
    step_spread_s: float
    peak_memory_bytes: float
    origin: OutcomeOrigin
    n_steps: int = 1
    log_tail: str = ""
    effective: Mapping[str, Any] = field(default_factory=dict)
    energy_j: float | None = None

    def __post_init__(self) -> None:
        for name in ("step_s", "peak_memory_bytes"):
            value = getattr(self, name)
            check(0 < value < float("inf"), f"Measured.{name} must be positive and finite", value)
        check(
            0 <= self.step_spread_s < float("inf"),
            "Measured.step_spread_s must be finite",
            self.step_spread_s,
        )
        known = self.energy_j is not None
        must = "Measured.energy_j must be positive and finite, or None"
        check(not known or 0 < (self.energy_j or 0.0) < float("inf"), must, self.energy_j)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A plan that did not run, why, and the log's last lines.

    `short_bytes` is, for an out-of-memory plan, by how much the memory fell short (0: unknown).
    `effective` is what really ran, as names and values, where a runner knows it.
    """

    cause: Cause
    message: str
    origin: OutcomeOrigin
    short_bytes: float = 0.0
    log_tail: str = ""
    effective: Mapping[str, Any] = field(default_factory=dict)


Outcome = Measured | Failed


def tail(log: str) -> str:
    """Last lines of a log: what an outcome keeps."""
    return "\n".join(log.splitlines()[-LOG_TAIL_LINES:])


def outcome_to_dict(outcome: Outcome) -> dict[str, Any]:
    """JSON-ready form of an outcome."""
    return {"kind": "measured" if isinstance(outcome, Measured) else "failed", **asdict(outcome)}


def outcome_from_dict(document: dict[str, Any]) -> Outcome:
    """An outcome from its JSON form.

    Raises
    ------
    InvalidSpec
        A document that `outcome_to_dict` did not write.
    """
    fields = dict(document)
    kind = fields.pop("kind", None)
    try:
        fields["origin"] = OutcomeOrigin(fields["origin"])
        if kind == "measured":
            return Measured(**fields)
        if kind == "failed":
            return Failed(**{**fields, "cause": Cause(fields["cause"])})
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidSpec("a stored outcome must have the fields of Measured or Failed", str(error)) from None
    raise InvalidSpec("a stored outcome must be of kind measured or failed", repr(kind))
