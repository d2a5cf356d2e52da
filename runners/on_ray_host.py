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
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from objectives.outcome import Cause, Failed, Outcome
from runners.on_ray_words import Done, HostOptions, Lost, Ready, Submit
from runners.protocol import RunnerSource
from runners.trial_process import ProcessLost, TrialProcess
from runners.trial_server import adopt_orphans, kill_descendants
from search_spaces.errors import MeshtuneError, RunnerError
from search_spaces.plan import Plan
from search_spaces.units import MB

OBJECT_STORE_BYTES = int(100 * MB)  # plans and outcomes are kilobytes; Ray's default is a third of the memory
_POLL_S = 0.05
_PROBE_S = 5.0
_VITAL = ("gcs_server", "raylet")


class RayDied(Exception):
    """The embedded Ray lost a process that it cannot live without."""


class TrialActor:
    """A slot's worker: keeps a warm process for trials on its node."""

    def __init__(self, source: RunnerSource) -> None:
        self._source = source
        self._process = TrialProcess(source)

    def run(self, plan: Plan, attempt: int, time_limit_s: float | None) -> Outcome:
        """What came of the plan; a trial process killed from outside is a lost machine."""
        try:
            return self._process.run(plan, attempt=attempt, time_limit_s=time_limit_s)
        except ProcessLost as lost:
            return Failed(cause=Cause.LOST_MACHINE, message=str(lost), origin=self._source.origin)


@dataclass(slots=True, kw_only=True, eq=False)
class _Slot:
    """A placement group, the actor in it once the group is ready, and the trial it has."""

    group: Any
    waits_for: Any
    trial: Submit | None
    actor: Any = None
    deadline_s: float = float("inf")


class Host:
    """The loop between the pipe and Ray."""

    def __init__(self, link: Connection, options: HostOptions) -> None:
        self._link, self._options = link, options
        self._slots: list[_Slot] = []
        self._vital = [
            p for p in psutil.Process().children() if options.address is None and p.name() in _VITAL
        ]

    def run(self) -> None:
        """Work until the executor hangs up (EOFError) or Ray is dead (RayDied)."""
        while True:
            busy = [slot for slot in self._slots if slot.trial]
            while self._link.poll(0 if busy else 10 * _POLL_S):
                busy.append(self._start(self._link.recv()))
            self._check_alive()
            if busy:
                ready, _ = ray.wait([slot.waits_for for slot in busy], timeout=_POLL_S)
                for slot in busy:
                    if slot.waits_for in ready:
                        self._advance(slot)
            for slot in busy:
                self._check_deadline(slot)

    def _start(self, trial: Submit) -> _Slot:
        for slot in self._slots:
            if slot.trial is None:
                slot.trial = trial
                self._call(slot)
                return slot
        asked = self._options.reservation
        group = placement_group([dict(bundle) for bundle in asked.bundles], strategy=asked.strategy)
        slot = _Slot(group=group, waits_for=group.ready(), trial=trial)
        self._slots.append(slot)
        return slot

    def _advance(self, slot: _Slot) -> None:
        """The group is ready: put the actor in; or the actor has answered: pass it on."""
        trial = slot.trial
        assert trial is not None
        try:
            answer = ray.get(slot.waits_for)
            if slot.actor is None:
                slot.actor = self._actor_in(slot.group)
                self._call(slot)
                return
            slot.trial = None
            self._link.send(Done(ticket=trial.ticket, outcome=answer))
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, MeshtuneError) else _worker_trouble(error) from None
        except (ray.exceptions.RayError, OSError) as error:
            self._drop(slot)
            self._link.send(Lost(ticket=trial.ticket, message=_first_line(error)))

    def _actor_in(self, group: Any) -> Any:
        bundle = dict(self._options.reservation.bundles[0])
        remote = ray.remote(TrialActor).options(
            num_cpus=bundle.pop("CPU", 0),
            num_gpus=bundle.pop("GPU", 0),
            resources=bundle,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
        )
        return remote.remote(self._options.source)

    def _call(self, slot: _Slot) -> None:
        trial, limit_s = slot.trial, self._options.time_limit_s
        assert trial is not None
        slot.waits_for = slot.actor.run.remote(trial.plan, trial.attempt, limit_s)
        if limit_s is not None:
            slot.deadline_s = time.monotonic() + limit_s + self._options.grace_s

    def _check_deadline(self, slot: _Slot) -> None:
        """The outer limit: the worker did not keep the inner one, so it is killed with its trial."""
        if slot.trial is None or time.monotonic() < slot.deadline_s:
            return
        trial, limit_s = slot.trial, self._options.time_limit_s
        self._drop(slot)
        message = f"the trial did not end within {limit_s:g} s and its worker did not answer"
        failed = Failed(cause=Cause.TIMEOUT, message=message, origin=self._options.source.origin)
        self._link.send(Done(ticket=trial.ticket, outcome=failed))

    def _drop(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        slot.trial = None
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            if slot.actor is not None:
                ray.kill(slot.actor, no_restart=True)
            remove_placement_group(slot.group)

    def _check_alive(self) -> None:
        """Ray's client may wait for ever for an embedded Ray that is dead; so look at its processes."""
        for process in self._vital:
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                raise RayDied(process.name())


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
        Host(link, options).run()
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
