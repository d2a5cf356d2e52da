"""Documents from outside (TOML, JSON) become checked specs, or one clear sentence."""

import json
import sys
import tomllib
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from search_spaces.errors import InvalidSpec, UnknownName

T = TypeVar("T")
LARGEST_WHOLE = sys.maxsize  # a column's entry has 64 bits
UNKNOWN_KEY = ("unexpected_keyword_argument", "extra_forbidden")
_CONFIG = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOML; a number or a nesting beyond Python's limits
        raise InvalidSpec(f"{path} must be a TOML file", str(error)) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file."""
    text = read_text(path)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidSpec(f"{path} must be a JSON file", str(error)) from None
    if not isinstance(document, dict):
        raise InvalidSpec(f"{path} must hold one JSON object", type(document).__name__)
    return document


def read_text(path: Path) -> str:
    """Text of a file; one that cannot be read is a sentence."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidSpec(
            f"{path} must be a readable text file", (error.strerror or str(error)).lower()
        ) from None
    except UnicodeDecodeError as error:
        raise InvalidSpec(
            f"{path} must be a readable text file",
            f"bytes that are not UTF-8: {error}",
            hint="save it as UTF-8",
        ) from None


def build(kind: type[T], table: dict[str, Any], where: str) -> T:
    """A dataclass (nested ones too) from a document's table.

    Raises
    ------
    UnknownName
        A key that the dataclass lacks; the nearest one is suggested.
    InvalidSpec
        A missing key, a value of the wrong kind, a number that is not finite or too large, or what the spec's
        own checks refuse.
    """
    _check_sizes(table, where)
    try:
        # JSON mode is strict about numbers and strings, yet reads enums and tuples from text and lists.
        make = _document(kind)  # type: ignore[arg-type]  # a class is hashable
        document = make.model_validate_json(json.dumps({"spec": table}, default=str))
    except pydantic.ValidationError as error:
        raise _sentence(kind, error, where) from None
    spec: T = document.spec  # type: ignore[attr-defined]
    return spec


def _check_sizes(value: Any, where: str, key: str = "") -> None:
    """Refuse whole numbers that no column can hold."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for inner, item in pairs:
            _check_sizes(item, where, f"{key}.{inner}".lstrip("."))
    elif isinstance(value, int) and abs(value) > LARGEST_WHOLE:
        raise InvalidSpec(
            f"{where}: {key} must be at most {LARGEST_WHOLE:,}", f"a number of {len(str(abs(value)))} digits"
        )


@cache
def _document(kind: type[Any]) -> type[pydantic.BaseModel]:
    # A wrapping model hands its strict config down to plain dataclasses, which have none of their own.
    return pydantic.create_model("Document", __config__=_CONFIG, spec=(kind, ...))


def _sentence(kind: type, error: pydantic.ValidationError, where: str) -> InvalidSpec:
    # A misspelt key is also a missing one: what is unknown says more than what is absent.
    first = min(error.errors(include_url=False), key=lambda each: each["type"] not in UNKNOWN_KEY)
    loc = tuple(part for part in first["loc"][1:] if str(part) != kind.__name__)
    path = ".".join(str(part) for part in loc) or where
    if first["type"] in UNKNOWN_KEY:
        return UnknownName(f"a key of {where}", str(loc[-1]), _known_keys(kind, loc[:-1]))
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidSpec):
        # A spec checks its own fields, so its path alone says which of several alike is meant.
        at = f"{where}: {path}" if loc else where
        return InvalidSpec(f"{at}: {cause.must}", cause.given, hint=cause.hint)
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return InvalidSpec(f"{where} must have the key {path}", "none")
    return InvalidSpec(f"{where}: {path}: {first['msg'][:1].lower()}{first['msg'][1:]}", repr(first["input"]))


def _known_keys(kind: type, loc: tuple[int | str, ...]) -> list[str]:
    fields: dict[str, Any] = getattr(kind, "__dataclass_fields__", {})
    for part in loc:
        inner = fields.get(str(part))
        candidates = [inner.type, *getattr(inner.type, "__args__", ())] if inner else []
        nested = [c for c in candidates if is_dataclass(c)]
        if nested:
            fields = nested[0].__dataclass_fields__
    return list(fields)
