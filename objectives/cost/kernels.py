"""Seconds of one device's kernels: matrix products, attention, memory-bound operations.

    M, N, K   rows, columns and depth of a product
    n         its tiles of 128 x 128, n = ceil(M / 128) ceil(N / 128), dealt to S multiprocessors in waves

        t = max(2 (128 * 128 n) (K + K_0) / (peak eta) (ceil(n / S) / (n / S))^w,  bytes / (beta eta_m))

    K_0 is a tile's prologue and epilogue as depth; w = 1 would be waves of equal tiles, and libraries that
    split the depth or take smaller tiles soften them to w < 1.  Both are fitted to benchmarks/data at large.

Source
------
Roofline: Williams et al. (2009), doi:10.1145/1498765.1498785.
Tiles: NVIDIA, "Matrix multiplication background".
"""

import numpy as np

from objectives.metrics import Job
from search_spaces.cluster import DeviceSpec
from search_spaces.plan import Floats
from search_spaces.workload import Precision

TILE = 128
NARROW = (Precision.FP8, Precision.MXFP8, Precision.NVFP4)
BLOCK_SCALED = (Precision.MXFP8, Precision.NVFP4)
# Bytes an entry of a narrow product's operand costs: 2 read, 1 written along rows, 1 along columns, which the
# product of the weights' gradient reads.  arXiv:2209.05433 (fp8), arXiv:2506.08027 (MXFP8: both directions).
CAST_BYTES = 4.0
TENSOR_CORE_ROW_BYTES = 16
USUAL_HEAD_DIM = 128  # of the heads that attention's published rates are for


def activation_precision(precision: Precision) -> Precision:
    """Format of what is not a layer's weight product: 8- and 4-bit training keeps attention and head in bf16.

    Source
    ------
    Transformer Engine's formats cover the linear layers it owns; Megatron-LM's output layer is not one.
    """
    return Precision.BF16 if precision in NARROW else precision


def entry_bytes(precision: Precision) -> float:
    """Bytes of one activation: fp32 training keeps all of it, the others 16 bits outside their products."""
    return 4.0 if precision.is_wide else 2.0


def cast_s(job: Job, entries: Floats) -> Floats:
    """Seconds of writing so many 16-bit entries in the narrow format of the products; none for 16 bits."""
    if job.workload.precision not in NARROW:
        return np.zeros_like(entries)
    return memory_bound_s(job, CAST_BYTES * entries)


def gemm_s(
    job: Job, rows: Floats, columns: Floats, depth: Floats | float, *, precision: Precision | None = None
) -> Floats:
    """Seconds of a product (M x K)(K x N): the slower of its waves of tiles and its operands' bytes.

    `precision` None stands for the workload's.  A processor's tiles are a few registers: none counts.
    """
    device, nature = job.cluster.device, job.nature
    precision = precision or job.workload.precision
    rate = device.peak(precision) * device.best_product_share(precision) * device.sustained_efficiency.value
    if device.is_host:
        compute_s = 2.0 * rows * columns * depth / rate
    else:
        tiles = np.ceil(rows / TILE) * np.ceil(columns / TILE)
        waves = tiles / device.n_multiprocessors
        idle = (np.ceil(waves) / waves) ** nature.wave_exponent.value
        compute_s = tiles * idle * (depth + nature.tile_start_depth.value) * (2.0 * TILE * TILE / rate)
    entries = rows * depth + columns * depth + rows * columns
    return np.maximum(compute_s, memory_bound_s(job, entry_bytes(precision) * entries))


def grouped_gemm_s(job: Job, rows: Floats, columns: Floats, depth: Floats | float, groups: Floats) -> Floats:
    """Seconds of `groups` products of one shape (M, N, K), as an expert layer runs them."""
    return groups * gemm_s(job, rows, columns, depth)


def attention_s(job: Job, flops: Floats) -> Floats:
    """Seconds of fused attention with heads as wide as the job's: FLOPs / (peak efficiency) x its factor."""
    device, attention = job.cluster.device, job.model.attention
    peak = device.peak(activation_precision(job.workload.precision))
    seconds = flops / (peak * device.attention_efficiency.value * job.trainer.attention.value)
    return seconds * width_factor(device, (attention.head_dim + attention.v_head_dim) / 2)


def width_factor(device: DeviceSpec, head_dim: float) -> float:
    """How much longer fused attention takes for its FLOPs than with heads of USUAL_HEAD_DIM entries.

        (1 + s USUAL_HEAD_DIM / d) / (1 + s)      s: the device's `exponential_share`,  d: the heads' width

    A score takes 4 d FLOPs forward, 10 d backward and an exponential each way, whatever d: narrow heads keep
    the special function units busier than the tensor cores.

    Source
    ------
    Shah et al. (2024), arXiv:2407.08608, section 2.2: 989 TFLOP/s of products, 3.9 T exponentials/s on H100.
    """
    share = device.exponential_share
    return (1 + share * USUAL_HEAD_DIM / head_dim) / (1 + share)


def unfused_attention_s(job: Job, flops: Floats) -> Floats:
    """Seconds of the products of unfused attention from their FLOPs: batches of small matrix products.

    Tensor cores read rows of whole 16 bytes; heads of another width are multiplied at the plain fp32 rate.

    Source
    ------
    NVIDIA, "Matrix multiplication background", on tensor core requirements; Anthony et al. (2024),
    arXiv:2401.14489; 16 measured trials with heads of 108, 150 and 450 entries (benchmarks/data), which take
    1.3 to 1.6 times as long as their neighbours with 96 to 448.
    """
    attention, device = job.model.attention, job.cluster.device
    row_bytes = entry_bytes(job.workload.precision) * np.array([attention.head_dim, attention.v_head_dim])
    if not np.any(row_bytes % TENSOR_CORE_ROW_BYTES) or Precision.FP32 not in device.peak_flops_per_s:
        peak = device.peak(activation_precision(job.workload.precision))
        share = device.gemm_efficiency.value * device.sustained_efficiency.value
        return flops / (peak * share)
    return flops / (device.peak(Precision.FP32) * job.nature.unaligned_share.value)


def memory_bound_s(job: Job, n_bytes: Floats) -> Floats:
    """Seconds of an operation that only moves bytes."""
    device = job.cluster.device
    return n_bytes / (device.memory_bandwidth_bytes_per_s * device.memory_efficiency.value)
