"""Piper's resource model of a mixture of experts over pipeline stages: a second opinion on a stage's bytes.

    L  layers      d  d_model     f  expert width    E  experts     k  top_k      H  heads     s  seq_len
    p  pp          e  ep, over the data-parallel ranks              b  micro-batch of a rank, in sequences
    i  stage

        M(i) = (L / p) (16 * 4 d² + 16 (E / e) m d f + (p - i) A)                   i = 0 .. p - 1
        A    = 12 b s d + 4 b H s² + 2 b s k (3 f + d)
        M(0) - M(p - 1) = L (p - 1) / p * A

Sixteen bytes of state a parameter (16-bit weight and gradient, fp32 master and two moments), 1F1B, nothing
recomputed; a fused attention core keeps no scores.  Embedding and head are left out.  The source writes the
batch of all ranks where tokens are dealt to e ranks' experts, b e here, and takes m = 3 for every model.

Source: Piper (2026), arXiv:2605.05049, resource model, as a third party's review renders it.
"""

import numpy as np

from objectives.cost.moe import PIPER_STATE_BYTES
from search_spaces.model import ModelSpec, MoeSpec
from search_spaces.parameters import expert_parameters
from search_spaces.plan import Floats, Ints

KEPT_ATTENTION = 12.0  # bytes a token and unit of width: input, norm, queries, keys, values, output


def layer_activation_bytes(
    model: ModelSpec, seq_len: int, micro_batch: Floats, *, flash: bool = True
) -> Floats:
    """A: what one layer keeps of one micro-batch on one rank.

    Returns
    -------
    shape of `micro_batch`, bytes
    """
    tokens, moe = micro_batch * seq_len, _moe(model)
    scores = 0.0 if flash else 4.0 * model.attention.n_heads * seq_len
    experts = 2.0 * moe.top_k * (3.0 * moe.expert_width + model.d_model)
    kept: Floats = tokens * (KEPT_ATTENTION * model.d_model + scores + experts)
    return kept


def layer_state_bytes(model: ModelSpec, ep: Ints) -> Floats:
    """16 (4 d² + (E / e) m d f): what one layer's parameters take on one rank; shape of `ep`, bytes."""
    experts = _moe(model).n_experts / ep * expert_parameters(model)
    held: Floats = PIPER_STATE_BYTES * (4.0 * model.d_model**2 + experts)
    return held


def stage_bytes(
    model: ModelSpec, seq_len: int, *, pp: int, ep: int, micro_batch: int, flash: bool = True
) -> Floats:
    """M(i) of every stage, with as many micro-batches as fill the pipeline.

    Returns
    -------
    shape (pp,), bytes
    """
    in_flight = pp - np.arange(pp)
    kept = layer_activation_bytes(model, seq_len, np.array(float(micro_batch)), flash=flash)
    return model.n_layers / pp * (layer_state_bytes(model, np.array(ep)) + in_flight * kept)


def _moe(model: ModelSpec) -> MoeSpec:
    assert model.moe is not None, f"{model.name} has no experts"
    return model.moe
