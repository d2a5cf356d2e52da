"""Activations that the backward pass computes again instead of keeping them."""

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint


def maybe_again(again: bool, function: Callable[..., Any], *inputs: Any) -> Any:
    """The function's value; with `again` it keeps its inputs only and runs once more in the backward pass.

    Source: Chen et al. (2016), arXiv:1604.06174.
    """
    if not again:
        return function(*inputs)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
