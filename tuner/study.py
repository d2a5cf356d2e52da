"""A study from its creation to its end: `tune` starts or goes on, `resume` needs nothing but the storage."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from inspect import signature
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

import optuna
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.study import Study

from objectives.ranking import Candidates, Ledger
from runners.once_each import OnceEach
from runners.protocol import RUNNERS, EffectiveRunner, Executor, RunnerRecipe
from runners.slurm.choice import check_slurm, placed, slots
from search_spaces.documents import build
from search_spaces.errors import InvalidSpec, check, suggest_keys
from tuner.book import Book
from tuner.budget import Budget, Stop
from tuner.config import ExecutorKind, Machine, StudyConfig
from tuner.driver import Driver
from tuner.events import OnEvent, Ranked, Simulated, Stopped, ignore
from tuner.fidelity import (
    PRIOR_ATTRIBUTE,
    PredictedBy,
    predicted_again,
    prior_document,
    simulated_prior,
    stored_prior,
)
from tuner.inputs import (
    INPUTS_ATTRIBUTE,
    StudyInputs,
    directions,
    inputs_from_document,
    inputs_to_document,
    refuse_changes,
    versions,
)
from tuner.interrupts import interruptible
from tuner.leases import Owner
from tuner.prices import steps_of
from tuner.samplers import check_sampler, make_sampler
from tuner.samplers.candidates import CandidateSampler
from tuner.samplers.proxied import ProxyTable
from tuner.shortlist import shortlist
from tuner.storage import list_studies, open_storage, storage_place, storage_trouble
from tuner.tell import outcome_of
from tuner.view import StudyView, load_study, require_study
from tuner.worth import Worth

if TYPE_CHECKING:
    from tuner.samplers.model_based import MeshtuneSampler

# A driver that creates a study writes its inputs next; another one that comes in between waits so long.
CREATION_S = 5.0
WORDS = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", Sequence: "a list",
    Mapping: "a table",
}  # fmt: skip
ACCEPTED: dict[type, tuple[type, ...]] = {float: (int, float), Sequence: (list, tuple)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyResult:
    """The study after this driver, why the driver ended, and where the plans of the space went."""

    view: StudyView
    stop: Stop
    ledger: Ledger


def tune(config: StudyConfig, *, executor: Executor | None = None, on_event: OnEvent = ignore) -> StudyResult:
    """Create the study, or go on with it, until its budget is used up.

    Several drivers may share one study.  An executor that is passed in stays open; otherwise one is made when
    the first plan is to be tried, and closed at the end.  Ctrl-C and SIGTERM re-queue what runs and end with
    `Stop.INTERRUPTED`; a second one ends at once.

    Raises
    ------
    StudyChanged
        The study exists and was created from other inputs.
    NoLegalPlan, NothingFits
        There is nothing to try.
    StorageError, RunnerError
        The machine's trouble; nothing that finished is lost.
    """
    check_sampler(config.inputs.sampler)
    check_machine(config.inputs, config.machine)
    storage = open_storage(config.storage)
    opened = open_study(config, storage, on_event)
    stop = _drive(opened, executor, on_event)
    on_event(Stopped(why=stop))
    return StudyResult(view=load_study(config.name, storage), stop=stop, ledger=opened.ledger)


def open_study(config: StudyConfig, storage: BaseStorage, on_event: OnEvent) -> "OpenStudy":
    """Price the space, start from what the study starts from, create or load it: ready to be driven.

    Raises
    ------
    StudyChanged, NoLegalPlan, NothingFits, StorageError
        As `tune`.
    """
    inputs = config.inputs
    check_sampler(inputs.sampler)
    _refuse_other(config.name, storage, inputs)
    ranking = shortlist(inputs)
    on_event(Ranked(ledger=ranking.ledger, n_candidates=len(ranking.candidates)))
    expected = _expected(config, storage, ranking.candidates, on_event)
    sampler = _sampler(config, expected.candidates)
    book = open_book(config, storage, Owner.this_process())
    with storage_trouble(book.shown):
        _remember(book.study, config, expected)
    book.study.sampler = sampler
    return OpenStudy(
        config=config,
        book=book,
        sampler=sampler,
        candidates=expected.candidates,
        predicted_by=expected.predicted_by,
        ledger=ranking.ledger,
    )


def resume(
    name: str,
    storage: str | Path,
    *,
    budget: Budget | None = None,
    machine: Machine | None = None,
    executor: Executor | None = None,
    on_event: OnEvent = ignore,
) -> StudyResult:
    """Go on with a study from what its storage holds; budget and machine are the latest ones unless given."""
    config = stored_config(name, storage)
    config = replace(config, budget=budget or config.budget, machine=machine or config.machine)
    return tune(config, executor=executor, on_event=on_event)


def stored_config(name: str, storage: str | Path) -> StudyConfig:
    """The configuration that a stored study goes on with."""
    opened = open_storage(storage, create=False)
    require_study(name, opened)
    with storage_trouble(storage_place(storage).shown):
        attributes = _load(name, opened).user_attrs
    inputs = inputs_from_document(attributes.get(INPUTS_ATTRIBUTE), name)
    settings = attributes.get("settings", {})
    return StudyConfig(
        name=name,
        inputs=inputs,
        storage=str(storage),
        machine=build(Machine, settings.get("machine", {}), f"study {name!r}: machine"),
        budget=build(Budget, settings.get("budget", {}), f"study {name!r}: budget"),
    )


def create_or_load(name: str, storage: BaseStorage, inputs: StudyInputs) -> Study:
    """The Optuna study, with the inputs in it; one that exists must have the same.

    Creating is atomic in every storage, so one driver is the creator, and only it writes the inputs.  One
    that died between the two writes leaves an empty study without inputs, which is filled after a while.
    """
    goals = directions(inputs.objective)
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=goals, sampler=RandomSampler()
        )
    except optuna.exceptions.DuplicatedStudyError:
        study = _load(name, storage)
        if _wait_for_inputs(study) or study.user_attrs or study.trials:
            refuse_changes(_document(study), inputs, name)
            return study
        if study.directions != goals:
            raise InvalidSpec(
                f"study {name!r} must be one that Meshtune created", "another program's"
            ) from None
    study.set_user_attr(INPUTS_ATTRIBUTE, inputs_to_document(inputs))
    return study


def open_book(config: StudyConfig, storage: BaseStorage, owner: Owner) -> Book:
    """The study's trials under the hand of the owner; the study is created if it does not exist."""
    inputs, shown = config.inputs, storage_place(config.storage).shown
    with storage_trouble(shown):
        study = create_or_load(config.name, storage, inputs)
    return Book(
        study=study,
        storage=storage,
        shown=shown,
        owner=owner,
        job=inputs.job,
        objective=inputs.objective,
        options=inputs.runner.options,
        versions=versions(),
    )


