"""What a study says while it runs; whoever passes `on_event` hears it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from objectives.ranking import Ledger
from search_spaces.fidelity import Fidelity
from search_spaces.plan import Plan
from tuner.budget import Stop
from tuner.view import State, TrialRecord
from tuner.worth import Worth


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """The legal space is priced; so many candidates may be tried."""

    ledger: Ledger
    n_candidates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """The engine timed so many candidates for the sampler; `seconds` None: an earlier driver had it done."""

    n_plans: int
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted:
    """A plan goes to the executor; `attempt` above 1 is a plan re-queued."""

    number: int
    plan: Plan
    attempt: int
    fidelity: Fidelity = Fidelity.FULL


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFinished:
    """A trial of this driver got its outcome; lost ones are re-queued if they may be."""

    trial: TrialRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialsReaped:
    """Trials of drivers that died; their plans are tried again."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How the whole study stands, over all drivers; `left_s` is None while nothing finished here."""

    metric: str
    best: TrialRecord | None
    counts: Mapping[State, int]
    n_finished: int
    budget_trials: int
    elapsed_s: float
    left_s: float | None
    worth: Worth | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """The driver ends."""

    why: Stop


Event = Ranked | Simulated | TrialStarted | TrialFinished | TrialsReaped | Progress | Stopped
OnEvent = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Nobody listens."""
