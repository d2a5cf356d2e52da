"""The cause of a failed run, from the clues of its log and the way it ended.

The rules stand in the order of how much they explain: one rank out of memory makes the others time out in a
collective, and makes the launcher end with status 1.  The first rule that holds is the cause.
"""

import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from objectives.outcome import Cause
from runners.logs.clues import Clue, Clues
from runners.logs.sentences import Kind
from search_spaces.units import gib

STEPS_OF_NAN = 2  # a loss that is no number once may be a step that the trainer skipped without a word


class EndedBy(StrEnum):
    """What ended a run: itself, we after a limit, or we because its last step was done."""

    ITSELF = "itself"
    TIME_LIMIT = "time limit"
    STEP_LIMIT = "step limit"
    ENOUGH = "enough steps"
    NOT_STARTED = "not started"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended: exit status (negative: the signal; None: unknown), and which limit of ours if any."""

    status: int | None = None
    by: EndedBy = EndedBy.ITSELF
    limit_s: float = 0.0
    words: str = ""

    @property
    def signal(self) -> int | None:
        """The signal that killed it; a shell reports one as 128 and more."""
        if self.status is None:
            return None
        number = -self.status if self.status < 0 else self.status - 128
        return number if number in set(signal.Signals) else None

    @property
    def is_ours(self) -> bool:
        """Whether we ended it, so that its exit status says nothing."""
        return self.by in (EndedBy.TIME_LIMIT, EndedBy.STEP_LIMIT, EndedBy.ENOUGH)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All that is known of a failed run; `stage_of` gives the pipeline stage of a rank."""

    clues: Clues
    ending: Ending
    is_nan: bool = False
    stage_of: Callable[[int], int] | None = None

    def who(self, rank: int | None) -> str:
        """`rank 5 (stage 1): `, or nothing where nobody knows."""
        rank = self.clues.root_rank if rank is None else rank
        if rank is None:
            return ""
        stage = f" (stage {self.stage_of(rank)})" if self.stage_of else ""
        return f"rank {rank}{stage}: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A cause with its sentence; `short_bytes` as in `objectives.outcome.Failed`."""

    cause: Cause
    message: str
    short_bytes: float = 0.0


def verdict_of(case: Case) -> Finding | None:
    """The cause of a failure; None if the run ended well and no clue says otherwise."""
    return next((found for rule in RULES if (found := rule(case)) is not None), None)


def _not_started(case: Case) -> Finding | None:
    if case.ending.by is not EndedBy.NOT_STARTED:
        return None
    return Finding(cause=Cause.LAUNCHER_MISSING, message=case.ending.words)


def _from_clue(kind: Kind, cause: Cause, words: str) -> Callable[[Case], Finding | None]:
    """A rule for clues that speak for themselves."""

    def rule(case: Case) -> Finding | None:
        clue = case.clues.clue(kind)
        return None if clue is None else _finding(case, clue, cause, words)

    return rule


def _finding(case: Case, clue: Clue, cause: Cause, words: str) -> Finding:
    return Finding(
        cause=cause,
        message=f"{case.who(clue.rank)}{words}: {clue.text}",
        short_bytes=clue.short_bytes,
    )


def _device_memory(case: Case) -> Finding | None:
    clue = case.clues.clue(Kind.DEVICE_MEMORY)
    if clue is None:
        return None
    short = f", {gib(clue.short_bytes):.2f} GiB short" if clue.short_bytes else ""
    return _finding(case, clue, Cause.OUT_OF_MEMORY, f"device memory{short}")


def _before_first_step(kind: Kind, cause: Cause, words: str) -> Callable[[Case], Finding | None]:
    """A rule for what a program says before it trains; later the same words are a crash."""

    def rule(case: Case) -> Finding | None:
        clue = case.clues.clue(kind)
        return _finding(case, clue, cause, words) if clue is not None and clue.n_steps == 0 else None

    return rule


def _nan(case: Case) -> Finding | None:
    clue = case.clues.clue(Kind.NAN)
    if clue is not None:
        return _finding(case, clue, Cause.NAN_LOSS, "the loss is not a number")
    if case.is_nan:
        return Finding(cause=Cause.NAN_LOSS, message="the loss is not a number in the last steps of the log")
    return None


def _crash_before_timeout(case: Case) -> Finding | None:
    """A rank that raised makes the others wait in a collective: it is the cause if it came first."""
    timeout = case.clues.clue(Kind.COLLECTIVE)
    raised = _raised(case)
    if timeout is None or raised is None or raised.line >= timeout.line or "DistBackendError" in raised.text:
        return None
    return _finding(case, raised, Cause.CRASH, _ended(case))


def _collective(case: Case) -> Finding | None:
    clue = case.clues.clue(Kind.COLLECTIVE)
    return None if clue is None else _finding(case, clue, Cause.COLLECTIVE_TIMEOUT, "a collective timed out")


