"""Study files that come with Meshtune: `meshtune tune --preset NAME`."""

from pathlib import Path

from search_spaces.errors import UnknownName

FOLDER = Path(__file__).parent


def preset_names() -> tuple[str, ...]:
    """Names of the study files, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def preset_path(name: str) -> Path:
    """The study file of this name.

    Raises
    ------
    UnknownName
        No such file; the nearest name is suggested.
    """
    if name not in preset_names():
        raise UnknownName("study preset", name, preset_names())
    return FOLDER / f"{name}.toml"
