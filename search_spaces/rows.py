"""Tables whose rows are `package.module:attribute`: what a row names is imported when it is asked for."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from search_spaces.errors import UnknownName


def load_row(kind: str, name: str, table: Mapping[str, str]) -> Any:
    """What the row of this name points at; `kind` says in the error what the table lists.

    Raises
    ------
    UnknownName
        The table has no such row; the nearest name is suggested.
    """
    if name not in table:
        raise UnknownName(kind, name, table)
    module, _, attribute = table[name].partition(":")
    return getattr(import_module(module), attribute)