def make_executor(inputs: StudyInputs, machine: Machine) -> Executor:
    """The executor that the machine asks for; Ray is imported only for its own."""
    limit = inputs.runner.outer_limit_s
    if machine.executor is ExecutorKind.IN_PROCESS:
        from runners.in_process import InProcessExecutor  # noqa: PLC0415

        return InProcessExecutor(inputs.recipe, n_slots=machine.parallel, time_limit_s=limit)
    if machine.executor is ExecutorKind.SLURM:
        from runners.slurm.executor import slurm_executor  # noqa: PLC0415

        return slurm_executor(inputs.recipe, machine.slurm, n_slots=machine.parallel, time_limit_s=limit)
    from runners.on_ray import RayExecutor  # noqa: PLC0415 - loads Ray
    from runners.on_ray_words import Reservation  # noqa: PLC0415

    return RayExecutor(
        inputs.recipe,
        n_slots=machine.parallel,
        address=machine.address,
        time_limit_s=limit,
        reservation=Reservation(bundles=(dict(machine.resources),) * machine.bundles),
    )


def check_machine(inputs: StudyInputs, machine: Machine) -> None:
    """Refuse a runner, or a place to run it, with which no trial could be tried."""
    if machine.executor is not ExecutorKind.SLURM:
        check_runner(inputs.recipe)
        return
    check_slurm(machine.slurm, inputs.recipe)
    check_runner(placed(inputs.recipe, machine.slurm))


def n_slots(inputs: StudyInputs, machine: Machine) -> int:
    """Trials that really run side by side: an allocation has room for so many."""
    if machine.executor is not ExecutorKind.SLURM:
        return machine.parallel
    return slots(machine.slurm, inputs.job, machine.parallel)


