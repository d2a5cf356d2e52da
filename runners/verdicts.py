"""What runners say of a plan before it runs: that it breaks a rule, or does not fit."""

from objectives.metrics import Job
from objectives.outcome import Cause, Failed, OutcomeOrigin
from search_spaces.plan import KNOB_NAMES, Plan, column
from search_spaces.rules import broken_rules
from search_spaces.units import gib


def why_illegal(job: Job, plan: Plan, origin: OutcomeOrigin) -> Failed | None:
    """The plan's failure when it breaks a rule of the job, else None."""
    job = job.of_plan(plan)
    devices = job.cluster.n_devices
    broken = [] if plan.world_size == devices else [f"tp * cp * dp * pp is the cluster's {devices} devices"]
    columns = {name: column([getattr(plan, name)], name) for name in KNOB_NAMES}
    broken = broken or broken_rules(job.context, columns)
    if not broken:
        return None
    return Failed(cause=Cause.INVALID, message=f"the plan breaks the rule: {broken[0]}", origin=origin)


def out_of_memory(stage: int, needed_bytes: float, capacity_bytes: float, origin: OutcomeOrigin) -> Failed:
    """A stage that needs more bytes than its devices have."""
    short_bytes = needed_bytes - capacity_bytes
    return Failed(
        cause=Cause.OUT_OF_MEMORY,
        message=f"stage {stage} needs {gib(needed_bytes):.1f} GiB: {gib(short_bytes):.2f} GiB short",
        origin=origin,
        short_bytes=short_bytes,
    )