def _limits(case: Case) -> Finding | None:
    limit = f"{case.ending.limit_s:g} s"
    if case.ending.by is EndedBy.STEP_LIMIT:
        return Finding(cause=Cause.HANG, message=f"no step ended within {limit}, after {_n_steps(case)}")
    if case.ending.by is EndedBy.TIME_LIMIT:
        message = f"the trial did not end within {limit}; it had {_n_steps(case)}"
        return Finding(cause=Cause.TIMEOUT, message=message)
    return None


def _aborted(case: Case) -> Finding | None:
    """A step that was ended before any of its tasks was: by its user, its centre, or with its job."""
    clue = case.clues.clue(Kind.ABORTED)
    if clue is None or case.ending.is_ours or _raised(case) is not None:
        return None
    return _finding(case, clue, Cause.PREEMPTED, "ended from outside")


def _killed(case: Case) -> Finding | None:
    """SIGKILL that is not ours is what the kernel does when memory runs out."""
    if case.ending.is_ours:
        return None
    killed = case.clues.root_status in (-signal.SIGKILL, 128 + signal.SIGKILL)
    if not killed and case.ending.signal != signal.SIGKILL:
        return None
    message = f"{case.who(None)}host memory: killed by SIGKILL, as the kernel does when memory runs out"
    return Finding(cause=Cause.OUT_OF_MEMORY, message=message)


def _terminated(case: Case) -> Finding | None:
    """SIGTERM that is not ours, and nothing that would explain it: the batch system wants its nodes back."""
    if case.ending.is_ours or _raised(case) is not None:
        return None
    for kind in (Kind.TERMINATED, Kind.CANCELLED):
        if (clue := case.clues.clue(kind)) is not None:
            return _finding(case, clue, Cause.PREEMPTED, "ended from outside")
    # srun answers with the largest status: that of the tasks it ended after the first one.
    is_first = case.clues.root_status in (None, -signal.SIGTERM, 128 + signal.SIGTERM)
    if case.ending.signal == signal.SIGTERM and is_first:
        return Finding(cause=Cause.PREEMPTED, message="ended from outside by SIGTERM")
    return None


def _missing_by_status(case: Case) -> Finding | None:
    if case.ending.status in (126, 127) and not case.clues.n_steps:
        message = f"the program ended with status {case.ending.status}: a command was not found"
        return Finding(cause=Cause.LAUNCHER_MISSING, message=message)
    return None


def _crash(case: Case) -> Finding | None:
    raised, peer = _raised(case), case.clues.clue(Kind.PEER_LOST)
    status = case.ending.status if not case.ending.is_ours else None
    if raised is not None:
        return _finding(case, raised, Cause.CRASH, _ended(case))
    if peer is not None and status != 0:
        return _finding(case, peer, Cause.CRASH, "a peer ended without a word")
    if status or (status is None and case.clues.root_status):
        return Finding(cause=Cause.CRASH, message=f"{case.who(None)}{_ended(case)} after {_n_steps(case)}")
    return None


def _raised(case: Case) -> Clue | None:
    """The first exception that ended a rank; what would refuse a configuration is one too, once steps ran."""
    kinds = (Kind.EXCEPTION, Kind.REFUSED, Kind.MISSING)
    found = [clue for kind in kinds if (clue := case.clues.clue(kind)) is not None]
    return min(found, key=lambda clue: clue.line, default=None)


def _ended(case: Case) -> str:
    status = case.clues.root_status if case.clues.root_status is not None else case.ending.status
    number = Ending(status=status).signal
    if number is not None:
        return f"ended by {signal.Signals(number).name}"
    return "failed" if status is None or case.ending.is_ours else f"ended with exit status {status}"


def _n_steps(case: Case) -> str:
    return f"{case.clues.n_steps} steps" if case.clues.n_steps else "no step"


RULES: tuple[Callable[[Case], Finding | None], ...] = (
    _not_started,
    _from_clue(Kind.PREEMPTED, Cause.PREEMPTED, "the batch system wants its nodes"),
    _from_clue(Kind.NODE_LOST, Cause.LOST_MACHINE, "a node was lost"),
    _from_clue(Kind.DEVICE_BROKEN, Cause.LOST_MACHINE, "a device is broken"),
    _device_memory,
    _from_clue(Kind.HOST_MEMORY, Cause.OUT_OF_MEMORY, "host memory"),
    _from_clue(Kind.DISK_FULL, Cause.LOST_MACHINE, "a disk is full"),
    _from_clue(Kind.PORT_TAKEN, Cause.LOST_MACHINE, "a port is taken"),
    _from_clue(Kind.TIME_LIMIT, Cause.TIMEOUT, "the batch system's time limit"),
    _before_first_step(Kind.MISSING, Cause.LAUNCHER_MISSING, "the launcher or a part of it is missing"),
    _nan,
    _before_first_step(Kind.REFUSED, Cause.INVALID, "the trainer refused the configuration"),
    _crash_before_timeout,
    _collective,
    _limits,
    _aborted,
    _killed,
    _terminated,
    _missing_by_status,
    _crash,
)
