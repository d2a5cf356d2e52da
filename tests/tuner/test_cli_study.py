"""The verbs about studies: tune, resume, studies, show, report, export."""

import json

import jsonschema
import pytest

from tests.tuner import schemas
from tests.tuner.cli import JOB, NARROW, PLAN, STUDY_FILE, complaint, meshtune
from tests.tuner.conftest import TRIALS

TWO_OBJECTIVES = f"""
[study]
name = "from-file"
{STUDY_FILE}
[objective]
metric = ["step_time", "peak_memory"]
[runner]
executor = "in-process"
[budget]
trials = 3
"""


@pytest.fixture
def storage(finished_study):
    return finished_study[0]


def test_tune_prints_the_documented_form(finished_study):
    document = finished_study[1].document
    jsonschema.validate(document, schemas.TUNE)
    assert document["stop"] == "trials"


def test_tune_tells_its_story_on_stderr(finished_study):
    story = finished_study[1].err
    assert "plans are legal and fit" in story
    assert story.count("trial ") >= TRIALS
    assert "meshtune report demo --storage" in story


def test_the_best_trial_is_the_fastest_that_ran(finished_study):
    document = finished_study[1].document
    times = [trial["values"]["step_time"] for trial in document["trials"] if trial["values"]]
    assert document["best"]["values"]["step_time"] == min(times)
    assert document["counts"]["measured"] + document["counts"]["failed"] == TRIALS


def test_studies_lists_it(storage):
    document = meshtune("studies", "--storage", storage, "--json").document
    jsonschema.validate(document, schemas.STUDIES)
    assert "demo" in [study["name"] for study in document["studies"]]
    assert "demo" in meshtune("studies", "--storage", storage).out


@pytest.mark.parametrize("verb", ["show", "report"])
def test_a_study_is_printed_in_the_documented_form(verb, storage):
    document = meshtune(verb, "demo", "--storage", storage, "--json").document
    jsonschema.validate(document, schemas.STUDY)
    assert len(document["trials"]) == TRIALS


def test_show_lists_every_trial_with_its_state(storage):
    answer = meshtune("show", "demo", "--storage", storage)
    assert answer.code == 0
    assert answer.out.count("measured") + answer.out.count("failed ") >= TRIALS
    assert max(map(len, answer.out.splitlines())) <= 100


def test_report_tells_accuracy_causes_importance_and_origin(storage):
    answer = meshtune("report", "demo", "--storage", storage)
    assert answer.code == 0
    for word in (
        "predicted/simulated",
        "median error",
        "failed trials",
        "crash",
        "knob importance",
        "assumed constants",
    ):
        assert word in answer.out
    assert max(map(len, answer.out.splitlines())) <= 100


def test_report_writes_one_html_file(storage, tmp_path):
    target = tmp_path / "new" / "report.html"
    answer = meshtune("report", "demo", "--storage", storage, "--html", target)
    assert answer.code == 0
    assert f"wrote {target}" in answer.err
    assert target.read_text().startswith("<!doctype html>")


def test_resume_with_the_same_budget_has_nothing_to_do(storage):
    document = meshtune("resume", "demo", "--storage", storage, "--json").document
    jsonschema.validate(document, schemas.TUNE)
    assert len(document["trials"]) == TRIALS


def test_resume_with_a_larger_budget_goes_on(tmp_path):
    storage = f"journal:///{tmp_path / 'studies.journal'}"
    common = ["--storage", storage, "--json"]
    first = meshtune(
        "tune", *JOB, *NARROW, "--name", "x", "--trials", 2, "--executor", "in-process", *common
    ).document
    again = meshtune("resume", "x", "--trials", 4, *common).document
    assert again["trials"][:2] == first["trials"]
    assert again["counts"]["measured"] == 4


def test_a_study_goes_on_only_with_the_inputs_it_began_with(storage):
    told = complaint("tune", *JOB, *NARROW, "--seq-len", 4096, "--name", "demo", "--storage", storage)
    assert "workload.seq_len was 8192, now 4096" in told


def test_an_unknown_study_is_answered_with_the_nearest(storage):
    for verb in (["show"], ["report"], ["resume"], ["export", "--to", "megatron-lm"]):
        assert "did you mean 'demo'?" in complaint(*verb, "dmeo", "--storage", storage)


def test_flags_win_over_the_study_file(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(TWO_OBJECTIVES)
    storage = f"sqlite:///{tmp_path / 'studies.db'}"
    answer = meshtune("tune", path, *NARROW, "--seq-len", 4096, "--trials", 2, "--storage", storage, "--json")
    document = answer.document
    assert document["name"] == "from-file"
    assert document["job"]["seq_len"] == 4096
    assert document["objective"] == ["step_time", "peak_memory"]
    assert document["counts"]["measured"] + document["counts"]["failed"] == 2
    assert "Pareto front" in meshtune("report", "from-file", "--storage", storage).out


@pytest.mark.parametrize("launcher", ["megatron-lm", "deepspeed"])
def test_export_writes_the_best_plan(launcher, storage, tmp_path):
    out = tmp_path / "launch"
    answer = meshtune("export", "demo", "--storage", storage, "--to", launcher, "-o", out, "--json")
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.document, schemas.EXPORT)
    assert {"job.sbatch", "run.sh", "plan.json"} <= {path.name for path in out.iterdir()}
    best = meshtune("show", "demo", "--storage", storage, "--json").document["best"]["plan"]
    written = json.loads((out / "plan.json").read_text())["plan"]
    assert {knob: written[knob] for knob in best} == best


def test_export_writes_one_trials_plan_for_one_scheduler(storage, tmp_path):
    trials = meshtune("show", "demo", "--storage", storage, "--json").document["trials"]
    number = trials[3]["number"]
    flags = ["--trial", number, "--scheduler", "torchrun", "--option", "job_name=mine", "-o", tmp_path]
    answer = meshtune("export", "demo", "--storage", storage, "--to", "megatron-lm", *flags)
    assert answer.code == 0, answer.err
    assert str(tmp_path / "run.sh") in answer.out.splitlines()
    assert not (tmp_path / "job.sbatch").exists()
    assert json.loads((tmp_path / "plan.json").read_text())["provenance"]["trial"] == number


def test_export_writes_a_plan_that_was_typed(tmp_path):
    answer = meshtune("export", *JOB, "--plan", PLAN, "--to", "megatron-lm", "-o", tmp_path)
    assert answer.code == 0, answer.err
    assert json.loads((tmp_path / "plan.json").read_text())["predicted"]["step_time_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "--trial", 99], "--trial must be a trial of study 'demo'; got 99"),
        (["demo", "--plan", PLAN], "must not be combined with a job's flags or --plan; got --plan"),
        (["demo", *JOB], "got --model, --cluster, --devices, --global-batch, --seq-len"),
        ([*JOB, "--plan", PLAN, "--trial", 1], "--trial needs a study's NAME"),
    ],
    ids=["trial", "plan", "job", "no study"],
)
def test_export_refuses_what_contradicts_itself(arguments, sentence, storage):
    assert sentence in complaint("export", *arguments, "--to", "megatron-lm", "--storage", storage)
