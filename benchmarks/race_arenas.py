"""The arenas of the race: candidate tables with what is true of every row.

replay   tables of published runs: one job, so many plans that somebody really ran, failures among them
groups   the same, on predictions that learned from a study of the smaller clusters of the same model
hidden   the simulator on machines whose constants are off by up to 40 %, with effects that no formula has
real     plans really trained on one machine
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np

from benchmarks.bench_real import TABLE as REAL_TABLE
from benchmarks.bench_real import by_job, recorded, runs_of
from benchmarks.race_engines import make_engine, study_of
from objectives.cost.step import estimate, stage_profile
from objectives.measurements import MeasuredRun, read_measurements
from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Measured, Outcome, OutcomeOrigin
from objectives.ranking import Candidates, rank
from objectives.simulator.randomness import ExpertLoad, Randomness
from objectives.simulator.step import StepOptions, StepSimulator
from objectives.validation import Prediction, jobs_of, predict
from runners.hidden import HiddenMachine, hidden_machine
from search_spaces.cluster import assumed
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec
from search_spaces.model_presets import load_model
from search_spaces.plan import KNOB_NAMES, Bools, Floats, Plan, Plans
from search_spaces.space import SpaceSpec
from search_spaces.workload import Workload
from tuner.warm import Evidence, PastStudy, learned_candidates

PUBLISHED = Path(__file__).parent / "data" / "measurements.csv"
FEWEST_MEASURED = 25
PAST_TRIALS = 16
HIDDEN = 0.4
N_ROWS = 240
NOISE, STRAGGLERS, SLOWED = 0.01, 0.02, (1.15, 1.6)  # of a reading, as the simulated runner has them


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One job's candidates, best predicted first, with the true seconds (inf: fails) and what trials see.

    Methods are chosen on the cases that are not `held_out`.
    """

    arena: str
    name: str
    job: Job
    table: Candidates
    step_s: Floats
    outcomes: list[Outcome]
    held_out: bool
    seed: int = 0


# ---- published runs


def groups() -> list[list[MeasuredRun]]:
    """Published runs of one job each, if enough of its plans were measured; smaller clusters first."""
    runs = [
        run
        for run in read_measurements(PUBLISHED).runs
        if (run.step_s or run.outcome.is_failure) and not run.impossible
    ]
    found = [[runs[i] for i in places] for places in jobs_of(runs)]
    enough = [each for each in found if len({r.plan.key for r in each if r.step_s}) >= FEWEST_MEASURED]
    return sorted(enough, key=lambda each: (group_name(each), each[0].job.cluster.n_devices))


def group_name(runs: Sequence[MeasuredRun]) -> str:
    """Where the runs were published and of which model they are."""
    return f"{runs[0].labels['source']} {runs[0].job.model.name}"


def replay_case(runs: Sequence[MeasuredRun]) -> Case:
    """The table of a group; of a plan that was run again the median, and a failure only if it never ran."""
    job = runs[0].job
    again: dict[str, list[MeasuredRun]] = {}
    for run in runs:
        again.setdefault(run.plan.key, []).append(run)
    plans = Plans.of(each[0].plan for each in again.values())
    priced = estimate(job, plans)
    weighed = [run for run in runs if run.peak_memory_bytes and run.step_s]
    printed = dict(zip((run.id for run in weighed), predict(weighed), strict=True))
    outcomes = [
        _published(each, printed, peak)
        for each, peak in zip(again.values(), priced.peak_memory_bytes, strict=True)
    ]
    order = np.argsort(priced.step_s, kind="stable")
    table = Candidates(plans=plans, estimate=priced, score=priced.step_s).take(order)
    ordered = [outcomes[i] for i in order]
    name = f"{group_name(runs)}, {job.cluster.n_devices} devices"
    return Case(
        arena="replay",
        name=name,
        job=job,
        table=table,
        step_s=true_step_s(ordered),
        outcomes=ordered,
        held_out=_second_half(runs),
    )


def _second_half(runs: Sequence[MeasuredRun]) -> bool:
    """The 1B model's groups and the single node's are for choosing, the 8B model's and the clusters' not."""
    return "8B" in runs[0].job.model.name or runs[0].labels["source"] == "vtrain-multi"


def true_step_s(outcomes: Sequence[Outcome]) -> Floats:
    """Seconds of each, inf where it failed; shape (n,)."""
    return np.array([each.step_s if isinstance(each, Measured) else np.inf for each in outcomes])


