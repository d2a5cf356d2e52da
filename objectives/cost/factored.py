"""Costs that depend on a few knobs only are computed once per distinct setting, then spread over the plans.

A legal space is close to a product of knobs: a million plans share a few thousand settings of the knobs that
set, say, one layer's time.  The formulas stay plain column formulas; this is where the speed comes from.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from search_spaces.columns import is_constant
from search_spaces.plan import Ints, Plans

Table = TypeVar("Table")


def setting_codes(plans: Plans, knobs: Sequence[str]) -> Ints:
    """One integer per plan, equal exactly where all the named knobs are equal; shape (n_plans,)."""
    code = np.zeros(len(plans), dtype=np.int64)
    radix = 1
    for name in knobs:
        values = getattr(plans, name)
        top = 1 if is_constant(values) else int(values.max(initial=0)) + 1
        if top == 1:  # nothing to tell apart
            continue
        if radix > np.iinfo(np.int64).max // top:
            code, radix = _compact(code)
        code *= top
        code += values
        radix *= top
    return code


def _compact(code: Ints) -> tuple[Ints, int]:
    distinct, inverse = np.unique(code, return_inverse=True)
    return inverse.astype(np.int64), len(distinct)


def distinct_settings(code: Ints) -> tuple[Ints, Ints]:
    """First row of every distinct code, and for each row which of them it is.

    Enumeration leaves equal codes side by side, so runs are found first and only their heads are sorted.
    """
    if not len(code):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    heads = np.concatenate(([0], np.flatnonzero(code[1:] != code[:-1]) + 1))
    _, first, inverse = np.unique(code[heads], return_index=True, return_inverse=True)
    lengths = np.diff(np.append(heads, len(code)))
    return heads[first], np.repeat(inverse, lengths)


def distinct(plans: Plans, knobs: Sequence[str]) -> tuple[Plans, Ints]:
    """The first plan of every setting of the named knobs, and for each plan which of them has its setting."""
    first, inverse = distinct_settings(setting_codes(plans, knobs))
    return plans.take(first), inverse


def factored(plans: Plans, knobs: Sequence[str], function: Callable[[Plans], Table]) -> Table:
    """`function(plans)`, a struct of arrays whose last axis is the plan, once per distinct setting."""
    some, inverse = distinct(plans, knobs)
    return spread(function(some), inverse)


def spread(table: Table, index: NDArray[Any]) -> Table:
    """A struct of arrays with rows `index` of the last axis; a field that is None stays so."""
    found = {f.name: getattr(table, f.name) for f in fields(table)}  # type: ignore[arg-type]
    columns = {
        name: None if value is None else np.take(value, index, axis=-1) for name, value in found.items()
    }
    return type(table)(**columns)
