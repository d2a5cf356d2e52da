"""What a row's words for its trainer and its network stand for: two small TOML tables.

The package brings its own; tables of the same names beside a measurements file are asked first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from search_spaces.documents import build, read_toml
from search_spaces.framework import FRAMEWORKS
from search_spaces.units import GB

T = TypeVar("T")
FRAMEWORKS_FILE, CLUSTERS_FILE = "frameworks.toml", "clusters.toml"


class MemoryKind(StrEnum):
    """What a printed memory figure counts: live tensors, the allocator's blocks, or all that is in use."""

    ALLOCATED = "allocated"
    RESERVED = "reserved"
    DEVICE = "device"


class MemoryStage(StrEnum):
    """Whose memory a trainer prints: the fullest device's, or rank 0's, which is of the first stage."""

    FULLEST = "fullest"
    FIRST = "first"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerWords:
    """A trainer by words in its name.

    `flash_since` (YYYY-MM) says since when fused attention is its default, `interleaved_overlap_since` since
    when an interleaved pipeline's messages travel beside passes unless told otherwise; `memory` what its
    printed memory counts, on the device that `memory_stage` says, in units of `memory_unit_bytes`.
    """

    match: tuple[str, ...]
    profile: str = "any"
    vocab: int | None = None
    flash_since: str = ""
    interleaved_overlap_since: str = ""
    memory: MemoryKind = MemoryKind.DEVICE
    memory_stage: MemoryStage = MemoryStage.FULLEST
    memory_unit_bytes: float = GB

    @property
    def known_profile(self) -> str:
        """The profile's name where it exists, else `any`."""
        return self.profile if self.profile in FRAMEWORKS else "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkWords:
    """A network by words in its description: a preset, or facts of its fabric."""

    match: tuple[str, ...]
    preset: str = ""
    fabric_bytes_per_s: float | None = None
    fabric_efficiency: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameworksFile:
    """The document `frameworks.toml`."""

    framework: tuple[TrainerWords, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClustersFile:
    """The document `clusters.toml`."""

    names: dict[str, str] = field(default_factory=dict)
    accelerators: dict[str, str] = field(default_factory=dict)
    network: tuple[NetworkWords, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WordTables:
    """Both tables, those beside the measurements first."""

    frameworks: tuple[TrainerWords, ...]
    networks: tuple[NetworkWords, ...]
    accelerators: dict[str, str]
    names: dict[str, str]

    def trainer(self, text: str) -> TrainerWords:
        """What is known of a trainer."""
        return next(entry for entry in self.frameworks if _matches(text, entry.match))

    def device(self, text: str) -> str:
        """A device's name, whatever letters or words a source calls it by."""
        return self.names.get(text.lower(), text.lower())

    def network(self, text: str) -> NetworkWords | None:
        """What is known of a network beyond its own words."""
        return next((entry for entry in self.networks if _matches(text, entry.match)), None)


def _matches(text: str, words: Sequence[str]) -> bool:
    return any(word.lower() in text.lower() for word in words)


def word_tables(folder: Path | None = None) -> WordTables:
    """The package's tables, and over them those in a folder.

    Raises
    ------
    InvalidSpec
        A table that cannot be read, or a key that it may not have.
    """
    frameworks, clusters = _own_tables()
    if folder is not None and (folder / FRAMEWORKS_FILE).is_file():
        theirs = _read(FrameworksFile, folder / FRAMEWORKS_FILE)
        frameworks = FrameworksFile(framework=theirs.framework + frameworks.framework)
    if folder is not None and (folder / CLUSTERS_FILE).is_file():
        beside = _read(ClustersFile, folder / CLUSTERS_FILE)
        clusters = ClustersFile(
            names=clusters.names | beside.names,
            accelerators=clusters.accelerators | beside.accelerators,
            network=beside.network + clusters.network,
        )
    return WordTables(
        frameworks=frameworks.framework,
        networks=clusters.network,
        accelerators=clusters.accelerators,
        names=clusters.names,
    )


@cache
def _own_tables() -> tuple[FrameworksFile, ClustersFile]:
    folder = Path(str(files("objectives.measurements")))
    return _read(FrameworksFile, folder / FRAMEWORKS_FILE), _read(ClustersFile, folder / CLUSTERS_FILE)


def _read(kind: type[T], path: Path) -> T:
    return build(kind, read_toml(path), str(path))