def _published(runs: Sequence[MeasuredRun], printed: Mapping[str, Prediction], peak_bytes: float) -> Outcome:
    """What a trial of the plan would have shown.

    A peak is scaled to the device's bytes from what its trainer prints, and the predicted one where none was
    published.  A failure without a reason is a crash: whoever published it did not know either.
    """
    ran = [run for run in runs if run.step_s]
    if not ran:
        is_memory = runs[0].outcome == "oom"
        cause = Cause.OUT_OF_MEMORY if is_memory else Cause.CRASH
        return Failed(cause=cause, message="as published", origin=OutcomeOrigin.MEASURED)
    ratios = [1.0 / (1.0 + printed[run.id].memory_error) for run in ran if run.id in printed]
    return Measured(
        step_s=float(np.median([run.step_s or 0.0 for run in ran])),
        step_spread_s=0.0,
        peak_memory_bytes=float(peak_bytes) * (float(np.median(ratios)) if ratios else 1.0),
        origin=OutcomeOrigin.MEASURED,
        n_steps=len(ran),
    )


def replay_cases() -> list[Case]:
    """Every group alone."""
    return [replay_case(each) for each in groups()]


def cases_across_groups() -> list[Case]:
    """Each group after a study of `PAST_TRIALS` trials on each smaller cluster of the same model."""
    cases, past, of = [], [], ""
    for runs in groups():
        if group_name(runs) != of:
            past, of = [], group_name(runs)
        case = replay_case(runs)
        if past:
            table, _ = learned_candidates(case.job, case.table, Evidence(studies=tuple(past)), ("step_time",))
            before, after = case.table.plans.keys(), table.plans.keys()
            rows = {key: i for i, key in enumerate(before)}
            order = [rows[key] for key in after]
            again = replace(
                case,
                arena="groups",
                table=table,
                step_s=case.step_s[order],
                outcomes=[case.outcomes[i] for i in order],
            )
            cases.append(again)
        past.append(_past_study(again if past else case))
    return cases


def _past_study(case: Case) -> PastStudy:
    """The trials of a search of ours."""
    sampler = make_engine("meshtune", candidates=case.table, seed=0, job=case.job)
    rows = [row for row in study_of(sampler, case.outcomes, PAST_TRIALS)[0] if np.isfinite(case.step_s[row])]
    plans = case.table.plans
    return PastStudy(
        name=case.name,
        model=case.job.model,
        cluster=case.job.cluster,
        workload=case.job.workload,
        plans=tuple(plans.row(row).key for row in rows),
        step_s=tuple(float(case.step_s[row]) for row in rows),
    )


def real_cases() -> list[Case]:
    """Plans trained on this machine, a job each."""
    cases = []
    for name, runs in by_job(runs_of(REAL_TABLE)).items():
        job, table, outcomes = recorded(runs, REAL_TABLE)
        step_s = true_step_s(outcomes)
        cases.append(
            Case(
                arena="real", name=name, job=job, table=table, step_s=step_s, outcomes=outcomes, held_out=True
            )
        )
    return cases


# ---- hidden clusters


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenJob:
    """A job to be tried on machines that are not as described."""

    model: str
    cluster: str
    devices: int
    global_batch: int
    seq_len: int
    held_out: bool

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.model} on {self.devices} {self.cluster}, {self.seq_len:,} tokens"

    @property
    def job(self) -> Job:
        """As described."""
        workload = Workload(seq_len=self.seq_len, global_batch=self.global_batch)
        return Job(
            model=load_model(self.model), cluster=load_cluster(self.cluster, self.devices), workload=workload
        )


def _job(model: str, cluster: str, devices: int, batch: int, seq_len: int, *, held_out: bool) -> HiddenJob:
    return HiddenJob(
        model=model, cluster=cluster, devices=devices, global_batch=batch, seq_len=seq_len, held_out=held_out
    )


# Every second one of each kind is held out.
HIDDEN_JOBS = (
    _job("llama-3-8b", "dgx-h100", 64, 128, 8192, held_out=False),
    _job("llama-3-70b", "dgx-h100", 256, 256, 8192, held_out=True),
    _job("gpt3-175b", "dgx-a100", 1024, 512, 2048, held_out=False),
    _job("llama-3-405b", "dgx-h100", 4096, 512, 8192, held_out=True),
    _job("mixtral-8x7b", "dgx-h100", 128, 256, 4096, held_out=False),
    _job("qwen3-235b-a22b", "dgx-h200", 512, 512, 4096, held_out=True),
    _job("deepseek-v3", "h800-pod", 2048, 1024, 4096, held_out=False),
    _job("llama-3-8b", "dgx-h100", 128, 64, 131_072, held_out=True),
    _job("llama-3-70b", "dgx-h100", 512, 64, 131_072, held_out=False),
    _job("qwen3-30b-a3b", "dgx-h200", 256, 128, 65_536, held_out=True),
)


