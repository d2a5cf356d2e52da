"""Rows of a measurements file as text cells, and what a cell says: a number, a flag, a word, nothing.

Columns are those of the public measurements file; an empty cell states nothing.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from search_spaces.documents import read_text
from search_spaces.errors import InvalidSpec

_ABSENT = ("", "nan", "none", "null", "n/a")


class BadRow(Exception):
    """A row that cannot be used, and why."""


@dataclass(frozen=True)
class Cells:
    """One row: its line in the file and its cells by column."""

    line: int
    by_column: Mapping[str, str]

    def text(self, name: str) -> str:
        """A cell's text; empty where the row or the file has none."""
        return (self.by_column.get(name) or "").strip()

    def number(self, name: str) -> float | None:
        """A finite number that is not negative; None where the cell is empty."""
        text = self.text(name)
        if not text:
            return None
        try:
            value = float(text)
        except ValueError:
            raise BadRow(f"{name} must be a number; got {text!r}") from None
        if not 0 <= value < float("inf"):
            raise BadRow(f"{name} must be finite and not negative; got {text!r}")
        return value

    def whole(self, name: str) -> int | None:
        """A whole number; None where the cell is empty."""
        value = self.number(name)
        if value is not None and value != int(value):
            raise BadRow(f"{name} must be a whole number; got {self.text(name)!r}")
        return None if value is None else int(value)

    def needed(self, name: str) -> int:
        """A whole number that the row must state."""
        value = self.whole(name)
        if value is None:
            raise BadRow(f"{name} is missing")
        if value < 1:
            raise BadRow(f"{name} must be at least 1; got {value}")
        return value

    def is_set(self, name: str) -> bool:
        """Whether a 0/1 cell is 1."""
        return self.text(name) in ("1", "1.0", "true", "True")

    @cached_property
    def extra(self) -> Mapping[str, Any]:
        """The JSON object in `extra`: what has no column of its own."""
        return self._object("extra")

    @cached_property
    def overlap(self) -> Mapping[str, Any] | None:
        """The JSON flags in `overlap`; None where the row says nothing of it."""
        return self._object("overlap") if self.text("overlap") else None

    def _object(self, name: str) -> Mapping[str, Any]:
        if self.text(name).lower() in _ABSENT:
            return {}
        try:
            document = json.loads(self.text(name))
        except json.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise BadRow(f"{name} must be a JSON object; got {self.text(name)[:40]!r}")
        return document


def read_cells(path: Path | str, needed: Sequence[str]) -> Iterator[Cells]:
    """Every row of a measurements file.

    Raises
    ------
    InvalidSpec
        The file cannot be read, or a needed column is missing.
    """
    reader = csv.DictReader(io.StringIO(read_text(Path(path))))
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        must = f"{path} must have the columns {', '.join(needed)}"
        raise InvalidSpec(must, f"none named {', '.join(missing)}")
    for by_column in reader:
        yield Cells(line=reader.line_num, by_column=by_column)
