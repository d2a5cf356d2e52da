"""Functions compiled by Numba, which is loaded with the first module that has one."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiled once and kept beside the source, or in the user's cache; without a cache where none is."""
    try:
        return cast("Function", numba.njit(cache=True)(function))
    except RuntimeError:  # no folder that Numba may write
        return cast("Function", numba.njit(function))
