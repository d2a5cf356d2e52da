"""What a study may ask of Slurm, in the words of srun and sbatch, and the sentences for what it may not."""

import json
import re

import pytest

from objectives.outcome import Cause, Failed, Measured, OutcomeOrigin
from runners.logs.verdict import Ending
from runners.protocol import RunnerRecipe
from runners.slurm import choice
from runners.slurm.account import clues_of, without_outcome
from runners.slurm.batch import script_text
from runners.slurm.choice import Mode, Slurm, Tasks, check_slurm, placed, sbatch_words, slots, srun_words
from runners.slurm.states import failed_in, is_final, settled
from runners.slurm.tools import Answer
from runners.slurm.trial import ORPHANED, Request, read_outcome, read_request, write_request
from search_spaces.documents import build
from search_spaces.errors import InvalidSpec, RunnerError
from search_spaces.plan import Plan
from tests.runners.jobs import llama_job, tiny_job
from tests.tuner.cli import JOB, NARROW, complaint

OUTSIDE: dict[str, str] = {}
INSIDE = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-4]"}
COMMAND = {"command": ["train"], "reader": "json-lines"}


@pytest.fixture
def tools(monkeypatch):
    """Slurm's programs are there, and the allocation has four nodes."""
    monkeypatch.setattr(choice.shutil, "which", lambda tool: f"/usr/bin/{tool}")
    monkeypatch.setattr(choice, "host_names", lambda _: ("node1", "node2", "node3", "node4"))


def recipe(kind="command", n_devices=16, **options):
    job = llama_job(n_devices, 64) if kind != "torch" else tiny_job()
    return RunnerRecipe(kind=kind, job=job, options=options or (COMMAND if kind == "command" else {}))


class TestWords:
    def test_a_command_starts_once_a_node_with_all_its_cores(self):
        words = srun_words(Slurm(), llama_job(16))
        for word in (
            "--nodes=2",
            "--ntasks=2",
            "--ntasks-per-node=1",
            "--nodelist={nodelist}",
            "--cpu-bind=none",
        ):
            assert word in words

    def test_or_once_a_device(self):
        words = srun_words(Slurm(tasks=Tasks.DEVICE, cpus_per_task=7), llama_job(16))
        assert {"--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=7"} <= set(words)
        assert "--cpu-bind=none" not in words

    def test_a_command_s_own_braces_in_flags_stay_braces(self):
        words = placed(recipe(), Slurm(srun_flags=("--comment={x}",))).options["under"]
        assert "--comment={{x}}" in words

    def test_a_job_asks_for_whole_nodes_their_devices_and_the_trial_s_time(self):
        words = sbatch_words(Slurm(partition="gpu,big", account="a-1"), llama_job(16), 600.0)
        asked = {
            "--nodes=2",
            "--gpus-per-node=8",
            "--exclusive",
            "--time=12",
            "--no-requeue",
            "--account=a-1",
        }
        assert asked <= set(words)

    def test_a_job_on_cpus_asks_for_no_gpu_and_shares_its_node(self):
        words = sbatch_words(Slurm(), tiny_job(), None)
        assert not [word for word in words if word.startswith(("--gpus", "--exclusive", "--time"))]

    def test_the_script_quotes_what_it_is_given(self, tmp_path):
        script = script_text(tmp_path / "a b'c$(id)", Slurm(setup_script="/x y/set`up`.sh"))
        assert "\n. '/x y/set`up`.sh'\n" in script
        assert "a b'\"'\"'c$(id)'" in script

    def test_as_many_trials_run_side_by_side_as_have_nodes(self, tools):
        assert [slots(Slurm(), llama_job(16), n, INSIDE) for n in (1, 2, 3)] == [1, 2, 2]
        assert slots(Slurm(), llama_job(16), 9, OUTSIDE) == 9


