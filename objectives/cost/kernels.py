"""Seconds of one device's kernels: matrix products, attention, memory-bound operations.

    M, N, K   rows, columns and depth of a product     t = max(2 M N K / (peak eta q), bytes / (beta eta_m))
    q         tile quantisation: a product runs in whole tiles of 128 x 128

Source
------
Roofline: Williams et al. (2009), doi:10.1145/1498765.1498785.
Tiles: NVIDIA, "Matrix multiplication background".
"""

import numpy as np

from search_spaces.cluster import DeviceSpec
from search_spaces.plan import Floats
from search_spaces.workload import Precision

TILE = 128
KERNELS_PER_LAYER = 20  # assumed: launches of one layer's forward pass with common fusions


def activation_precision(precision: Precision) -> Precision:
    """Format of what is not a weight product: fp8 training keeps attention in bf16."""
    return Precision.BF16 if precision is Precision.FP8 else precision


def entry_bytes(precision: Precision) -> float:
    """Bytes of one activation: fp32 training keeps all of it, the others 16 bits outside their products."""
    return 4.0 if precision is Precision.FP32 else 2.0


def _whole_tiles(size: Floats) -> Floats:
    return np.ceil(size / TILE) * TILE


def gemm_s(
    device: DeviceSpec, precision: Precision, rows: Floats, columns: Floats, depth: Floats | float
) -> Floats:
    """Seconds of a product (M x K)(K x N): the slower of its tiles' FLOPs and its operands' bytes."""
    peak = device.peak(precision) * device.gemm_efficiency.value
    compute_s = 2.0 * _whole_tiles(rows) * _whole_tiles(columns) * depth / peak
    entries = rows * depth + columns * depth + rows * columns
    return np.maximum(compute_s, memory_bound_s(device, entry_bytes(precision) * entries))


def grouped_gemm_s(
    device: DeviceSpec, precision: Precision, shape: tuple[Floats, Floats, Floats | float], groups: Floats
) -> Floats:
    """Seconds of `groups` products of one shape (M, N, K), as an expert layer runs them."""
    return groups * gemm_s(device, precision, *shape)


def attention_s(device: DeviceSpec, precision: Precision, flops: Floats) -> Floats:
    """Seconds of fused attention from its FLOPs."""
    peak = device.peak(activation_precision(precision))
    return flops / (peak * device.attention_efficiency.value)


def memory_bound_s(device: DeviceSpec, n_bytes: Floats) -> Floats:
    """Seconds of an operation that only moves bytes."""
    return n_bytes / (device.memory_bandwidth_bytes_per_s * device.memory_efficiency.value)
