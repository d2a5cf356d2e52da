"""Whether the kernel killed for lack of memory: a process that it killed cannot say so itself.

Source: Linux, Documentation/admin-guide/cgroup-v2.rst (memory.events) and cgroup-v1/memory.rst
(memory.oom_control); mm/oom_kill.c counts in /proc/vmstat.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")


def oom_kills() -> dict[str, int]:
    """The kernel's counters of such kills that can be read: the machine's, and this process's own group's."""
    found = {}
    for path in (Path("/proc/vmstat"), *_own_groups()):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                if line.startswith("oom_kill "):
                    found[str(path)] = int(line.split()[1])
    return found


def killed_since(before: Mapping[str, int]) -> bool:
    """Whether a counter is higher than it was."""
    return any(n > before[path] for path, n in oom_kills().items() if path in before)


def _own_groups() -> list[Path]:
    """The files of this process's memory group, of either version."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if "memory" in controllers.split(","):
                return [_GROUPS / "memory" / path.lstrip("/") / "memory.oom_control"]
            if not controllers and (_GROUPS / "cgroup.controllers").exists():
                return [_GROUPS / path.lstrip("/") / "memory.events"]
    return []
