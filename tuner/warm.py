"""A study's start from other studies of the same machine, or their table: another model, size or batch.

    t = t(c) exp(r) + w m  c, r: `tuner.learned` from the measured trials of those studies; w m where a run
                           is more likely than not to be held up
    M = M(f)               f: a factor for each part of memory (`objectives.calibration.memory`), from their
                           memory readings

A measurements file stands for the studies whose rows it holds.  Constants and factors carry over to any job;
what is left of the others' errors only as far as the gate lets it.  The trials are kept in the new study, so
that it goes on without the storage of the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from objectives.calibration import (
    Calibration,
    MemoryCalibration,
    TimedStep,
    calibrate_memory,
    calibrated_cluster,
    exposure,
)
from objectives.cost.result import Estimate, StepMemory, StepTime
from objectives.cost.step import estimate
from objectives.measurements.runs import MeasuredRun, read_measurements
from objectives.metrics import Job
from objectives.outcome import Measured
from objectives.ranking import Candidates
from objectives.valuing import metric_values
from search_spaces.cluster import ClusterSpec
from search_spaces.documents import build
from search_spaces.errors import InvalidSpec, check
from search_spaces.model import ModelSpec
from search_spaces.plan import Floats, Plan, Plans
from search_spaces.workload import Workload
from tuner.fidelity import PredictedBy
from tuner.inputs import plain
from tuner.learned import LearnedModel, priced_features
from tuner.ran import what_ran
from tuner.view import StudyView

WARM_ATTRIBUTE = "meshtune_warm"
FEWEST, MOST = 3, 400  # measured trials: fewer teach no constant, more cost time and change little
CHUNK = 4096  # candidates whose likeness to the trials is held in memory at once


@dataclass(frozen=True, slots=True, kw_only=True)
class PastStudy:
    """A study's measured trials: plans by their keys, seconds of a step, and what they were of.

    `peak_memory_bytes` has a reading for each plan, 0 where there is none; studies kept before it have none.
    """

    name: str
    model: ModelSpec
    cluster: ClusterSpec
    workload: Workload
    plans: tuple[str, ...]
    step_s: tuple[float, ...]
    peak_memory_bytes: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a study starts from."""

    studies: tuple[PastStudy, ...]

    def steps(self, cluster: ClusterSpec) -> list[TimedStep]:
        """The trials as measured steps, on the machine as it is known to the new study."""
        found = []
        for past in self.studies:
            job = _job_of(past, cluster)
            for key, step_s in zip(past.plans, past.step_s, strict=True):
                found.append(TimedStep(job=job, plan=Plan.parse(key), step_s=step_s))
        return found

    def memory(self, cluster: ClusterSpec) -> MemoryCalibration:
        """What the memory readings of the trials say of the closed form."""
        predicted, read = [], [np.zeros(0)]
        for past in self.studies:
            pairs = zip(past.plans, past.peak_memory_bytes, strict=False)
            known = {key: peak_bytes for key, peak_bytes in pairs if peak_bytes > 0}
            plans = Plans.of(Plan.parse(key) for key in known)
            predicted.append(estimate(_job_of(past, cluster), plans).memory)
            read.append(np.array(list(known.values())))
        parts = {
            part.name: np.concatenate([np.zeros(0), *(getattr(each, part.name) for each in predicted)])
            for part in fields(StepMemory)
        }
        return calibrate_memory(StepMemory(**parts), np.concatenate(read))


def past_study(view: StudyView) -> PastStudy:
    """The measured trials of a study that ran whole; the newest, if they are many."""
    pairs = [
        (trial.plan.key, trial.outcome.step_s, trial.outcome.peak_memory_bytes)
        for trial in view.measured
        if trial.plan is not None and isinstance(trial.outcome, Measured) and not trial.proxy
    ][-MOST:]
    inputs = view.inputs
    return PastStudy(
        name=view.name,
        model=inputs.model,
        cluster=inputs.cluster,
        workload=inputs.workload,
        plans=tuple(key for key, _, _ in pairs),
        step_s=tuple(step_s for _, step_s, _ in pairs),
        peak_memory_bytes=tuple(peak_bytes for _, _, peak_bytes in pairs),
    )


def _job_of(past: PastStudy, cluster: ClusterSpec) -> Job:
    machine = cluster.with_devices(past.cluster.n_devices)
    return Job(model=past.model, cluster=machine, workload=past.workload)


def is_table(name: str) -> bool:
    """Whether a name of `warm_start` is a measurements file and no study."""
    return name.endswith(".csv")


def studies_of_table(path: Path, cluster: ClusterSpec) -> tuple[PastStudy, ...]:
    """The measured rows of a measurements file on that machine's devices, a study for each job.

    Raises
    ------
    InvalidSpec
        The file cannot be read or holds no row.
    """
    by_job: dict[int, list[MeasuredRun]] = {}
    for run in read_measurements(path).runs:
        if run.step_s is not None and run.job.cluster.device.name == cluster.device.name:
            by_job.setdefault(id(run.job), []).append(run)
    return tuple(_past_runs(path.name, runs[-MOST:]) for runs in by_job.values())


