"""The shape of the code: units in one file, prints in one file, no file too long, no machine's own paths.

Run as a script it prints the size table.
"""

import ast
import operator
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["search_spaces", "objectives", "runners", "tuner"]
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
MOST_LINES = 500

# Powers of ten from a million and of two from 2**20 are units in disguise, and so are whole billions.
UNITS = {10.0**n for n in (6, 9, 12, 15, 18)} | {2.0**n for n in (20, 30, 40, 50, 60)}
FOLDED = {ast.Pow: operator.pow, ast.LShift: operator.lshift, ast.Mult: operator.mul}

# The parts are joined here so that this file does not hold what it forbids.
MACHINE_PATH = re.compile(
    r"(?<![\w.-])/(" + "|".join(["work" + "/", "tmp/" + "bash_jobs", "root" + "/"]) + ")"
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def constant(node: ast.AST) -> float | None:
    """The number that a literal, or a product or power of literals, stands for."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return value
        case ast.BinOp(left, op, right) if type(op) in FOLDED:
            values = constant(left), constant(right)
            return None if None in values else FOLDED[type(op)](*values)
    return None


def unit_literals(text: str) -> list[str]:
    values = {ast.unparse(node): constant(node) for node in ast.walk(ast.parse(text))}
    return [
        source
        for source, value in values.items()
        if value is not None and (value in UNITS or (value >= 10**9 and value % 10**9 == 0))
    ]


def prints(text: str) -> list[int]:
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def n_lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def repository_texts() -> list[Path]:
    """Every text file a commit would hold, found without git so that an unpacked archive is checked too."""
    suffixes = {".py", ".toml", ".md", ".txt", ".csv", ".json", ".j2", ".html", ".sh", ".cfg"}
    folders = [*PACKAGES, "tests", "benchmarks", "docs", ".ci"]
    nested = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if "__pycache__" not in path.parts
    ]
    top = [ROOT / each for each in ("pyproject.toml", "README.md", "Makefile", ".gitignore")]
    return [
        path
        for path in [*nested, *top, *ROOT.glob("constraints*.txt")]
        if path.is_file() and (path.suffix in suffixes or path.parent.name == ".ci" or path in top)
    ]


def function_lengths(paths: list[Path]) -> list[int]:
    return [
        node.end_lineno - node.lineno + 1
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def size_table() -> str:
    """Files, lines and functions of each folder; the aims stand in the last line."""
    rows = [
        f"{'folder':14} {'files':>5} {'lines':>6} {'median':>6} {'longest':>7} {'function':>8} {'longest':>7}"
    ]
    for folder in [*PACKAGES, "tests", "benchmarks"]:
        paths = sorted((ROOT / folder).rglob("*.py"))
        lengths, functions = [n_lines(path) for path in paths] or [0], function_lengths(paths) or [0]
        rows.append(
            f"{folder:14} {len(paths):5} {sum(lengths):6} {statistics.median(lengths):6.0f} {max(lengths):7} "
            f"{statistics.median(functions):8.0f} {max(functions):7}"
        )
    rows.append(f"{'aim':14} {'':5} {'':6} {90:6} {350:7} {7:8} {50:7}")
    return "\n".join(rows)


@pytest.mark.parametrize(
    "text",
    [
        "x = 1e9",
        'x = f"{y / 1e9:.1f} GB"',
        "x = 80e9",
        "x = 1024**3",
        "x = 2**30",
        "x = 1 << 30",
        "x = y / 1_000_000",
        "x = 10**12",
        "x = 1024 * 1024",
    ],
)
def test_a_unit_literal_is_recognised(text):
    assert unit_literals(text)


@pytest.mark.parametrize(
    "text", ["x = 1e-9", "x = 2**n", "x = 1e3", "# 1e9", 'x = "1e9"', "x = 1024", "x = a1e9"]
)
def test_other_numbers_are_not_taken_for_units(text):
    assert not unit_literals(text)


@pytest.mark.parametrize("path", [*SOURCES, *BENCHMARKS], ids=name)
def test_powers_of_ten_and_two_have_names(path):
    assert name(path) == "search_spaces/units.py" or unit_literals(path.read_text()) == []


def test_units_live_where_the_rule_says():
    assert unit_literals((ROOT / "search_spaces" / "units.py").read_text())


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_the_command_line_prints(path):
    assert re.fullmatch(r"tuner/cli\w*\.py", name(path)) or prints(path.read_text()) == []


@pytest.mark.parametrize("path", [*SOURCES, *TESTS, *BENCHMARKS], ids=name)
def test_a_file_fits_one_sitting(path):
    assert n_lines(path) <= MOST_LINES


def test_the_repository_names_no_path_of_one_machine():
    texts = repository_texts()
    assert {"pyproject.toml", "Makefile", ".ci/run"} <= {name(path) for path in texts}
    assert [name(path) for path in texts if MACHINE_PATH.search(path.read_text())] == []


@pytest.mark.parametrize("text", ["see /work" + "/x", "cd /tmp/" + "bash_jobs", '"/root' + '/a"'])
def test_a_path_of_one_machine_is_recognised(text):
    assert MACHINE_PATH.search(text)


def test_the_size_table_has_a_row_for_each_folder():
    rows = size_table().splitlines()
    print("\n".join(rows))
    assert [row.split()[0] for row in rows[1:-1]] == [*PACKAGES, "tests", "benchmarks"]


if __name__ == "__main__":
    print(size_table())
