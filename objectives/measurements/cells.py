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
from search_spaces.errors import InvalidSpec, nearest_name
from search_spaces.units import BILLION, KILO

_ABSENT = ("", "nan", "none", "null", "n/a")
_YES, _NO = ("1", "1.0", "true", "yes"), ("", "0", "0.0", "false", "no")
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
MOST_WHOLE = int(KILO * BILLION)  # products of a few of them stay within a column's 64 bits
BOM = "\ufeff"  # what spreadsheets put before UTF-8


class BadRow(Exception):
    """A row that cannot be used, and why."""


@dataclass(frozen=True)
class Cells:
    """One row: its line in the file, its cells by column, and what is wrong with it as a whole."""

    line: int
    by_column: Mapping[str, str]
    fault: str = ""

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
        if value is None:
            return None
        if value != int(value):
            raise BadRow(f"{name} must be a whole number; got {self.text(name)!r}")
        if value > MOST_WHOLE:
            raise BadRow(f"{name} must be at most {MOST_WHOLE:,}; got {self.text(name)!r}")
        return int(value)

    def count(self, name: str) -> int | None:
        """A whole number of at least 1; None where the cell is empty."""
        value = self.whole(name)
        if value is not None and value < 1:
            raise BadRow(f"{name} must be at least 1; got {value}")
        return value

    def needed(self, name: str) -> int:
        """A whole number of at least 1 that the row must state."""
        value = self.count(name)
        if value is None:
            raise BadRow(f"{name} is missing")
        return value

    def is_set(self, name: str) -> bool:
        """Whether a 0/1 cell is 1; an empty one is 0."""
        word = self.text(name).lower()
        if word not in _YES + _NO:
            raise BadRow(f"{name} must be 0 or 1; got {self.text(name)!r}")
        return word in _YES

    def extra_whole(self, name: str, among: Mapping[str, Any] | None = None) -> int:
        """A whole number in `extra`, or in an object of it; 0 where it says nothing."""
        value = (self.extra if among is None else among).get(name) or 0
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_WHOLE:
            raise BadRow(f"extra.{name} must be a whole number; got {value!r}")
        return value

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
        except (ValueError, RecursionError):  # not JSON, or nested beyond Python's limits
            document = None
        if not isinstance(document, dict):
            raise BadRow(f"{name} must be a JSON object; got {self.text(name)[:40]!r}")
        return document


def read_cells(path: Path | str, needed: Sequence[str]) -> Iterator[Cells]:
    """Every row of a measurements file that holds anything.

    Raises
    ------
    InvalidSpec
        The file cannot be read, is no CSV, or a needed column is missing or there twice.
    """
    reader = csv.reader(io.StringIO(read_text(Path(path)).removeprefix(BOM)))
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(str(path), header, needed)
        for row in reader:
            if any(cell.strip() for cell in row):
                yield _cells(header, row, reader.line_num)
    except csv.Error as error:
        raise InvalidSpec(
            f"{path} must be a CSV file",
            f"{error} in line {reader.line_num}",
            hint="a quotation mark that is never closed swallows all that follows",
        ) from None


def _cells(header: Sequence[str], row: Sequence[str], line: int) -> Cells:
    by_column = dict(zip(header, row, strict=False))
    if len(row) == len(header):
        return Cells(line=line, by_column=by_column)
    why = "is it cut off?" if len(row) < len(header) else "a comma in a text needs quotation marks around it"
    fault = f"a row must have as many cells as the header, {len(header)}; got {len(row)}: {why}"
    return Cells(line=line, by_column=by_column, fault=fault)


def _check_header(path: str, header: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in header]
    if missing:
        raise InvalidSpec(
            f"{path} must have the columns {', '.join(needed)}",
            f"none named {', '.join(missing)}",
            hint=_header_hint(header, missing[0]),
        )
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise InvalidSpec(f"{path} must have every column once", f"two named {', '.join(twice)}")


def _header_hint(header: Sequence[str], missing: str) -> str:
    for separator, word in _OTHER_SEPARATORS.items():
        if len(header) == 1 and separator in header[0]:
            return f"its cells are separated by {word}: save it with commas, and points in numbers"
    near = nearest_name(missing, [name for name in header if name])
    return f"its first line must name the columns; is {near!r} the column {missing!r}?" if near else ""
