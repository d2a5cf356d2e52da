"""Where words go: data to stdout, story and errors to stderr."""

import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from shutil import which
from typing import Any

from rich.console import Console, RenderableType

WIDTH_WITHOUT_TERMINAL = 100


class ReaderLeft(Exception):
    """Nobody reads standard output any more (`meshtune models | head -1`)."""


class _Console(Console):
    """A console that leaves a reader's departure to `main`."""

    def on_broken_pipe(self) -> None:
        raise ReaderLeft


def out() -> Console:
    """Standard output; a pipe is as wide as our tables."""
    return _console(stderr=False)


def err() -> Console:
    """Standard error."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDTH_WITHOUT_TERMINAL
    return _Console(file=stream, width=width, highlight=False)


def show(*parts: RenderableType) -> None:
    """Data for a person."""
    console = out()
    for part in parts:
        console.print(part)


def tell(text: str) -> None:
    """A line of the story; text from outside is not read as markup."""
    err().print(text, markup=False, soft_wrap=True)


def command_line(*words: str) -> str:
    """A command of ours as this user can type it: where `meshtune` is not on the path, as it was called."""
    called = Path(sys.argv[0])
    away = called.name == "meshtune" and called.exists() and which("meshtune") is None
    return shlex.join([str(called) if away else "meshtune", *words])


def show_json(document: dict[str, Any]) -> None:
    """Data for a program: one JSON document; a number that is not finite is a fault of ours."""
    show_lines([json.dumps(document, indent=2, allow_nan=False)])


def show_lines(lines: Iterable[str]) -> None:
    """Plain data, a line each."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderLeft from None


def check_writable(path: Path) -> Path:
    """The path of a file to write later; one that cannot be written is an error now, before long work."""
    from search_spaces.errors import InvalidSpec

    if path.is_dir():
        raise InvalidSpec("the output must be a file that can be written", f"{path}: a folder")
    check_writable_folder(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise InvalidSpec("the output must be a file that can be written", f"{path}: permission denied")
    return path


def write_page(target: Path, html: str) -> None:
    """Write a page to where `check_writable` allowed it, and say so."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(html, encoding="utf-8")
    tell(f"wrote {target}")


def check_writable_folder(folder: Path) -> Path:
    """A folder to write into later; its nearest existing parent must allow it, now."""
    from search_spaces.errors import InvalidSpec

    nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return folder
    except OSError as error:
        must = "the output must go to a folder that can be written"
        raise InvalidSpec(must, f"{nearest}: {(error.strerror or str(error)).lower()}") from None