def thinned(table: Candidates, n_rows: int) -> Candidates:
    """Rows from a whole ranking: half denser at its top, half even, so that a search can go wrong too."""
    n = len(table)
    rows = np.concatenate([np.geomspace(1, n, n_rows // 2), np.linspace(1, n, n_rows - n_rows // 2)])
    return table.take(np.unique(rows.astype(np.int64)) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nature:
    """What no formula has: drawn for one machine, the same for all its plans.

    While they overlap computation and communication slow each other (`contention`) and share links; one node
    lags, which shows in its stage; passes jitter; tokens choose experts unevenly; two knob values run slower
    than they should, for reasons that only the trainer's authors know.
    """

    contention: float
    jitter: float
    lagging_place: float
    lagging: float
    zipf_exponent: float
    habits: tuple[tuple[str, int, float], ...]

    @classmethod
    def drawn(cls, rng: np.random.Generator, plans: Plans) -> "Nature":
        """One machine's."""
        varying = [name for name in KNOB_NAMES if len(np.unique(getattr(plans, name))) > 1]
        names = rng.choice(varying, size=2, replace=False).tolist()
        habits = [
            (name, int(rng.choice(np.unique(getattr(plans, name)))), float(rng.uniform(1.0, 1.15)))
            for name in names
        ]
        return cls(
            contention=float(rng.uniform(1.0, 1.3)),
            jitter=float(rng.uniform(0.0, 0.03)),
            lagging_place=float(rng.uniform()),
            lagging=float(rng.uniform(1.0, 1.15)),
            zipf_exponent=float(rng.uniform(0.0, 0.5)),
            habits=tuple(habits),
        )

    def options(self, job: Job, plan: Plan) -> StepOptions:
        """How the plan is simulated."""
        load = ExpertLoad.ZIPF if job.model.moe else ExpertLoad.AS_GIVEN
        return StepOptions(
            n_groups=1,
            slowdown=assumed(self.contention, "drawn"),
            randomness=Randomness(
                jitter=self.jitter,
                slow_ranks=((int(self.lagging_place * plan.pp), self.lagging),),
                expert_load=load,
                zipf_exponent=self.zipf_exponent,
            ),
        )

    def habit_factors(self, plans: Plans) -> Floats:
        """What the slow knob values cost each plan; shape (n_plans,)."""
        factors = np.ones(len(plans))
        for name, value, factor in self.habits:
            factors *= np.where(getattr(plans, name).astype(np.int64) == value, factor, 1.0)
        return factors


def hidden_cases(described: HiddenJob, seeds: Sequence[int], n_rows: int = N_ROWS) -> Iterator[Case]:
    """One case a seed, each another machine."""
    job = described.job
    table = thinned(rank(job, SpaceSpec()).candidates, n_rows)
    for seed in seeds:
        rng = np.random.default_rng([seed, crc32(described.name.encode())])
        nature = Nature.drawn(rng, table.plans)
        machine = hidden_machine(job, seed=int(rng.integers(2**31)), hidden=HIDDEN)
        step_s, short_bytes = _truth(machine, nature, table.plans)
        yield Case(
            arena="hidden",
            name=described.name,
            job=job,
            table=table,
            step_s=np.where(short_bytes > 0, np.inf, step_s),
            outcomes=_readings(step_s, short_bytes, job, rng),
            held_out=described.held_out,
            seed=seed,
        )


def _truth(machine: HiddenMachine, nature: Nature, plans: Plans) -> tuple[Floats, Floats]:
    """Seconds of a step, and bytes by which the memory falls short (negative: left); shapes (n_plans,)."""
    step_s, short_bytes = np.zeros(len(plans)), np.zeros(len(plans))
    job = machine.job
    for i, plan in enumerate(plans):
        memory = stage_profile(job, plan).memory
        grown = memory.total_bytes + (machine.activation_growth - 1) * memory.activations_bytes
        short_bytes[i] = np.max(grown) - job.cluster.device.memory_bytes
        try:
            step_s[i] = StepSimulator(job, plan, nature.options(job, plan)).seconds(0)
        except InvalidSpec:
            step_s[i], short_bytes[i] = np.inf, np.inf
    return step_s * nature.habit_factors(plans), short_bytes


def _readings(step_s: Floats, short_bytes: Floats, job: Job, rng: np.random.Generator) -> list[Outcome]:
    """What one trial of each plan shows: some per cent of noise, now and then a straggler, or a failure."""
    noise = np.exp(NOISE * rng.standard_normal(len(step_s)))
    slowed: Bools = rng.random(len(step_s)) < STRAGGLERS
    read_s = step_s * noise * np.where(slowed, rng.uniform(*SLOWED, len(step_s)), 1.0)
    capacity = job.cluster.device.memory_bytes
    return [
        _reading(float(seconds), float(short), capacity)
        for seconds, short in zip(read_s, short_bytes, strict=True)
    ]


def _reading(step_s: float, short_bytes: float, capacity_bytes: float) -> Outcome:
    origin = OutcomeOrigin.SIMULATED
    if not np.isfinite(step_s):
        return Failed(cause=Cause.INVALID, message="the schedule cannot be had", origin=origin)
    if short_bytes > 0:
        return Failed(cause=Cause.OUT_OF_MEMORY, message="too large", origin=origin, short_bytes=short_bytes)
    return Measured(
        step_s=step_s, step_spread_s=0.0, peak_memory_bytes=capacity_bytes + short_bytes, origin=origin
    )
