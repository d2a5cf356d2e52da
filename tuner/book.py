"""One study's trials as a driver reads and writes them: each method is one step that a crash may follow.

The rules behind the order of the writes are in `tuner.ledger`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from objectives.metrics import Job
from objectives.outcome import Measured, Outcome, outcome_to_dict
from runners.proxies import twin_that_ran
from search_spaces.fidelity import Fidelity, fidelity_of
from search_spaces.plan import Plan
from tuner.leases import Lease, Owner
from tuner.ledger import Ended, WaitingPlan, expired
from tuner.samplers.candidates import claimed_fidelity
from tuner.storage import storage_trouble
from tuner.tell import constraints_of, outcome_of, plan_tried, sound, state_of, values_of

KEPT = ("fidelity", "proxy", "plan", "predicted")  # of a trial whose plan is tried again


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """The trials of a study, under the hand of one driver; `options` are the runner's."""

    study: Study
    storage: BaseStorage
    shown: str
    owner: Owner
    job: Job
    objective: tuple[str, ...]
    options: Mapping[str, Any]
    versions: Mapping[str, str]

    def trials(self) -> list[FrozenTrial]:
        """All trials as they are now, in the order of their numbers."""
        with storage_trouble(self.shown):
            return self.study.get_trials(deepcopy=False)

    def ask(self, distributions: Mapping[str, BaseDistribution]) -> tuple[int, dict[str, Any], Fidelity]:
        """Number, params and fidelity of a new trial that the study's sampler fills, leased from birth.

        Raises whatever the sampler raises, after withdrawing the trial.
        """
        with storage_trouble(self.shown):
            number = self._create({"attempt": 1})
            try:
                trial = Trial(self.study, self._id(number))
                for name, kind in distributions.items():
                    assert isinstance(kind, CategoricalDistribution)
                    trial.suggest_categorical(name, kind.choices)
            except Exception:
                self.end(number, Ended.WITHDRAWN)
                raise
            asked = self.storage.get_trial(self._id(number))
            return number, trial.params, claimed_fidelity(asked.system_attrs)

    def declare(
        self,
        number: int,
        plan: str,
        predicted: Mapping[str, float | str],
        *,
        proxy: Mapping[str, Any] | None = None,
        fidelity: Fidelity = Fidelity.FULL,
    ) -> bool:
        """Say which plan the trial has, and what was predicted of what it runs; false if it was reaped.

        `proxy` is what runs in the plan's place, at any fidelity but the full one.
        """
        facts = {} if proxy is None else {"fidelity": str(fidelity), "proxy": dict(proxy)}
        # The plan comes last: whoever sees it sees all the rest.
        writes = {**facts, "predicted": dict(predicted), "plan": plan}
        return all(self._write(number, key, value) for key, value in writes.items())

    def retry(self, waiting: WaitingPlan) -> int:
        """Number of a new trial with the plan of an earlier one, declared from its birth."""
        old = waiting.template
        kept: dict[str, Any] = {key: old.user_attrs[key] for key in KEPT if key in old.user_attrs}
        attributes = {**kept, "attempt": waiting.attempt, "retry_of": old.number}
        with storage_trouble(self.shown):
            return self._create(attributes, params=old.params, distributions=old.distributions)

    def renew(self, number: int) -> bool:
        """Prolong the lease; false if the trial was reaped meanwhile."""
        return self._write(number, "lease", Lease.taken_by(self.owner).to_dict())

    def record(self, number: int, outcome: Outcome) -> bool:
        """Write a trial's outcome and tell it; false if it was reaped meanwhile."""
        return self.write_outcome(number, outcome) and self.settle(number)

    def write_outcome(self, number: int, outcome: Outcome) -> bool:
        """Write a trial's outcome: from here on it is finished, whoever tells it."""
        with storage_trouble(self.shown):
            plan = plan_tried(self.storage.get_trial(self._id(number)).user_attrs)
        document = outcome_to_dict(sound(outcome, *self._judged_by(outcome, plan)))
        return self._write(number, "versions", dict(self.versions)) and self._write(
            number, "outcome", document
        )

    def settle(self, number: int) -> bool:
        """Tell a running trial by the outcome written into it; false if it was told or reaped before.

        All follows from the outcome, which was written alone: a driver that dies in between leaves a trial
        that any other can settle to the same end.
        """
        with storage_trouble(self.shown):
            trial = self.storage.get_trial(self._id(number))
            outcome = outcome_of(trial.user_attrs)
            assert outcome is not None
            is_full = fidelity_of(trial.user_attrs) is Fidelity.FULL
            state = state_of(outcome, is_full=is_full)
            if state is TrialState.FAIL:
                return self.end(number, Ended.MACHINE)
            try:
                self._constrain(number, trial, constraints_of(outcome, self.job) if is_full else {})
            except UpdateFinishedTrialError:
                return False
            measured = outcome if isinstance(outcome, Measured) and is_full else None
            plan = plan_tried(trial.user_attrs)
            values = values_of(measured, *self._judged_by(measured, plan)) if measured else None
            return self._tell(number, state, values)

    def _judged_by(self, outcome: Outcome, plan: Plan | None) -> tuple[Job, tuple[str, ...], Plan | None]:
        """The job that the outcome's figures are of, the metrics asked for, and the plan that ran."""
        if plan is None:
            return self.job, self.objective, None
        ran = twin_that_ran(self.job, plan, outcome.effective, self.options)
        return ran.job, self.objective, ran.plan

    def end(self, number: int, why: Ended) -> bool:
        """Tell a running trial FAIL, and why; false if it was finished before."""
        return self._write(number, "ended", str(why)) and self._tell(number, TrialState.FAIL)

    def note(self, key: str, value: Any) -> None:
        """Write what a driver knows of the study as a whole; the latest wins."""
        with storage_trouble(self.shown):
            self.study.set_user_attr(key, value)

    def reap(self) -> list[int]:
        """End the trials of dead drivers; those whose outcome was already written are told it instead."""
        dead = expired(self.trials())
        return [trial.number for trial in dead if self._reap(trial)]

    def _reap(self, trial: FrozenTrial) -> bool:
        if outcome_of(trial.user_attrs) is not None:
            return self.settle(trial.number)
        return self.end(trial.number, Ended.REAPED)

    def _create(
        self,
        attributes: Mapping[str, Any],
        *,
        params: Mapping[str, Any] | None = None,
        distributions: Mapping[str, BaseDistribution] | None = None,
    ) -> int:
        # `study.ask` would make a trial without a lease, and a crash right after it a trial that nobody owns.
        template = FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params=dict(params or {}),
            distributions=dict(distributions or {}),
            user_attrs={"lease": Lease.taken_by(self.owner).to_dict(), **attributes},
            system_attrs={},
            intermediate_values={},
        )
        trial_id = self.storage.create_new_trial(self._study_id, template_trial=template)
        return self.storage.get_trial_number_from_id(trial_id)

    def _constrain(self, number: int, trial: FrozenTrial, constraints: Mapping[str, float]) -> None:
        live = Trial(self.study, self._id(number))
        for name, value in constraints.items():
            if name not in trial.constraints:
                live.set_constraint(name, value)

    def _write(self, number: int, key: str, value: Any) -> bool:
        with storage_trouble(self.shown):
            try:
                self.storage.set_trial_user_attr(self._id(number), key, value)
            except UpdateFinishedTrialError:
                return False
            return True

    def _tell(self, number: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        with storage_trouble(self.shown):
            try:
                self.study.tell(number, values, state=state)
            except UpdateFinishedTrialError:
                return False
            except ValueError:  # Optuna's other word for a trial that is finished
                if self.storage.get_trial(self._id(number)).state.is_finished():
                    return False
                raise
            return True

    @property
    def _study_id(self) -> int:
        return self.storage.get_study_id_from_name(self.study.study_name)

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
