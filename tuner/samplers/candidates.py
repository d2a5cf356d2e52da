"""The candidate table as an Optuna search space, and the base of every sampler that proposes its rows.

One `CategoricalDistribution` a knob, those that do not vary with a single choice, so that a trial's params
always hold the whole plan.  A row is proposed at most once in a study, whoever drives it.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from zlib import crc32

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from objectives.metrics import Job
from objectives.ranking import Candidates
from search_spaces.errors import InvalidSpec, MeshtuneError
from search_spaces.fidelity import Fidelity, fidelity_of
from search_spaces.plan import ENUMS, KNOB_NAMES, Bools, Floats, Ints, Plan, Plans
from tuner.features import knob_features, memory_shares, time_shares

CLAIM = (
    "meshtune:plan"  # system attribute: the plan a sampler has chosen, before Optuna has written its params
)
FIDELITY_CLAIM = "meshtune:fidelity"  # system attribute, written before: how much of the plan's job runs
MOST_CLAIMS = 20
logger = logging.getLogger(__name__)

Params = dict[str, Any]
Tried = list[tuple[FrozenTrial, int]]  # trials that hold a candidate, with its row


class TableExhausted(MeshtuneError):
    """Every candidate that may be proposed belongs to a trial already; the study is complete."""


def params_from_plan(plan: Plan) -> Params:
    """A plan as trial params: every knob, enums as their text."""
    return {name: str(getattr(plan, name)) if name in ENUMS else getattr(plan, name) for name in KNOB_NAMES}


def plan_from_params(params: Mapping[str, Any]) -> Plan:
    """The plan that a trial's params hold; params that are no knobs are left alone."""
    missing = [name for name in KNOB_NAMES if name not in params]
    if missing:
        raise InvalidSpec("a trial's params must hold every knob of a plan", f"none for {', '.join(missing)}")
    knobs: Params = {
        name: ENUMS[name](params[name]) if name in ENUMS else params[name] for name in KNOB_NAMES
    }
    return Plan(**knobs)


def choices_of(plans: Plans, name: str) -> list[Any]:
    """Values of one knob over the plans, smallest (or first of its enum) first."""
    values = np.unique(getattr(plans, name)).tolist()
    return [str(list(ENUMS[name])[value]) for value in values] if name in ENUMS else values


def claimed_fidelity(attributes: Mapping[str, Any]) -> Fidelity:
    """The fidelity among a trial's system attributes: the full one where its sampler knows no other."""
    return Fidelity(attributes.get(FIDELITY_CLAIM, Fidelity.FULL))


def fidelity_of_trial(trial: FrozenTrial) -> Fidelity:
    """How much of its job a trial runs: as it declared or, before that, as its sampler claimed."""
    return fidelity_of({"fidelity": claimed_fidelity(trial.system_attrs), **trial.user_attrs})


def fixed_knobs(trial: FrozenTrial) -> Params:
    """Knobs that whoever enqueued the trial has fixed."""
    fixed = trial.system_attrs.get("fixed_params", {})
    return {name: fixed[name] for name in KNOB_NAMES if name in fixed}


