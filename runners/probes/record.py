"""The probes file: what was measured is kept after every probe, so that a later run goes on from there."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from runners.probes.cases import Case, Facts, Parameter, facts_of
from search_spaces.errors import InvalidSpec

SCHEMA, VERSION = "meshtune.probes", 1
MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A case, the day it was measured, its readings by name: seconds under `s` unless the name differs."""

    kind: str
    what: Mapping[str, Parameter]
    readings: Mapping[str, Sequence[float]]
    date: str = ""

    @property
    def key(self) -> str:
        """The case's name."""
        return Case(kind=self.kind, what=self.what).key

    def median(self, name: str = "s") -> float:
        """Middle of the repeats of all ranks."""
        return float(np.median(self.readings[name]))

    def spread(self, name: str = "s") -> float:
        """Relative robust standard deviation of the repeats."""
        return scatter(self.readings[name])

    def text(self, name: str) -> str:
        """A parameter that is a word."""
        return str(self.what[name])

    def number(self, name: str) -> int:
        """A parameter that is a number."""
        return int(self.what[name])


def scatter(values: Iterable[float]) -> float:
    """Relative robust standard deviation of positive values; outliers hardly move it."""
    logs = np.log(np.array(list(values), dtype=np.float64))
    return float(np.expm1(MAD_TO_SIGMA * np.median(np.abs(logs - np.median(logs)))))


@dataclass(slots=True, kw_only=True)
class ProbesFile:
    """What is known of one machine: its facts, results by key, and why others failed."""

    path: Path
    machine: dict[str, Any] | None = None
    results: dict[str, Result] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def at(cls, path: Path, *, fresh: bool = False) -> "ProbesFile":
        """The file's content, or nothing where there is none or a new start is asked for.

        Raises
        ------
        InvalidSpec
            It is there and is no probes file.
        """
        if fresh or not path.exists():
            return cls(path=path)
        try:
            return cls._read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            must = "the file of earlier probes must be one that calibrate wrote"
            why = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
            raise InvalidSpec(must, f"{path}: {why}", hint="--fresh starts anew") from None

    @classmethod
    def _read(cls, path: Path) -> "ProbesFile":
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["schema"] != SCHEMA or table["version"] != VERSION:
            raise ValueError("another kind of document")
        results = [_result(each) for each in table["results"]]
        facts_of(table["machine"]["facts"])
        failed = {str(key): str(why) for key, why in table["failed"].items()}
        kept = {each.key: each for each in results}
        return cls(path=path, machine=table["machine"], results=kept, failed=failed)

    def belongs_to(self, facts: Facts, n_ranks: int) -> None:
        """Check that earlier probes, if any, are of this machine, and note which it is.

        Raises
        ------
        InvalidSpec
            They are of another machine or another number of devices.
        """
        machine = {"facts": asdict(facts) | {"formats": list(facts.formats)}, "ranks": n_ranks}
        if self.machine is not None and self.machine != machine:
            before, now = _machine_words(self.machine), _machine_words(machine)
            must = f"earlier probes in {self.path} must be of this machine ({now})"
            raise InvalidSpec(must, before, hint="--fresh starts anew; -o another file keeps both")
        self.machine = machine

    def keep(self, result: Result) -> None:
        """Add a result and write the file."""
        self.results[result.key] = result
        self.failed.pop(result.key, None)
        self.write()

    def give_up(self, case: Case, why: str) -> None:
        """Note why a case has no result and write the file; a later run tries again."""
        self.failed[case.key] = why
        self.write()

    def write(self) -> None:
        """Write the file whole or not at all."""
        table = {
            "schema": SCHEMA,
            "version": VERSION,
            "machine": self.machine,
            "results": [asdict(each) for each in self.results.values()],
            "failed": self.failed,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            draft.write_text(json.dumps(table, allow_nan=False), encoding="utf-8")
            draft.replace(self.path)
        finally:
            draft.unlink(missing_ok=True)


def beside(out: Path) -> Path:
    """The probes file that belongs to a cluster file."""
    return out.with_suffix(".probes.json")


def _result(table: Mapping[str, Any]) -> Result:
    readings = {str(name): [float(each) for each in values] for name, values in table["readings"].items()}
    for name, values in readings.items():
        if not values or not all(0 < each < math.inf for each in values):
            raise ValueError(f"a reading of {table['kind']} {name} is not positive")
    return Result(
        kind=str(table["kind"]), what=dict(table["what"]), readings=readings, date=str(table["date"])
    )


def _machine_words(machine: Mapping[str, Any]) -> str:
    facts = facts_of(machine["facts"])
    return f"{machine['ranks']} x {facts.kind}, {facts.words()}"
