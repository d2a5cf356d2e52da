"""A study as its readers see it: frozen, and rebuilt from the storage alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from objectives.metrics import Goal, metric_named
from objectives.outcome import Measured, Outcome
from runners.torch_trial.twin import difference_words
from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.fidelity import Fidelity, fidelity_of
from search_spaces.plan import Plan
from tuner.inputs import INPUTS_ATTRIBUTE, StudyInputs, inputs_from_document
from tuner.ledger import Ended, is_ours, plan_of, waiting_plans
from tuner.prices import n_devices_of, trial_s
from tuner.storage import list_studies, open_storage, storage_trouble
from tuner.tell import outcome_of
from tuner.worth import Worth, stored_worth


class State(StrEnum):
    """What became of a trial; measured, proxy and failed ones count for the budget."""

    RUNNING = "running"
    MEASURED = "measured"
    PROXY = "proxy"  # a smaller proxy of the plan ran and was measured
    FAILED = "failed"  # by the plan's own fault
    LOST = "lost"  # the machine failed, or the driver died or stopped; the plan got, or gets, another trial
    WITHDRAWN = "withdrawn"  # never started: another driver had the plan, or the budget was full

    @property
    def is_counted(self) -> bool:
        """Whether the trial counts for the budget."""
        return self in (State.MEASURED, State.PROXY, State.FAILED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What was expected of the plan when the trial began; `origin` is a word of `PredictedBy`."""

    step_s: float
    peak_memory_bytes: float
    origin: str = "analytic"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial.  `values` are by metric, empty unless measured; `plan` is None while it is chosen.

    Where something smaller ran, at another fidelity than the full one or as the trainer's twin, `proxy` says
    in what it is smaller; `outcome` and `predicted` are then its own.
    `device_s` are the device-seconds that the trial held.
    """

    number: int
    state: State
    plan: Plan | None
    outcome: Outcome | None
    predicted: Predicted | None
    values: Mapping[str, float]
    attempt: int
    started: datetime | None
    ended: datetime | None
    fidelity: Fidelity = Fidelity.FULL
    proxy: Mapping[str, Any] = field(default_factory=dict)
    device_s: float | None = None

    @property
    def duration_s(self) -> float | None:
        """Seconds from the choice of the plan to its outcome."""
        return (
            None
            if self.started is None or self.ended is None
            else (self.ended - self.started).total_seconds()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """A study: the inputs it was created from, and its trials by number.

    `waiting` counts plans that wait for another try; `budget_trials` is the budget of the latest driver,
    `worth` what it said of more trials.
    """

    name: str
    inputs: StudyInputs
    trials: tuple[TrialRecord, ...]
    waiting: int
    budget_trials: int | None
    versions: Mapping[str, str]
    worth: Worth | None = None

    @property
    def finished(self) -> tuple[TrialRecord, ...]:
        """Trials that count: measured, or failed by the plan's fault."""
        return tuple(trial for trial in self.trials if trial.state.is_counted)

    @property
    def measured(self) -> tuple[TrialRecord, ...]:
        """Trials with values: those that ran the whole job."""
        return tuple(trial for trial in self.trials if trial.state is State.MEASURED)

    @property
    def by_proxy(self) -> tuple[TrialRecord, ...]:
        """Trials of smaller proxies that were measured."""
        return tuple(trial for trial in self.trials if trial.state is State.PROXY)

    @property
    def device_s(self) -> float:
        """Device-seconds that the finished trials held."""
        return sum(trial.device_s for trial in self.trials if trial.device_s is not None)

    @property
    def counts(self) -> dict[State, int]:
        """How many trials are in each state; every state is there."""
        found = Counter(trial.state for trial in self.trials)
        return {state: found[state] for state in State}

    @property
    def best(self) -> TrialRecord | None:
        """The measured trial with the best value of the first metric; of equals the earliest."""
        metric = self.inputs.objective[0]
        sign = _sign(metric)
        return min(self.measured, key=lambda trial: sign * trial.values[metric], default=None)

    @property
    def pareto_front(self) -> tuple[TrialRecord, ...]:
        """Measured trials that no other beats in every metric; with one metric, the best and its equals."""
        costs = [
            (trial, [_sign(m) * trial.values[m] for m in self.inputs.objective]) for trial in self.measured
        ]
        return tuple(trial for trial, cost in costs if not any(_dominates(other, cost) for _, other in costs))


