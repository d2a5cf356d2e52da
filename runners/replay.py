"""Plans tried from a recording: real outcomes without a machine (tests, demonstrations, offline studies)."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Measured, Outcome, OutcomeOrigin
from runners.recording import Row, read_rows
from search_spaces.first_names import first_name
from search_spaces.plan import Plan, Plans

_CAUSES = {
    "oom": (Cause.OUT_OF_MEMORY, "recorded as out of memory"),
    "failed_or_oom": (Cause.CRASH, "recorded without a number: out of memory or another failure"),
}


class ReplayRunner:
    """Answers with what a measurements file recorded for the job's shapes and the plan's knobs.

    A row matches a plan that has every knob the row states; what a row leaves open (overlap, mostly) may be
    anything. Several matching runs give their median and spread; runs that ended well outweigh failures.
    """

    origin = OutcomeOrigin.MEASURED

    def __init__(self, job: Job, *, path: str) -> None:
        self._job, self._path = job, path
        self._rows: dict[tuple[int, ...], list[Row]] = {}
        for row in read_rows(path, job):
            self._rows.setdefault(_degrees(row.knobs["tp"], row.knobs["pp"], row.knobs["dp"]), []).append(row)

    def run(self, plans: Plans, *, attempt: int = 0) -> Sequence[Outcome]:
        """Look every plan up."""
        del attempt  # a recording loses no machine
        return [self._look_up(plan) for plan in plans]

    def _look_up(self, plan: Plan) -> Outcome:
        plan = first_name(self._job.context, plan)
        near = self._rows.get(_degrees(plan.tp, plan.pp, plan.dp), ())
        rows = [row for row in near if row.is_of(plan)]
        if not rows:
            return Failed(cause=Cause.INVALID, message="not in the recording", origin=self.origin)
        lines = f"{Path(self._path).name}, lines {', '.join(str(row.line) for row in rows)}"
        steps_s = [row.step_s for row in rows if row.step_s is not None]
        if not steps_s:
            cause, message = _failure(rows[0])
            return Failed(cause=cause, message=message, origin=self.origin, log_tail=lines)
        return Measured(
            step_s=statistics.median(steps_s),
            step_spread_s=statistics.stdev(steps_s) if len(steps_s) > 1 else 0.0,
            peak_memory_bytes=self._peak_bytes(plan, rows),
            origin=self.origin,
            n_steps=len(steps_s),
            log_tail=lines,
        )

    def _peak_bytes(self, plan: Plan, rows: list[Row]) -> float:
        """The highest recorded peak, or the cost model's where none was recorded: a peak is never unknown."""
        recorded = [row.peak_memory_bytes for row in rows if row.peak_memory_bytes]
        return (
            max(recorded) if recorded else float(estimate(self._job, Plans.of([plan])).peak_memory_bytes[0])
        )


def replay_plans(path: Path | str, job: Job) -> Plans:
    """Every plan that a recording holds for the job, once; knobs it leaves open keep their defaults."""
    plans = {plan.key: plan for plan in (Plan(**row.knobs) for row in read_rows(path, job))}
    return Plans.of(plans.values())


def _failure(row: Row) -> tuple[Cause, str]:
    """The recorded cause in its own words, or what the outcome's word stands for."""
    if row.cause in list(Cause):
        return Cause(row.cause), row.why or "as recorded"
    return _CAUSES[row.outcome]


def _degrees(tp: int, pp: int, dp: int) -> tuple[int, ...]:
    return tp, pp, dp
