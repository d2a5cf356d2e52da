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
    partly filled wave of tiles is lost (1: all of it, 0: none); `score_traffic_bytes` what an unfused
    attention core moves per score: fused mask and softmax, dropout, and both products' reads;
    `unaligned_share` the rate of that core's products over the plain fp32 peak where a head's row is no
    multiple of 16 bytes, so that tensor cores cannot read it.  `kernel_start_s` is what a kernel takes to
    start and to drain, beside its work.
    """

    tile_start_depth: Constant = fitted(85.0, 0.3)
    wave_exponent: Constant = fitted(0.63, 0.2)
    score_traffic_bytes: Constant = fitted(9.2, 0.2)
    kernel_start_s: Constant = fitted(2.6e-6, 0.3)
    unaligned_share: Constant = fitted(0.45, 0.3)


NATURE = Nature()
