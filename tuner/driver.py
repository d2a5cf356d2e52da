"""One driver of a study: ask, submit, wait, tell, and keep the leases, until it is time to stop.

The study's trials are the only state; `tuner.ledger` says what they mean and why several drivers agree.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from optuna.trial import FrozenTrial

from objectives.outcome import Failed, Outcome
from runners.protocol import Executor
from search_spaces.errors import RunnerError, StorageError
from search_spaces.fidelity import Fidelity, fidelity_of
from search_spaces.plan import Plan
from tuner.book import Book
from tuner.budget import Budget, Stop
from tuner.devices import refuse_other_device
from tuner.events import OnEvent, Progress, TrialFinished, TrialsReaped, TrialStarted
from tuner.fidelity import PredictedBy
from tuner.inputs import StudyInputs
from tuner.leases import RENEW_S
from tuner.ledger import Ended, Verdict, admission, n_counted, n_running, waiting_plans
from tuner.prices import prices_of, spent_device_s, steps_of, under_way_device_s
from tuner.samplers.candidates import (
    CandidateTable,
    TableExhausted,
    fidelity_of_trial,
    params_from_plan,
    plan_from_params,
)
from tuner.samplers.proxied import PricedProxy, ProxyTable
from tuner.view import record_of, view_of
from tuner.worth import WORTH_ATTRIBUTE, Worth, worth_document

POLL_S = 0.5
# Longer than a slow sampler thinks; who cannot learn what others chose withdraws, and its plan waits.
ADMISSION_S = 60.0
MOST_MACHINE_FAULTS = 10


@dataclass(kw_only=True, eq=False)
class Driver:
    """Keeps `n_slots` trials in flight; `lost` are those that another driver took over meanwhile.

    `predicted_by` says where a plan's prediction comes from; those it does not name are closed forms.
    `appraise` says what more trials are worth; `n_appraised` counts those that `worth` knows of.
    """

    book: Book
    table: CandidateTable
    inputs: StudyInputs
    budget: Budget
    n_slots: int
    get_executor: Callable[[], Executor]
    is_interrupted: Callable[[], bool]
    on_event: OnEvent
    proxies: ProxyTable
    predicted_by: Mapping[str, PredictedBy] = field(default_factory=dict)
    appraise: Callable[[], Worth | None] = lambda: None
    worth: Worth | None = None
    n_appraised: int = 0
    in_flight: set[int] = field(default_factory=set)
    n_finished_here: int = 0
    n_machine_faults: int = 0
    began: float = field(default_factory=time.monotonic)
    renewed: float = field(default_factory=time.monotonic)

    def run(self) -> Stop:
        """Drive until there is a reason to stop; what still runs then is released to other drivers."""
        try:
            while (stop := self._reason_to_stop()) is None:
                self._reap()
                self._fill()
                self._collect()
            return stop
        finally:
            self.release()  # should even this fail, the leases run out by themselves

    def start_one(self) -> bool:
        """Start one more trial; false where the study has no plan left, no budget, or little to gain."""
        before = len(self.in_flight)
        while len(self.in_flight) == before:
            trials = self.book.trials()
            full = n_counted(trials) + n_running(trials) >= self.budget.trials
            if self._is_settled or full or not self._start_one(trials):
                return False
        return True

    def collect(self, timeout_s: float) -> int:
        """Tell what arrives within that time; how many trials of this driver have ended meanwhile."""
        self._reap()
        self._renew()
        before = len(self.in_flight)
        if before:
            self._hear(timeout_s)
        return before - len(self.in_flight)

    def release(self) -> None:
        """Give up what still runs, so that another driver may try it."""
        with contextlib.suppress(StorageError):
            for number in sorted(self.in_flight):
                self.book.end(number, Ended.RELEASED)

    def _reason_to_stop(self) -> Stop | None:
        if self.is_interrupted():
            return Stop.INTERRUPTED
        if self.elapsed_s >= self.budget.seconds:
            return Stop.HOURS
        trials = self.book.trials()
        if (spent := self._spent(trials)) is not None:
            return spent
        self._appraise(trials)
        if self._is_settled and not self.in_flight:
            return Stop.SETTLED
        if not n_running(trials) and not waiting_plans(trials) and not self._n_untried(trials):
            return Stop.EXHAUSTED
        return None

    def _spent(self, trials: list[FrozenTrial]) -> Stop | None:
        if n_counted(trials) >= self.budget.trials:
            return Stop.TRIALS
        is_spent = not self.in_flight and spent_device_s(trials) >= self.budget.device_s
        return Stop.DEVICE_HOURS if is_spent else None

    def _fill(self) -> None:
        """Start trials until the slots are full, or the budget is, counting those that run anywhere."""
        while len(self.in_flight) < self.n_slots and not (self.is_interrupted() or self._is_settled):
            trials = self.book.trials()
            if n_counted(trials) + n_running(trials) >= self.budget.trials or self._is_spent(trials):
                return
            if not self._start_one(trials):
                return

    def _is_spent(self, trials: list[FrozenTrial]) -> bool:
        """Whether what ran, and what runs at the price foreseen, takes up the device-hours of the budget."""
        if self.budget.device_hours is None:
            return False
        n_steps = steps_of(self.inputs.runner.options)
        under_way_s = under_way_device_s(trials, prices_of(trials, n_steps))
        return spent_device_s(trials) + under_way_s >= self.budget.device_s

    @property
    def _is_settled(self) -> bool:
        limit = self.budget.stop_below
        return limit is not None and self.worth is not None and self.worth.probability < limit

    def _appraise(self, trials: list[FrozenTrial]) -> None:
        """Say anew what more trials are worth, where some driver's trial finished since the last time."""
        n = n_counted(trials)
        if n != self.n_appraised:
            self.n_appraised, self.worth = n, self.appraise()
            self.book.note(WORTH_ATTRIBUTE, worth_document(self.worth))

    def _start_one(self, trials: list[FrozenTrial]) -> bool:
        """Choose one plan and submit it if it is admitted; false if there is nothing to choose from."""
        waiting = waiting_plans(trials)
        if waiting:
            number, attempt = self.book.retry(waiting[0]), waiting[0].attempt
            plan = Plan.parse(waiting[0].template.user_attrs["plan"])
            fidelity = fidelity_of(waiting[0].template.user_attrs)
        elif not self._n_untried(trials):
            return False  # Optuna fills knobs of a single choice itself: one candidate would never run out
        else:
            try:
                number, params, fidelity = self.book.ask(self.table.distributions)
            except TableExhausted:
                return False
            plan, attempt = plan_from_params(params), 1
            if not self._declare(number, plan, params, fidelity):
                return True
        if self._admit(number, plan.key, fidelity):
            self.in_flight.add(number)
            self.on_event(TrialStarted(number=number, plan=plan, attempt=attempt, fidelity=fidelity))
            self._submit(number, plan, fidelity)
        return True

    def _declare(self, number: int, plan: Plan, params: dict[str, object], fidelity: Fidelity) -> bool:
        """Say what the trial runs, and what is expected of that."""
        if fidelity is Fidelity.FULL:
            return self.book.declare(number, plan.key, self._predicted(params))
        found = self._proxy(plan, fidelity)
        predicted = {"step_s": found.step_s, "peak_memory_bytes": found.peak_bytes}
        differs = {name: list(pair) for name, pair in found.twin.differs.items()}
        facts = {"plan": found.twin.plan.key, "differs": differs, "words": found.twin.words}
        return self.book.declare(number, plan.key, predicted, proxy=facts, fidelity=fidelity)

    def _submit(self, number: int, plan: Plan, fidelity: Fidelity) -> None:
        if fidelity is Fidelity.FULL:
            self.get_executor().submit(number, plan)
            return
        twin = self._proxy(plan, fidelity).twin
        self.get_executor().submit(number, twin.plan, twin.job)

    def _proxy(self, plan: Plan, fidelity: Fidelity) -> PricedProxy:
        row = self.table.row_of(params_from_plan(plan))
        found = None if row is None else self.proxies.find(row, fidelity)
        assert found is not None, "a sampler proposed a proxy that does not exist"
        return found

    def _admit(self, number: int, plan: str, fidelity: Fidelity) -> bool:
        """Apply the rule of admission, waiting for lower-numbered trials that are still choosing."""
        deadline, pause_s = time.monotonic() + ADMISSION_S, 0.01
        while True:
            trials, budget = self.book.trials(), self.budget.trials
            verdict = admission(trials, number, plan, budget=budget, fidelity=fidelity)
            if verdict is Verdict.ADMITTED:
                return True
            if verdict is not Verdict.WAIT or time.monotonic() > deadline or self.is_interrupted():
                why = Ended.DUPLICATE if verdict is Verdict.DUPLICATE else Ended.WITHDRAWN
                self.book.end(number, why)
                return False
            self._reap()
            self._renew()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_S)

    def _collect(self) -> None:
        """Tell the outcomes that arrived."""
        self._renew()
        if not self.in_flight:
            time.sleep(POLL_S)  # other drivers have the rest of the budget
            return
        self._hear(POLL_S)

    def _hear(self, timeout_s: float) -> None:
        for number, outcome in self.get_executor().wait(timeout_s):
            refuse_other_device(outcome, self.book)
            # Ctrl-C reaches the trials' processes too: a failure that follows it says nothing about the plan.
            if not (self.is_interrupted() and isinstance(outcome, Failed)):
                self._tell(number, outcome)

    def _tell(self, number: int, outcome: Outcome) -> None:
        if number not in self.in_flight:
            return  # reaped while this driver slept; its plan is another trial now
        self.in_flight.discard(number)
        if not self.book.record(number, outcome):
            return
        trials = self.book.trials()
        record = record_of(trials[number], self.inputs)
        self.n_finished_here += record.state.is_counted
        self.n_machine_faults = 0 if record.state.is_counted else self.n_machine_faults + 1
        self.on_event(TrialFinished(trial=record))
        self._appraise(trials)
        self.on_event(self._progress(trials))
        if self.n_machine_faults >= MOST_MACHINE_FAULTS and isinstance(outcome, Failed):
            raise RunnerError(
                "a machine must finish some trial",
                f"{self.n_machine_faults} lost in a row, last: {outcome.message}",
                hint="the study is kept; resume it when the machine is well",
            )

    def _reap(self) -> None:
        reaped = [number for number in self.book.reap() if number not in self.in_flight]
        if reaped:
            self.on_event(TrialsReaped(numbers=tuple(reaped)))

    def _renew(self) -> None:
        if time.monotonic() - self.renewed < RENEW_S:
            return
        self.renewed = time.monotonic()
        for number in sorted(self.in_flight):
            if not self.book.renew(number):
                self.in_flight.discard(number)

    def _predicted(self, params: dict[str, object]) -> dict[str, float | str]:
        row = self.table.row_of(params)
        assert row is not None, "a sampler proposed a plan that is no candidate"
        one = self.table.candidates.take(slice(row, row + 1))
        origin = self.predicted_by.get(one.plans.row(0).key)
        return {
            "step_s": float(one.estimate.step_s[0]),
            "peak_memory_bytes": float(one.estimate.peak_memory_bytes[0]),
            **({} if origin is None else {"origin": str(origin)}),
        }

    def _n_untried(self, trials: list[FrozenTrial]) -> int:
        whole = [t.params for t in trials if fidelity_of_trial(t) is Fidelity.FULL]
        return len(self.table) - len({row for each in whole if (row := self.table.row_of(each)) is not None})

    def _progress(self, trials: list[FrozenTrial]) -> Progress:
        view = view_of(self.book.study.study_name, self.book.study.user_attrs, trials)
        return Progress(
            metric=self.inputs.objective[0],
            best=view.best,
            counts=view.counts,
            n_finished=len(view.finished),
            budget_trials=self.budget.trials,
            elapsed_s=self.elapsed_s,
            left_s=self._left_s(len(view.finished)),
            worth=self.worth,
        )

    def _left_s(self, n_finished: int) -> float | None:
        if not self.n_finished_here:
            return None
        per_trial_s = self.elapsed_s / self.n_finished_here
        return max(
            0.0, min((self.budget.trials - n_finished) * per_trial_s, self.budget.seconds - self.elapsed_s)
        )

    @property
    def elapsed_s(self) -> float:
        """Seconds since this driver began."""
        return time.monotonic() - self.began
