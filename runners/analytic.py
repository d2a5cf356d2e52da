"""Plans tried by formula: the cost model as a runner."""

from collections.abc import Sequence

from objectives.cost.energy import step_energy
from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.outcome import Measured, Outcome, OutcomeOrigin
from runners.verdicts import out_of_memory, why_illegal
from search_spaces.plan import Plan, Plans


class AnalyticRunner:
    """Answers at once and without noise: what the cost model says of each plan."""

    origin = OutcomeOrigin.ANALYTIC

    def __init__(self, job: Job) -> None:
        self._job = job

    def of_job(self, job: Job) -> "AnalyticRunner":
        """The cost model of another job."""
        return AnalyticRunner(job)

    def run(self, plans: Plans, *, attempt: int = 0) -> Sequence[Outcome]:
        """Price every plan; one that breaks a rule or the memory's limit fails."""
        del attempt  # formulas lose no machine
        return [self._price(plan) for plan in plans]

    def _price(self, plan: Plan) -> Outcome:
        if illegal := why_illegal(self._job, plan, self.origin):
            return illegal
        answer = estimate(self._job, Plans.of([plan]))
        peak_bytes, capacity = float(answer.peak_memory_bytes[0]), self._job.cluster.device.memory_bytes
        if peak_bytes > capacity:
            return out_of_memory(int(answer.peak_stage[0]), peak_bytes, capacity, self.origin)
        step_s = float(answer.step_s[0])
        energy = step_energy(self._job, Plans.of([plan]), answer)
        return Measured(
            step_s=step_s,
            step_spread_s=0.0,
            peak_memory_bytes=peak_bytes,
            origin=self.origin,
            energy_j=float(energy.devices_j[0]),
        )
