"""Columns of knobs: what has one value in every row holds it once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def constant(value: Any, n_rows: int) -> NDArray[Any]:
    """A column of one value, held once."""
    return np.broadcast_to(value, (n_rows,))


def is_constant(values: NDArray[Any]) -> bool:
    """Whether a column holds its one value once."""
    return values.strides == (0,)


def taken(values: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """A column at the given positions."""
    return constant(values[0], len(rows)) if is_constant(values) and len(values) else values.take(rows)


def repeated(values: NDArray[Any], times: NDArray[Any] | int, n_rows: int) -> NDArray[Any]:
    """A column with every row so many times, `n_rows` in all."""
    return constant(values[0], n_rows) if is_constant(values) else np.repeat(values, times)


def joined(parts: list[NDArray[Any]], n_rows: int) -> NDArray[Any]:
    """One column of all parts, `n_rows` in all."""
    same = all(is_constant(part) and part[0] == parts[0][0] for part in parts)
    return constant(parts[0][0], n_rows) if same else np.concatenate(parts)
