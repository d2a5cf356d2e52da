"""`TorchRunner`: plans really trained for a few steps on this machine's processes.

    client  ->  trial server (loads torch once)  ->  a trial, forked  ->  its ranks, forked from it

Built in a process of its own it tries plans through a server of its own; inside a trial server it forks.
"""

import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from objectives.cost.step import estimate
from objectives.cost.tokens import microbatches
from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Measured, Outcome, OutcomeOrigin
from objectives.simulator.schedules.csv_file import read_csv
from runners.oom_kills import killed_since, oom_kills
from runners.torch_trial.mesh import leaders
from runners.torch_trial.ranks import At, Body, Fate, run_ranks
from runners.torch_trial.supported import SCHEDULE_CLASSES, class_refusals, order_refusals, refusals
from runners.torch_trial.twin import Limits, Twin, most_ranks, same, too_large, too_many, twin
from runners.torch_trial.verdict import failed
from runners.trial_process import TrialProcess
from runners.trial_server import REQUESTED_S
from runners.verdicts import why_illegal
from search_spaces.errors import InvalidSpec, RunnerError, UnknownName, check
from search_spaces.local_cluster import MIN_DEVICES, local_cluster
from search_spaces.plan import Plan, Plans
from search_spaces.units import MILLION

SPIKE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a trial is run; see `TorchRunner`."""

    n_steps: int = 5
    n_warmup: int = 2
    seed: int = 0
    device: str = "auto"
    n_threads: int = 0
    step_limit_s: float = 60.0
    memory_limit_bytes: float = 0.0
    learning_rate: float = 1e-3
    compile: bool = False
    schedule_class: str = ""
    schedule_file: str = ""
    proxy: bool = False
    proxy_parameters: float = 20 * MILLION
    proxy_tokens: int = 8192
    fake_memory: bool = False
    profile: bool = False
    hsdp: int = 1

    def __post_init__(self) -> None:
        check(self.hsdp >= 1, "the torch runner's hsdp must be at least 1", self.hsdp)
        check(self.n_steps >= 1, "the torch runner's n_steps must be at least 1", self.n_steps)
        for name in ("n_warmup", "seed", "n_threads", "memory_limit_bytes", "learning_rate"):
            check(
                getattr(self, name) >= 0,
                f"the torch runner's {name} must not be negative",
                getattr(self, name),
            )
        check(
            0 < self.step_limit_s < math.inf,
            "the torch runner's step_limit_s must be positive",
            self.step_limit_s,
        )
        check(
            self.device in ("auto", "cpu", "cuda"),
            "the torch runner's device must be auto, cpu or cuda",
            self.device,
        )
        if self.schedule_class and self.schedule_class not in SCHEDULE_CLASSES:
            raise UnknownName("the torch runner's schedule_class", self.schedule_class, SCHEDULE_CLASSES)
        check(
            not (self.schedule_class and self.schedule_file),
            "the torch runner takes schedule_class or schedule_file",
            "both",
        )


class TorchRunner:
    """Trains each plan for `n_warmup` + `n_steps` steps and answers with the median of the latter.

    `device` auto takes CUDA or ROCm devices where there are enough, else CPU processes.  A rank that tells of
    no progress for `step_limit_s` hangs.  `n_threads` 0 shares the cores among the ranks;
    `memory_limit_bytes` bounds what a CPU rank may take beyond what it starts with (0: nothing does).
    `schedule_class` names one of torch's pipeline schedules, `schedule_file` a CSV file of one, to run
    instead of the plan's.  With `proxy` a plan that is too large for this machine runs as its twin of at
    most `proxy_parameters` and `proxy_tokens` a step, and the outcome says which; without, it is refused.
    With `hsdp` FSDP (zero 2 and 3) keeps so many replicas of what it shards.
    `fake_memory` also counts the peak on fake tensors, `profile` the seconds of exchanges in one more step.
    """

    origin = OutcomeOrigin.MEASURED

    def __init__(  # noqa: PLR0913 - the options of a recipe, flat because they are written in a study file
        self,
        job: Job,
        *,
        n_steps: int = 5,
        n_warmup: int = 2,
        seed: int = 0,
        device: str = "auto",
        n_threads: int = 0,
        step_limit_s: float = 60.0,
        memory_limit_bytes: float = 0.0,
        learning_rate: float = 1e-3,
        compile: bool = False,  # noqa: A002 - the option's name in a study file
        schedule_class: str = "",
        schedule_file: str = "",
        proxy: bool = False,
        proxy_parameters: float = 20 * MILLION,
        proxy_tokens: int = 8192,
        fake_memory: bool = False,
        profile: bool = False,
        hsdp: int = 1,
    ) -> None:
        self._job = job
        self._options = Options(
            n_steps=n_steps,
            n_warmup=n_warmup,
            seed=seed,
            device=device,
            n_threads=n_threads,
            step_limit_s=step_limit_s,
            memory_limit_bytes=memory_limit_bytes,
            learning_rate=learning_rate,
            compile=compile,
            schedule_class=schedule_class,
            schedule_file=schedule_file,
            proxy=proxy,
            proxy_parameters=proxy_parameters,
            proxy_tokens=proxy_tokens,
            fake_memory=fake_memory,
            profile=profile,
            hsdp=hsdp,
        )
        self._order = read_csv(Path(schedule_file)) if schedule_file else None
        self._worker: Any = None

    def warm_up(self) -> None:
        """Load torch, so that trials forked from this process have it.

        Raises
        ------
        RunnerError
            torch is not installed.
        """
        try:
            self._worker = import_module("runners.torch_trial.worker")
        except ModuleNotFoundError as error:
            hint = "install meshtune[torch]"
            raise RunnerError("the torch runner needs torch", f"no module {error.name}", hint=hint) from None
        self._worker.prepare()

    def of_job(self, job: Job) -> "TorchRunner":
        """The same options and the torch that is loaded, for another job."""
        other = copy(self)
        other._job = job
        return other

    def run(self, plans: Plans, *, attempt: int = 0) -> Sequence[Outcome]:
        """Train every plan, one after the other."""
        if self._worker is not None:
            return [self._refuse(plan) or self._try(plan) for plan in plans]
        server = TrialProcess(self)  # starts with the first plan
        try:
            return [self._refuse(plan) or server.run(plan, attempt=attempt) for plan in plans]
        finally:
            server.close()

    def _refuse(self, plan: Plan) -> Failed | None:
        """Before any process starts."""
        if illegal := why_illegal(self._job, plan, self.origin):
            return illegal
        own = () if self._options.proxy else self._unfit(self._job, plan)
        for reason in (*refusals(self._job.model, self._job.workload, plan), *own):
            return self._invalid(reason)
        if self._options.device == "cpu" and not self._options.proxy and plan.world_size > most_ranks():
            return self._invalid(str(_does_not_fit(too_many(plan, most_ranks()))))
        return None

    def _unfit(self, job: Job, plan: Plan) -> Iterator[str]:
        """Why what the options ask for cannot run this plan."""
        copies, hsdp = plan.dp * plan.cp, self._options.hsdp
        if plan.zero >= 2 and copies % hsdp:
            yield f"the built-in trainer shards over equal replicas: hsdp={hsdp} of {copies} copies"
        if plan.pp == 1:
            return
        if self._options.schedule_class:
            yield from class_refusals(plan, self._options.schedule_class)
        if self._order is not None:
            n_microbatches = int(microbatches(job, Plans.of([plan]))[0])
            yield from order_refusals(plan, n_microbatches, self._order)

    def _invalid(self, reason: str) -> Failed:
        return Failed(cause=Cause.INVALID, message=reason, origin=self.origin)

    def effective_key(self, plan: Plan, machine: Mapping[str, Any] | None = None) -> str | None:
        """The key that the plan's outcome will carry on a machine (None: the CPU of this one)."""
        if self._refuse(plan) is not None:
            return None
        try:
            return self._within_limits(plan, machine or _cpus()).key
        except InvalidSpec:
            return None

    def _try(self, plan: Plan) -> Outcome:
        device = self._device(plan)
        machine = _cpus() if device == "cpu" else {"kind": device, "n_ranks": self._worker.device_count()}
        try:
            ran = self._within_limits(plan, machine)
        except InvalidSpec as error:
            return self._invalid(str(error))
        for reason in (*refusals(ran.job.model, ran.job.workload, ran.plan), *self._unfit(ran.job, ran.plan)):
            return self._invalid(reason)
        begun_s = time.perf_counter()
        orders = self._orders(ran, device)
        outcome = self._launch(orders, ran)
        effective = {
            "key": ran.key,
            "plan": ran.plan.key,
            "device": self._worker.device_name(device),
            "machine": machine,
            "backend": self._worker.BACKENDS[device],
            "n_threads": orders.n_threads,
            "hsdp": orders.setting.hsdp,
            "proxy": {name: list(pair) for name, pair in ran.differs.items()},
            "predicted": _predicted(ran, device),
            "trial_s": round(time.perf_counter() - begun_s, 3),
            **self._worker.versions(),
        }
        return replace(outcome, effective={**effective, **outcome.effective})

    def _within_limits(self, plan: Plan, machine: Mapping[str, Any]) -> Twin:
        """The job itself where the machine takes it, else its twin.

        Raises
        ------
        InvalidSpec
            It is too large, and no proxy was asked for or none is small enough.
        """
        options, job, n_ranks = self._options, self._job.of_plan(plan), int(machine["n_ranks"])
        needed_bytes = float(estimate(job, Plans.of([plan])).peak_memory_bytes[0]) * plan.world_size
        host_bytes = float(machine.get("host_bytes", math.inf))
        words = too_large(plan, n_ranks=n_ranks, needed_bytes=needed_bytes, host_bytes=host_bytes)
        if not words:
            return same(job, plan)
        if not options.proxy:
            raise _does_not_fit(words)
        limits = Limits(n_ranks=n_ranks, parameters=options.proxy_parameters, tokens=options.proxy_tokens)
        return twin(job, plan, limits)

    def _orders(self, ran: Twin, device: str) -> Any:
        options, worker = self._options, self._worker
        setting = worker.Setting(
            model=ran.job.model,
            workload=ran.job.workload,
            plan=ran.plan,
            seed=options.seed,
            device=device,
            learning_rate=options.learning_rate,
            compiles=options.compile,
            schedule_class=options.schedule_class,
            schedule_file=options.schedule_file,
            hsdp=options.hsdp if ran.plan.zero >= 2 else 1,
        )
        return worker.Orders(
            setting=setting,
            n_steps=options.n_steps,
            n_warmup=options.n_warmup,
            n_threads=options.n_threads or max(len(os.sched_getaffinity(0)) // ran.plan.world_size, 1),
            silence_s=options.step_limit_s,
            memory_limit_bytes=options.memory_limit_bytes,
            profiles=options.profile,
        )

    def _launch(self, orders: Any, ran: Twin) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="meshtune-") as name:
            folder, kills = Path(name), oom_kills()
            body = partial(_train, self._worker, orders, folder)
            fate = self._run_ranks(ran.plan.world_size, body, folder, orders.silence_s)
            if fate.culprit:
                memory_ran_out = killed_since(kills)
                return failed(
                    fate,
                    ran.plan,
                    limit_s=orders.silence_s,
                    memory_ran_out=memory_ran_out,
                    origin=self.origin,
                )
            fake = self._fake_memory(orders, ran, folder) if self._options.fake_memory else {}
            return self._measured(fate, ran, fake)

    def _run_ranks(self, n_ranks: int, body: Body, folder: Path, silence_s: float) -> Fate:
        return run_ranks(n_ranks, body, explain=self._worker.explain, folder=folder, silence_s=silence_s)

    def _fake_memory(self, orders: Any, ran: Twin, folder: Path) -> dict[str, Any]:
        """Peak bytes by kind of the stage with the highest peak, or why they cannot be counted."""
        counts = []
        for rank in leaders(ran.plan):
            body = partial(_count, self._worker, orders, folder, rank)
            fate = self._run_ranks(1, body, folder, orders.silence_s)
            (process,) = fate.ranks
            if process.done is None:
                words = process.broken.message if process.broken else f"no answer at {process.at.place}"
                return {"trouble": f"rank {rank}: {words}"}
            counts.append({"rank": rank, **process.done.value})
        return max(counts, key=lambda each: float(each["total"]))

    def _device(self, plan: Plan) -> str:
        """CUDA where there are enough devices, or, for a proxy, any."""
        if self._options.device != "auto":
            return self._options.device
        needed = 1 if self._options.proxy else plan.world_size
        return "cuda" if self._worker.device_count() >= needed else "cpu"

    def _measured(self, fate: Fate, ran: Twin, fake: Mapping[str, Any]) -> Measured:
        """The slowest rank's seconds of every step; median and spread of those behind the warm-up."""
        findings = [rank.done.value for rank in fate.ranks if rank.done]
        every_s = [max(steps_s) for steps_s in zip(*(each.steps_s for each in findings), strict=True)]
        steps_s = every_s[self._options.n_warmup :]
        step_s = statistics.median(steps_s)
        busy_s = [sum(ranks_s) for ranks_s in zip(*(each.busy_s for each in findings), strict=True)]
        peaks = {name: max(each.peak_bytes[name] for each in findings) for name in findings[0].peak_bytes}
        sources = {**peaks, **({"fake": fake["total"]} if "total" in fake else {})}
        exchanged = [each.communication for each in findings if each.communication is not None]
        return Measured(
            step_s=step_s,
            step_spread_s=statistics.stdev(steps_s) if len(steps_s) > 1 else 0.0,
            peak_memory_bytes=peaks.get("allocated", peaks["resident"]),
            origin=self.origin,
            n_steps=len(steps_s),
            energy_j=_energy_j(findings, len(steps_s)),
            effective={
                "steps_s": [round(each, 6) for each in every_s],
                "n_warmup": self._options.n_warmup,
                "busy_s": round(statistics.median(busy_s[self._options.n_warmup :]), 6),
                "spikes": [i for i, each in enumerate(every_s) if each > SPIKE * step_s],
                "tokens_per_s": round(ran.job.workload.tokens_per_step / step_s, 1),
                "losses": [round(each, 6) for each in findings[0].losses],
                "peak_bytes": sources,
                "ready_s": _ready_s(findings),
                "build_s": round(max(each.build_s for each in findings), 3),
                **({"fake_bytes": dict(fake)} if fake else {}),
                **({"communication": _communication(exchanged)} if exchanged else {}),
            },
        )


