"""An export is a whole folder or nothing, says what it was made for, and never eats a user's file."""

import json
import os
from pathlib import Path

import pytest

from runners.launchers import folder as folder_module
from runners.launchers.base import Options
from runners.launchers.export import export
from runners.launchers.folder import write_folder
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Plan
from tests.runners.launchers.cases import CASES, DEEPSEEK_V3, LLAMA_8B

PLAN = Plan.parse("tp=2 dp=32 zero=1 overlap_dp=true")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("scheduler", "scripts"),
    [("both", {"job.sbatch", "run.sh"}), ("slurm", {"job.sbatch"}), ("torchrun", {"run.sh"})],
)
def test_the_scheduler_selects_the_scripts(scheduler, scripts, tmp_path):
    paths = export(LLAMA_8B, PLAN, "megatron-lm", scheduler, tmp_path / "new" / "out", Options())
    assert {path.name for path in paths} == scripts | {"train.sh", "README.txt", "plan.json"}
    assert sorted(paths) == sorted((tmp_path / "new" / "out").iterdir())
    assert all(os.access(path, os.X_OK) for path in paths if path.suffix in (".sh", ".sbatch"))


def test_the_manifest_tells_what_the_export_was_made_for(tmp_path):
    options = Options(predicted={"step_time_s": 1.5}, provenance={"study": "demo", "trial": 3})
    export(LLAMA_8B, PLAN, "megatron-lm", "both", tmp_path / "out", options)
    manifest = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert (manifest["schema"], manifest["version"], manifest["launcher"]) == (
        "meshtune.export",
        1,
        "megatron-lm",
    )
    assert Plan.parse(manifest["plan"]["key"]) == PLAN
    assert manifest["n_microbatches"] == 8
    assert manifest["model"]["n_layers"] == 32
    assert manifest["cluster"]["device"]["name"] == LLAMA_8B.cluster.device.name
    assert manifest["workload"]["global_batch"] == 256
    assert manifest["predicted"] == {"step_time_s": 1.5}
    assert manifest["provenance"] == {"study": "demo", "trial": 3}
    assert sorted(manifest["files"]) == names(tmp_path / "out")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_refused(number, tmp_path):
    with pytest.raises(InvalidSpec, match="an exported number must be finite"):
        export(LLAMA_8B, PLAN, "megatron-lm", "both", tmp_path / "out", Options(predicted={"mfu": number}))
    assert names(tmp_path) == []


def test_the_readme_says_what_is_left_to_fill_in(tmp_path):
    export(LLAMA_8B, PLAN, "megatron-lm", "both", tmp_path / "out", Options())
    text = (tmp_path / "out" / "README.txt").read_text()
    for word in ("sbatch job.sbatch", "bash run.sh", "MEGATRON_LM", "--data-path", "tokenizer", "account"):
        assert word in text
    given = Options(program="p", data_path="d", tokenizer="t", account="a", setup_script="s")
    export(LLAMA_8B, PLAN, "megatron-lm", "both", tmp_path / "given", given)
    text = (tmp_path / "given" / "README.txt").read_text()
    assert "MEGATRON_LM" not in text
    assert "account" not in text


def test_an_earlier_export_is_replaced_as_a_whole(tmp_path):
    case = CASES["deepspeed"][3]
    export(case.job, case.plan, "deepspeed", "both", tmp_path / "out", Options())
    assert "ds_config.json" in names(tmp_path / "out")
    export(LLAMA_8B, PLAN, "megatron-lm", "slurm", tmp_path / "out", Options())
    assert names(tmp_path / "out") == ["README.txt", "job.sbatch", "plan.json", "train.sh"]
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export(LLAMA_8B, PLAN, "megatron-lm", "both", tmp_path / "link", Options())
    assert (tmp_path / "link").is_symlink()
    assert "plan.json" in names(tmp_path / "real")


@pytest.mark.parametrize("added", ["notes.txt", "slurm-1.out"])
def test_a_folder_with_something_else_in_it_is_left_alone(added, tmp_path):
    export(LLAMA_8B, PLAN, "megatron-lm", "both", tmp_path / "out", Options())
    (tmp_path / "out" / added).write_text("mine")
    with pytest.raises(InvalidSpec, match="must be new, empty, or an earlier export"):
        export(LLAMA_8B, PLAN, "megatron-lm", "slurm", tmp_path / "out", Options())
    assert (tmp_path / "out" / added).read_text() == "mine"
    assert "run.sh" in names(tmp_path / "out")


@pytest.mark.parametrize("manifest", ["", "[]", '{"files": 3}', '{"files": ["other"]}'])
def test_a_foreign_manifest_gives_nothing_away(manifest, tmp_path):
    (tmp_path / "plan.json").write_text(manifest)
    with pytest.raises(InvalidSpec, match="must be new, empty"):
        write_folder(tmp_path, {"a": "b"})
    assert names(tmp_path) == ["plan.json"]


def test_a_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InvalidSpec, match="must be a folder; got the file"):
        export(LLAMA_8B, PLAN, "megatron-lm", "both", tmp_path / "out", Options())
    with pytest.raises(InvalidSpec, match=r"must be writable; got .*out/deep"):
        export(LLAMA_8B, PLAN, "megatron-lm", "both", tmp_path / "out" / "deep", Options())
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("where", ["/proc/out", "/dev/null/out", "/sys/out"])
def test_a_place_that_cannot_be_written_is_one_sentence(where):
    with pytest.raises(InvalidSpec, match="the output folder must be writable"):
        export(LLAMA_8B, PLAN, "megatron-lm", "both", Path(where), Options())


@pytest.mark.parametrize("moment", ["_fill", "_swap"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_on_the_way_leaves_everything_as_it_was(moment, existing, tmp_path, monkeypatch):
    if existing:
        write_folder(tmp_path / "out", {"plan.json": '{"files": ["plan.json"]}'})
    before = names(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, moment, full)
    with pytest.raises(InvalidSpec, match="No space left on device"):
        write_folder(tmp_path / "out", {"plan.json": '{"files": ["plan.json"]}', "more": "x"})
    assert names(tmp_path) == before


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", {"plan.json": '{"files": ["plan.json"]}'})
    rename = Path.rename

    def refuse_new(path, target):
        if path.name == "new":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(InvalidSpec, match="Input/output error"):
        write_folder(tmp_path / "out", {"plan.json": "{}"})
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == {"files": ["plan.json"]}


def test_a_refused_plan_writes_nothing(tmp_path):
    with pytest.raises(InvalidSpec, match="schedule=zb-h1"):
        export(
            DEEPSEEK_V3,
            Plan.parse("pp=16 dp=128 schedule=zb-h1"),
            "megatron-lm",
            "both",
            tmp_path / "o",
            Options(),
        )
    assert names(tmp_path) == []
