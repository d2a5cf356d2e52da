"""Repeats of a call, timed: warm-up dropped, short calls in batches, the device waited for."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

Clock = Callable[[], float]
Agree = Callable[[float], float]
WARM_UPS = 2
FEWEST, MOST = 3, 40
SAMPLE_S = 2e-3  # a timing shorter than this is mostly that of the clock and of waking up


def alone(value: float) -> float:
    """What ranks agree on that need not: each its own."""
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopwatch:
    """Times calls on one device.

    `agree` gives all ranks the same number, so that collectives are called equally often; `line_up` lets
    them start together.
    """

    clock: Clock
    synchronize: Callable[[], None]
    window_s: float
    agree: Agree = alone
    line_up: Callable[[], None] = lambda: None

    def samples(self, call: Callable[[], object]) -> list[float]:
        """Seconds of one call, several times, within about the window; each is the mean of a batch.

        The first calls are dropped: they allocate, choose kernels and warm caches.
        """
        self.line_up()
        once_s = min(self._batch(call, 1) for _ in range(WARM_UPS))
        once_s = max(self.agree(once_s), 1e-9)
        in_batch = max(1, math.ceil(SAMPLE_S / once_s))
        fits = int(self.window_s / (in_batch * once_s))
        repeats = max(FEWEST, min(MOST, fits))
        return [self._one(call, in_batch) for _ in range(repeats)]

    def for_window(self, window_s: float) -> "Stopwatch":
        """The same with another window."""
        return replace(self, window_s=window_s)

    def _one(self, call: Callable[[], object], n: int) -> float:
        if self.agree is not alone:
            self.line_up()
        return self._batch(call, n) / n

    def _batch(self, call: Callable[[], object], n: int) -> float:
        self.synchronize()
        start = self.clock()
        for _ in range(n):
            call()
        self.synchronize()
        return self.clock() - start
