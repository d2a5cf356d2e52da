"""The README's commands run, and answer what the README shows.

A ```console block holds commands after `$ ` and what they print.  A line `...` stands for any lines.  In a
block marked ```console varies (trials finish out of order) only the words that open each line must come
again, and no figures.  `python tests/test_readme.py` runs them all and writes their answers into the README.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"```console( varies)?\n(.*?)```", re.DOTALL)
WIDTH = "100"


@dataclass(frozen=True)
class Shown:
    """A command, the lines shown under it, and whether its figures vary from run to run."""

    command: str
    lines: list[str]
    varies: bool


def shown(text):
    """Every command of the README with its output, in order."""
    found = []
    for mark, body in BLOCK.findall(text):
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, continued = [], True
            lines = part.splitlines()
            while continued:
                line = lines.pop(0)
                continued = line.endswith("\\")
                command.append(line.removesuffix("\\").strip())
            found.append(Shown(" ".join(command), lines, bool(mark)))
    return found


def answer(command, folder):
    """Lines a `meshtune` command prints, run in `folder`."""
    words = shlex.split(command)
    assert words[0] == "meshtune", f"a README command starts with meshtune: {command}"
    environment = {**os.environ, "COLUMNS": WIDTH, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "-m", "tuner", *words[1:]],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=800,
    )  # fmt: skip
    assert run.returncode == 0, f"{command}\n{run.stderr}"
    return [line.rstrip() for line in run.stdout.splitlines()]


def opening(line):
    """The words that open a line, up to its first figure or its second column."""
    return re.split(r"  |\d", line.strip())[0].strip()


def expected_in_order(wanted, given, same):
    """Whether the wanted lines come in the given ones in order, side by side but for `...`."""
    at = 0
    loose = False
    for line in wanted:
        if line.strip() == "...":
            loose = True
            continue
        while loose and at < len(given) and not same(line, given[at]):
            at += 1
        if at >= len(given) or not same(line, given[at]):
            return False
        at, loose = at + 1, False
    return loose or at == len(given)


def neighbours(path):
    """Put the README's neighbours, docs and benchmarks, into a scratch folder."""
    for name in ("docs", "benchmarks"):
        (path / name).symlink_to(ROOT / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the README's neighbours, as a clone has them."""
    path = tmp_path_factory.mktemp("clone")
    neighbours(path)
    return path


COMMANDS = shown(README.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", COMMANDS, ids=lambda case: " ".join(case.command.split()[1:4]))
def test_the_readme_shows_what_its_commands_answer(case, folder):
    given = answer(case.command, folder)
    if case.varies:
        openings = {opening(line) for line in given}
        missing = [line for line in case.lines if line.strip() != "..." and opening(line) not in openings]
        assert not missing, "\n".join(given)
    else:
        assert expected_in_order(case.lines, given, str.__eq__), "\n".join(given)


def test_the_readme_shows_the_main_job():
    verbs = [case.command.split()[1] for case in COMMANDS]
    assert verbs[:2] == ["tune", "export"]
    assert verbs.count("rank") >= 2


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        (["a", "b"], True),
        (["a", "..."], True),
        (["...", "b"], True),
        (["b"], False),
        (["a", "c"], False),
        (["a"], False),
    ],
)
def test_lines_are_compared_in_order(wanted, holds):
    assert expected_in_order(wanted, ["a", "b"], str.__eq__) is holds


def refreshed(text, folder):
    """The README with every full answer as it is today; an answer cut by `...` keeps its cut where it can."""

    def redo(match):
        mark, body = match.groups()
        parts = re.split(r"^(?=\$ )", body, flags=re.MULTILINE)
        redone = "\n".join(_redo(part, folder) for part in parts if part)
        return f"```console{mark or ''}\n{redone}```"

    return BLOCK.sub(redo, text)


def _redo(part, folder):
    case = shown(f"```console\n{part}```")[0]
    head = part[: len(part) - len("\n".join(case.lines)) - bool(case.lines)].rstrip("\n")
    given = answer(case.command, folder)
    if "..." in [line.strip() for line in case.lines]:
        cut = [line.strip() for line in case.lines].index("...")
        kept, tail = given[:cut], len(case.lines) - cut - 1
        given = [*kept, "...", *(given[-tail:] if tail else [])]
    return head + "\n" + "\n".join(given).rstrip("\n") + "\n"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        neighbours(Path(scratch))
        README.write_text(refreshed(README.read_text(encoding="utf-8"), Path(scratch)), encoding="utf-8")
