"""Why a trial's ranks failed: the cause, which rank of which stage, and where it was."""

import signal

from objectives.outcome import Cause, Failed, OutcomeOrigin
from runners.torch_trial.mesh import place_of
from runners.torch_trial.ranks import NO_MEMORY_STATUS, Fate, Rank
from search_spaces.plan import Plan

# What allocators say, on the host and on devices, and threads that found no room for their stack.
OUT_OF_MEMORY_WORDS = (
    "can't allocate memory", "out of memory", "Cannot allocate memory", "cannot allocate memory", "bad_alloc",
    "not enough memory", "MemoryError", "Resource temporarily unavailable", "can't start new thread",
)  # fmt: skip
_CAUSES = {
    "out of memory": Cause.OUT_OF_MEMORY,
    "nan loss": Cause.NAN_LOSS,
    "collective": Cause.COLLECTIVE_TIMEOUT,
    "disk": Cause.LOST_MACHINE,
    "error": Cause.CRASH,
}


def failed(fate: Fate, plan: Plan, *, limit_s: float, memory_ran_out: bool, origin: OutcomeOrigin) -> Failed:
    """The outcome of ranks of which one broke, or none went on for `limit_s`.

    `memory_ran_out`: the kernel has killed for lack of memory meanwhile.
    """
    culprit = fate.culprit
    assert culprit is not None
    cause, what = _what(culprit, fate, limit_s, memory_ran_out)
    stage = place_of(plan, culprit.number).pp
    who = f"rank {culprit.number}" + (f" (stage {stage} of {plan.pp})" if plan.pp > 1 else "")
    return Failed(
        cause=cause,
        message=f"{who} {what}",
        origin=origin,
        log_tail=culprit.last_lines,
        effective={"failed": {"rank": culprit.number, "stage": stage, "place": culprit.at.place}},
    )


def _what(culprit: Rank, fate: Fate, limit_s: float, memory_ran_out: bool) -> tuple[Cause, str]:
    place = culprit.at.place
    if fate.hangs:
        return Cause.HANG, f"told of no progress for {limit_s:g} s at {place}"
    if culprit.broken is not None:
        return _CAUSES[culprit.broken.kind], f"at {place}: {culprit.broken.message}"
    status = culprit.status or 0
    said = [line for line in culprit.last_lines.splitlines() if _says_so(line)]
    if said:  # it died before it could tell
        return Cause.OUT_OF_MEMORY, f"at {place}: {said[-1].strip()[:300]}"
    if status == NO_MEMORY_STATUS:
        return Cause.OUT_OF_MEMORY, f"had no memory left at {place}, not even to say more"
    if status == -signal.SIGKILL and memory_ran_out:
        return Cause.OUT_OF_MEMORY, f"was killed by the kernel at {place}: the machine's memory ran out"
    how = (
        f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    )
    return Cause.CRASH, f"{how} at {place}"


def _says_so(line: str) -> bool:
    return any(words in line for words in OUT_OF_MEMORY_WORDS)
