"""A Hugging Face `config.json` as a `ModelSpec`: known architectures only, and never a guess."""

from dataclasses import replace
from pathlib import Path

from search_spaces.documents import read_json
from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.hf_architectures import ARCHITECTURES, MPT_ATTENTION, MULTIMODAL
from search_spaces.hf_fields import Values, read_values
from search_spaces.model import ModelSpec

_INLINE = "another decoder can be described inline, under [model] of a study file"


def model_types() -> list[str]:
    """Every `model_type` that can be read, sorted."""
    return sorted([*ARCHITECTURES, *MULTIMODAL])


def load_hf_config(path: Path) -> ModelSpec:
    """The model that a `config.json` describes."""
    return model_from_hf_config(read_json(path), str(path))


def model_from_hf_config(config: Values, where: str) -> ModelSpec:
    """The model that a Hugging Face config describes; of a multimodal one its text model.

    Raises
    ------
    UnknownName
        An architecture that is not known; the nearest one is suggested.
    InvalidSpec
        A key that may change the cost and is not understood, a missing key, or a value that cannot be true.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InvalidSpec(f"{where} must have the key model_type, a word", repr(model_type))
    if model_type in MULTIMODAL:
        text = model_from_hf_config(_text_config(config, model_type, where), f"{where} (text_config)")
        return replace(text, name=_name(config, where))
    if model_type not in ARCHITECTURES:
        raise UnknownName(f"model_type of {where}", model_type, model_types(), otherwise=_INLINE)
    architecture = ARCHITECTURES[model_type]
    values = read_values(config, architecture.keys, where)
    if model_type == "mpt":
        values["attn_config"] = read_values(
            values["attn_config"] or {}, MPT_ATTENTION, f"{where}: attn_config"
        )
    try:
        return ModelSpec(name=_name(config, where), source=where, **architecture.read(values))
    except InvalidSpec as error:
        raise InvalidSpec(f"{where}: {error.must}", error.given, hint=error.hint) from None


def _text_config(config: Values, model_type: str, where: str) -> Values:
    """The text model's own config, tied as its surroundings say."""
    text_type, keys = MULTIMODAL[model_type]
    outer = read_values(config, keys, where)
    tied = {"tie_word_embeddings": outer["tie_word_embeddings"]}
    return {**tied, **(outer["text_config"] or {}), "model_type": text_type}


def _name(config: Values, where: str) -> str:
    """The last part of the name the config states, else of its file (of the folder of a `config.json`)."""
    stated = config.get("_name_or_path")
    path = Path(stated if isinstance(stated, str) and stated else where)
    if path.name == "config.json":
        path = path.resolve().parent
    return path.name.removesuffix(".json") or where