def _past_runs(name: str, runs: Sequence[MeasuredRun]) -> PastStudy:
    job = runs[0].job
    return PastStudy(
        name=name,
        model=job.model,
        cluster=job.cluster,
        workload=job.workload,
        plans=tuple(run.plan.key for run in runs),
        step_s=tuple(run.step_s or 0.0 for run in runs),
        peak_memory_bytes=tuple(run.peak_memory_bytes or 0.0 for run in runs),
    )


def past_proxies(view: StudyView) -> list[PastStudy]:
    """The measured trials of a study's proxies and twins, each a small study of the job that ran."""
    found = []
    for trial in (each for each in (*view.by_proxy, *view.measured) if each.proxy):
        job, plan = what_ran(view, trial)
        assert isinstance(trial.outcome, Measured)
        past = PastStudy(
            name=view.name,
            model=job.model,
            cluster=job.cluster,
            workload=job.workload,
            plans=(plan.key,),
            step_s=(trial.outcome.step_s,),
        )
        found.append(past)
    return found


def evidence_of(views: Sequence[StudyView], cluster: ClusterSpec, tables: Sequence[Path] = ()) -> Evidence:
    """What these studies and measurements files tell of that cluster's machine.

    Raises
    ------
    InvalidSpec
        A study of another machine, or fewer measured trials than teach anything.
    """
    for view in views:
        other = view.inputs.cluster
        if _machine(other) != _machine(cluster):
            must = "a study to start from must be of the new study's machine"
            given = f"{view.name!r} of {other.name} with {other.device.name}"
            raise InvalidSpec(must, given, hint=f"name studies of {cluster.name} with {cluster.device.name}")
    studies = tuple(past for view in views for past in (past_study(view), *past_proxies(view)))
    studies += tuple(past for path in tables for past in studies_of_table(path, cluster))
    n = sum(len(past.plans) for past in studies)
    names = ", ".join([*(view.name for view in views), *(path.name for path in tables)])
    check(n >= FEWEST, f"the studies to start from must have {FEWEST} measured trials", f"{n} in {names}")
    return Evidence(studies=studies)


def evidence_document(evidence: Evidence) -> Any:
    """What a study keeps of the evidence."""
    return plain(evidence)


def stored_evidence(attributes: Mapping[str, Any], name: str) -> Evidence | None:
    """What a study has kept; None if it has none."""
    kept = attributes.get(WARM_ATTRIBUTE)
    return None if kept is None else build(Evidence, kept, f"study {name!r}: what it started from")


def learned_candidates(
    job: Job, candidates: Candidates, evidence: Evidence, objective: Sequence[str]
) -> tuple[Candidates, dict[str, PredictedBy]]:
    """Candidates as the evidence has them, best first, and where each prediction comes from, by plan."""
    model = LearnedModel.from_steps(evidence.steps(job.cluster))
    calibrated = replace(job, cluster=calibrated_cluster(job.cluster, model.calibration))
    plans = candidates.plans
    priced = estimate(calibrated, plans)
    features = priced_features(job, plans, candidates.estimate)
    parts = [features[i : i + CHUNK] for i in range(0, len(features), CHUNK)]
    factor = np.exp(np.concatenate([model.residual.predict(part) for part in parts]))
    time = StepTime(**{part.name: getattr(priced.time, part.name) * factor for part in fields(StepTime)})
    time = _held_up(time, job, plans, model.calibration)
    again = _with_memory(replace(candidates.estimate, time=time), evidence.memory(job.cluster))
    sign = np.sign(candidates.score[0]) or 1.0
    score = sign * metric_values(job, objective[0], plans, again)
    ranked = Candidates(plans=plans, estimate=again, score=score).take(np.argsort(score, kind="stable"))
    return ranked, dict.fromkeys(plans.keys(), PredictedBy.LEARNED)


def _held_up(time: StepTime, job: Job, plans: Plans, calibration: Calibration) -> StepTime:
    """The seconds with what messages wait where a run is more likely than not to be held up."""
    waits = calibration.hold_ups
    if waits is None:
        return time
    exposed = exposure(job, plans)
    waited_s: Floats = np.where(waits.chance(exposed) > 0.5, waits.wait_s * exposed.messages, 0.0)
    return replace(time, pp_comm_s=time.pp_comm_s + waited_s)


def _with_memory(found: Estimate, memory: MemoryCalibration) -> Estimate:
    """The estimate with memory as readings have it, of the stage that is fullest by the closed form."""
    return replace(found, memory=memory.applied(found.memory))


def _machine(cluster: ClusterSpec) -> tuple[object, ...]:
    """What makes two clusters the same machine, whatever is known of its constants."""
    return (cluster.device.name, *((tier.name, tier.size) for tier in cluster.tiers))
