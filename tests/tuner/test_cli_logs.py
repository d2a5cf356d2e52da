"""The verb read-log, and studies whose trials are commands."""

import json
import re
import sys
from inspect import signature
from pathlib import Path

import jsonschema
import pytest

from objectives.outcome import Cause, Measured
from runners.command import CommandRunner
from runners.in_process import InProcessExecutor
from runners.logs import READERS
from runners.placeholders import MEANINGS
from search_spaces.errors import InvalidSpec
from tests.runners import fake_trainer
from tests.tuner import schemas
from tests.tuner.cli import STUDY_FILE, complaint, meshtune
from tuner.config import config_from_tables, read_config
from tuner.study import check_runner, make_executor, tune
from tuner.view import load_study

LOGS = Path(__file__).parents[1] / "data" / "logs"


class TestReadLog:
    def test_a_good_log_is_shown_with_what_its_flops_count(self):
        answer = meshtune("read-log", LOGS / "torchtitan.log", "--trainer", "torchtitan")
        assert answer.code == 0
        for words in (
            "2.302 s, median of 9",
            "412.3 (MFU: model FLOPs)",
            "61.25 GiB reserved",
            "steps 4 to 12",
        ):
            assert words in answer.out

    def test_a_log_that_lies_is_refused_with_exit_code_1(self):
        words = ["--trainer", "megatron-deepspeed", "--cluster", "frontier"]
        answer = meshtune("read-log", LOGS / "megatron-deepspeed-traps.log", *words)
        assert answer.code == 1
        for words in ("1 (launcher) and 4 (engine)", "loss scaling skipped steps", "got 78% (149.3 TFLOP/s)"):
            assert words in " ".join(answer.out.split())

    def test_a_failed_run_is_shown_with_its_cause(self):
        log = LOGS / "failures" / "host-memory-killed.log"
        answer = meshtune("read-log", log, "--trainer", "megatron-lm", "--status", "1")
        assert answer.code == 1
        assert "failed, out of memory: rank 3: host memory: killed by SIGKILL" in " ".join(answer.out.split())

    @pytest.mark.parametrize("log", ["megatron-lm", "megatron-deepspeed-traps", "hf-trainer", "deepspeed"])
    def test_json_is_one_document_of_its_schema(self, log):
        trainer = "megatron-deepspeed" if "traps" in log else log
        document = meshtune("read-log", LOGS / f"{log}.log", "--trainer", trainer, "--json").document
        jsonschema.validate(document, schemas.LOG)

    def test_what_was_meant_to_run_is_held_against_the_log(self):
        answer = meshtune(
            "read-log", LOGS / "torchtitan.log", "--trainer", "torchtitan", "--global-batch", 32
        )
        assert answer.code == 1
        assert "the run's global_batch must be the plan's, 32; got 16 (trainer)" in " ".join(
            answer.out.split()
        )

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["none.log", "--trainer", "deepspeed"], "none.log must be a readable log; got no such file"),
            ([LOGS, "--trainer", "deepspeed"], "must be a readable log; got is a directory"),
            ([LOGS / "deepspeed.log", "--trainer", "deep"], "did you mean 'deepspeed'"),
            (
                [LOGS / "deepspeed.log", "--trainer", "deepspeed", "--devices", "0"],
                "--devices must be positive",
            ),
            ([LOGS / "deepspeed.log", "--trainer", "deepspeed", "--precision", "x"], "precision"),
            ([__file__], "must hold lines of a trainer that is known"),
            ([LOGS / "nothing.log"], "must be a readable log"),
        ],
    )
    def test_bad_input_is_one_sentence(self, words, said):
        assert said in complaint("read-log", *words)


COMMAND = f"""
[space]
tp = [2, 4]
pp = [1, 2]
micro_batch = [1]
zero = [1]
recompute = ["none"]
[runner]
kind = "command"
executor = "in-process"
parallel = 2
time_limit_s = 60
[runner.options]
command = [{json.dumps(sys.executable)}, {json.dumps(fake_trainer.__file__)}, "measured", "{{n_steps}}"]
reader = "json-lines"
n_steps = 8
trials_folder = "trials"
[budget]
trials = 3
"""


class TestAStudyOfCommands:
    @pytest.fixture
    def config(self, tmp_path):
        (tmp_path / "study.toml").write_text(
            f'[study]\nname = "real"\nstorage = "sqlite:///{tmp_path}/s.db"\n{STUDY_FILE}{COMMAND}'
        )
        return read_config(tmp_path / "study.toml")

    def test_runs_and_keeps_what_really_ran(self, config, tmp_path):
        tune(config)
        trials = load_study("real", config.storage).finished
        assert len(trials) == 3
        for trial in trials:
            assert isinstance(trial.outcome, Measured)
            assert trial.outcome.effective["reader"] == "json-lines"
        assert len(list(tmp_path.glob("trials/*/log.txt"))) == 3

    def test_folders_lie_beside_the_study_file(self, config, tmp_path):
        options = config.inputs.runner.options
        assert options["trials_folder"] == str(tmp_path / "trials")
        assert options["working_folder"] == str(tmp_path)

    def test_the_runner_keeps_the_time_limit_and_the_executor_waits_longer(self, config):
        assert config.inputs.recipe.options["time_limit_s"] == 60
        assert config.inputs.runner.outer_limit_s == 100
        executor = make_executor(config.inputs, config.machine)
        assert isinstance(executor, InProcessExecutor)
        executor.close()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"command": ["x", "{tq}"], "reader": "deepspeed"}, "did you mean 'tp'"),
        ({"command": "x", "reader": "deepspeed"}, "command must be a list; got 'x'"),
        ({"command": ["x"], "reader": "deepspeed", "when": ["a"]}, r"when must be a table; got \['a'\]"),
        (
            {"command": ["x"], "reader": "deepspeed", "n_steps": 1.5},
            "n_steps must be a whole number; got 1.5",
        ),
        ({"command": ["x"], "reader": "deepspeed", "steps": 3}, "hint: did you mean 'n_steps'"),
        ({"command": ["x"], "reader": "deepspeed", "trials_folder": 3}, "trials_folder must be text; got 3"),
        ({"reader": "deepspeed"}, "must have the option command or launcher; got neither"),
    ],
)
def test_options_are_refused_before_anything_is_written(options, match, tmp_path):
    tables = {
        "model": {"preset": "llama-3-8b"},
        "cluster": {"preset": "dgx-h100", "devices": 8},
        "workload": {"global_batch": 64, "seq_len": 8192},
        "runner": {"kind": "command", "options": options},
    }
    with pytest.raises(InvalidSpec, match=match):
        check_runner(config_from_tables(tables, folder=tmp_path).inputs.recipe)


def test_the_page_of_the_study_file_has_every_option_and_placeholder_of_a_command():
    page = (Path(__file__).parents[2] / "docs/study-file.md").read_text()
    section = page.split("## [runner] of your own command")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    options = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    taken = signature(CommandRunner).parameters.values()
    assert options == {each.name for each in taken if each.kind is each.KEYWORD_ONLY}
    assert set(re.findall(r"`(\w+)`", section.split("Placeholders:")[1].split(";")[0])) == set(MEANINGS)


def test_the_page_of_logs_has_every_trainer_and_every_cause():
    page = (Path(__file__).parents[2] / "docs/logs.md").read_text()
    cells = {line.split("|")[1].strip(" `") for line in page.splitlines() if line.startswith("|")}
    assert {*READERS, *map(str, Cause)} <= cells
