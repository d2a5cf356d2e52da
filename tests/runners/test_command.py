"""The command runner with programs that really train, crash, hang, leak, and talk too much."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from objectives.outcome import Cause, Failed, Measured, outcome_from_dict, outcome_to_dict
from runners import command
from runners.command import LOG_NAME, CommandRunner
from runners.command_outcome import stage_of_rank
from runners.command_process import BoundedLog
from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.plan import Plan, Plans, RankOrder
from search_spaces.units import GIB
from tests.runners import fake_trainer
from tests.runners.jobs import FITS, WRONG_WORLD, llama_job
from tests.runners.misbehaving import gone

TRAINER = fake_trainer.__file__


def runner(*words, **options):
    """A runner of the fake trainer; it reads JSON lines."""
    given = {"reader": "json-lines", "grace_s": 0.3, "n_steps": 10, **options}
    return CommandRunner(llama_job(), command=[sys.executable, TRAINER, *words], **given)


def outcome(*words, plan=FITS, **options):
    (found,) = runner(*words, **options).run(Plans.of([plan]))
    return found


class TestARunThatEndsWell:
    def test_is_measured_from_its_log(self):
        found = outcome("measured", "{n_steps}")
        assert isinstance(found, Measured)
        assert (found.step_s, found.step_spread_s, found.n_steps) == (0.5, 0.0, 8)
        assert found.peak_memory_bytes == 40e9

    def test_carries_what_ran_and_the_end_of_its_log(self):
        found = outcome("measured", "{n_steps}")
        assert found.effective["command"][2:] == ["measured", "10"]
        assert found.effective["steps"] == [3, 10]
        assert '"step": 10' in found.log_tail.splitlines()[-1]
        assert outcome_from_dict(json.loads(json.dumps(outcome_to_dict(found)))) == found

    def test_takes_the_cost_model_s_peak_where_its_log_has_none_and_says_so(self):
        found = outcome("train", "10")
        assert found.peak_memory_bytes > GIB
        assert found.effective["memory"] == "not in the log: the cost model's"

    def test_may_crash_after_its_last_step(self):
        found = outcome("crash", "10", "3")
        assert isinstance(found, Measured)
        assert "ended with exit status 3" in found.effective["notes"]

    def test_is_ended_if_it_does_not_end_after_its_last_step(self, monkeypatch):
        monkeypatch.setattr(command, "_PATIENCE_S", 0.2)
        found = outcome("stubborn", "10")
        assert isinstance(found, Measured)
        assert "ended 0.2 s after its last step" in found.effective["notes"]

    def test_may_reach_its_time_limit_after_its_last_step(self):
        found = outcome("stubborn", "10", time_limit_s=1.0)
        assert isinstance(found, Measured)
        assert "ended 1 s after its start" in found.effective["notes"]

    def test_may_print_100_000_lines(self, tmp_path):
        found = outcome("talks_a_lot", "10", "100000", trials_folder=str(tmp_path), most_log_bytes=200_000)
        (log,) = tmp_path.glob(f"*/{LOG_NAME}")
        assert isinstance(found, Measured)
        assert log.stat().st_size < 200_000 + 100
        assert log.read_text().startswith("[rank0]: line 0 of many")
        assert '"step": 10' in log.read_text().splitlines()[-1]
        assert " bytes left out]" in log.read_text()


@pytest.mark.parametrize(
    ("words", "cause", "message"),
    [
        (("crash", "3", "7"), Cause.CRASH, "ended with exit status 7 after 3 steps"),
        (("raise_error", "3"), Cause.CRASH, "ended with exit status 1: RuntimeError: a kernel was given"),
        (("killed", "3", str(int(signal.SIGSEGV))), Cause.CRASH, "ended by SIGSEGV after 3 steps"),
        (("killed", "3", str(int(signal.SIGKILL))), Cause.OUT_OF_MEMORY, "killed by SIGKILL"),
        (("killed", "3", str(int(signal.SIGTERM))), Cause.PREEMPTED, "ended from outside by SIGTERM"),
        (("out_of_host_memory",), Cause.OUT_OF_MEMORY, "host memory: MemoryError"),
        (
            ("out_of_device_memory", "1"),
            Cause.OUT_OF_MEMORY,
            "rank 5 (stage 0): device memory, 2.25 GiB short",
        ),
        (("nan", "10"), Cause.NAN_LOSS, "the loss is not a number"),
        (
            ("refuses",),
            Cause.INVALID,
            "the trainer refused the configuration: train.py: error: argument --tp",
        ),
        (("another_batch", "10"), Cause.UNMEASURED, "the run's global_batch must be the plan's, 256; got 7"),
        (("train", "4"), Cause.UNMEASURED, "too few steps: 4 in 4 lines"),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else None,
)
def test_a_failure_is_an_outcome_with_its_cause(words, cause, message):
    found = outcome(*words)
    assert isinstance(found, Failed)
    assert found.cause is cause
    assert message in found.message


class TestLimits:
    @pytest.mark.parametrize("trainer", ["hang", "stubborn", "closes_its_output"])
    def test_a_run_is_ended_at_its_time_limit(self, trainer):
        began = time.monotonic()
        found = outcome(trainer, "3", time_limit_s=1.0)
        assert (found.cause, found.message) == (
            Cause.TIMEOUT,
            "the trial did not end within 1 s; it had 3 steps",
        )
        assert time.monotonic() - began < 30

    def test_no_step_within_the_limit_is_a_hang(self):
        found = outcome("stubborn", "3", step_limit_s=0.5, time_limit_s=60.0)
        assert (found.cause, found.message) == (Cause.HANG, "no step ended within 0.5 s, after 3 steps")
        assert '"step": 3' in found.log_tail

    def test_the_first_step_has_a_limit_of_its_own(self):
        found = outcome("hang", "0", start_limit_s=0.5, step_limit_s=60.0)
        assert (found.cause, found.message) == (Cause.HANG, "no step ended within 0.5 s, after no step")


class TestNothingIsLeft:
    def test_after_a_run_that_ends_well(self, tmp_path):
        found = outcome("leaves_children", "10", str(tmp_path / "diary"))
        assert isinstance(found, Measured)
        self.assert_all_gone(tmp_path / "diary")

    def test_after_a_run_that_had_to_be_ended(self, tmp_path):
        found = outcome("leaves_children_and_hangs", "3", str(tmp_path / "diary"), step_limit_s=0.5)
        assert found.cause is Cause.HANG
        self.assert_all_gone(tmp_path / "diary")

    def test_after_its_own_process_was_killed(self, tmp_path):
        diary, pid = tmp_path / "diary", os.fork()
        if pid == 0:
            outcome("leaves_children_and_hangs", "3", str(diary))
            os._exit(0)
        deadline = time.monotonic() + 120
        while len(diary.read_text().split() if diary.exists() else []) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.assert_all_gone(diary)

    def test_in_the_folder_for_temporary_files(self, tmp_path, monkeypatch):
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        outcome("train", "10")
        assert list(tmp_path.iterdir()) == []

    def assert_all_gone(self, diary):
        pids = [int(pid) for pid in diary.read_text().split()]
        assert len(pids) == 4
        assert gone(pids)


class TestPlaceholders:
    def test_stand_for_the_plan_and_the_job(self, tmp_path):
        said, words = (
            tmp_path / "said",
            "{tp} {sequence_parallel} {schedule} {n_microbatches} {seq_len} {{x}}",
        )
        outcome("says", str(said), *words.split())
        assert json.loads(said.read_text())["argv"] == ["4", "true", "1f1b", "32", "8192", "{x}"]

    def test_values_are_words_and_never_a_shell_s(self, tmp_path):
        said = tmp_path / "said"
        outcome(
            "says",
            str(said),
            "--plan={plan}",
            "; touch {folder}/x $(id) `id`",
            trials_folder=str(tmp_path / "t"),
        )
        argv = json.loads(said.read_text())["argv"]
        assert argv[0] == f"--plan={FITS.key}"
        assert argv[1].endswith("/x $(id) `id`")
        assert not list(tmp_path.glob("t/*/x"))

    def test_words_may_depend_on_a_knob(self, tmp_path):
        said = tmp_path / "said"
        when = {"sequence_parallel=true": ["--sp"], "zero=3": ["--fsdp"], "tp=4": ["--tp", "{tp}"]}
        outcome("says", str(said), when=when)
        assert json.loads(said.read_text())["argv"] == ["--sp", "--tp", "4"]

    def test_the_environment_has_them_too(self, tmp_path):
        said = tmp_path / "said"
        outcome("says", str(said), environment={"MASTER_PORT": "{port}", "TP": "{tp}"})
        env = json.loads(said.read_text())["env"]
        assert (env["TP"], env["PYTHONUNBUFFERED"], env["MASTER_PORT"].isdecimal()) == ("4", "1", True)

    def test_the_plan_file_holds_them_all(self, tmp_path):
        outcome("train", "10", "{plan_file}", trials_folder=str(tmp_path))
        (plan_file,) = tmp_path.glob("*/plan.json")
        document = json.loads(plan_file.read_text())
        assert (document["tp"], document["plan"], document["n_steps"]) == ("4", FITS.key, "10")

    def test_the_working_folder_is_the_trial_s_own_or_what_was_asked(self, tmp_path):
        said = tmp_path / "said"
        outcome("says", str(said), working_folder=str(tmp_path))
        assert json.loads(said.read_text())["cwd"] == str(tmp_path)
        outcome("says", str(said), trials_folder=str(tmp_path / "trials"))
        assert Path(json.loads(said.read_text())["cwd"]).parent == tmp_path / "trials"

    @pytest.mark.parametrize(
        ("words", "match"),
        [
            (
                ["{tpp}"],
                r"a placeholder of the command must be one of .*; got 'tpp'\.\nhint: did you mean 'tp'",
            ),
            (["{tp.real}"], "a placeholder of the command must be one name; got '{tp.real}'"),
            (["{tp!r}"], "a placeholder of the command must be one name; got '{tp!r}'"),
            (["{}"], "a placeholder of the command must be one name; got '{}'"),
            (["{tp"], "braces of the command must match; got '{tp'"),
        ],
    )
    def test_one_that_stands_for_nothing_is_refused_before_any_launch(self, words, match):
        with pytest.raises((InvalidSpec, UnknownName), match=match):
            runner(*words)


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({}, "must have the option command or launcher; got neither"),
            (
                {"command": ["x"], "launcher": "torchtitan"},
                "must have the option command or launcher; got both",
            ),
            ({"command": "torchrun train.py"}, "the command must be a list of words"),
            ({"command": ["x"]}, "a log's trainer must be one of .*; got ''"),
            ({"command": ["x"], "reader": "megatron"}, "hint: did you mean 'megatron-lm'"),
            ({"command": ["x"], "reader": "nanotron", "n_steps": 6}, "n_steps must be at least 7, 2 of them"),
            (
                {"command": ["x"], "reader": "nanotron", "when": {"schedule=1f2b": ["a"]}},
                "schedule must be one of .*; got '1f2b'",
            ),
            (
                {"command": ["x"], "reader": "nanotron", "when": {"sequence_parallel=True": ["a"]}},
                "sequence_parallel must be true or false; got 'True'",
            ),
            (
                {"command": ["x"], "reader": "nanotron", "environment": {"A=B": "1"}},
                "a variable's name must be a word without =; got 'A=B'",
            ),
            (
                {"command": ["x"], "reader": "nanotron", "step_limit_s": -1.0},
                "step limit must be finite, not neg",
            ),
            (
                {"command": ["x"], "reader": "nanotron", "when": {"tp": ["a"]}},
                "when must be knob=value; got 'tp'",
            ),
            ({"command": ["x"], "reader": "nanotron", "when": {"tq=1": ["a"]}}, "hint: did you mean 'tp'"),
            (
                {"command": ["x"], "reader": "nanotron", "environment": {"A": 1}},
                "the variable A must be a text",
            ),
            ({"launcher": "megatron"}, "launcher must be one of .*\n?.*did you mean 'megatron-lm'"),
            ({"launcher": "torchtitan"}, "the option launcher needs a job of one node; got 8 nodes"),
        ],
    )
    def test_options_that_no_trial_can_use_are_refused(self, options, match):
        with pytest.raises(InvalidSpec, match=match):
            CommandRunner(llama_job(), **options)

    def test_a_program_that_is_not_there_is_a_missing_launcher(self):
        found = CommandRunner(llama_job(), command=["no-such-program-9"], reader="json-lines").run(
            Plans.of([FITS])
        )[0]
        assert found.cause is Cause.LAUNCHER_MISSING
        assert found.message == "the command cannot be started: no such file or directory: no-such-program-9"

    def test_a_working_folder_that_is_gone_is_a_missing_launcher(self, tmp_path):
        found = outcome("train", "10", working_folder=str(tmp_path / "none"))
        assert (found.cause, "none" in found.message) == (Cause.LAUNCHER_MISSING, True)

    def test_a_trials_folder_that_cannot_be_written_is_the_machine_s_fault(self, tmp_path):
        (tmp_path / "file").write_text("")
        found = outcome("train", "10", trials_folder=str(tmp_path / "file" / "trials"))
        assert (found.cause, "cannot be written" in found.message) == (Cause.LOST_MACHINE, True)

    def test_a_plan_of_another_world_is_not_run(self):
        assert outcome("train", "10", plan=WRONG_WORLD).cause is Cause.INVALID


class TestTheLogFile:
    def test_a_full_disk_ends_the_log_and_not_the_trial(self):
        with BoundedLog(Path("/dev/full"), 1000) as log:
            log.write(b"one\ntwo\n")
        assert log.trouble == "the log file could not be written: no space left on device"
        assert log.tail == "one\ntwo"

    def test_a_trial_on_a_full_disk_is_measured_and_says_so(self, tmp_path, monkeypatch):
        monkeypatch.setattr(command, "LOG_NAME", "/dev/full")
        found = outcome("train", "10")
        assert isinstance(found, Measured)
        assert "the log file could not be written: no space left on device" in found.effective["notes"]

    @pytest.mark.parametrize("n_bytes", [10, 100, 65_000, 300_000])
    def test_holds_the_beginning_and_the_end(self, tmp_path, n_bytes):
        data = b"".join(b"%09d\n" % i for i in range(n_bytes // 10))
        with BoundedLog(tmp_path / "log", 100_000) as log:
            for i in range(0, n_bytes, 7000):
                log.write(data[i : i + 7000])
        kept = (tmp_path / "log").read_bytes()
        assert kept == data if n_bytes < 100_000 else len(kept) < 100_100
        assert (kept[:9], kept[-10:]) == (data[:9], data[-10:])


@pytest.mark.parametrize(
    ("order", "rank", "stage"),
    [(RankOrder.TP_CP_DP_PP, 0, 0), (RankOrder.TP_CP_DP_PP, 9, 1), (RankOrder.TP_CP_PP_DP, 3, 1),
     (RankOrder.TP_CP_PP_DP, 9, 0)],
)  # fmt: skip
def test_the_stage_of_a_rank_follows_the_order_of_ranks(order, rank, stage):
    assert stage_of_rank(Plan(tp=2, pp=2, dp=4, rank_order=order), rank) == stage
