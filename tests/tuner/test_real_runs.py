"""A folder of real studies in one command: through Ray, on real processes, and on where it was stopped."""

import csv
import json

import pytest

from benchmarks import real_runs
from objectives.measurements import read_measurements
from search_spaces.plan import Plan
from tests.tuner.cli import meshtune

STUDY = """
[study]
name = "{name}"
sampler = "random"

[model]
name = "tiny"
source = "made up"
n_layers = 2
d_model = 32
attention = {{ n_heads = 4, n_kv_heads = 2, head_dim = 8 }}
mlp = {{ width = 48 }}
embedding = {{ vocab_size = 64 }}

[cluster]
preset = "local"
devices = 2

[workload]
global_batch = 4
seq_len = 32
precision = "fp32"
framework = "meshtune"

[space]
{space}
cp = 1
vpp = 1
micro_batch = 2
first_layers = 0
recompute = "none"
rank_order = "tp-cp-dp-pp"

{runner}

[budget]
trials = 100
"""
SPACE = 'tp = 1\nzero = [0, 3]\noverlap_dp = false\nschedule = ["gpipe", "1f1b"]'
EVERY = (
    "dp=2 micro_batch=2",
    "dp=2 micro_batch=2 zero=3",
    "pp=2 micro_batch=2",
    "pp=2 micro_batch=2 schedule=gpipe",
)
REAL = '[runner]\nkind = "torch"\nparallel = 1\noptions = { device = "cpu", n_warmup = 1, n_steps = 2 }'
PRICED = '[runner]\nkind = "analytic"\nparallel = 1\nexecutor = "in-process"'


@pytest.fixture
def folder(tmp_path):
    studies = tmp_path / "studies"
    studies.mkdir()

    def with_studies(runner, *names):
        for name in names:
            (studies / f"{name}.toml").write_text(STUDY.format(name=name, space=SPACE, runner=runner))
        return studies

    return with_studies


@pytest.fixture
def run(tmp_path):
    out, storage = tmp_path / "out" / "runs.csv", f"sqlite:///{tmp_path / 'runs.db'}"

    def command(folder, *options):
        where = ["-o", str(out), "--storage", storage, "--cluster", "local"]
        code = real_runs.main([str(folder), *where, *options])
        with out.open() as file:
            return code, list(csv.DictReader(file))

    return command


@pytest.mark.ray
@pytest.mark.torch
@pytest.mark.timeout(900)
def test_every_plan_is_trained_once_and_the_command_goes_on_where_it_was(folder, run, tmp_path, capfd):
    studies = folder(REAL, "tiny")
    code, begun = run(studies, "--trials", "1")
    assert (code, len(begun)) == (0, 1)
    code, rows = run(studies)
    assert code == 0
    assert rows[0] == begun[0]
    words = sorted(json.loads(row["extra"])["plan"] for row in rows)
    assert words == sorted(Plan.parse(each).key for each in EVERY)
    assert all(row["outcome"] == "ok" for row in rows)
    assert "every candidate plan has been tried" in capfd.readouterr().err
    runs = read_measurements(tmp_path / "out" / "runs.csv").runs
    assert sorted(run.plan.key for run in runs) == words
    assert all(run.step_s > 0 and run.peak_memory_bytes > 0 and run.trusted for run in runs)
    answer = meshtune("validate", tmp_path / "out" / "runs.csv", "--json")
    assert answer.document["used"] == 4


def test_the_table_holds_every_study_that_has_begun(folder, run):
    studies = folder(PRICED, "first", "second")
    assert run(studies)[0] == 0
    (studies / "first.toml").unlink()
    folder(PRICED, "third")
    code, rows = run(studies, "--trials", "2")
    assert code == 0
    assert [row["id"].partition("-")[0] for row in rows] == ["second"] * 4 + ["third"] * 2
    assert {row["step_time_origin"] for row in rows} == {"analytic"}


def test_a_folder_without_studies_is_refused(tmp_path, capfd):
    assert real_runs.main([str(tmp_path)]) == 2
    assert "must hold study files; got none" in " ".join(capfd.readouterr().err.split())


def test_studies_take_their_storage_and_budget_from_the_command(folder):
    configs = real_runs.studies(folder(PRICED, "second", "first"), "sqlite:///mine.db", 3)
    assert [config.name for config in configs] == ["first", "second"]
    assert {(config.storage, config.budget.trials) for config in configs} == {("sqlite:///mine.db", 3)}


def test_the_spaces_in_the_repository_hold_what_they_say():
    from tuner.shortlist import shortlist

    n_plans, degrees = 0, set()
    for config in real_runs.studies(real_runs.STUDIES, "sqlite:///mine.db"):
        plans = shortlist(config.inputs).candidates.plans
        n_plans += len(plans)
        degrees |= {(config.inputs.job.model.moe is not None, config.inputs.job.cluster.n_devices)}
        assert config.machine.parallel == 1
    assert n_plans >= 150
    assert degrees == {(moe, n) for moe in (False, True) for n in (2, 4)}
