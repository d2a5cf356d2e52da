"""The queue of an allocation's nodes: each try of a trial gets nodes that no other has meanwhile.

Tries that wait are served in the order in which they came, so that one of many nodes is not passed over for
ever by smaller ones.
"""

import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from runners.placeholders import NODES, STEP
from runners.slurm.states import is_final
from runners.slurm.tools import cancel, job_states, lost_nodes, steps_named
from runners.trial_process import ProcessLost
from search_spaces.errors import RunnerError

# Slurm itself gives a step 30 s between SIGTERM and SIGKILL (KillWait).
STEP_GONE_S = 60.0
_POLL_S = 0.2


class NodeQueue:
    """Free nodes in the allocation's order, so that a trial's nodes are neighbours.

    A node that Slurm calls down, or on which a step would not end, is not given out again.
    """

    def __init__(self, job: str, nodes: Sequence[str], per_trial: int) -> None:
        self._job, self._nodes, self._per_trial = job, tuple(nodes), per_trial
        self._free, self._lost = list(nodes), set[str]()
        self._line: list[object] = []
        self._changed = threading.Condition()
        self._is_closed = False

    @contextmanager
    def lease(self, n_nodes: int | None = None) -> Iterator[Mapping[str, str]]:
        """Nodes for one try, as the variables that name them; nothing of the try is left on them after it.

        `n_nodes` None stands for the queue's own number.

        Raises
        ------
        RunnerError
            So many nodes were lost that no trial has room.
        ProcessLost
            The queue is closed.
        """
        nodes = self._take(self._per_trial if n_nodes is None else n_nodes)
        name = f"meshtune-{secrets.token_hex(6)}"
        try:
            yield {NODES: ",".join(nodes), STEP: name}
        finally:
            self._give_back(nodes, is_clean=end_steps(self._job, name))

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _take(self, n: int) -> list[str]:
        self._check_job()
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                while self._line[0] is not place or len(self._free) < n:
                    if self._is_closed:
                        break
                    self._check_enough(n)
                    self._changed.wait()
            finally:
                self._line.remove(place)
                self._changed.notify_all()
            if self._is_closed:
                raise ProcessLost("the executor is closed")
            taken, self._free = self._free[:n], self._free[n:]
        return taken

    def _check_job(self) -> None:
        states = job_states([self._job])
        state = None if states is None else states.get(self._job, ("forgotten", ""))[0]
        if state is not None and (state == "forgotten" or is_final(state)):
            raise RunnerError(
                "an allocation must last as long as its study",
                f"job {self._job} is {state.lower()}",
                hint="the study is kept; resume it in another allocation",
            )

    def _check_enough(self, n: int) -> None:
        n_left = len(self._nodes) - len(self._lost)
        if n_left < n:
            lost = ", ".join(sorted(self._lost))
            raise RunnerError(
                "an allocation must keep enough nodes for a trial",
                f"{n_left} of {len(self._nodes)} nodes left, {n} a trial; lost: {lost}",
                hint="the study is kept; resume it in another allocation",
            )

    def _give_back(self, nodes: Sequence[str], *, is_clean: bool) -> None:
        lost = lost_nodes(self._job, nodes) if is_clean else set(nodes)
        with self._changed:
            self._lost |= lost
            free = {*self._free, *nodes} - self._lost
            self._free = [name for name in self._nodes if name in free]
            self._changed.notify_all()


def end_steps(job: str, name: str, *, patience_s: float = STEP_GONE_S) -> bool:
    """Cancel what is left of a trial's steps (an srun that was killed leaves them); whether all are gone."""
    deadline = time.monotonic() + patience_s
    while True:
        ids = steps_named(job, name)
        if ids is not None and not ids:
            return True
        if time.monotonic() > deadline:
            return False
        cancel(*(ids or ()))
        time.sleep(_POLL_S)