class TestRefusals:
    @pytest.mark.parametrize(
        ("table", "match"),
        [
            ({"nodes": -1}, "nodes must be finite, not negative; got -1"),
            ({"poll_s": 0.0}, "poll_s must be positive and finite; got 0.0"),
            ({"partition": "a b"}, "partition must be a word of letters.*; got 'a b'"),
            ({"account": "$(id)"}, r"account must be a word of letters.*; got '\$\(id\)'"),
            ({"time_limit": "soon"}, "time_limit must be HH:MM:SS or days-HH:MM:SS; got 'soon'"),
            (
                {"srun_flags": ["constraint=h100"]},
                "srun_flags must be one flag a word.*; got 'constraint=h100'",
            ),
            ({"srun_flags": ["--nodelist=x"]}, "srun_flags must leave to Meshtune what places a trial"),
            ({"sbatch_flags": ["-N4"]}, "sbatch_flags must leave to Meshtune what places a trial; got '-N4'"),
            ({"folder": ""}, "folder must not be empty"),
            ({"mode": "alloc"}, r"\[runner.slurm\]: mode"),
            ({"node": 2}, "did you mean 'nodes'"),
        ],
    )
    def test_of_the_table(self, table, match):
        with pytest.raises(InvalidSpec, match=match):
            build(Slurm, table, "[runner.slurm]")

    @pytest.mark.parametrize(
        ("slurm", "what", "environment", "match"),
        [
            (Slurm(nodes=3), recipe(), OUTSIDE, "devices evenly; got 16 devices over 3 nodes"),
            (Slurm(nodes=8), recipe(), INSIDE, "got 8 nodes a trial, 4 allocated"),
            (
                Slurm(mode=Mode.ALLOCATION),
                recipe(),
                OUTSIDE,
                "needs a Slurm job around it; got no SLURM_JOB_ID",
            ),
            (Slurm(nodes=2), recipe("torch"), OUTSIDE, "must have a trial on one node; got 2 nodes"),
            (
                Slurm(tasks=Tasks.DEVICE),
                recipe(launcher="torchtitan"),
                OUTSIDE,
                "tasks = device needs a command",
            ),
        ],
    )
    def test_of_nodes_that_cannot_be(self, tools, slurm, what, environment, match):
        with pytest.raises(InvalidSpec, match=match):
            check_slurm(slurm, what, environment)

    def test_of_nothing_that_can_be(self, tools):
        check_slurm(Slurm(), recipe(), OUTSIDE)
        check_slurm(Slurm(nodes=4), recipe(), INSIDE)
        check_slurm(Slurm(), recipe("torch"), INSIDE)

    def test_where_there_is_no_slurm_the_command_line_has_one_sentence(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        said = complaint(
            "tune",
            *JOB,
            *NARROW,
            "--name",
            "x",
            "--executor",
            "slurm",
            "--storage",
            f"sqlite:///{tmp_path}/s.db",
        )
        assert "executor = slurm needs sbatch on PATH; got no such program" in said
        assert not (tmp_path / "s.db").exists()

    def test_a_flag_s_table_is_laid_over_the_file_s(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        text = '[model]\npreset="gpt2"\n[cluster]\npreset="dgx-a100"\ndevices=8\n[workload]\nseq_len=1024\n' \
            'global_batch=16\n[runner]\nexecutor="slurm"\n[runner.slurm]\nmode="sbatch"\n'  # fmt: skip
        (tmp_path / "study.toml").write_text(text)
        said = complaint("tune", tmp_path / "study.toml", "--slurm-option", "poll_s=-1.0")
        assert "poll_s must be positive and finite; got -1.0" in said
        assert "needs sbatch on PATH" in complaint(
            "tune", tmp_path / "study.toml", "--slurm-option", "nodes=1"
        )


class TestStates:
    @pytest.mark.parametrize(
        ("state", "cause"),
        [
            ("TIMEOUT", Cause.TIMEOUT),
            ("OUT_OF_MEMORY", Cause.OUT_OF_MEMORY),
            ("NODE_FAIL", Cause.LOST_MACHINE),
            ("BOOT_FAIL", Cause.LOST_MACHINE),
            ("PREEMPTED", Cause.PREEMPTED),
            ("CANCELLED by 1000", Cause.PREEMPTED),
        ],
    )
    def test_is_a_cause(self, state, cause):
        assert failed_in(state, OutcomeOrigin.MEASURED).cause is cause
        assert is_final(state)

    def test_says_more_than_the_symptoms_of_the_trial(self):
        own = Failed(
            cause=Cause.CRASH, message="ended by SIGTERM", origin=OutcomeOrigin.MEASURED, log_tail="x"
        )
        assert (settled(own, "NODE_FAIL").cause, settled(own, "NODE_FAIL").log_tail) == (
            Cause.LOST_MACHINE,
            "x",
        )
        assert settled(own, "COMPLETED") is own

    def test_says_less_than_what_the_trial_knows(self):
        own = Failed(cause=Cause.INVALID, message="no such plan", origin=OutcomeOrigin.MEASURED)
        ran = Measured(step_s=1.0, step_spread_s=0.0, peak_memory_bytes=1.0, origin=OutcomeOrigin.MEASURED)
        assert settled(own, "TIMEOUT") is own
        assert settled(ran, "TIMEOUT") is ran

    @pytest.mark.parametrize(
        ("status", "cause"),
        [
            (ORPHANED, Cause.LOST_MACHINE),
            (0, Cause.LOST_MACHINE),
            (127, Cause.LAUNCHER_MISSING),
            (1, Cause.CRASH),
        ],
    )
    def test_without_an_outcome_the_exit_status_is_asked(self, status, cause):
        found = without_outcome(clues_of(""), Ending(status=status), OutcomeOrigin.MEASURED, log_tail="")
        assert found.cause is cause


class TestAnswers:
    def test_a_controller_that_restarts_may_answer_later(self):
        assert Answer(
            status=1, err="sbatch: error: Unable to contact slurm controller (connect failure)"
        ).may_pass
        assert not Answer(status=1, err="sbatch: error: invalid partition specified: x").may_pass

    def test_a_full_queue_is_known(self):
        words = "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed"
        assert Answer(status=1, err=words).is_full

    def test_the_sentence_is_the_first_error(self):
        assert (
            Answer(status=1, err="sbatch: error: invalid qos\nsbatch: error: failed").sentence
            == "invalid qos"
        )


class TestTheTrialSFolder:
    def test_holds_the_request(self, tmp_path):
        asked = Request(
            recipe=recipe(), plan=Plan(tp=8, dp=2, sequence_parallel=True), attempt=1, time_limit_s=9.0
        )
        write_request(tmp_path, asked)
        found = read_request(tmp_path)
        assert (found.plan, found.attempt, found.time_limit_s) == (asked.plan, 1, 9.0)
        assert (found.recipe.job, dict(found.recipe.options)) == (asked.recipe.job, COMMAND)

    def test_an_outcome_that_is_half_there_is_none(self, tmp_path):
        assert read_outcome(tmp_path) is None
        (tmp_path / "outcome.json").write_text('{"outcome": {"ki')
        assert read_outcome(tmp_path) is None

    def test_trouble_of_the_node_is_raised_here(self, tmp_path):
        (tmp_path / "outcome.json").write_text(json.dumps({"error": ["it must be so", "not so", "do this"]}))
        with pytest.raises(RunnerError, match=re.escape("it must be so; got not so.\nhint: do this")):
            read_outcome(tmp_path)
