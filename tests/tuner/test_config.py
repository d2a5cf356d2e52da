"""The study file: defaults, alternatives, and one sentence for whatever cannot be."""

import dataclasses
import json
import re

import pytest

from search_spaces.errors import InvalidSpec, MeshtuneError, UnknownName
from search_spaces.model_presets import load_model
from search_spaces.plan import KNOB_NAMES
from search_spaces.workload import Precision, Workload
from tests.tuner.studies import ROOT, config, tables
from tuner.budget import Budget
from tuner.cli_tables import located_options
from tuner.config import ExecutorKind, Machine, StudyTable, config_from_tables, read_config
from tuner.inputs import RunnerChoice, inputs_from_document, inputs_to_document, plain

FULL = """
[study]
name = "mine"
storage = "runs.journal"
sampler = "tpe"
seed = 5

[model]
preset = "llama-3-8b"

[cluster]
preset = "dgx-h100"
devices = 16

[workload]
global_batch = 64
seq_len = 8192
precision = "fp8"

[space]
tp = [1, 2]

[objective]
metric = ["mfu", "peak_memory"]

[runner]
kind = "simulated"
parallel = 4
executor = "in-process"
time_limit_s = 60
options = { noise = 0.1 }

[budget]
trials = 12
hours = 2
"""
SMALL = {
    "model": {"preset": "gpt2"},
    "cluster": {"preset": "dgx-a100", "devices": 8},
    "workload": {"seq_len": 1024, "global_batch": 16},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "study.toml").write_text(FULL)
    return tmp_path


def small(folder, **changes):
    merged = {name: {**SMALL.get(name, {}), **changes.get(name, {})} for name in {**SMALL, **changes}}
    return config_from_tables(merged, folder=folder)


def test_every_key_of_a_study_file_arrives(folder):
    study = read_config(folder / "study.toml")
    assert (study.name, study.storage, study.inputs.sampler, study.inputs.seed) == (
        "mine",
        "runs.journal",
        "tpe",
        5,
    )
    assert study.inputs.model == load_model("llama-3-8b")
    assert (study.inputs.cluster.n_devices, study.inputs.workload.precision) == (16, Precision.FP8)
    assert dict(study.inputs.space.narrowed) == {"tp": (1, 2)}
    assert study.inputs.objective == ("mfu", "peak_memory")
    assert study.inputs.runner == RunnerChoice(kind="simulated", options={"noise": 0.1}, time_limit_s=60)
    assert study.machine == Machine(parallel=4, executor=ExecutorKind.IN_PROCESS)
    assert study.budget == Budget(trials=12, hours=2)


def test_three_tables_suffice(tmp_path):
    study = small(tmp_path)
    assert (study.name, study.storage) == ("gpt2-8xdgx-a100", "sqlite:///meshtune.db")
    assert study.inputs.objective == ("step_time",)
    assert study.budget == Budget()


def test_a_model_may_be_a_hugging_face_config_beside_the_study_file(tmp_path):
    shapes = {
        "n_layer": 12,
        "n_embd": 768,
        "n_head": 12,
        "n_positions": 1024,
        "n_ctx": 1024,
        "vocab_size": 50257,
    }
    words = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **shapes, **words})
    )
    for where in ("config.json", "."):
        table = {**SMALL, "model": {"hf_config": where}}
        assert config_from_tables(table, folder=tmp_path).inputs.model.n_layers == 12


def test_a_model_may_be_written_out(tmp_path):
    fields = plain(load_model("gpt2")) | {"name": "ours"}
    study = config_from_tables({**SMALL, "model": fields}, folder=tmp_path)
    assert study.inputs.model == dataclasses.replace(load_model("gpt2"), name="ours")


def test_a_cluster_may_be_a_file_beside_the_study_file(tmp_path):
    tier = 'tiers = [{ name = "net", bandwidth_bytes_per_s = 1e10 }]'
    (tmp_path / "ours.toml").write_text(f'device = "h100-80"\ndevices_per_node = 8\n{tier}\n')
    study = config_from_tables({**SMALL, "cluster": {"file": "ours.toml", "devices": 8}}, folder=tmp_path)
    assert (study.inputs.cluster.name, study.inputs.cluster.n_devices) == ("ours", 8)


