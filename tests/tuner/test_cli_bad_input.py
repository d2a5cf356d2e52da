"""What a user may get wrong: one sentence, what was given, the way out, exit code 2, nothing on stdout."""

import json
import os
import sqlite3

import pytest

from tests.tuner.cli import JOB, NARROW, PLAN, STUDY_FILE, complaint, meshtune


def job(**changes):
    """The job's flags with some of them changed."""
    flags = dict(zip(JOB[::2], JOB[1::2], strict=True)) | {
        f"--{k.replace('_', '-')}": str(v) for k, v in changes.items()
    }
    return [word for pair in flags.items() for word in pair]


@pytest.mark.parametrize(
    ("arguments", "given", "way_out"),
    [
        (["rank", *job(model="lama-3-8b")], "'lama-3-8b'", "did you mean 'llama-3-8b'?"),
        (["rank", *job(cluster="dgx-h10")], "'dgx-h10'", "did you mean 'dgx-h100'?"),
        (["rank", *job(precision="bf17")], "'bf17'", "did you mean 'bf16'?"),
        (["rank", *job(framework="megatron")], "'megatron'", "did you mean 'megatron-lm'?"),
        (["rank", *JOB, "--metric", "step-time"], "'step-time'", "did you mean 'step_time'?"),
        (["rank", *JOB, "--set", "tq=1"], "'tq'", "did you mean 'tp'?"),
        (["rank", *JOB, "--set", "recompute=fulll"], "'fulll'", "did you mean 'full'?"),
        (["estimate", *JOB, "--plan", "tp=2 zro=1"], "'zro'", "did you mean 'zero'?"),
        (["export", *JOB, "--plan", PLAN, "--to", "megatron"], "'megatron'", "did you mean 'megatron-lm'?"),
        (
            ["export", *JOB, "--plan", PLAN, "--to", "megatron-lm", "--scheduler", "slrum"],
            "'slrum'",
            "'slurm'?",
        ),
        (
            ["export", *JOB, "--plan", PLAN, "--to", "torchtitan", "--option", "acount=x"],
            "'acount'",
            "'account'?",
        ),
        (["models", "gpt3-175"], "'gpt3-175'", "did you mean 'gpt3-175b'?"),
        (["clusters", "fronteer"], "'fronteer'", "did you mean 'frontier'?"),
        (["launchers", "deepspeeed"], "'deepspeeed'", "did you mean 'deepspeed'?"),
        (["rank", "--modle", "x"], "--modle", "did you mean '--model'?"),
        (["tune", *JOB, "--runner", "simulate"], "'simulate'", "did you mean 'simulated'?"),
        (["tune", *JOB, "--sampler", "tpee"], "'tpee'", "did you mean 'tpe'?"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_an_unknown_name_is_answered_with_the_nearest(arguments, given, way_out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = complaint(*arguments)
    assert given in told
    assert way_out in told


def test_an_unknown_verb_is_answered_with_the_nearest():
    assert "Did you mean 'rank'?" in complaint("rnak")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["rank"],
            "got no --model or --hf-config, no --cluster, no --devices, no --global-batch, no --seq-len",
        ),
        (["tune"], "got no --model or --hf-config, no --cluster"),
        (["rank", *JOB, "--hf-config", "x"], "a model must be named once"),
        (["estimate", *JOB], "Missing option '--plan'"),
        (["export", *JOB, "--plan", PLAN], "Missing option '--to'"),
        (["export", "--to", "megatron-lm"], "export must be told a study's NAME, or a job with --plan"),
        (["rank", *JOB, "--set", "tp"], "--set must be KNOB=VALUE,VALUE; got 'tp'"),
        (["rank", *JOB, "--set", "tp=two"], "tp must be a whole number; got 'two'"),
        (["rank", *JOB, "--top", "0"], "--top"),
        (["rank", *job(devices="nan")], "got 'nan'."),
        (["rank", *JOB[2:], "--hf-config", ""], "no --model or --hf-config"),
        (["rank", *job(cluster="")], "got no --cluster"),
        (["rank", *JOB, "--space", ""], "--space must name a file"),
        (["rank", *job(seq_len="9" * 20)], "seq_len must be at most"),
        (["rank", *JOB, "--top=1e3"], "got '1e3'."),
        (["rank", *job(global_batch="inf")], "--global-batch"),
        (["rank", *job(seq_len="0")], "seq_len must be a positive number of tokens; got 0"),
        (["rank", *job(devices="-8")], "got -8"),
        (["rank", *job(devices="20")], "--devices must fill whole nodes of 8; got 20"),
        (["rank", *JOB, "--metric", "cost"], "the metric cost needs a price per device-hour"),
        (["estimate", *JOB, "--plan", "tp=3"], "a plan must keep the rule"),
        (["estimate", *JOB, "--plan", "tp"], "a plan is written as knob=value words; got 'tp'"),
        (["estimate", *JOB, "--plan", PLAN, "--set", "tp=4"], "must lie in the space that --space and --set"),
        (["simulate", *JOB, "--plan", PLAN, "--set", "zero=2,3"], "must lie in the space"),
        (
            ["export", *JOB, "--plan", PLAN, "--set", "pp=1", "--to", "megatron-lm"],
            "must lie in the space that --space and --set leave; got tp=2 pp=2",
        ),
        (["estimate", *JOB, "--plan", PLAN, "--set", "tpp=4"], "did you mean 'tp'?"),
        (["tune", *JOB, "--hours", "nan"], "got nan"),
        (["tune", *JOB, "--hours", "inf"], "got inf"),
        (["tune", *JOB, "--trials", "0"], "trials must be positive; got 0"),
        (["tune", *JOB, "--parallel", "0"], "parallel must be a positive number of trials; got 0"),
        (["tune", *JOB, "--runner-option", "noise=nan"], "must be finite"),
        (["tune", *JOB, "--runner-option", "nois=1"], "did you mean 'noise'?"),
        (["tune", *JOB, "--runner-option", "noise=x"], "noise must be a number; got 'x'"),
        (["tune", *JOB, "--runner-option", "noise=true"], "noise must be a number; got True"),
        (["tune", *JOB, "--runner-option", "noise=-1"], "noise must be finite, not negative"),
        (["tune", *JOB, "--runner", "replay"], "options of replay must have the key path"),
        (
            ["tune", *JOB, "--runner", "replay", "--runner-option", "path=no.csv"],
            "no.csv must be a readable text file; got no such file",
        ),
        (
            ["tune", *JOB, "--runner", "analytic", "--runner-option", "a=1"],
            "the runner analytic takes no options",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_wrong_value_is_named_and_nothing_is_written(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in complaint(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_cannot_be_divided_names_the_rule():
    told = complaint("estimate", *job(global_batch=63), "--plan", "tp=2 pp=2 dp=4")
    assert "micro_batch * dp divides the global batch" in told


def test_no_legal_plan_names_the_rule_that_removed_the_last_ones():
    told = complaint(
        "rank", *job(global_batch=63), "--set", "dp=4", "--set", "tp=2", "--set", "pp=2", "--set", "cp=1"
    )
    assert "at least one plan must pass every rule" in told
    assert "the last ones were removed by: micro_batch * dp divides the global batch" in told


def test_when_nothing_fits_the_shortfall_is_told_and_the_answer_is_no():
    told = complaint("rank", *job(model="llama-3-405b"), *NARROW, code=1)
    assert "must fit in 71.7 GiB a device" in told
    assert "GiB too large" in told


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("devices = 16", "devices = nan"), "cluster.devices must be finite"),
        (("seq_len = 8192", "seq_len = inf"), "workload.seq_len must be finite"),
        (("seq_len = 8192", "seq_len = 8192\nprecison = 'bf16'"), "did you mean 'precision'?"),
        (("[workload]", "[wokload]"), "did you mean 'workload'?"),
        (("devices = 16", "devices = 16.5"), "devices must be a positive whole number; got 16.5"),
        (("[model]", "[model"), "must be a TOML file"),
    ],
    ids=["nan", "inf", "key", "table", "fraction", "syntax"],
)
def test_a_wrong_study_file_is_refused(change, sentence, tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(STUDY_FILE.replace(*change))
    assert sentence in complaint("tune", path)


def test_a_missing_file_is_named(tmp_path):
    for arguments in (["tune", tmp_path / "no.toml"], ["rank", *JOB, "--space", tmp_path / "no.toml"]):
        assert "no.toml must be a readable text file" in complaint(*arguments)


def test_a_foreign_hugging_face_config_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "lama"}))
    told = complaint("rank", "--hf-config", path, *JOB[2:])
    assert "did you mean 'llama'? another decoder can be described inline, under [model]" in told


def text_file(folder):
    (folder / "study.db").write_text("not a database at all")


def other_database(folder):
    with sqlite3.connect(folder / "study.db") as connection:
        connection.execute("create table songs (name text)")


def folder_itself(folder):
    (folder / "study.db").mkdir()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (text_file, "got file is not a database"),
        (other_database, "must be a study file; got a database with the tables songs"),
        (folder_itself, "must be a file; got a folder"),
        (lambda folder: None, "must exist; got no such file"),
    ],
    ids=["text", "database", "folder", "missing"],
)
@pytest.mark.parametrize(
    "verb", [["resume", "x"], ["studies"], ["show", "x"], ["report", "x"]], ids=lambda verb: verb[0]
)
def test_a_storage_that_is_none_is_refused_and_left_alone(verb, make, sentence, tmp_path):
    make(tmp_path)
    assert sentence in complaint(*verb, "--storage", f"sqlite:///{tmp_path / 'study.db'}")


