"""Runners that really do what trials do at their worst; importable, so other processes build them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from objectives.outcome import Cause, Failed, Measured, OutcomeOrigin
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Plan

GOOD, OOM, EXIT, RAISE, KILLED, SLEEP, LEAK, LOST = (Plan(micro_batch=i) for i in range(1, 9))
A_WHILE_S = 60.0


@dataclass
class Misbehaving:
    """Writes `name attempt pid` of every try into the diary, then does what the plan stands for."""

    diary: Path
    patience_s: float = 0.0
    origin: OutcomeOrigin = field(default=OutcomeOrigin.MEASURED, init=False)

    def run(self, plans, *, attempt=0):
        return [self.try_one(plan, attempt) for plan in plans]

    def try_one(self, plan, attempt):
        with self.diary.open("a") as diary:
            diary.write(f"{plan.micro_batch} {attempt} {os.getpid()}\n")
        time.sleep(self.patience_s)
        match plan.micro_batch:
            case OOM.micro_batch:
                return Failed(
                    cause=Cause.OUT_OF_MEMORY, message="too big", origin=self.origin, short_bytes=1.0
                )
            case EXIT.micro_batch:
                print("about to leave", flush=True)
                os._exit(7)
            case RAISE.micro_batch:
                raise ValueError("a bug in the trial")
            case KILLED.micro_batch:
                os.kill(os.getpid(), signal.SIGKILL)
            case SLEEP.micro_batch:
                print("still here", flush=True)
                time.sleep(A_WHILE_S)
            case LEAK.micro_batch:
                leaked = subprocess.Popen(["sleep", f"{A_WHILE_S:g}"], start_new_session=True)
                self.diary.with_suffix(".leaked").write_text(str(leaked.pid))
            case LOST.micro_batch:
                return Failed(cause=Cause.LOST_MACHINE, message="the node is gone", origin=self.origin)
        return Measured(step_s=1.0, step_spread_s=0.0, peak_memory_bytes=1.0, origin=self.origin)

    def tries(self, plan):
        """(attempt, pid) of every try of a plan so far."""
        lines = [line.split() for line in self.diary.read_text().splitlines()] if self.diary.exists() else []
        return [(int(attempt), int(pid)) for name, attempt, pid in lines if int(name) == plan.micro_batch]

    def attempts(self, plan):
        return [attempt for attempt, _ in self.tries(plan)]

    def wait_for_try(self, plan, n_tries=1, timeout_s=60.0):
        """Id of the process that has begun the n-th try of a plan."""
        deadline = time.monotonic() + timeout_s
        while len(self.tries(plan)) < n_tries:
            assert time.monotonic() < deadline, f"no try {n_tries} of {plan.key}"
            time.sleep(0.02)
        return self.tries(plan)[n_tries - 1][1]


class Seeing(Misbehaving):
    """Says which accelerators it may use."""

    def try_one(self, plan, attempt):
        return replace(super().try_one(plan, attempt), log_tail=os.environ.get("CUDA_VISIBLE_DEVICES", "any"))


class Unbuildable(Misbehaving):
    """Fails as soon as another process unpickles it."""

    def __reduce__(self):
        return (refuse, ())


def refuse():
    raise InvalidSpec("a runner must be buildable", "one that is not")


def collect(executor, n_outcomes, timeout_s=90.0):
    """Outcomes by ticket, in the order of their arrival."""
    arrived, deadline = {}, time.monotonic() + timeout_s
    while len(arrived) < n_outcomes:
        assert time.monotonic() < deadline, f"only {arrived} arrived"
        for ticket, outcome in executor.wait(timeout_s=1.0):
            assert ticket not in arrived, "an outcome came twice"
            arrived[ticket] = outcome
    return arrived


def gone(pids, timeout_s=60.0):
    """Whether none of the processes is left (a zombie is gone: it only waits to be read)."""
    deadline = time.monotonic() + timeout_s
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            print("left:", [pid for pid in pids if alive(pid)], file=sys.stderr)
            return False
        time.sleep(0.05)
    return True


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def below(pid):
    """Ids of all processes below one."""
    return [process.pid for process in psutil.Process(pid).children(recursive=True)]
