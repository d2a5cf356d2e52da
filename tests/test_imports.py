"""Who may import whom, what an import may load, and that every exported and every borrowed name exists."""

import ast
import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ["search_spaces", "objectives", "runners", "tuner"]  # lowest first
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
HEAVY = {"torch", "ray", "pandas", "plotly", "sklearn", "numba"}

# Who is allowed the packages that cost seconds to import or that not everybody has.
HOMES = {
    "torch": re.compile(r"runners/(torch_trial|probes)/"),
    "ray": re.compile(r"runners/on_ray\w*\.py"),
    "optuna": re.compile(r"tuner/"),
    "sklearn": re.compile(r"tuner/|objectives/calibration"),
    "numba": re.compile(r"objectives/simulator/compiled\.py"),
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_packages(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import():
                found |= {alias.name.partition(".")[0] for alias in node.names}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module.partition(".")[0])
    return found


def declared_distributions() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["torch"]]
    return {normalised(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def loaded_by(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after the code, run from the root of the checkout."""
    report = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert answer.returncode == 0, answer.stderr
    return set(json.loads(answer.stdout.splitlines()[-1]))


@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_has_modules(layer):
    assert any(path.is_relative_to(ROOT / layer) for path in MODULES)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_module_imports_a_layer_above_its_own(path):
    rank = LAYERS.index(path.relative_to(ROOT).parts[0])
    assert imported_packages(path).isdisjoint(LAYERS[rank + 1 :])


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_heavy_packages_are_imported_only_where_they_live(path):
    strays = [
        package for package in imported_packages(path) & HOMES.keys() if not HOMES[package].match(name(path))
    ]
    assert strays == []


@pytest.mark.parametrize("package", ["ray", "optuna", "sklearn"])
def test_every_heavy_package_is_used_at_home(package):
    assert any(package in imported_packages(path) for path in MODULES)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_borrowed_package_is_declared_in_pyproject(path):
    borrowed = imported_packages(path) - sys.stdlib_module_names - set(LAYERS)
    owners = importlib.metadata.packages_distributions()
    undeclared = {
        package
        for package in borrowed
        if declared_distributions().isdisjoint(map(normalised, owners.get(package, [package])))
    }
    assert undeclared == set()


@pytest.mark.parametrize(
    "code",
    [
        "import search_spaces, objectives, runners, tuner",
        "import tuner.cli",
    ],
)
def test_importing_loads_nothing_heavy(code):
    assert loaded_by(code).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["rank", "--help"], ["tune", "--help"], ["simulate", "--help"]], ids=" ".join
)
def test_asking_for_help_loads_nothing_heavy(arguments):
    code = f"""
import runpy, sys
sys.argv = ["meshtune", *{arguments}]
try:
    runpy.run_module("tuner", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
"""
    assert loaded_by(code).isdisjoint(HEAVY)


@pytest.mark.parametrize("layer", LAYERS)
def test_every_exported_name_exists(layer):
    package = importlib.import_module(layer)
    assert package.__all__
    assert [exported for exported in package.__all__ if not hasattr(package, exported)] == []


@pytest.mark.parametrize("layer", LAYERS)
def test_no_name_is_exported_twice(layer):
    exported = importlib.import_module(layer).__all__
    assert len(exported) == len(set(exported))
