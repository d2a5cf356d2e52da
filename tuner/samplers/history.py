"""What a study's trials teach about the cost model: ratios, failures, and plans under way."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from objectives.cost.energy import step_energy
from objectives.longest import BY_MEMORY, MAX_SEQ_LEN
from objectives.metrics import ENERGY_METRICS, Goal, Job, metric_named
from objectives.outcome import Cause, Failed, Measured, Outcome
from search_spaces.errors import InvalidSpec
from search_spaces.fidelity import Fidelity
from search_spaces.plan import Bools, Floats, Ints
from tuner.samplers.candidates import CandidateTable, fidelity_of_trial
from tuner.samplers.proxied import ProxyTable
from tuner.tell import outcome_of

MOST_LESSONS = 400  # the newest count; beyond, a study costs time to score and hardly learns
LARGEST_LOG_RATIO = 20.0  # e^20: no clock is off by more; a larger reading is nonsense and is left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What one finished trial says about its candidate; None where it says nothing.

    `log_time` and `log_memory` are log(measured / predicted); `memory_is_bound` marks an out-of-memory
    plan, whose memory is at least that; `ran` is false for a plan that failed by itself for another reason
    than memory.  `source` is where the figures come from, "" for the job itself.  `code` names the proxy
    that ran in the candidate's place, if one did: the ratios are then to the proxy's own prediction.
    """

    row: int
    code: int | None = None
    log_time: float | None = None
    log_memory: float | None = None
    memory_is_bound: bool = False
    ran: bool | None = None
    source: str = ""

    @property
    def at(self) -> int:
        """Whose features the ratios belong to: the candidate's, or its proxy's."""
        return self.row if self.code is None else self.code


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """Lessons of the finished trials, and the rows that wait or run; those of proxies apart, by code."""

    lessons: tuple[Lesson, ...]
    pending: tuple[int, ...]
    of_proxies: tuple[Lesson, ...] = ()
    pending_proxies: tuple[int, ...] = ()

    @property
    def every(self) -> tuple[Lesson, ...]:
        """All lessons."""
        return self.lessons + self.of_proxies

    @property
    def under_way(self) -> Ints:
        """Codes of all that waits or runs."""
        return np.array(self.pending + self.pending_proxies, dtype=np.int64)

    def timed(self) -> tuple[Ints, Floats]:
        """Codes and log ratios of the trials that have a step time."""
        return _columns((lesson.at, lesson.log_time) for lesson in self.every)

    def weighed(self) -> tuple[Ints, Floats, Bools]:
        """Codes, log ratios and which are lower bounds, of the trials that say something about memory."""
        rows, ratios = _columns((lesson.at, lesson.log_memory) for lesson in self.every)
        bounds = [lesson.memory_is_bound for lesson in self.every if lesson.log_memory is not None]
        return rows, ratios, np.array(bounds, dtype=np.bool_)

    def tried(self) -> tuple[Ints, Bools]:
        """Rows that ran or failed by themselves, and which ran."""
        pairs = [(lesson.row, lesson.ran) for lesson in self.every if lesson.ran is not None]
        return np.array([row for row, _ in pairs], dtype=np.int64), np.array(
            [ran for _, ran in pairs], dtype=np.bool_
        )


def read_history(rows: Iterable[tuple[FrozenTrial, int]], reader: "LessonReader") -> History:
    """The history of the trials that hold candidates."""
    lessons: list[Lesson] = []
    pending: list[int] = []
    under_way: list[int] = []
    for trial, row in rows:
        code = reader.code(trial, row)
        if code is None:
            continue
        if trial.state.is_finished():
            lesson = reader.read(trial, row)
            lessons += [] if lesson is None else [lesson]
        else:
            (pending if code == row else under_way).append(code)
    kept = of_one_source(lessons)[-MOST_LESSONS:]
    return History(
        lessons=tuple(each for each in kept if each.code is None),
        pending=tuple(pending),
        of_proxies=tuple(each for each in kept if each.code is not None),
        pending_proxies=tuple(under_way),
    )


