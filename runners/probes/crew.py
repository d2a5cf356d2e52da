"""The ranks as the parent sees them: started, asked, and gone at the end, whatever happened."""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from runners.owned_folder import owned_folder
from runners.probes.allocation import Place
from runners.probes.cases import Case, Facts, facts_of
from runners.trial_process import Child
from search_spaces.errors import InvalidSpec, RunnerError

START_S, ANSWER_S = 120.0, 60.0
GLANCE_S = 0.1
Readings = Mapping[str, Sequence[float]]
Stopped = Callable[[], bool]


class CaseFailed(RunnerError):
    """A probe gave no readings; the ranks can be asked for another."""


class CrewLost(RunnerError):
    """The ranks are gone or do not answer."""


class Interrupted(Exception):
    """The user wants to stop."""


class Ranks(Protocol):
    """Whoever measures cases."""

    def ask(self, case: Case, window_s: float) -> Readings:
        """Readings of a case that may take about the window; raises `CaseFailed` or `CrewLost`."""
        ...

    def restart(self) -> bool:
        """Start again after `CrewLost`; whether that can be done."""
        ...


def check_torch() -> None:
    """Check that torch can be imported, without importing it.

    Raises
    ------
    InvalidSpec
        It is not installed.
    """
    if find_spec("torch") is None:
        must = "measuring this machine needs PyTorch"
        raise InvalidSpec(must, "an installation without it", hint="pip install 'meshtune[torch]'")


class Crew:
    """Ranks on this machine, all children of this process; or the one child that is this rank's.

    In an allocation every rank's parent is a command of its own: each starts one child, and only the
    leader's is asked.
    """

    def __init__(
        self,
        *,
        kind: str | None,
        place: Place | None = None,
        stopped: Stopped = lambda: False,
        n_expected: int = 1,
    ) -> None:
        # Ranks import torch for seconds: those that are sure to be needed do it at the same time.
        self._n_expected = 1 if place else n_expected
        self._kind, self._place, self._stopped = kind, place, stopped
        self._folder = owned_folder("meshtune-probes-", Path(tempfile.gettempdir()))
        self._children: list[Child] = []
        self._facts: Facts | None = None
        self._n_ranks = 0

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def facts(self) -> Facts:
        """What the first rank says of its machine.

        Raises
        ------
        InvalidSpec
            It has no such device.
        """
        if self._facts is None:
            while len(self._children) < self._n_expected:
                self._start()
            answer = self._request(self._children[0], {"ask": "facts", "kind": self._kind}, START_S)
            if "error" in answer:
                raise InvalidSpec("the devices asked for must be there", answer["error"], hint="--on cpu")
            self._facts = facts_of(answer)
        return self._facts

    def join(self, n_ranks: int) -> None:
        """Start the other ranks and let all meet."""
        facts, self._n_ranks = self.facts, n_ranks
        own = [self._place.rank] if self._place else range(n_ranks)
        while len(self._children) < len(own):
            self._start()
        store = self._place.store if self._place else str(self._folder / f"store-{time.monotonic_ns()}")
        for child, rank in zip(self._children, own, strict=True):
            n_local = self._place.n_local if self._place else n_ranks
            told = {
                "ask": "join",
                "kind": facts.kind,
                "rank": rank,
                "ranks": n_ranks,
                "local_rank": self._place.local_rank if self._place else rank,
                "threads": max(1, facts.n_cores // n_local) if facts.on_cpu else 1,
                "store": store,
            }
            self._send(child, told)
        for child in self._children:
            self._hear(child, START_S)

    def ask(self, case: Case, window_s: float) -> Readings:
        """Readings of a case that may take about the window.

        Raises
        ------
        CaseFailed
            A rank cannot measure it.
        CrewLost
            A rank died, or none answered in time.
        """
        told = {"ask": "case", "kind": case.kind, "what": dict(case.what), "window_s": window_s}
        answer = self._request(self._children[0], told, ANSWER_S + 10 * window_s)
        if "error" in answer:
            raise CaseFailed("a probe must give readings", str(answer["error"]))
        readings: Readings = answer["readings"]
        return readings

    def restart(self) -> bool:
        """New ranks in the place of lost ones; an allocation's other ranks cannot be started from here."""
        self._end_children()
        if self._place is not None:
            return False
        self._facts = None
        self.join(self._n_ranks)
        return True

    def wait(self) -> None:
        """Until this rank's child ends by itself: what all but the leader do in an allocation.

        Raises
        ------
        CrewLost
            It did not end well.
        """
        while self._children[0].process.poll() is None:
            if self._stopped():
                raise Interrupted
            time.sleep(GLANCE_S)
        if self._children[0].process.returncode:
            raise self._lost(self._children[0])

    def close(self) -> None:
        """End every rank; may be called twice."""
        if self._children and not self._stopped():
            try:
                self._send(self._children[0], {"ask": "stop"})
                self._children[0].process.wait(1.0)
            except Exception:  # noqa: BLE001 - whatever it was, they are killed next
                pass
        self._end_children()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self._place and self._place.leads and self._place.store:
            Path(self._place.store).unlink(missing_ok=True)

    def _start(self) -> Child:
        # One thread each until `join` says how many: pools that never start need not be stopped.
        child = Child(
            "runners.probes.rank", environment={"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        )
        self._children.append(child)
        return child

    def _end_children(self) -> None:
        for child in self._children:
            child.close()
        self._children = []

    def _request(self, child: Child, told: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        self._send(child, told)
        return self._hear(child, limit_s)

    def _send(self, child: Child, told: Mapping[str, Any]) -> None:
        try:
            child.link.send_bytes(json.dumps(told).encode())
        except OSError:
            raise self._lost(child) from None

    def _hear(self, child: Child, limit_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + limit_s
        try:
            while not child.link.poll(GLANCE_S):
                if self._stopped():
                    raise Interrupted
                self._check_others(child)
                if time.monotonic() > deadline:
                    raise CrewLost("a probe must answer in time", f"no answer in {limit_s:.0f} s")
            answer: dict[str, Any] = json.loads(child.link.recv_bytes())
        except (EOFError, OSError):
            raise self._lost(child) from None
        return answer

    def _check_others(self, heard: Child) -> None:
        """The end of the one that is heard ends its pipe; the others', which nobody reads, are looked for."""
        for child in self._children:
            if child is not heard and child.process.poll() is not None:
                raise self._lost(child)

    def _lost(self, child: Child) -> CrewLost:
        """What ended the ranks: a signal, if one had one; the others then fail over its silence."""
        if self._stopped():
            raise Interrupted
        time.sleep(GLANCE_S)
        killed = [each for each in self._children if (each.process.poll() or 0) < 0]
        first = killed[0] if killed else child
        first.kill()
        status = first.process.wait()
        words = first.last_words.strip().splitlines()
        given = f"exit status {status}: {words[-1] if words else 'no words'}"
        return CrewLost("every rank of the probes must live", given)
