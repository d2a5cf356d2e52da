"""The folder of one embedded Ray: its sockets and logs, and a list of its processes for who must clean up.

Ray's agents outlive their raylet when the process that started them is killed; the list finds them again.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import psutil

from runners.owned_folder import owned_folder

_PREFIX, _PROCESSES = "mt-ray-", "processes.json"
_PREFIX_LENGTH = 31  # with the host, the owner's id and a random part
_SOCKET_PATH_ROOM = 40  # Ray adds some 65 characters to its folder; a socket's path may have 107


def make_folder() -> Path:
    """A new folder, its path short enough for sockets; what dead owners left is removed first."""
    usual = tempfile.gettempdir()
    parent = usual if len(usual) + _PREFIX_LENGTH <= _SOCKET_PATH_ROOM else "/tmp"
    return owned_folder(_PREFIX, Path(parent), remove=remove_folder)


def list_processes(folder: Path, pid: int) -> None:
    """Write down everything below a process."""
    below = psutil.Process(pid).children(recursive=True)
    with contextlib.suppress(psutil.NoSuchProcess):
        (folder / _PROCESSES).write_text(json.dumps([(p.pid, p.create_time()) for p in below]))


def remove_folder(folder: Path) -> None:
    """Kill what is left of the listed processes, and remove the folder."""
    with contextlib.suppress(OSError, ValueError):
        for pid, born in json.loads((folder / _PROCESSES).read_text()):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if process.create_time() == born:  # else the number belongs to somebody else by now
                    process.kill()
    shutil.rmtree(folder, ignore_errors=True)
