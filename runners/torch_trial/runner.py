"""`TorchRunner`: plans really trained for a few steps on this machine's processes.

    client  ->  trial server (loads torch once)  ->  a trial, forked  ->  its ranks, forked from it

Built in a process of its own it tries plans through a server of its own; inside a trial server it forks.
"""

import math
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Measured, Outcome, OutcomeOrigin
from runners.torch_trial.ranks import Fate, Rank, run_ranks
from runners.torch_trial.supported import refusals
from runners.torch_trial.twin import Limits, Twin, most_ranks, same, too_large, too_many, twin
from runners.trial_process import TrialProcess
from runners.verdicts import why_illegal
from search_spaces.errors import InvalidSpec, RunnerError, check
from search_spaces.plan import Plan, Plans
from search_spaces.units import MILLION

SPIKE = 1.5
_CAUSES = {
    "out of memory": Cause.OUT_OF_MEMORY,
    "nan loss": Cause.NAN_LOSS,
    "collective": Cause.COLLECTIVE_TIMEOUT,
    "error": Cause.CRASH,
}


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

    def __post_init__(self) -> None:
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


class TorchRunner:
    """Trains each plan for `n_warmup` + `n_steps` steps and answers with the median of the latter.

    `device` auto takes CUDA or ROCm devices where there are enough, else CPU processes.  A rank that tells of
    no progress for `step_limit_s` hangs.  `n_threads` 0 shares the cores among the ranks;
    `memory_limit_bytes` bounds what a CPU rank may take beyond what it starts with (0: nothing does).
    `schedule_class` names one of torch's pipeline schedules, `schedule_file` a CSV file of one, to run
    instead of the plan's.  With `proxy` a plan that is too large for this machine runs as its twin of at
    most `proxy_parameters` and `proxy_tokens` a step, and the outcome says which; without, it is refused.
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
        )
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
        for reason in refusals(self._job.model, self._job.workload, plan):
            return self._invalid(reason)
        if self._options.device == "cpu" and not self._options.proxy and plan.world_size > most_ranks():
            return self._invalid(str(_does_not_fit(too_many(plan, most_ranks()))))
        return None

    def _invalid(self, reason: str) -> Failed:
        return Failed(cause=Cause.INVALID, message=reason, origin=self.origin)

    def _try(self, plan: Plan) -> Outcome:
        device = self._device(plan)
        try:
            ran = self._within_limits(plan, device)
        except InvalidSpec as error:
            return self._invalid(str(error))
        for reason in refusals(ran.job.model, ran.job.workload, ran.plan):
            return self._invalid(reason)
        begun_s = time.perf_counter()
        orders = self._orders(ran, device)
        outcome = self._launch(orders, ran)
        effective = {
            "plan": ran.plan.key,
            "device": self._worker.device_name(device),
            "backend": self._worker.BACKENDS[device],
            "n_threads": orders.n_threads,
            "proxy": {name: list(pair) for name, pair in ran.differs.items()},
            "trial_s": round(time.perf_counter() - begun_s, 3),
            **self._worker.versions(),
        }
        return replace(outcome, effective={**effective, **outcome.effective})

    def _within_limits(self, plan: Plan, device: str) -> Twin:
        """The job itself where this machine takes it, else its twin.

        Raises
        ------
        InvalidSpec
            It is too large, and no proxy was asked for or none is small enough.
        """
        options, job = self._options, self._job
        n_ranks = most_ranks() if device == "cpu" else self._worker.device_count()
        needed_bytes = float(estimate(job, Plans.of([plan])).peak_memory_bytes[0]) * plan.world_size
        host_bytes = float(psutil.virtual_memory().total) if device == "cpu" else math.inf
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
        )
        return worker.Orders(
            setting=setting,
            n_steps=options.n_steps,
            n_warmup=options.n_warmup,
            n_threads=options.n_threads or max(len(os.sched_getaffinity(0)) // ran.plan.world_size, 1),
            silence_s=options.step_limit_s,
            memory_limit_bytes=options.memory_limit_bytes,
        )

    def _launch(self, orders: Any, ran: Twin) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="meshtune-") as folder:
            fate = run_ranks(
                ran.plan.world_size,
                partial(_train, self._worker, orders, Path(folder)),
                explain=self._worker.explain,
                folder=Path(folder),
                silence_s=orders.silence_s,
            )
            return self._failed(fate) if fate.culprit else self._measured(fate, ran)

    def _device(self, plan: Plan) -> str:
        """CUDA where there are enough devices, or, for a proxy, any."""
        if self._options.device != "auto":
            return self._options.device
        needed = 1 if self._options.proxy else plan.world_size
        return "cuda" if self._worker.device_count() >= needed else "cpu"

    def _failed(self, fate: Fate) -> Failed:
        culprit = fate.culprit
        assert culprit is not None
        cause, message = _verdict(culprit, fate, self._options.step_limit_s)
        return Failed(cause=cause, message=message, origin=self.origin, log_tail=culprit.last_lines)

    def _measured(self, fate: Fate, ran: Twin) -> Measured:
        """The slowest rank's seconds of every step; median and spread of those behind the warm-up."""
        findings = [rank.done.value for rank in fate.ranks if rank.done]
        every_s = [max(steps_s) for steps_s in zip(*(each.steps_s for each in findings), strict=True)]
        steps_s = every_s[self._options.n_warmup :]
        step_s = statistics.median(steps_s)
        busy_s = [sum(ranks_s) for ranks_s in zip(*(each.busy_s for each in findings), strict=True)]
        peaks = {name: max(each.peak_bytes[name] for each in findings) for name in findings[0].peak_bytes}
        return Measured(
            step_s=step_s,
            step_spread_s=statistics.stdev(steps_s) if len(steps_s) > 1 else 0.0,
            peak_memory_bytes=peaks.get("allocated", peaks["resident"]),
            origin=self.origin,
            n_steps=len(steps_s),
            effective={
                "steps_s": [round(each, 6) for each in every_s],
                "n_warmup": self._options.n_warmup,
                "busy_s": round(statistics.median(busy_s[self._options.n_warmup :]), 6),
                "spikes": [i for i, each in enumerate(every_s) if each > SPIKE * step_s],
                "tokens_per_s": round(ran.job.workload.tokens_per_step / step_s, 1),
                "losses": [round(each, 6) for each in findings[0].losses],
                "peak_bytes": peaks,
                "build_s": round(max(each.build_s for each in findings), 3),
            },
        )


def _does_not_fit(words: str) -> InvalidSpec:
    hint = "the runner's option proxy=true tries a smaller twin"
    return InvalidSpec("a plan must fit this machine", words, hint=hint)


def _train(worker: Any, orders: Any, folder: Path, rank: int, tell: Any) -> Any:
    return worker.train(orders, rank, tell, folder=folder)


def _verdict(culprit: Rank, fate: Fate, limit_s: float) -> tuple[Cause, str]:
    who = f"rank {culprit.number}"
    if fate.hangs:
        return Cause.HANG, f"{who} told of no progress for {limit_s:g} s at {culprit.at.place}"
    if culprit.broken is not None:
        return _CAUSES[culprit.broken.kind], f"{who} at {culprit.at.place}: {culprit.broken.message}"
    status = culprit.status or 0
    how = (
        f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
    )
    return Cause.CRASH, f"{who} {how} at {culprit.at.place}"