def check_runner(recipe: RunnerRecipe) -> None:
    """Refuse options that the runner does not take before anything is written."""
    runner: Any = resolve_name(RUNNERS[recipe.kind])
    kinds = get_type_hints(runner.__init__)
    options = [each for each in signature(runner).parameters.values() if each.kind is each.KEYWORD_ONLY]
    where = f"[runner] options of {recipe.kind}"
    check(
        bool(options) or not recipe.options,
        f"the runner {recipe.kind} takes no options",
        list(recipe.options),
    )
    suggest_keys(where, recipe.options, [each.name for each in options])
    for each in options:
        needed = each.default is each.empty
        check(not needed or each.name in recipe.options, f"{where} must have the key {each.name}", "none")
    for name, value in recipe.options.items():
        kind = get_origin(kinds[name]) or kinds[name]
        fits = isinstance(value, ACCEPTED.get(kind, kind)) and (kind is bool or not isinstance(value, bool))
        check(fits, f"{where}: {name} must be {WORDS.get(kind, 'a value')}", repr(value))
    recipe.build()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Expected:
    """What the sampler starts from; `to_keep` are attributes for the study: what was found just now."""

    candidates: Candidates
    predicted_by: Mapping[str, PredictedBy] = field(default_factory=dict)
    to_keep: Mapping[str, Any] = field(default_factory=dict)


def _expected(
    config: StudyConfig, storage: BaseStorage, candidates: Candidates, on_event: OnEvent
) -> _Expected:
    """The candidates as the study's prior has them: found once, and then kept in the study."""
    inputs = config.inputs
    if inputs.warm_start:
        return _warm(config, storage, candidates)
    if inputs.prior != PredictedBy.SIMULATED:
        return _Expected(candidates=candidates)
    kept = _kept_prior(config.name, storage)
    began = time.monotonic()
    step_s = simulated_prior(inputs.job, candidates) if kept is None else kept
    took_s = time.monotonic() - began if kept is None else None
    on_event(Simulated(n_plans=len(step_s), seconds=took_s))
    again, by = predicted_again(inputs.job, candidates, step_s, inputs.objective)
    return _Expected(
        candidates=again,
        predicted_by=by,
        to_keep={PRIOR_ATTRIBUTE: prior_document(step_s)} if kept is None else {},
    )


def _warm(config: StudyConfig, storage: BaseStorage, candidates: Candidates) -> _Expected:
    """The candidates as the trials of other studies have them; these are read once, and kept in the study."""
    from tuner import warm  # noqa: PLC0415 - loads SciPy's optimisers, for few studies

    inputs, to_keep = config.inputs, {}
    known = config.name in list_studies(storage)
    evidence = warm.stored_evidence(_load(config.name, storage).user_attrs, config.name) if known else None
    if evidence is None:
        others = storage if config.warm_storage is None else open_storage(config.warm_storage, create=False)
        views = [load_study(name, others) for name in inputs.warm_start if not warm.is_table(name)]
        tables = [Path(name) for name in inputs.warm_start if warm.is_table(name)]
        evidence = warm.evidence_of(views, inputs.cluster, tables)
        to_keep = {warm.WARM_ATTRIBUTE: warm.evidence_document(evidence)}
    again, by = warm.learned_candidates(inputs.job, candidates, evidence, inputs.objective)
    return _Expected(candidates=again, predicted_by=by, to_keep=to_keep)


def _kept_prior(name: str, storage: BaseStorage) -> dict[str, float] | None:
    known = name in list_studies(storage)
    return stored_prior(_load(name, storage).user_attrs) if known else None