def of_one_source(lessons: Sequence[Lesson]) -> list[Lesson]:
    """The lessons from where most come, of equals the latest: one surrogate learns from one machine only.

    That a plan fails by itself is learnt from wherever it was tried.
    """
    counts = Counter(lesson.source for lesson in lessons if lesson.log_time is not None)
    latest = {lesson.source: i for i, lesson in enumerate(lessons)}
    if len(counts) < 2:
        return list(lessons)
    source = max(counts, key=lambda each: (counts[each], latest[each]))
    return [lesson for lesson in lessons if lesson.source == source or lesson.ran is False]


class LessonReader:
    """Reads finished trials, each once."""

    def __init__(
        self,
        table: CandidateTable,
        *,
        metrics: Sequence[str],
        job: Job,
        proxies: ProxyTable | None = None,
    ) -> None:
        self.table, self.metrics, self.job, self.proxies = table, metrics, job, proxies
        estimate = table.candidates.estimate
        self.step_s, self.peak_bytes = estimate.step_s, estimate.peak_memory_bytes
        of_time = [name for name in metrics if name not in (*ENERGY_METRICS, *BY_MEMORY)]
        self._time_metric = next(iter(of_time), "step_time")
        self.energy_j: Floats | None = None
        if set(metrics) & set(ENERGY_METRICS):
            self.energy_j = step_energy(job, table.candidates.plans, estimate).total_j
        self._read: dict[int, tuple[FrozenTrial, Lesson | None]] = {}

    @property
    def log_watts(self) -> Floats | None:
        """Logarithm of joules over seconds, both as they compare; None where no metric is of energy; (n,)."""
        if self.energy_j is None:
            return None
        joules = self.energy_j / self.job.batch_share(self.table.candidates.plans)
        watts: Floats = np.log(joules / self.comparable_s)
        return watts

    @property
    def comparable_s(self) -> Floats:
        """Predicted seconds as plans compare by them: of another batch, or for HFU, not the step's; (n,)."""
        return self.job.comparable_s(self._time_metric, self.step_s, self.table.candidates.plans)

    def code(self, trial: FrozenTrial, row: int) -> int | None:
        """The trial's code; None for a proxy where nothing is known of proxies."""
        fidelity = fidelity_of_trial(trial)
        if fidelity is Fidelity.FULL:
            return row
        if self.proxies is None or fidelity not in self.proxies.kinds:
            return None
        return None if self.proxies.find(row, fidelity) is None else self.proxies.code(row, fidelity)

    def read(self, trial: FrozenTrial, row: int) -> Lesson | None:
        """The lesson of a finished trial: from its outcome, else from its values and constraints."""
        known = self._read.get(trial._trial_id)
        if known is not None and known[0].datetime_start == trial.datetime_start:
            return known[1]
        outcome = _readable_outcome(trial)
        code = self.code(trial, row)
        if outcome is None:
            lesson = self._from_values(trial, row) if code == row else None
        elif code is None or code == row:
            lesson = self._from_outcome(outcome, row)
        else:
            lesson = self._from_proxy(outcome, row, code)
        self._read[trial._trial_id] = (trial, lesson)
        return lesson

    def _from_outcome(self, outcome: Outcome, row: int) -> Lesson | None:
        source = source_of(outcome)
        match outcome:
            case Measured():
                step_s, peak_bytes = self._expected(outcome, row)
                return Lesson(
                    row=row,
                    log_time=_sane(outcome.step_s / step_s),
                    log_memory=_sane(outcome.peak_memory_bytes / peak_bytes),
                    ran=True,
                    source=source,
                )
            case Failed(cause=Cause.OUT_OF_MEMORY) if _is_proxy(outcome):
                return None  # a proxy's memory says nothing about the plan's
            case Failed(cause=Cause.OUT_OF_MEMORY):
                needed = self.job.cluster.device.memory_bytes + max(outcome.short_bytes, 0.0)
                bound = _sane(needed / self.peak_bytes[row])
                return Lesson(row=row, log_memory=bound, memory_is_bound=bound is not None, source=source)
        return Lesson(row=row, ran=False, source=source) if outcome.cause.blames_plan else None

    def _from_proxy(self, outcome: Outcome, row: int, code: int) -> Lesson | None:
        """What the plan's proxy showed, against the prediction of the proxy."""
        assert self.proxies is not None
        which = code // len(self.table) - 1
        priced = self.proxies.find(row, self.proxies.kinds[which])
        assert priced is not None
        source = source_of(outcome)
        match outcome:
            case Measured():
                return Lesson(
                    row=row,
                    code=code,
                    log_time=_sane(outcome.step_s / priced.step_s),
                    log_memory=_sane(outcome.peak_memory_bytes / priced.peak_bytes),
                    ran=True,
                    source=source,
                )
            case Failed(cause=Cause.OUT_OF_MEMORY):
                needed = self.job.cluster.device.memory_bytes + max(outcome.short_bytes, 0.0)
                bound = _sane(needed / priced.peak_bytes)
                is_bound = bound is not None
                return Lesson(row=row, code=code, log_memory=bound, memory_is_bound=is_bound, source=source)
        return Lesson(row=row, code=code, ran=False, source=source) if outcome.cause.blames_plan else None

    def _expected(self, outcome: Measured, row: int) -> tuple[float, float]:
        """Predicted step seconds and peak bytes of what ran: of a proxy its own, not the plan's."""
        if _is_proxy(outcome):
            predicted = outcome.effective.get("predicted", {})
            return predicted.get("step_s", math.inf), predicted.get("peak_memory_bytes", math.inf)
        return float(self.step_s[row]), float(self.peak_bytes[row])

    def _from_values(self, trial: FrozenTrial, row: int) -> Lesson | None:
        """Every metric but the peak is, for one plan, a constant times the step time or its inverse."""
        if any(value > 0 for value in trial.constraints.values()):
            return Lesson(row=row, ran=False)
        if trial.state is not TrialState.COMPLETE or len(trial.values) != len(self.metrics):
            return None
        log_time = log_memory = None
        for name, value in zip(self.metrics, trial.values, strict=True):
            if name == MAX_SEQ_LEN:
                continue  # its outcome has the peak that it follows from
            energy_j = None if self.energy_j is None else self.energy_j[[row]]
            plan = self.table.candidates.plans.take(np.array([row]))
            predicted = self.job.values(name, self.step_s[[row]], self.peak_bytes[[row]], plan, energy_j)[0]
            if name == "peak_memory":
                log_memory = _sane(value / predicted)
            elif metric_named(name).goal is Goal.MINIMIZE:
                log_time = _sane(value / predicted)
            else:
                log_time = _sane(predicted / value if value else 0.0)
        return Lesson(row=row, log_time=log_time, log_memory=log_memory, ran=True)


def source_of(outcome: Outcome) -> str:
    """What is the same for figures that may be learnt from together: the device, and whether a proxy ran."""
    device = str(outcome.effective.get("device", ""))
    return f"{device} by proxy" if _is_proxy(outcome) else device


def _is_proxy(outcome: Outcome) -> bool:
    return bool(outcome.effective.get("proxy"))


def _readable_outcome(trial: FrozenTrial) -> Outcome | None:
    """The outcome that the study stored with a trial; None where there is none that can be read."""
    try:
        return outcome_of(trial.user_attrs)
    except InvalidSpec:
        return None


def _sane(ratio: float) -> float | None:
    """Logarithm of a ratio, if it is one."""
    if not (math.isfinite(ratio) and ratio > 0):
        return None
    log = math.log(ratio)
    return log if abs(log) <= LARGEST_LOG_RATIO else None


def _columns(pairs: Iterable[tuple[int, float | None]]) -> tuple[Ints, Floats]:
    known = [(row, value) for row, value in pairs if value is not None]
    return np.array([row for row, _ in known], dtype=np.int64), np.array(
        [value for _, value in known], dtype=np.float64
    )
