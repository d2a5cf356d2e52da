"""The command as a process: what it loads, and how it ends when its reader or its user leaves."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tuner.cli import JOB, NARROW, PLAN
from tuner.cli_output import command_line

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "ray", "pandas", "plotly", "sklearn"}


def command(*arguments):
    return [sys.executable, "-m", "tuner", *map(str, arguments)]


def run(*arguments, **options):
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=240, check=False, **options
    )


def loaded_by(*arguments):
    """Top-level modules in the process after the command."""
    code = f"""
import json, sys
from tuner.cli import run
code = run({[str(each) for each in arguments]})
print(json.dumps([code, sorted({{name.partition(".")[0] for name in sys.modules}})]), file=sys.stderr)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    code, names = json.loads(answer.stderr.splitlines()[-1])
    assert code == 0
    return set(names)


@pytest.mark.parametrize("verb", ["rank", "estimate", "tune", "report", "export", "clusters"])
def test_help_loads_not_even_numpy(verb):
    assert loaded_by(verb, "--help").isdisjoint(HEAVY | {"optuna", "numpy", "scipy"})


@pytest.mark.parametrize(
    "arguments",
    [
        ["rank", *JOB, *NARROW],
        ["estimate", *JOB, "--plan", PLAN, "--explain"],
        ["models"],
        ["clusters"],
        ["launchers"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_pricing_plans_loads_nothing_that_studies_need(arguments):
    assert loaded_by(*arguments).isdisjoint(HEAVY | {"optuna", "sqlalchemy"})


def test_the_python_api_is_light_until_it_is_used():
    code = "import tuner, sys; print(not {'numpy', 'optuna'} & set(sys.modules), tuner.rank.__module__)"
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert answer.stdout.split() == ["True", "tuner.api"]


def test_data_goes_to_stdout_and_trouble_to_stderr():
    good, bad = run("rank", *JOB, *NARROW, "--no-simulate", "--json"), run("rank", "--model", "x")
    assert (good.returncode, good.stderr) == (0, "")
    assert json.loads(good.stdout)["schema"] == "meshtune.rank"
    assert (bad.returncode, bad.stdout) == (2, "")


def test_without_a_verb_the_verbs_are_listed():
    answer = run()
    assert answer.returncode == 2
    assert "estimate" in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.parametrize("arguments", [["models"], ["models", "--json"]], ids=["tables", "json"])
def test_a_reader_that_leaves_is_no_error(arguments):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen(command(*arguments), cwd=ROOT, text=True, **pipes) as producer:
        producer.stdout.close()
        assert producer.stderr.read() == ""
    assert producer.returncode == 141


def test_ctrl_c_ends_a_study_cleanly_and_it_can_be_resumed(tmp_path):
    storage = f"sqlite:///{tmp_path / 'studies.db'}"
    flags = ["--name", "x", "--executor", "in-process", "--storage", storage]
    slow = ["--trials", 4, "--runner-option", "seconds_per_trial=0.5"]
    driver = subprocess.Popen(
        command("tune", *JOB, *NARROW, *flags, *slow),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    story = driver.stderr.readline() + driver.stderr.readline()
    driver.send_signal(signal.SIGINT)
    rest = driver.communicate(timeout=120)[1]
    assert "trial " in story
    assert driver.returncode == 130
    assert f"go on with: meshtune resume x --storage {storage}" in rest
    assert "Traceback" not in rest
    after = json.loads(run("resume", "x", "--storage", storage, "--json").stdout)
    assert after["counts"]["measured"] + after["counts"]["failed"] == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_the_output_is_a_sentence():
    with Path("/dev/full").open("w") as full:
        answer = subprocess.run(
            command("models"),
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=240,
            check=False,
        )
    assert answer.returncode == 2
    assert answer.stderr == "error: what is printed must be written somewhere; got no space left on device.\n"


def test_the_command_is_named_as_the_user_can_call_it(tmp_path, monkeypatch):
    called = tmp_path / "meshtune"
    called.touch()
    monkeypatch.setattr(sys, "argv", [str(called)])
    monkeypatch.setenv("PATH", "")
    assert command_line("show", "my study") == f"{called} show 'my study'"
    monkeypatch.setattr(sys, "argv", ["-m"])
    assert command_line("show", "x") == "meshtune show x"