@dataclass(frozen=True, kw_only=True, eq=False)
class CandidateTable:
    """Candidates with what samplers ask of them again and again; row i is candidate i.

    `n_proxies` kinds of proxies have columns of their own among the features, nought for the candidates.
    """

    candidates: Candidates
    n_proxies: int = 0

    def __len__(self) -> int:
        return len(self.candidates)

    @cached_property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The Optuna search space: pass it to `study.ask`."""
        return {name: CategoricalDistribution(choices_of(self.candidates.plans, name)) for name in KNOB_NAMES}

    @cached_property
    def knobs(self) -> Floats:
        """Knob coordinates; shape (n_candidates, n_features)."""
        return np.hstack([knob_features(self.candidates.plans), np.zeros((len(self), self.n_proxies))])

    @cached_property
    def time_features(self) -> Floats:
        """Shares of the predicted step, then knob coordinates; shape (n_candidates, n_features)."""
        return self._features(time_shares(self.candidates.estimate.time))

    @cached_property
    def memory_features(self) -> Floats:
        """Shares of the predicted peak, then knob coordinates; shape (n_candidates, n_features)."""
        return self._features(memory_shares(self.candidates.estimate.memory))

    def _features(self, shares: Floats) -> Floats:
        return np.hstack([shares, np.zeros((len(self), self.n_proxies * shares.shape[1])), self.knobs])

    @cached_property
    def _places(self) -> dict[str, dict[Any, int]]:
        """For each knob, the position of every choice times the knob's radix: a plan's code is their sum."""
        places, radix = {}, 1
        for name in KNOB_NAMES:
            choices = choices_of(self.candidates.plans, name)
            places[name] = {choice: i * radix for i, choice in enumerate(choices)}
            radix *= max(len(choices), 1)
        return places

    @cached_property
    def _sorted_codes(self) -> tuple[Ints, Ints]:
        codes = np.zeros(len(self), dtype=np.int64)
        for name in KNOB_NAMES:
            places = np.array(list(self._places[name].values()), dtype=np.int64)
            codes += places[np.unique(getattr(self.candidates.plans, name), return_inverse=True)[1]]
        order = np.argsort(codes, kind="stable")
        return codes[order], order

    def params(self, row: int) -> Params:
        """Row as trial params."""
        return params_from_plan(self.candidates.plans.row(row))

    def row_of(self, params: Mapping[str, Any]) -> int | None:
        """The row with these params; None where the table has no such plan or a knob is missing."""
        try:
            code = sum(self._places[name][params[name]] for name in KNOB_NAMES)
        except (KeyError, TypeError):
            return None
        codes, order = self._sorted_codes
        at = int(np.searchsorted(codes, code))
        return int(order[at]) if at < len(codes) and codes[at] == code else None

    def matching(self, fixed: Mapping[str, Any]) -> Bools:
        """Rows that have these values of these knobs."""
        mask = np.ones(len(self), dtype=np.bool_)
        for name in fixed:
            values = list(ENUMS[name]) if name in ENUMS else None
            stored = getattr(self.candidates.plans, name)
            mask &= stored == (values.index(ENUMS[name](fixed[name])) if values else fixed[name])
        return mask


class CandidateSampler(BaseSampler):
    """Proposes untried rows of a candidate table; a subclass says which (`choose`, or `pick`).

    Its state is the study's storage and nothing else: what it draws follows from the seed and the trial's
    number, so a resumed study goes on where it stopped, and several drivers may share a study.  Parameters
    that are no knobs of the table are sampled at random.
    """

    has_proxies = False  # whether `pick` may choose less than the whole job

    def __init__(
        self,
        candidates: Candidates,
        *,
        metrics: tuple[str, ...],
        seed: int | None,
        job: Job,
        n_proxies: int = 0,
    ) -> None:
        self.table = CandidateTable(candidates=candidates, n_proxies=n_proxies)
        self.metrics, self.job = tuple(metrics), job
        self.seed = int(np.random.default_rng().integers(2**31)) if seed is None else seed
        self._finished: dict[tuple[str, int], int | None] = {}

    def choose(self, study: Study, trial: FrozenTrial, untried: Bools, *, others: Tried) -> int:
        """One of the rows where `untried` is true; there is one.  `others` are the study's other trials."""
        raise NotImplementedError

    def pick(
        self, study: Study, trial: FrozenTrial, untried: Bools, *, others: Tried
    ) -> tuple[int, Fidelity]:
        """A row, and how much of its job to run: all of it, unless a subclass knows better."""
        return self.choose(study, trial, untried, others=others), Fidelity.FULL

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Every knob of a plan."""
        return dict(self.table.distributions)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The knobs of one untried candidate; other parameters at random.

        Raises
        ------
        TableExhausted
            No candidate is left that is untried and has the trial's fixed params.
        """
        ours = {name for name, kind in search_space.items() if self.table.distributions.get(name) == kind}
        values = {
            name: self.sample_independent(study, trial, name, kind)
            for name, kind in search_space.items()
            if name not in ours
        }
        if ours:
            params = self.table.params(self._claim(study, trial))
            values |= {name: params[name] for name in ours}
        return values

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A parameter that is no knob of ours: uniformly at random."""
        random = RandomSampler(seed=self.seed_of(trial, param_name))
        return random.sample_independent(study, trial, param_name, param_distribution)

    def untried(self, study: Study) -> Bools:
        """Where a candidate belongs to no trial of the study; shape (n_candidates,)."""
        return self._untried(self.rows_of(study, None))

    def n_untried(self, study: Study) -> int:
        """Candidates that no trial of the study has: ask no more when it is 0."""
        return int(self.untried(study).sum())

    def generator(self, trial: FrozenTrial, purpose: str = "") -> np.random.Generator:
        """Random numbers of one trial and purpose."""
        return np.random.default_rng([self.seed, trial.number, crc32(purpose.encode())])

    def seed_of(self, trial: FrozenTrial, purpose: str = "") -> int:
        """A seed of one trial and purpose, for Optuna's own samplers."""
        return int(self.generator(trial, purpose).integers(2**31))

    def rows_of(self, study: Study, trial: FrozenTrial | None) -> Tried:
        """All other trials of the study that hold a candidate, with its row, in order of number."""
        rows = []
        for other in study.get_trials(deepcopy=False):
            if trial is None or other.number != trial.number:
                row = self._row(study, other)
                if row is not None:
                    rows.append((other, row))
        return rows

    def _row(self, study: Study, trial: FrozenTrial) -> int | None:
        """Row of a trial: by its params, by those fixed by enqueueing, or by its claim if it has none yet."""
        key = (study.study_name, trial.number)
        if trial.state.is_finished():
            if key not in self._finished:
                self._finished[key] = self.table.row_of(trial.params)
            return self._finished[key]
        params = {**fixed_knobs(trial), **trial.params}
        if CLAIM in trial.system_attrs and not params.keys() >= set(KNOB_NAMES):
            params = {**params_from_plan(Plan.parse(trial.system_attrs[CLAIM])), **params}
        return self.table.row_of(params)

    def _untried(self, tried: Tried, fidelity: Fidelity = Fidelity.FULL) -> Bools:
        """Rows that no trial of that fidelity has."""
        untried = np.ones(len(self.table), dtype=np.bool_)
        untried[[row for trial, row in tried if fidelity_of_trial(trial) is fidelity]] = False
        return untried

    def _claim(self, study: Study, trial: FrozenTrial) -> int:
        """Choose, write the choice, look again; who finds the row claimed by another driver chooses anew.

        Of two drivers that choose at the same moment at least one reads after the other wrote, so no row is
        kept twice.
        """
        allowed = self.table.matching(fixed_knobs(trial))
        for _ in range(MOST_CLAIMS):
            others = self.rows_of(study, trial)
            untried = allowed & self._untried(others)
            if not untried.any():
                raise self._exhausted(allowed)
            row, fidelity = self.pick(study, trial, untried, others=others)
            claims = {FIDELITY_CLAIM: str(fidelity)} if self.has_proxies else {}
            for name, value in {**claims, CLAIM: self.table.candidates.plans.row(row).key}.items():
                study._storage.set_trial_system_attr(trial._trial_id, name, value)
            if self._untried(self.rows_of(study, trial), fidelity)[row]:
                return row
            logger.info("another driver chose plan %d first; choosing anew", row)
        raise TableExhausted(
            "a driver must find a plan that no other takes first",
            f"{MOST_CLAIMS} lost claims",
            hint="start fewer drivers on one study",
        )

    def _exhausted(self, allowed: Bools) -> TableExhausted:
        return TableExhausted(
            "a study can try each candidate once, and none is left to propose",
            f"{len(self.table)} candidates, {int(allowed.sum())} of them with the trial's fixed knobs",
            hint="stop the study, or widen the space",
        )
