"""The process that speaks to Ray, so that whatever happens to Ray never happens to the study.

`RayExecutor` starts it and talks to it over a pipe.  When the pipe closes, for whatever reason, it stops the
Ray it started and everything below it, and ends.  When its Ray dies it ends too, and another is started.
"""

import contextlib
import importlib.util
import logging
import os
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import psutil
import ray

from objectives.outcome import Cause, Failed
from runners.on_ray_words import Done, HostOptions, Lost, Ready, Submit
from runners.on_ray_workers import Worker, Workers, ask_accelerators, node_of, release, reserve
from runners.trial_server import adopt_orphans, kill_descendants
from search_spaces.errors import MeshtuneError, RunnerError
from search_spaces.units import MB

OBJECT_STORE_BYTES = int(100 * MB)  # plans and outcomes are kilobytes; Ray's default is a third of the memory
_POLL_S, _SHORTEST_POLL_S = 0.05, 0.002
_FIRST_PATIENCE_S, _LAST_PATIENCE_S = 0.015, 0.5
_NEWS_MS = 10  # how often a node says what is free: Ray's default of 100 would be most of a short trial
_PROBE_S = 5.0
_VITAL = ("gcs_server", "raylet")


class RayDied(Exception):
    """The embedded Ray lost a process that it cannot live without."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Trial:
    """A trial in flight: its group, what it waits for (None: room in the cluster), and its worker."""

    submit: Submit
    group: Any
    reserved_s: float
    patience_s: float = _FIRST_PATIENCE_S
    node: str = ""
    waits_for: Any = None
    worker: Worker | None = None
    deadline_s: float = float("inf")

    @property
    def pause_s(self) -> float:
        """How long until it is worth looking again: room is there at once, or not for long."""
        if self.waits_for is not None:
            return _POLL_S
        return min(max((time.monotonic() - self.reserved_s) / 10, _SHORTEST_POLL_S), _POLL_S)


class Host:
    """The loop between the pipe and Ray."""

    def __init__(self, link: Connection, options: HostOptions) -> None:
        self._link, self._options = link, options
        self._trials: list[_Trial] = []
        self._workers = Workers(options.source, options.n_slots)
        self._vital = [
            p for p in psutil.Process().children() if options.address is None and p.name() in _VITAL
        ]

    def run(self) -> None:
        """Work until the executor hangs up (EOFError) or Ray is dead (RayDied)."""
        while True:
            while self._link.poll(0 if self._trials else 10 * _POLL_S):
                self._start(self._link.recv())
            self._check_alive()
            for trial in self._arrived():
                self._advance(trial)
            for trial in list(self._trials):
                self._check_deadline(trial)

    def close(self) -> None:
        """Leave nothing on a cluster that goes on; an embedded Ray's folder goes as a whole."""
        if self._options.address is not None:
            self._workers.close()

    def _start(self, submit: Submit) -> None:
        group = reserve(self._options.reservation)
        self._trials.append(_Trial(submit=submit, group=group, reserved_s=time.monotonic()))

    def _arrived(self) -> list[_Trial]:
        """Trials that wait for room, and one whose answer is there, after a pause if there is none."""
        promises = [trial.waits_for for trial in self._trials if trial.waits_for is not None]
        pause_s = min((trial.pause_s for trial in self._trials), default=0.0)
        if not promises:
            time.sleep(pause_s)
        ready = ray.wait(promises, timeout=pause_s)[0] if promises else []
        return [trial for trial in self._trials if trial.waits_for is None or trial.waits_for in ready]

    def _advance(self, trial: _Trial) -> None:
        """The next step: the group is placed, its accelerators are known, or the worker has answered."""
        try:
            if trial.waits_for is None:
                self._place(trial)
                return
            answer = ray.get(trial.waits_for)
            if trial.worker is None:
                self._call(trial, environment=answer)
                return
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, MeshtuneError) else _worker_trouble(error) from None
        except (ray.exceptions.RayError, OSError) as error:
            if _never_began(error):
                raise _worker_trouble(error) from None
            self._end(trial, kill=True)
            self._link.send(Lost(ticket=trial.submit.ticket, message=_first_line(error)))
            return
        self._end(trial)
        self._link.send(Done(ticket=trial.submit.ticket, outcome=answer))

    def _place(self, trial: _Trial) -> None:
        node = node_of(trial.group)
        if node is None:
            self._reserve_again(trial)
            return
        trial.node = node
        trial.waits_for = ask_accelerators(trial.group, self._options.reservation)
        if trial.waits_for is None:
            self._call(trial, environment={})

    def _reserve_again(self, trial: _Trial) -> None:
        """Ray looks at a new group at once, and again only after a second: long, if a trial ended just now.

        So a few times a group without room is given up for a new one, ever later; then it keeps its place.
        """
        now_s = time.monotonic()
        if trial.patience_s <= _LAST_PATIENCE_S and now_s > trial.reserved_s + trial.patience_s:
            release(trial.group)
            trial.group, trial.reserved_s = reserve(self._options.reservation), now_s
            trial.patience_s *= 2

    def _call(self, trial: _Trial, *, environment: dict[str, str]) -> None:
        submit, limit_s = trial.submit, self._options.time_limit_s
        trial.worker = self._workers.take(trial.node)
        run = trial.worker.actor.run.remote
        trial.waits_for = run(submit.plan, submit.job, submit.attempt, limit_s, environment)
        if limit_s is not None:
            trial.deadline_s = time.monotonic() + limit_s + self._options.grace_s

    def _check_deadline(self, trial: _Trial) -> None:
        """The outer limit: the worker did not keep the inner one, so it is killed with its trial."""
        if time.monotonic() < trial.deadline_s:
            return
        limit_s = self._options.time_limit_s
        self._end(trial, kill=True)
        message = f"the trial did not end within {limit_s:g} s and its worker did not answer"
        failed = Failed(cause=Cause.TIMEOUT, message=message, origin=self._options.source.origin)
        self._link.send(Done(ticket=trial.submit.ticket, outcome=failed))

    def _end(self, trial: _Trial, *, kill: bool = False) -> None:
        """Give back what a trial had; its worker too, unless it has to be killed."""
        self._trials.remove(trial)
        if trial.worker is not None:
            (self._workers.end if kill else self._workers.give_back)(trial.worker)
        release(trial.group)

    def _check_alive(self) -> None:
        """Ray's client may wait for ever for an embedded Ray that is dead; so look at its processes."""
        for process in self._vital:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise RayDied(process.name())


