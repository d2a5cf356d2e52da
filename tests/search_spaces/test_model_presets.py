"""Presets load, name their sources, and equal what their Hugging Face configs say."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from search_spaces import model_presets
from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.hf_config import load_hf_config
from search_spaces.model_presets import load_model, model_names

HF = Path(__file__).parent.parent / "data" / "hf"
PUBLISHED_AS_CONFIG = sorted({path.stem for path in HF.glob("*.json")} & set(model_names()))
FILES = sorted((Path(model_presets.__file__).parent / "presets" / "models").glob("*.toml"))


def test_every_model_of_the_issue_is_there():
    families = {"deepseek": 3, "frontier": 3, "gpt2": 2, "gpt3": 1, "llama": 6, "megatron": 12, "mistral": 1}
    families |= {"mixtral": 2, "mpt": 6, "nemotron": 1, "phi": 2, "piper": 3, "qwen3": 4, "x": 4}
    counted = {family: sum(name.split("-")[0] == family for name in model_names()) for family in families}
    assert counted == families
    assert len(model_names()) == sum(families.values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_preset_states_its_source_and_takes_its_name_from_the_file(path):
    table = tomllib.loads(path.read_text())
    assert "name" not in table
    assert any(word in table["source"] for word in ("https://", "arXiv:", "github.com/"))
    assert load_model(path.stem).name == path.stem


@pytest.mark.parametrize("name", PUBLISHED_AS_CONFIG)
def test_a_preset_equals_its_hugging_face_config(name):
    model = load_model(name)
    imported = load_hf_config(HF / f"{name}.json")
    assert replace(imported, name=model.name, source=model.source) == model


def test_most_presets_with_a_config_are_compared():
    assert len(PUBLISHED_AS_CONFIG) == 20


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("llama3-70b", "llama-3-70b"), ("gpt-3-175b", "gpt3-175b"), ("deepseek_v3", "deepseek-v3")],
)
def test_an_unknown_name_suggests_the_nearest(typed, meant):
    with pytest.raises(UnknownName, match=f"a model preset must be one of .*\n.*did you mean '{meant}'"):
        load_model(typed)


def test_a_foreign_path_is_not_a_name():
    with pytest.raises(UnknownName, match="a model preset must be one of"):
        load_model("../devices/h100")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_layers": 0}, "n_layers must be positive and at most 10000; got 0"),
        ({"n_layers": 10**9}, "n_layers must be positive and at most 10000"),
        ({"d_model": -1}, "d_model must be positive; got -1"),
        ({"norms_per_layer": -1}, "norms_per_layer must not be negative"),
        ({"n_predict_layers": -1}, "n_predict_layers must not be negative"),
    ],
)
def test_an_impossible_model_cannot_be_built(changes, match):
    with pytest.raises(InvalidSpec, match=match):
        replace(load_model("llama-3-8b"), **changes)


@pytest.mark.parametrize(
    ("part", "changes", "match"),
    [
        ("attention", {"n_heads": 0}, "n_heads must be positive"),
        ("attention", {"n_kv_heads": 7}, "n_kv_heads must divide n_heads"),
        ("attention", {"head_dim": 0}, "head_dim must be positive"),
        ("attention", {"head_dim": 128}, "latent attention needs head_dim = qk_nope"),
        ("attention", {"window": 0}, "window must be positive"),
        ("attention", {"global_every": -1}, "global_every must not be negative"),
        ("mlp", {"width": 0}, "MlpSpec.width must be positive"),
        ("mlp", {"n_matrices": 4}, "n_matrices must be 2 or 3"),
        ("moe", {"top_k": 257}, "top_k must be between 1 and n_experts"),
        ("moe", {"expert_width": 0}, "expert_width must be positive"),
        ("moe", {"n_matrices": 1}, "n_matrices must be 2 or 3"),
        ("moe", {"layer_every": 0}, "layer_every must be at least 1"),
        ("moe", {"shared_width": -1}, "shared_width must not be negative"),
        ("moe", {"capacity_factor": float("nan")}, "capacity_factor must be positive and finite"),
        ("embedding", {"vocab_size": 0}, "vocab_size must be positive"),
        ("embedding", {"n_positions": -1}, "n_positions must not be negative"),
        ("embedding", {"width": 0}, "width must be positive"),
    ],
)
def test_an_impossible_part_cannot_be_built(part, changes, match):
    with pytest.raises(InvalidSpec, match=match):
        replace(getattr(load_model("deepseek-v3"), part), **changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"q_lora_rank": 0}, "q_lora_rank must be positive"),
        ({"kv_lora_rank": 0}, "kv_lora_rank must be positive"),
    ],
)
def test_an_impossible_latent_cannot_be_built(changes, match):
    with pytest.raises(InvalidSpec, match=match):
        replace(load_model("deepseek-v3").attention.latent, **changes)


def test_more_dense_layers_than_layers_cannot_be():
    model = load_model("deepseek-v3")
    with pytest.raises(InvalidSpec, match="n_dense_layers must be at most n_layers"):
        replace(model, moe=replace(model.moe, n_dense_layers=62))
