"""Warm workers on Ray's nodes, and the placement group that each trial gets for itself.

    submit   a group of the trial's bundles; it waits until the cluster has room
    placed   the worker on the node of the first bundle takes the trial; there it is warm, or it starts now
    ended    the group is removed; the worker stays
    the end  every worker is asked to remove what its trials wrote: Ray kills what is below it without a word

Ray ends an actor with the group that it was created in, so a worker lies in no group and holds no resource:
the group holds them for it.  That costs a trial 0.02 s more, not a new process.
Accelerators have numbers that only what runs inside a group is told, so a task in it asks for them.
"""

import contextlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Outcome
from runners.on_ray_words import Reservation
from runners.protocol import RunnerSource
from runners.trial_process import ProcessLost, TrialProcess
from search_spaces.plan import Plan

ACCELERATORS = "GPU"  # Ray's name for those of every maker
_NUMBERS = "_VISIBLE_DEVICES"  # CUDA_, HIP_ and ROCR_ begin the name
_LAST_S = 3.0  # for a worker to end


class TrialActor:
    """A worker: keeps a warm process for trials on its node."""

    def __init__(self, source: RunnerSource) -> None:
        self._source = source
        self._process = TrialProcess(source)
        self._turn = threading.Lock()

    def run(
        self,
        plan: Plan,
        job: Job | None,
        attempt: int,
        time_limit_s: float | None,
        environment: Mapping[str, str],
    ) -> Outcome:
        """What came of the plan; a trial process killed from outside is a lost machine."""
        try:
            with self._turn:
                return self._process.run(
                    plan, job=job, attempt=attempt, time_limit_s=time_limit_s, environment=environment
                )
        except ProcessLost as lost:
            return Failed(cause=Cause.LOST_MACHINE, message=str(lost), origin=self._source.origin)

    def end(self) -> None:
        """End the process and the trial that it may have, and remove what they wrote."""
        self._process.kill()
        self._turn.acquire(timeout=_LAST_S)  # what runs finds its trial lost
        self._process.close()


@dataclass(slots=True, kw_only=True, eq=False)
class Worker:
    """An actor, the node that it is on, and whether it has a trial."""

    actor: Any
    node: str
    is_busy: bool = False


class Workers:
    """At most so many workers, each on the node where it was first needed."""

    def __init__(self, source: RunnerSource, most: int) -> None:
        self._source, self._most = source, most
        self._all: list[Worker] = []

    def take(self, node: str) -> Worker:
        """A free worker on the node; a new one takes the place of the longest unused elsewhere."""
        free = [worker for worker in self._all if not worker.is_busy]
        worker = next((worker for worker in free if worker.node == node), None)
        if worker is None:
            if len(self._all) >= self._most and free:
                self.end(free[0])
            worker = self._start(node)
        worker.is_busy = True
        return worker

    def give_back(self, worker: Worker) -> None:
        """The trial is over, the worker stays."""
        worker.is_busy = False
        self._all.remove(worker)
        self._all.append(worker)

    def end(self, worker: Worker) -> None:
        """Kill a worker with whatever it runs."""
        self._all.remove(worker)
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.kill(worker.actor, no_restart=True)

    def close(self) -> None:
        """Let every worker remove what it wrote, where it still answers."""
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ends = [worker.actor.end.remote() for worker in self._all]
            if ends:
                ray.wait(ends, num_returns=len(ends), timeout=_LAST_S + 1)

    def _start(self, node: str) -> Worker:
        remote = ray.remote(TrialActor).options(
            num_cpus=0,
            max_concurrency=2,  # the end does not wait for the trial
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        worker = Worker(actor=remote.remote(self._source), node=node)
        self._all.append(worker)
        return worker


def reserve(reservation: Reservation) -> Any:
    """A placement group of one trial."""
    return placement_group([dict(bundle) for bundle in reservation.bundles], strategy=reservation.strategy)


def node_of(group: Any) -> str | None:
    """The node that the first bundle lies on; None while there is no room for all of them."""
    table = placement_group_table(group)
    return str(table["bundles_to_node_id"][0]) if table["state"] == "CREATED" else None


def release(group: Any) -> None:
    """Give a trial's resources back."""
    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        remove_placement_group(group)


def ask_accelerators(group: Any, reservation: Reservation) -> Any | None:
    """A promise of the variables that name the first bundle's accelerators; None where it has none."""
    n_accelerators = reservation.bundles[0].get(ACCELERATORS)
    if n_accelerators is None:
        return None
    inside = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    ask = ray.remote(_accelerators).options(
        num_cpus=0, num_gpus=n_accelerators, max_retries=0, scheduling_strategy=inside
    )
    return ask.remote()


def _accelerators() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.endswith(_NUMBERS)}
