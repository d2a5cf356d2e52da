"""Folders that carry their owner's process id in their name, so that those of dead owners can be removed.

A process that is killed cannot remove its folder; the next one that makes such a folder does it.
"""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def owned_folder(prefix: str, parent: Path, *, remove: Callable[[Path], None] = _remove) -> Path:
    """A new folder of this process; what dead owners left under that prefix is removed first.

    Where several hosts see the parent, the prefix must have this host's name.

    Raises
    ------
    OSError
        It cannot be made.
    """
    for folder in parent.glob(f"{prefix}*"):
        owner = folder.name.removeprefix(prefix).partition("-")[0]
        if owner.isdigit() and _is_ours(folder) and not psutil.pid_exists(int(owner)):
            remove(folder)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent))


def _is_ours(folder: Path) -> bool:
    """Whether this user made it: who else may write there could have us remove anything, or kill it."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()
