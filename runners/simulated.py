"""Plans tried on a machine that does not exist: simulated steps with noise, stragglers and failures.

Whatever is random depends on (seed, plan, attempt) alone: a plan's outcome is the same in every process and
order.  The machine itself differs from the job's description by a hidden factor per constant.
"""

import hashlib
import time
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import numpy as np

from objectives.cost.result import StageProfile
from objectives.cost.step import stage_profile
from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Measured, Outcome, OutcomeOrigin, tail
from objectives.simulator.energy import simulated_devices_w
from objectives.simulator.randomness import ExpertLoad, Randomness
from objectives.simulator.step import PLAIN, StepSimulator, simulate_step
from runners.hidden import hidden_machine
from runners.verdicts import out_of_memory, why_illegal
from search_spaces.errors import InvalidSpec, UnknownName, check
from search_spaces.plan import Floats, Plan, Plans, RankOrder
from search_spaces.units import gib

_STRAGGLER_SLOWDOWN = (1.15, 1.6)  # assumed: a device that throttles or shares its link


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """Probabilities, per trial, of what goes wrong on a machine."""

    straggler: float = 0.0
    hang: float = 0.0
    crash: float = 0.0
    lost_machine: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            check(
                0 <= getattr(self, name) <= 1,
                f"{name}_probability must be between 0 and 1",
                getattr(self, name),
            )


