"""What became of a job in Slurm's own words, and what that says of the plan.

Source: Slurm's squeue(1), section "JOB STATE CODES".
"""

from collections.abc import Mapping
from types import MappingProxyType

from objectives.outcome import Cause, Failed, Measured, Outcome, OutcomeOrigin

# States that a job leaves again.
PASSING = frozenset(
    {
        "PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING",
        "STAGE_OUT", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD",
    }
)  # fmt: skip
CAUSES: Mapping[str, tuple[Cause, str]] = MappingProxyType(
    {
        "TIMEOUT": (Cause.TIMEOUT, "the job reached its Slurm time limit"),
        "DEADLINE": (Cause.TIMEOUT, "the job reached its Slurm deadline"),
        "OUT_OF_MEMORY": (Cause.OUT_OF_MEMORY, "host memory: Slurm ended the job at its memory limit"),
        "NODE_FAIL": (Cause.LOST_MACHINE, "a node of the job failed"),
        "BOOT_FAIL": (Cause.LOST_MACHINE, "a node of the job did not start"),
        "REVOKED": (Cause.LOST_MACHINE, "Slurm took the job back"),
        "PREEMPTED": (Cause.PREEMPTED, "the batch system wants its nodes for another job"),
        "CANCELLED": (Cause.PREEMPTED, "the job was cancelled from outside"),
    }
)
# What a trial says of itself when Slurm ends it: Slurm's own word says more.
_SYMPTOMS = (
    Cause.PREEMPTED, Cause.LOST_MACHINE, Cause.CRASH, Cause.COLLECTIVE_TIMEOUT, Cause.HANG,
    Cause.OUT_OF_MEMORY,
)  # fmt: skip
# Reasons for which a job waits for ever, where the controller takes jobs that no partition allows.
NEVER_STARTS = frozenset(
    {
        "PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints", "InvalidAccount",
        "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed", "JobHeldAdmin", "JobHeldUser", "PartitionDown",
        "PartitionInactive", "DependencyNeverSatisfied",
    }
)  # fmt: skip


def is_final(state: str) -> bool:
    """Whether a job in this state will not run again."""
    return state not in PASSING


def failed_in(state: str, origin: OutcomeOrigin, *, log_tail: str = "") -> Failed | None:
    """The failure that a job's last state is, or None where it says nothing by itself."""
    # sacct writes "CANCELLED by 1000".
    found = CAUSES.get(state.split(maxsplit=1)[0] if state else "")
    if found is None:
        return None
    return Failed(cause=found[0], message=found[1], origin=origin, log_tail=log_tail)


def settled(outcome: Outcome, state: str) -> Outcome:
    """The trial's own account, unless Slurm ended the job and so knows better why it failed."""
    if isinstance(outcome, Measured) or outcome.cause not in _SYMPTOMS:
        return outcome
    better = failed_in(state, outcome.origin, log_tail=outcome.log_tail)
    return outcome if better is None else better