def load_study(name: str, storage: BaseStorage | str | Path) -> StudyView:
    """The study of that name.

    Raises
    ------
    StorageError
        The storage does not exist or cannot be read.
    UnknownName
        It holds no such study; the nearest name is suggested.
    InvalidSpec
        The study is another program's, or a later Meshtune's.
    """
    opened = open_storage(storage, create=False) if isinstance(storage, str | Path) else storage
    require_study(name, opened)
    with storage_trouble("the storage"):
        study = optuna.load_study(study_name=name, storage=opened, sampler=optuna.samplers.RandomSampler())
        attributes, trials = study.user_attrs, study.get_trials(deepcopy=False)
    return view_of(name, attributes, trials)


def require_study(name: str, storage: BaseStorage) -> None:
    """Raise unless the storage holds a study of that name."""
    names = list_studies(storage)
    if not names:
        raise InvalidSpec(
            f"the storage must hold the study {name!r}", "no study at all", hint="name it with --storage"
        )
    if name not in names:
        raise UnknownName("study", name, names)


def view_of(name: str, attributes: Mapping[str, Any], trials: list[FrozenTrial]) -> StudyView:
    """The view of a study from its user attributes and trials."""
    document = attributes.get(INPUTS_ATTRIBUTE)
    inputs = inputs_from_document(document, name)
    budget = attributes.get("budget_trials")
    return StudyView(
        name=name,
        inputs=inputs,
        trials=tuple(record_of(trial, inputs) for trial in trials if is_ours(trial)),
        waiting=len(waiting_plans(trials)),
        budget_trials=budget if isinstance(budget, int) else None,
        versions=document["versions"] if isinstance(document, Mapping) else {},
        worth=stored_worth(attributes),
    )


def record_of(trial: FrozenTrial, inputs: StudyInputs) -> TrialRecord:
    """One trial of ours."""
    key, predicted = plan_of(trial), trial.user_attrs.get("predicted")
    state = state_of(trial)
    outcome = outcome_of(trial.user_attrs) if trial.state.is_finished() else None
    facts, predicted = _of_twin(outcome) or (trial.user_attrs.get("proxy") or {}, predicted)
    values = trial.values if isinstance(outcome, Measured) and state is State.MEASURED else []
    return TrialRecord(
        number=trial.number,
        state=state,
        plan=None if key is None else Plan.parse(key),
        outcome=outcome,
        predicted=Predicted(**predicted) if isinstance(predicted, Mapping) else None,
        values=dict(zip(inputs.objective, values, strict=False)),
        attempt=int(trial.user_attrs.get("attempt", 1)),
        started=trial.datetime_start,
        ended=trial.datetime_complete,
        fidelity=fidelity_of(trial.user_attrs),
        proxy=dict(facts),
        device_s=None if (took_s := trial_s(trial)) is None else took_s * n_devices_of(trial),
    )


def _of_twin(outcome: Outcome | None) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
    """In what a trainer's twin is smaller than the plan, and what is expected of it; None if the plan ran."""
    effective = {} if outcome is None else outcome.effective
    if not effective.get("proxy"):
        return None
    differs = effective["proxy"]
    facts = {"plan": effective["plan"], "differs": differs, "words": difference_words(differs)}
    return facts, effective["predicted"]


def state_of(trial: FrozenTrial) -> State:
    """What became of a trial of ours."""
    match trial.state:
        case OptunaState.COMPLETE:
            return State.MEASURED
        case OptunaState.PRUNED:
            ran = isinstance(outcome_of(trial.user_attrs), Measured)
            return State.PROXY if ran and fidelity_of(trial.user_attrs) is not Fidelity.FULL else State.FAILED
        case OptunaState.FAIL:
            withdrawn = trial.user_attrs.get("ended") in (Ended.DUPLICATE, Ended.WITHDRAWN)
            return State.WITHDRAWN if withdrawn or plan_of(trial) is None else State.LOST
        case _:
            return State.RUNNING


def _sign(metric: str) -> float:
    return 1.0 if metric_named(metric).goal is Goal.MINIMIZE else -1.0


def _dominates(one: list[float], other: list[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
