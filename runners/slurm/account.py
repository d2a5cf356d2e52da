"""What is said of a trial that left no outcome: by its log's clues and its exit status."""

from objectives.outcome import Cause, Failed, OutcomeOrigin
from runners.logs.clues import Clues
from runners.logs.lines import Line
from runners.logs.verdict import Case, Ending, verdict_of
from runners.slurm.trial import ORPHANED


def clues_of(text: str) -> Clues:
    """The clues of a log that has been written."""
    clues = Clues()
    for line in text.splitlines():
        clues.feed(Line(text=line), 0)
    return clues


def without_outcome(
    clues: Clues, ending: Ending, origin: OutcomeOrigin, *, log_tail: str, words: str = ""
) -> Failed:
    """The failure of a trial whose program could not say what came of it."""
    if words:
        message = words.splitlines()[0]
        return Failed(cause=Cause.LAUNCHER_MISSING, message=message, origin=origin, log_tail=log_tail)
    if ending.status == ORPHANED:
        return lost("the trial found its study's driver gone", origin, log_tail=log_tail)
    finding = verdict_of(Case(clues=clues, ending=ending))
    if finding is None:
        return lost("the trial's program left no outcome in its folder", origin, log_tail=log_tail)
    return Failed(
        cause=finding.cause,
        message=finding.message,
        short_bytes=finding.short_bytes,
        origin=origin,
        log_tail=log_tail,
    )


def lost(message: str, origin: OutcomeOrigin, *, log_tail: str = "") -> Failed:
    """A try that the machine lost."""
    return Failed(cause=Cause.LOST_MACHINE, message=message, origin=origin, log_tail=log_tail)
