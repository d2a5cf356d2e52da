"""Folders that carry their owner's process id in their name, so that those of dead owners can be removed.

A process that is killed cannot remove its folder; the next one that makes such a folder does it.  The name
also says where the id counts, since hosts and containers with ids of their own may share the folder around.
"""

import os
import re
import shutil
import socket
import stat
import tempfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def owned_folder(prefix: str, parent: Path, *, remove: Callable[[Path], None] = _remove) -> Path:
    """A new folder of this process; what dead owners of this host left under that prefix is removed first.

    Raises
    ------
    OSError
        It cannot be made.
    """
    whose = f"{prefix}{_here()}-"
    named = re.compile(re.escape(whose) + r"([0-9]{1,9})-[a-z0-9_]{8}")
    for folder in parent.iterdir():
        owner = named.fullmatch(folder.name)
        if owner and _is_ours(folder) and not psutil.pid_exists(int(owner[1])):
            remove(folder)
    return Path(tempfile.mkdtemp(prefix=f"{whose}{os.getpid()}-", dir=parent))


@cache
def _here() -> str:
    """Where the process's id counts: on its host, in its space of ids; six characters."""
    ids = Path("/proc/self/ns/pid")
    space = os.readlink(ids) if ids.is_symlink() else ""
    return f"{zlib.crc32(f'{socket.gethostname()} {space}'.encode()) & 0xFFFFFF:06x}"


def _is_ours(folder: Path) -> bool:
    """Whether this user made it: who else may write there could have us remove anything, or kill it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