def _energy_j(findings: Sequence[Any], n_steps: int) -> float | None:
    """Joules of a step of all devices: every rank's own, or all processors' by the first; or nothing."""
    known = [each.energy_j for each in findings if each.energy_j is not None]
    whole = len(known) == len(findings) or (bool(known) and findings[0].energy_j is not None)
    return sum(known) / n_steps if whole else None


def _does_not_fit(words: str) -> InvalidSpec:
    hint = "the runner's option proxy=true tries a smaller twin"
    return InvalidSpec("a plan must fit this machine", words, hint=hint)


def _train(worker: Any, orders: Any, folder: Path, rank: int, tell: Any) -> Any:
    return worker.train(orders, rank, tell, folder=folder)


def _count(worker: Any, orders: Any, folder: Path, of_rank: int, rank: int, tell: Any) -> Any:
    del rank  # this process is the only one and stands for another
    tell(At(place="counting on fake tensors"))
    return worker.count_on_fake_tensors(orders.setting, of_rank, folder)


def _cpus() -> dict[str, Any]:
    """What of this machine decides whether a plan runs as it is."""
    return {"kind": "cpu", "n_ranks": most_ranks(), "host_bytes": float(psutil.virtual_memory().total)}


def _predicted(ran: Twin, device: str) -> dict[str, float]:
    """What the cost model expects of the thing that ran, on this machine's cluster if it ran on the CPU."""
    job = ran.job
    if device == "cpu":
        job = replace(job, cluster=local_cluster().with_devices(max(ran.plan.world_size, MIN_DEVICES)))
    found = estimate(job, Plans.of([ran.plan]))
    return {
        "step_s": float(found.step_s[0]),
        "peak_memory_bytes": float(found.peak_memory_bytes[0]),
    }


def _ready_s(findings: Sequence[Any]) -> float | None:
    """Seconds from the request for the trial until its ranks had met; None where nobody tells when it was."""
    requested_s = os.environ.get(REQUESTED_S)
    if requested_s is None:
        return None
    return round(max(float(each.joined_s) for each in findings) - float(requested_s), 4)


def _communication(ranks: Sequence[Any]) -> dict[str, Any]:
    """Of the rank that spent the most seconds in exchanges."""
    most = max(ranks, key=lambda each: float(each.total_s))
    return {
        "total_s": round(most.total_s, 6),
        "step_s": round(most.step_s, 6),
        "by_kind_s": {name: round(value, 6) for name, value in sorted(most.by_kind_s.items())},
    }