def _never_began(error: BaseException) -> bool:
    """Whether a worker could not even be made: not by chance, and so not on the next try either."""
    return isinstance(error, ray.exceptions.ActorDiedError) and "its creation task" in str(error)


def _worker_trouble(error: BaseException) -> RunnerError:
    return RunnerError(
        "a Ray worker must be able to run trials",
        str(error).strip().splitlines()[-1],
        hint="every node needs the same Python and the same Meshtune",
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"


def start_ray(options: HostOptions) -> None:
    """An embedded Ray for this study, or the user's own at an address."""
    common = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": None}
    if options.address is not None:
        _probe(options.address)
        ray.init(address=options.address, namespace="meshtune", **common)
        _check_room(options)
        return
    total = {name: amount * options.n_slots for name, amount in options.reservation.total.items()}
    cpus, gpus = total.pop("CPU", 0.0), total.pop("GPU", 0.0)
    ray.init(
        address="local",
        num_cpus=max(1, round(cpus)),
        num_gpus=round(gpus),
        resources=total,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=options.temp_dir,
        _system_config={"raylet_report_resources_period_milliseconds": _NEWS_MS},
        **{**common, "include_dashboard": False},
    )


def _probe(address: str) -> None:
    """Fail soon, and in words, where nothing listens."""
    scheme, _, rest = address.rpartition("://")
    name, _, port = rest.rpartition(":")
    way_out = "start Ray there with `ray start --head`, or leave the address out"
    if not name or not port.isdigit():
        raise RunnerError("Ray's address must be HOST:PORT or ray://HOST:PORT", repr(address), hint=way_out)
    if scheme == "ray" and importlib.util.find_spec("grpc") is None:
        raise RunnerError(
            "a ray:// address needs Ray's client", "no grpcio", hint="pip install 'ray[client]'"
        )
    try:
        socket.create_connection((name, int(port)), timeout=_PROBE_S).close()
    except OSError as error:
        raise RunnerError(f"Ray must answer at {address}", str(error), hint=way_out) from None


def _check_room(options: HostOptions) -> None:
    has, asked = ray.cluster_resources(), options.reservation.total
    if any(has.get(name, 0.0) < amount for name, amount in asked.items()):
        given = ", ".join(f"{name} {has.get(name, 0.0):g}" for name in asked)
        wanted = ", ".join(f"{name} {amount:g}" for name, amount in asked.items())
        raise RunnerError(f"the Ray cluster must have room for one trial: {wanted}", given)


def _leave(options: HostOptions, *, politely: bool = True) -> NoReturn:
    """End everything below, politely at first, and this process without waiting for Ray's threads."""
    with contextlib.suppress(Exception):
        if politely:
            ray.shutdown()
    kill_descendants(os.getpid())
    shutil.rmtree(options.temp_dir, ignore_errors=True)
    os._exit(0)


def main() -> None:
    """Entry point: the number of the inherited pipe is the only argument."""
    adopt_orphans()
    link = Connection(int(sys.argv[1]))
    options: HostOptions = link.recv()
    try:
        start_ray(options)
        link.send(Ready())
        with contextlib.closing(Host(link, options)) as host:
            host.run()
    except RayDied:
        _leave(options, politely=False)  # Ray's own farewell would wait for the dead
    except (EOFError, BrokenPipeError, ConnectionResetError):
        logging.getLogger(__name__).info("the executor is gone")
    except Exception as error:  # noqa: BLE001 - a process border: Ray raises what it likes
        _report(link, options, error)
    _leave(options)


def _report(link: Connection, options: HostOptions, error: Exception) -> None:
    where = options.address or "this machine"
    trouble = (
        error
        if isinstance(error, MeshtuneError)
        else RunnerError(f"Ray must run at {where}", _first_line(error))
    )
    with contextlib.suppress(OSError):
        link.send(trouble)


if __name__ == "__main__":
    main()