@pytest.mark.parametrize(
    ("kind", "name"), [("replay", "path"), ("torch", "schedule_file"), ("command", "trials_folder")]
)
def test_files_of_a_runner_lie_beside_the_study_file(kind, name, tmp_path):
    runner = {"kind": kind, "options": {name: "there"}}
    study = config_from_tables({**SMALL, "runner": runner}, folder=tmp_path)
    assert study.inputs.runner.options[name] == str(tmp_path / "there")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"studdy": {}}, "did you mean 'study'"),
        ({"study": {"nam": "x"}}, "did you mean 'name'"),
        ({"study": {"name": " "}}, "name must not be empty"),
        ({"study": {"seed": -1}}, "seed must not be negative"),
        ({"study": {"storage": "mysql://h/b"}}, "a storage must be a file"),
        ({"model": {"presett": "gpt2"}}, "did you mean 'preset'"),
        ({"model": {"preset": "gpt3"}}, "did you mean 'gpt"),
        ({"model": {"hf_config": "config.json"}}, r"\[model\] must have one of preset, hf_config"),
        ({"model": {"n_layers": 3}}, "a key of .model."),
        ({"cluster": {"preset": "dgx-a10"}}, "did you mean 'dgx-a100'"),
        ({"cluster": {"devices": "8"}}, "devices must be a positive whole number; got '8'"),
        ({"cluster": {"devices": 12}}, "must fill whole nodes"),
        ({"workload": {"global_batch": 0}}, "must be a positive number of sequences"),
        ({"workload": {"globl_batch": 1}}, "did you mean 'global_batch'"),
        ({"space": {"tpp": [1]}}, "tpp"),
        ({"objective": {"metric": "step_tim"}}, "did you mean 'step_time'"),
        ({"objective": {"metric": []}}, "must name at least one metric"),
        ({"objective": {"metric": ["mfu", "mfu"]}}, "each metric once"),
        ({"objective": {"metric": 3}}, "a name or a list of names; got 3"),
        ({"runner": {"kind": "simulatd"}}, "did you mean 'simulated'"),
        ({"runner": {"executor": "rays"}}, "executor"),
        ({"runner": {"parallel": 0}}, "parallel must be a positive number"),
        ({"runner": {"time_limit_s": 0.0}}, "time_limit_s must be positive and finite"),
        ({"runner": {"address": "h:1", "executor": "in-process"}}, "address needs executor = ray"),
        ({"runner": {"resources": {"GPU": 0.0}}}, "resources must name positive, finite amounts"),
        ({"runner": {"resources": {}}}, "resources must name positive, finite amounts"),
        ({"runner": {"bundles": 0}}, "bundles must be a positive number; got 0"),
        ({"budget": {"trials": 0}}, "trials must be positive"),
        ({"budget": {"trials": 1.5}}, "trials"),
        ({"budget": {"hours": 0}}, "hours must be positive"),
    ],
)
def test_what_cannot_be_is_one_sentence(change, sentence, tmp_path):
    with pytest.raises(InvalidSpec, match=sentence):
        small(tmp_path, **change)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    ("table", "key"),
    [("budget", "hours"), ("workload", "expert_imbalance"), ("runner", "time_limit_s"), ("space", "tp")],
)
def test_a_number_that_is_not_finite_is_refused_with_its_place(table, key, number, tmp_path):
    with pytest.raises(InvalidSpec, match=rf"{table}\.{key} must be finite; got -?(nan|inf)"):
        small(tmp_path, **{table: {key: number}})


def test_a_number_inside_options_must_be_finite_too(tmp_path):
    with pytest.raises(InvalidSpec, match=r"runner\.options\.noise must be finite; got nan"):
        small(tmp_path, runner={"options": {"noise": float("nan")}})