class SimulatedRunner:
    """Runs each plan's steps on the engine, on a machine with hidden constants, noise and faults.

    `noise` is the standard deviation of the logarithm of each pass's seconds; `seconds_per_trial` sleeps
    really, `start_s` is what a trial is said to take before its first step.  A hang is reported as one that
    reached `time_limit_s`; nobody waits for it.  `expert_load` says how tokens choose among experts, and
    `zipf_exponent` how unevenly; with `empty_ranks_hang` a trial hangs in which an expert-parallel rank gets
    no token, as a trainer's does that sends no dummy one.
    """

    origin = OutcomeOrigin.SIMULATED

    def __init__(  # noqa: PLR0913 - the options of a recipe, flat because they are written in a study file
        self,
        job: Job,
        *,
        seed: int = 0,
        noise: float = 0.02,
        n_steps: int = 5,
        straggler_probability: float = 0.02,
        hang_probability: float = 0.0,
        crash_probability: float = 0.0,
        lost_machine_probability: float = 0.0,
        hidden: float = 0.15,
        expert_load: str = ExpertLoad.AS_GIVEN,
        zipf_exponent: float = 1.0,
        empty_ranks_hang: bool = False,
        seconds_per_trial: float = 0.0,
        time_limit_s: float = 1800.0,
        start_s: float = 60.0,
    ) -> None:
        check(seed >= 0, "the simulated runner's seed must not be negative", seed)
        check(n_steps >= 1, "the simulated runner's n_steps must be at least 1", n_steps)
        positive = (("noise", noise), ("seconds_per_trial", seconds_per_trial), ("start_s", start_s))
        for name, value in positive:
            check(
                0 <= value < float("inf"),
                f"the simulated runner's {name} must be finite, not negative",
                value,
            )
        self._machine = hidden_machine(job, seed=seed, hidden=hidden)
        self._seed, self._noise, self._n_steps = seed, noise, n_steps
        self._faults = Faults(
            straggler=straggler_probability,
            hang=hang_probability,
            crash=crash_probability,
            lost_machine=lost_machine_probability,
        )
        self._seconds_per_trial, self._time_limit_s = seconds_per_trial, time_limit_s
        self._randomness = Randomness(
            jitter=noise,
            expert_load=_load_named(expert_load, job),
            zipf_exponent=zipf_exponent,
            empty_ranks_hang=empty_ranks_hang,
        )
        self._start_s, self._hidden = start_s, hidden

    def of_job(self, job: Job) -> "SimulatedRunner":
        """A smaller job on the same hidden machine: its constants follow from the seed alone."""
        other = copy(self)
        other._machine = hidden_machine(job, seed=self._seed, hidden=self._hidden)
        return other

    def run(self, plans: Plans, *, attempt: int = 0) -> Sequence[Outcome]:
        """Simulate every plan."""
        return [self._try(plan, attempt) for plan in plans]

    def _try(self, plan: Plan, attempt: int) -> Outcome:
        job = self._machine.job
        if illegal := why_illegal(job, plan, self.origin):
            return illegal
        try:
            profile = stage_profile(job, plan)
            return self._timed(self._survive(plan, profile, self._rng(plan, attempt)))
        except InvalidSpec as error:
            return Failed(cause=Cause.INVALID, message=str(error), origin=self.origin)

    def _timed(self, outcome: Outcome) -> Outcome:
        """The outcome with the seconds that the trial is said to have taken."""
        if isinstance(outcome, Measured):
            return outcome
        took_s = self._time_limit_s if outcome.cause is Cause.HANG else self._start_s
        return replace(outcome, effective={"trial_s": took_s})

    def _rng(self, plan: Plan, attempt: int) -> np.random.Generator:
        digest = hashlib.sha256(f"{self._seed}|{plan.key}|{attempt}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:16], "little"))

    def _survive(self, plan: Plan, profile: StageProfile, rng: np.random.Generator) -> Outcome:
        """Each way to die in turn, or the steps that were measured."""
        time.sleep(self._seconds_per_trial)
        bytes_of_stage, log = self._bytes_of_stage(profile), _head(plan, profile)
        if full := self._too_full(plan, bytes_of_stage, log):
            return full
        lost, crash, hang, straggler = rng.random(4)
        if lost < self._faults.lost_machine:
            return self._fail(Cause.LOST_MACHINE, "a node stopped answering", log)
        if crash < self._faults.crash:
            return self._crash(plan, rng, log)
        if hang < self._faults.hang:
            return self._fail(Cause.HANG, f"no step ended within {self._time_limit_s:g} s", log)
        simulator = self._simulator(plan, rng, slow=bool(straggler < self._faults.straggler))
        seeds = rng.integers(np.iinfo(np.int64).max, size=self._n_steps).tolist()
        return self._run_steps(plan, simulator, seeds, bytes_of_stage, log)

    def _run_steps(
        self, plan: Plan, simulator: StepSimulator, seeds: list[int], bytes_of_stage: Floats, log: list[str]
    ) -> Outcome:
        bytes_of_stage = bytes_of_stage + self._bytes_of_load(simulator, plan, seeds[0])
        if full := self._too_full(plan, bytes_of_stage, log):
            return full
        steps_s: list[float] = []
        for seed in seeds:
            if hangs := simulator.hangs(seed):
                why = f"step {len(steps_s) + 1} does not end: {hangs}"
                return self._fail(Cause.HANG, why, log)
            steps_s.append(simulator.seconds(seed))
        measured = self._measured(np.array(steps_s), float(bytes_of_stage.max()), log)
        watts = simulated_devices_w(self._machine.job, plan, simulator.parts_s(seeds[0]))
        return replace(measured, energy_j=watts * measured.step_s)

    def _bytes_of_stage(self, profile: StageProfile) -> Floats:
        growth = self._machine.activation_growth - 1
        return np.asarray(profile.memory.total_bytes + growth * profile.memory.activations_bytes)

    def _bytes_of_load(self, simulator: StepSimulator, plan: Plan, seed: int) -> Floats | float:
        """What experts with the drawn loads hold beyond those of the workload, per stage."""
        if self._randomness.expert_load is ExpertLoad.AS_GIVEN:
            return 0.0
        given = simulate_step(self._machine.job, plan, PLAIN)
        return np.asarray(simulator.step(seed).memory.peak_bytes - given.memory.peak_bytes)

    def _too_full(self, plan: Plan, bytes_of_stage: Floats, log: list[str]) -> Failed | None:
        fullest, capacity = int(np.argmax(bytes_of_stage)), self._machine.job.cluster.device.memory_bytes
        if bytes_of_stage[fullest] <= capacity:
            return None
        failed = out_of_memory(fullest, float(bytes_of_stage[fullest]), capacity, self.origin)
        return replace(failed, log_tail=_out_of_memory_log(log, plan, fullest, failed, capacity))

    def _simulator(self, plan: Plan, rng: np.random.Generator, *, slow: bool) -> StepSimulator:
        """The plan's steps, their passes jittering; with a straggler on one stage."""
        slow_ranks: tuple[tuple[int, float], ...] = ()
        if slow:
            slow_ranks = ((int(rng.integers(plan.pp)), float(rng.uniform(*_STRAGGLER_SLOWDOWN))),)
        randomness = replace(self._randomness, slow_ranks=slow_ranks)
        return StepSimulator(self._machine.job, plan, replace(PLAIN, randomness=randomness))

    def _measured(self, steps_s: Floats, peak_bytes: float, log: list[str]) -> Measured:
        n_steps = len(steps_s)
        log += [f"step {i + 1}/{n_steps}: {step_s:.4f} s" for i, step_s in enumerate(steps_s)]
        return Measured(
            step_s=float(np.median(steps_s)),
            step_spread_s=float(np.std(steps_s, ddof=1)) if n_steps > 1 else 0.0,
            peak_memory_bytes=peak_bytes,
            origin=self.origin,
            n_steps=n_steps,
            log_tail=tail("\n".join([*log, f"peak memory {gib(peak_bytes):.2f} GiB"])),
            effective={"trial_s": round(self._start_s + float(steps_s.sum()), 6)},
        )

    def _crash(self, plan: Plan, rng: np.random.Generator, log: list[str]) -> Failed:
        rank, step = int(rng.integers(plan.world_size)), int(rng.integers(1, self._n_steps + 1))
        words = f"rank {rank}: collective operation failed in step {step}: remote process exited"
        return self._fail(Cause.CRASH, f"rank {rank} ended with exit status 1", [*log, words])

    def _fail(self, cause: Cause, message: str, log: list[str]) -> Failed:
        return Failed(
            cause=cause, message=message, origin=self.origin, log_tail=tail("\n".join([*log, message]))
        )


def _load_named(name: str, job: Job) -> ExpertLoad:
    """A load of experts by its name, where there are experts; a histogram has no place in a study file."""
    choices = [ExpertLoad.AS_GIVEN, ExpertLoad.UNIFORM, ExpertLoad.ZIPF]
    if name not in choices:
        raise UnknownName("the simulated runner's expert_load", name, choices)
    must = "the simulated runner's expert_load needs a model with experts"
    check(name == ExpertLoad.AS_GIVEN or job.model.moe is not None, must, job.model.name)
    return ExpertLoad(name)


def _head(plan: Plan, profile: StageProfile) -> list[str]:
    layers = ", ".join(str(n) for n in profile.n_layers)
    return [f"plan: {plan.key}", f"{plan.world_size} ranks; layers of each stage: {layers}"]


def _out_of_memory_log(log: list[str], plan: Plan, stage: int, failed: Failed, capacity_bytes: float) -> str:
    """What a trainer writes as it dies: which rank asked for what, and what the device had."""
    inside = plan.tp * plan.cp * (plan.dp if plan.rank_order is RankOrder.TP_CP_DP_PP else 1)
    rank = stage * inside
    return tail("\n".join([
        *log,
        f"rank {rank}: step 1, stage {stage}: allocation failed",
        f"rank {rank}: OutOfMemoryError: device has {gib(capacity_bytes):.2f} GiB, all in use; "
        f"{gib(failed.short_bytes):.2f} GiB more are needed",
        f"rank {rank} ended with exit status 1; the other {plan.world_size - 1} ranks were stopped",
    ]))  # fmt: skip
