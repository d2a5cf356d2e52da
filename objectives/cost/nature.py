"""Constants of kernels that hold on every device, whoever trains: one object, so that each can be varied."""

from dataclasses import dataclass

from search_spaces.cluster import Constant, Origin

PUBLISHED_RUNS = "fitted to published measured runs (benchmarks/data)"


def fitted(value: float, spread: float, source: str = PUBLISHED_RUNS) -> Constant:
    """A constant of nature fitted to published runs."""
    return Constant(value=value, origin=Origin.FITTED, source=source, spread=spread)


@dataclass(frozen=True, slots=True, kw_only=True)
class Nature:
    """What matrix products and memory-bound kernels cost beyond their peaks.

    `tile_start_depth` is a tile's prologue and epilogue as depth (K_0); `wave_exponent` how much of the last,
    partly filled wave of tiles is lost (1: all of it, 0: none); `fp8_share` the rate of an fp8 product with
    its casts over the 16-bit efficiency; `score_traffic_bytes` what an unfused attention core moves per
    score: fused mask and softmax, dropout, and both products' reads.
    """

    tile_start_depth: Constant = fitted(125.0, 0.3)
    wave_exponent: Constant = fitted(0.55, 0.2)
    fp8_share: Constant = fitted(0.78, 0.1)
    score_traffic_bytes: Constant = fitted(11.5, 0.2)


NATURE = Nature()
