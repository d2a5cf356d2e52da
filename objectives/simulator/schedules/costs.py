"""Seconds that a generator of schedules plans with."""

from dataclasses import dataclass

import numpy as np

from search_spaces.errors import check
from search_spaces.plan import Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassCosts:
    """Seconds of one micro-batch through one chunk, and of the message to the next stage.

    Each is one number, or has shape (n_ranks,), or (n_ranks, n_chunks); `send_s` is one number, or has shape
    (n_ranks,).  The unit does not matter: an order depends on ratios.  Default: equal passes, free messages.

    Raises
    ------
    InvalidSpec
        A number is negative or not finite, or a pass takes no time.
    """

    forward_s: float | Floats = 1.0
    backward_input_s: float | Floats = 1.0
    backward_weight_s: float | Floats = 1.0
    send_s: float | Floats = 0.0

    def __post_init__(self) -> None:
        for name in ("forward_s", "backward_input_s", "backward_weight_s", "send_s"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            least = values >= 0 if name == "send_s" else values > 0
            must = "not negative" if name == "send_s" else "above zero"
            check(
                bool(np.all(least & np.isfinite(values))),
                f"PassCosts.{name} must be finite and {must}",
                values,
            )

    def table(self, n_ranks: int, n_chunks: int) -> Floats:
        """Seconds of F, B_i and W; shape (3, n_ranks, n_chunks)."""
        columns = (self.forward_s, self.backward_input_s, self.backward_weight_s)
        return np.stack([_spread("pass costs", column, n_ranks, n_chunks) for column in columns])

    def sends_s(self, n_ranks: int) -> Floats:
        """Seconds of a message from each rank to the next; shape (n_ranks,)."""
        return _spread("message costs", self.send_s, n_ranks, 1)[:, 0]

    def check_fits(self, n_ranks: int, n_chunks: int) -> None:
        """Refuse costs that are of other shapes than these ranks and chunks."""
        self.table(n_ranks, n_chunks)
        self.sends_s(n_ranks)

    @property
    def are_equal(self) -> bool:
        """Whether F = B_i = W on every rank and messages are free: what the papers draw."""
        passes = (self.forward_s, self.backward_input_s, self.backward_weight_s)
        seconds = np.concatenate([np.ravel(np.asarray(column, dtype=np.float64)) for column in passes])
        return bool(np.all(seconds == seconds[0]) and not np.any(np.asarray(self.send_s)))


def _spread(name: str, column: float | Floats, n_ranks: int, n_chunks: int) -> Floats:
    values = np.asarray(column, dtype=np.float64)
    values = values[:, None] if values.ndim == 1 else values
    fits = values.ndim == 0 or (values.shape[0] == n_ranks and values.shape[1] in (1, n_chunks))
    check(fits, f"{name} need one number, or shape ({n_ranks},) or ({n_ranks}, {n_chunks})", values.shape)
    return np.broadcast_to(values, (n_ranks, n_chunks)).copy()