def test_an_unreachable_server_is_told_without_the_password():
    told = complaint("studies", "--storage", "postgresql://me:secret@127.0.0.1:1/base")
    assert "secret" not in told


@pytest.mark.parametrize("url", ["mysql://h/b", "redis://h", ""])
def test_an_unknown_kind_of_storage_is_refused(url):
    assert "a storage must" in complaint("studies", "--storage", url)


@pytest.mark.parametrize("target", [".", "file/report.html", "locked/report.html"])
def test_an_output_that_cannot_be_written_is_refused_before_the_study_is_read(target, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    (tmp_path / "file").write_text("")
    if target.startswith("locked") and os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write everywhere")
    told = complaint(
        "report", "x", "--html", tmp_path / target, "--storage", f"sqlite:///{tmp_path / 'no.db'}"
    )
    assert "the output must" in told


def test_an_export_into_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    told = complaint(
        "export", *JOB, "--plan", PLAN, "--to", "megatron-lm", "-o", tmp_path / "file" / "folder"
    )
    assert "file" in told


def test_a_plan_that_a_launcher_cannot_express_is_refused_with_the_knob(tmp_path):
    told = complaint("export", *JOB, "--plan", "tp=2 cp=2", "--to", "deepspeed", "-o", tmp_path / "out")
    assert "cp_kind=ring" in told
    assert not (tmp_path / "out").exists()


def test_help_is_no_error():
    answer = meshtune("tune", "--help")
    assert (answer.code, answer.err) == (0, "")
    assert "--trials" in answer.out