@pytest.mark.parametrize("missing", ["model", "cluster", "workload"])
def test_a_missing_table_is_named(missing, tmp_path):
    with pytest.raises(InvalidSpec, match=rf"must have the table \[{missing}\]"):
        config_from_tables({name: table for name, table in SMALL.items() if name != missing}, folder=tmp_path)


def test_a_file_that_is_no_toml_is_named(tmp_path):
    (tmp_path / "study.toml").write_text("[study\n")
    with pytest.raises(InvalidSpec, match=r"study\.toml must be a TOML file"):
        read_config(tmp_path / "study.toml")


@pytest.mark.parametrize("model", ["gpt2", "llama-3-8b", "mixtral-8x7b", "deepseek-v3"])
@pytest.mark.parametrize("cluster", ["dgx-h100", "frontier"])
def test_stored_inputs_come_back_exactly(model, cluster):
    given = config("s.db", model={"preset": model}, cluster={"preset": cluster}).inputs
    document = json.loads(json.dumps(inputs_to_document(given)))
    assert inputs_from_document(document, "s") == given
    assert inputs_to_document(inputs_from_document(document, "s")) == document


def test_every_part_of_the_inputs_has_a_fingerprint_of_its_own():
    fingerprints = inputs_to_document(config("s.db").inputs)["fingerprints"]
    assert len(set(fingerprints.values())) == len(fingerprints) == 11


@pytest.mark.parametrize("document", [None, {}, {"schema": "other"}, [], "x"])
def test_a_document_of_another_program_is_refused(document):
    with pytest.raises(InvalidSpec, match="must be one that Meshtune created"):
        inputs_from_document(document, "s")


def test_stored_inputs_that_were_damaged_are_a_sentence():
    document = inputs_to_document(config("s.db").inputs)
    del document["inputs"]["model"]["n_layers"]
    with pytest.raises(MeshtuneError, match=r"study 's' must have the key model\.n_layers"):
        inputs_from_document(document, "s")


def test_unknown_samplers_are_refused_before_anything_is_written(tmp_path):
    from tuner.study import tune

    with pytest.raises(UnknownName, match="did you mean 'random'"):
        tune(config(f"sqlite:///{tmp_path}/s.db", study={"sampler": "randon"}))
    assert list(tmp_path.iterdir()) == []


def test_the_tables_of_these_tests_are_a_study_file(tmp_path):
    assert config_from_tables(tables("s.db"), folder=tmp_path) == config("s.db")


def test_the_example_is_the_issues_main_job():
    config = read_config(ROOT / "docs/examples/llama-3-70b/study.toml")
    assert config.inputs.model.n_layers == load_model("llama-3-70b").n_layers
    assert (config.name, config.budget.trials) == ("llama-3-70b-512xh100", 24)
    assert (config.inputs.cluster.n_devices, config.inputs.workload.framework) == (512, "megatron-lm")


def keys_documented(table):
    """The keys in the first column of the study file's page, under the table's heading."""
    text = (ROOT / "docs/study-file.md").read_text()
    section = text.split(f"\n## [{table}]\n")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("|")]
    return {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize(
    ("table", "keys"),
    [
        ("study", {field.name for field in dataclasses.fields(StudyTable)}),
        ("workload", {field.name for field in dataclasses.fields(Workload)}),
        ("space", set(KNOB_NAMES)),
        ("runner", {field.name for kind in (RunnerChoice, Machine) for field in dataclasses.fields(kind)}),
        ("budget", {field.name for field in dataclasses.fields(Budget)}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_page_of_the_study_file_has_every_key(table, keys):
    assert keys_documented(table) == keys


def test_the_shortest_file_on_the_page_is_whole(tmp_path):
    page = (ROOT / "docs/study-file.md").read_text()
    (tmp_path / "study.toml").write_text(page.split("```toml\n")[1].split("```")[0])
    assert read_config(tmp_path / "study.toml").name == "llama-3-8b-16xdgx-h100"


def test_files_of_a_runner_that_flags_name_are_seen_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = located_options({"path": "runs.csv", "seed": 3, "schedule_file": "/there.csv"})
    assert options == {"path": str(tmp_path / "runs.csv"), "seed": 3, "schedule_file": "/there.csv"}
