"""Models that Meshtune knows by name: one TOML file each, with its source."""

from functools import cache
from importlib.resources import files
from pathlib import Path

from search_spaces.documents import build, read_toml
from search_spaces.errors import UnknownName
from search_spaces.model import ModelSpec


def _folder() -> Path:
    return Path(str(files("search_spaces"))) / "presets" / "models"


def model_names() -> list[str]:
    """Names of all model presets, sorted."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


@cache
def load_model(name: str) -> ModelSpec:
    """The preset of this name.

    Raises
    ------
    UnknownName
        No preset has this name; the nearest one is suggested.
    """
    names = model_names()
    if name not in names:
        raise UnknownName("a model preset", name, names)
    path = _folder() / f"{name}.toml"
    return build(ModelSpec, {"name": name, **read_toml(path)}, f"model preset {name}")