def _sampler(config: StudyConfig, candidates: Candidates) -> CandidateSampler:
    """The study's sampler; Meshtune's own weighs prices where there are proxies, or device-hours to spend."""
    inputs = config.inputs
    known = dict(candidates=candidates, metrics=inputs.objective, seed=inputs.seed, job=inputs.job)
    if inputs.sampler == "meshtune" and (inputs.fidelities.proxies or config.budget.device_hours):
        from tuner.samplers.cost_aware import CostAwareSampler, Spending  # noqa: PLC0415 - loads scikit-learn

        n_steps = steps_of(inputs.runner.options)
        spending = Spending(fidelities=inputs.fidelities, budget=config.budget, n_steps=n_steps)
        return CostAwareSampler(**known, spending=spending)  # type: ignore[arg-type]
    return make_sampler(inputs.sampler, **known)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenStudy:
    """A study that is ready to be driven."""

    config: StudyConfig
    book: Book
    sampler: CandidateSampler
    candidates: Candidates
    predicted_by: Mapping[str, PredictedBy]
    ledger: Ledger

    def driver(
        self,
        *,
        n_slots: int,
        get_executor: Callable[[], Executor],
        is_interrupted: Callable[[], bool],
        on_event: OnEvent,
    ) -> Driver:
        """Who asks, submits, waits and tells."""
        own = self.believer()

        def appraise() -> Worth | None:
            with storage_trouble(self.book.shown):
                return own.worth(self.book.study, self.config.budget.better_by)

        return Driver(
            book=self.book,
            table=self.sampler.table,
            budget=self.config.budget,
            n_slots=n_slots,
            get_executor=get_executor,
            is_interrupted=is_interrupted,
            on_event=on_event,
            inputs=self.config.inputs,
            predicted_by=self.predicted_by,
            proxies=ProxyTable(
                job=self.config.inputs.job,
                table=self.sampler.table,
                settings=self.config.inputs.fidelities,
            ),
            appraise=appraise,
        )

    def believer(self) -> "MeshtuneSampler":
        """Meshtune's own sampler, for its beliefs, whichever one the study has."""
        from tuner.samplers.model_based import MeshtuneSampler  # noqa: PLC0415 - loads scikit-learn

        own, inputs = self.sampler, self.config.inputs
        if isinstance(own, MeshtuneSampler):
            return own
        return MeshtuneSampler(self.candidates, metrics=inputs.objective, seed=inputs.seed, job=inputs.job)


def _drive(opened: OpenStudy, executor: Executor | None, on_event: OnEvent) -> Stop:
    config = opened.config
    with interruptible() as is_interrupted, lent_executor(config, executor, opened.book) as get_executor:
        return opened.driver(
            n_slots=executor.n_slots if executor else n_slots(config.inputs, config.machine),
            get_executor=get_executor,
            is_interrupted=is_interrupted,
            on_event=on_event,
        ).run()


@contextmanager
def lent_executor(
    config: StudyConfig,
    given: Executor | None,
    book: Book,
    make: Callable[[StudyInputs, Machine], Executor] | None = None,
) -> Iterator[Callable[[], Executor]]:
    """Gives the executor when it is first asked for, and closes it if it is ours."""
    made: list[Executor] = []

    def get() -> Executor:
        if given is not None:
            return given
        if not made:
            own = (make or make_executor)(config.inputs, config.machine)
            made.append(_once_each(own, config.inputs.recipe, book))
        return made[0]

    try:
        yield get
    finally:
        for executor in made:
            executor.close()


def _once_each(executor: Executor, recipe: RunnerRecipe, book: Book) -> Executor:
    """The executor; plans that the runner runs as the same thing as an earlier one are not run again."""
    runner = recipe.build()
    if not isinstance(runner, EffectiveRunner):
        return executor
    outcomes = [outcome_of(trial.user_attrs) for trial in book.trials()]
    return OnceEach(executor, runner, known=[outcome for outcome in outcomes if outcome is not None])


def _refuse_other(name: str, storage: BaseStorage, inputs: StudyInputs) -> None:
    """Refuse a study of other inputs before the space is priced."""
    if name in list_studies(storage):
        study = _load(name, storage)
        if INPUTS_ATTRIBUTE in study.user_attrs or study.trials:
            refuse_changes(_document(study), inputs, name)


def _document(study: Study) -> Mapping[str, Any]:
    document = study.user_attrs.get(INPUTS_ATTRIBUTE)
    inputs_from_document(document, study.study_name)
    return dict(document or {})


def _load(name: str, storage: BaseStorage) -> Study:
    return optuna.load_study(study_name=name, storage=storage, sampler=RandomSampler())


def _wait_for_inputs(study: Study) -> bool:
    deadline = time.monotonic() + CREATION_S
    while time.monotonic() < deadline:
        if INPUTS_ATTRIBUTE in study.user_attrs:
            return True
        time.sleep(0.1)
    return False


def _remember(study: Study, config: StudyConfig, expected: _Expected) -> None:
    """What the next `resume` goes on with; the latest driver's wins."""
    for name, document in expected.to_keep.items():
        study.set_user_attr(name, document)
    study.set_user_attr("settings", {"machine": asdict(config.machine), "budget": asdict(config.budget)})
    study.set_user_attr("budget_trials", config.budget.trials)
