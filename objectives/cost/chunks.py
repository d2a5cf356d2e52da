"""A sequence that passes a layer in chunks, the others on the host: FPDT beside Ulysses; bytes and waits.

    T  tokens = b s / c     u  chunks = s / sequence_chunk     r  bytes/s of the host's link
    k, v  widths of keys and values on a device after the all-to-all

Chunk i of the queries meets the keys and values of chunks 1 to i, which come back from the host one ahead of
the one in use:

    resident keys and values           2 / u of them                        two buffers
    host traffic of a forward pass     (u + 1) / 2 of them                  out once, back (u - 1) / 2 times
    overlapped where                   2 core / u² >= (k + v) T / (u r)     a pair of chunks hides a fetch

so the shortest chunk that hides does not depend on the sequence: the core grows with its square.  The MLP
runs in halves of a chunk, the loss in as many pieces.

Source: Yao et al. (2024), arXiv:2408.16978, section 4; deepspeed/sequence/fpdt_layer.py
(_FPDTGPUOffloadingAttentionImpl_, FPDT_FFN, FPDT_LogitsLoss).
"""

from dataclasses import dataclass

import numpy as np

from objectives.cost.kernels import entry_bytes
from objectives.cost.layers import ATTENTION_BACKWARD_OVER_FORWARD, LayerCost
from objectives.cost.tokens import tokens_per_device
from objectives.metrics import Job
from search_spaces.plan import Floats, Ints, Plans

BUFFERS = 2  # what is in use and what comes next
SUM_BYTES = 4.0  # gradients of queries, keys and values are added up in fp32
PIECES_OF_CHUNK = 2  # of an MLP: Megatron-DeepSpeed's fpdt_FFN_chunk_size
# Of a layer that is redone, tensors as long as the sequence beside its input and the one fetched next: the
# core's output, the residual behind it, the MLP's normed input (later its gradient), the layer's output, that
# one's gradient, and the residual's.  Counted in fpdt_layer.py and Megatron-DeepSpeed's transformer layer.
WHOLE_TENSORS = 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Widths:
    """Entries of a token on one device, as if its T tokens kept all of their heads."""

    query: Floats
    key_value: Floats
    output: Floats


def is_chunked(plans: Plans) -> bool:
    """Whether any plan passes a sequence in chunks."""
    return int(plans.sequence_chunk.max(initial=0)) > 0


def waits_for_host(plans: Plans) -> bool:
    """Whether any plan keeps parts of a pass on the host."""
    return bool(plans.offload_checkpoints.any() or plans.offload_sequence.any())


def n_chunks(job: Job, plans: Plans) -> Floats:
    """Chunks of a sequence: u, or 1."""
    chunk = np.where(plans.sequence_chunk > 0, plans.sequence_chunk, job.workload.seq_len)
    return np.maximum(job.workload.seq_len / chunk, 1.0)


def _widths(job: Job, plans: Plans) -> _Widths:
    """Keys and values are replicated where there are fewer heads of them than ranks."""
    attention = job.model.attention
    heads, kv_heads = np.ceil(attention.n_heads / plans.tp), np.ceil(attention.n_kv_heads / plans.tp)
    held = np.maximum(kv_heads, np.minimum(plans.cp, heads))
    return _Widths(
        query=heads * attention.head_dim,
        key_value=held * (attention.head_dim + attention.v_head_dim),
        output=heads * attention.v_head_dim,
    )


def key_value_bytes(job: Job, plans: Plans) -> Floats:
    """One layer's keys and values of a whole micro-batch on one device."""
    return entry_bytes(job.workload.precision) * tokens_per_device(job, plans) * _widths(job, plans).key_value


def resident_key_value_bytes(job: Job, plans: Plans) -> Floats:
    """Those of them on the device at once: two buffers of a chunk, 2 / u; all without the host."""
    u = n_chunks(job, plans)
    share = np.where(plans.offload_sequence, np.minimum(BUFFERS / u, 1.0), 1.0)
    return share * key_value_bytes(job, plans)


