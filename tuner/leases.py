"""The claim of a driver on a running trial: who, on which host and process, and until when.

Optuna's heartbeat does not serve ask-and-tell studies (nor any journal), so a trial of ours carries a lease
in its user attributes from the very operation that creates it.  Its driver renews it; a trial whose lease ran
out, or whose driver's process is gone from this host, is *reaped*: its state goes from RUNNING to FAIL.
Every storage lets that change happen once (`tuner.storage` sees to it for SQLite), so a trial is reaped by
one driver, and never after its own driver told it.  A driver that was only asleep finds its trial finished,
drops the outcome, and goes on.

Clocks of the hosts may differ by far less than `LEASE_S`.
"""

import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Self

import psutil

LEASE_S = 120.0
RENEW_S = 20.0
# The start of a process as psutil reads it moves with the clock's corrections by less than this.
SAME_START_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A driver: one call of `tune` in one process; `started` tells apart two processes of one number."""

    driver: str
    host: str
    pid: int
    started: float

    @classmethod
    def this_process(cls) -> Self:
        """A new driver in this process."""
        pid = os.getpid()
        return cls(
            driver=uuid.uuid4().hex, host=this_host(), pid=pid, started=psutil.Process(pid).create_time()
        )

    @property
    def is_gone(self) -> bool:
        """Whether the process certainly ended; of another host's nothing is certain."""
        if self.host != this_host():
            return False
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < SAME_START_S
            return not same or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A driver's claim on a trial until a moment in seconds since the epoch."""

    owner: Owner
    until: float

    @classmethod
    def taken_by(cls, owner: Owner) -> Self:
        """A lease from now on."""
        return cls(owner=owner, until=time.time() + LEASE_S)

    @property
    def is_over(self) -> bool:
        """Whether the trial may be reaped."""
        return time.time() > self.until or self.owner.is_gone

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self.owner), "until": self.until}


def lease_of(attributes: Mapping[str, Any]) -> Lease | None:
    """The lease among a trial's user attributes; None for a trial that is not ours."""
    stored = attributes.get("lease")
    names = [each.name for each in fields(Owner)]
    if not isinstance(stored, Mapping) or not {*names, "until"} <= stored.keys():
        return None
    return Lease(until=float(stored["until"]), owner=Owner(**{name: stored[name] for name in names}))


@cache
def this_host() -> str:
    """The host, the boot of it, the container: where a process number means one process."""
    parts = [socket.gethostname()]
    boot, table = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    if boot.exists():
        parts.append(boot.read_text().strip())
    if table.exists():
        parts.append(str(table.stat().st_ino))
    return ":".join(parts)
