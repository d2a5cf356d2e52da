"""Documents from outside (TOML, JSON) become checked specs, or one clear sentence."""

import json
import tomllib
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from search_spaces.errors import InvalidSpec, UnknownName

T = TypeVar("T")
_CONFIG = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    text = read_text(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidSpec(f"{path} must be a TOML file", str(error)) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object of a JSON file."""
    text = read_text(path)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidSpec(f"{path} must be a JSON file", str(error)) from None
    if not isinstance(document, dict):
        raise InvalidSpec(f"{path} must hold one JSON object", type(document).__name__)
    return document


def read_text(path: Path) -> str:
    """Text of a file; one that cannot be read is a sentence."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{path} must be a readable text file", str(error)) from None


def build(kind: type[T], table: dict[str, Any], where: str) -> T:
    """A dataclass (nested ones too) from a document's table.

    Raises
    ------
    UnknownName
        A key that the dataclass lacks; the nearest one is suggested.
    InvalidSpec
        A missing key, a value of the wrong kind, a non-finite number, or what the spec's own checks refuse.
    """
    try:
        # JSON mode is strict about numbers and strings, yet reads enums and tuples from text and lists.
        make = _document(kind)  # type: ignore[arg-type]  # a class is hashable
        document = make.model_validate_json(json.dumps({"spec": table}, default=str))
    except pydantic.ValidationError as error:
        raise _sentence(kind, error, where) from None
    spec: T = document.spec  # type: ignore[attr-defined]
    return spec


@cache
def _document(kind: type[Any]) -> type[pydantic.BaseModel]:
    # A wrapping model hands its strict config down to plain dataclasses, which have none of their own.
    return pydantic.create_model("Document", __config__=_CONFIG, spec=(kind, ...))


def _sentence(kind: type, error: pydantic.ValidationError, where: str) -> InvalidSpec:
    first = error.errors(include_url=False)[0]
    loc = tuple(part for part in first["loc"][1:] if str(part) != kind.__name__)
    path = ".".join(str(part) for part in loc) or where
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
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