def forward_traffic_bytes(job: Job, plans: Plans) -> Floats:
    """Keys and values over the host's link in one layer's forward pass: (u + 1) / 2 of them.

    Out once, and back sum_{i <= u} (i - 1) / u = (u - 1) / 2 times.
    """
    u = n_chunks(job, plans)
    return plans.offload_sequence * key_value_bytes(job, plans) * (u + 1) / 2


def working_bytes(job: Job, plans: Plans, layer_bytes: Floats, boundary: Floats) -> Floats:
    """Bytes that live while a chunked layer is redone: whole tensors, and one chunk's of the core or the MLP.

    whole    6 T h
    core     queries, keys, values, outputs, their gradients, and fp32 sums: two chunks of each, or, where
             they stay on the device, all of them
    MLP      half a chunk's share of what the layer keeps, and as much of gradients
    """
    widths, u, entry = _widths(job, plans), n_chunks(job, plans), entry_bytes(job.workload.precision)
    gathered = widths.query + widths.key_value
    core = tokens_per_device(job, plans) * (entry * (gathered + 2 * widths.output) + SUM_BYTES * gathered)
    core = core * np.where(plans.offload_sequence, np.minimum(BUFFERS / u, 1.0), 1.0)
    mlp = 2 * layer_bytes / (PIECES_OF_CHUNK * u)
    return WHOLE_TENSORS * boundary + np.maximum(core, mlp)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Layer:
    """Seconds of one layer: forward, backward, and its core forward."""

    forward_s: Floats
    backward_s: Floats
    core_s: Floats


def host_waits_s(
    job: Job, plans: Plans, layers: LayerCost, n_layers: Ints, boundary: Floats
) -> tuple[Floats, Floats]:
    """Seconds in which a stage's layers wait for the host's link, forward and backward.

    Checkpoints travel beside the layers between them.  Chunks that come back hide behind the pair of chunks
    in use; the backward pass fetches queries, outputs and their gradients for every pair, and redoes the
    forward pass.  Assumes pinned memory, and a link that carries both directions at once.
    """
    n, rate = np.maximum(n_layers, 1), job.cluster.device.host_bandwidth_bytes_per_s
    backward = (
        layers.backward_input_s + layers.backward_weight_s + layers.cp_backward_s + layers.tp_backward_s
    )
    forward = layers.forward_s + layers.cp_forward_s + layers.tp_forward_s
    layer = _Layer(forward_s=forward / n, backward_s=backward / n, core_s=layers.core_forward_s / n)
    every = plans.recompute_every
    x = plans.offload_checkpoints * boundary / rate
    kept = np.ceil(n_layers / every)
    out = kept * np.maximum(x - every * layer.forward_s, 0)
    back = kept * np.maximum(x - every * (layer.forward_s + layer.backward_s), 0)
    if not plans.offload_sequence.any():
        return out, back
    again, redone = _pair_waits_s(job, plans, layer)
    return np.maximum(out, n_layers * again), back + n_layers * (again + redone)


def _pair_waits_s(job: Job, plans: Plans, layer: _Layer) -> tuple[Floats, Floats]:
    """Seconds that one layer's u (u - 1) / 2 fetches show, in a forward pass and in a backward one."""
    u, rate = n_chunks(job, plans), job.cluster.device.host_bandwidth_bytes_per_s
    widths, entry = _widths(job, plans), entry_bytes(job.workload.precision)
    pairs, pair_s = u * (u - 1) / 2, 2 * layer.core_s / u**2
    fetched = entry * (widths.query + 2 * widths.output) + SUM_BYTES * widths.query
    back_s = tokens_per_device(job, plans) * fetched / (u * rate)
    forward_s = key_value_bytes(job, plans) / (u * rate)
    return (
        plans.offload_sequence * pairs * np.maximum(forward_s - pair_s, 0),
        plans.offload_sequence * pairs * np.maximum(back_s - ATTENTION_BACKWARD_OVER_FORWARD * pair_s, 0),
    )
