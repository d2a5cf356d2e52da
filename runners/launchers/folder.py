"""A folder of files that appears whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from search_spaces.errors import InvalidSpec

MANIFEST = "plan.json"
EXECUTABLE = (".sh", ".sbatch")


def write_folder(folder: Path, files: Mapping[str, str]) -> list[Path]:
    """Write all files into a new or empty folder, or in place of an earlier export that nobody added to.

    The files are written beside the folder and renamed into place together.

    Raises
    ------
    InvalidSpec
        The folder is a file, holds something else, or cannot be written.
    """
    target = Path(os.path.realpath(folder))  # a link to a folder stays a link
    try:
        _check_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
            fresh = Path(scratch) / "new"
            _fill(fresh, files)
            _swap(fresh, target, Path(scratch) / "old")
    except OSError as error:
        reason = error.strerror or str(error)
        raise InvalidSpec("the output folder must be writable", f"{folder} ({reason})") from None
    return [folder / name for name in files]


def _fill(folder: Path, files: Mapping[str, str]) -> None:
    folder.mkdir()
    for name, text in files.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        if path.suffix in EXECUTABLE:
            mode = path.stat().st_mode
            path.chmod(mode | (mode & 0o444) >> 2)  # who may read it may run it


def _swap(fresh: Path, folder: Path, old: Path) -> None:
    if not folder.exists():
        fresh.rename(folder)
        return
    folder.rename(old)
    try:
        fresh.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InvalidSpec("the output folder must be a folder", f"the file {folder}")
    strangers = sorted({path.name for path in folder.iterdir()} - _exported(folder))
    if strangers:
        must = "the output folder must be new, empty, or an earlier export with nothing added"
        raise InvalidSpec(must, f"{folder} with {strangers[0]!r} in it", hint="name another folder")


def _exported(folder: Path) -> set[str]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return set()
    names = manifest.get("files") if isinstance(manifest, dict) else None
    return {str(name) for name in names} if isinstance(names, list) else set()
