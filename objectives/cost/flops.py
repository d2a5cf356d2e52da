"""FLOPs of a step, as the model needs them (MFU) and as the hardware does them (HFU).

    s  seq_len     B  global_batch     L  n_layers     h  d_model     V  vocab_size
    a  n_heads     d  head_dim         w  attention window (s where there is none)

A multiply and an add are two FLOPs.  A backward pass costs twice its forward pass.
"""

from dataclasses import replace

import numpy as np

from search_spaces.model import ModelSpec, NormKind, QkNorm
from search_spaces.parameters import (
    Count,
    attention_rank_parameters,
    dense_mlp_rank_parameters,
    expert_parameters,
    predict_rank_parameters,
    router_parameters,
    shared_expert_rank_parameters,
)
from search_spaces.plan import Floats, Module, Plans, Recompute
from search_spaces.workload import AttentionFlops, Workload

BACKWARD_OVER_FORWARD = 2


def attention_score_flops(
    model: ModelSpec, seq_len: int, window: int | None, counting: AttentionFlops
) -> float:
    """Forward FLOPs of one layer's scores and their product with the values, for one sequence.

        full      2 s w a (d_qk + d_v)
        causal    2 a (d_qk + d_v) (s w - w² / 2)      every token sees itself and at most w - 1 before it
        chunked   s w becomes the sum of squares of the pieces, n w² + r²; causal half of it

    Source
    ------
    Narayanan et al. (2021), arXiv:2104.04473, appendix (full); Dao (2023), arXiv:2307.08691, section 4.1.
    """
    attention = model.attention
    span = min(window or seq_len, seq_len)
    if attention.chunked:
        square = seq_len // span * span**2 + (seq_len % span) ** 2
        pairs = square if counting is AttentionFlops.FULL else square / 2
    else:
        pairs = seq_len * span if counting is AttentionFlops.FULL else seq_len * span - span * span / 2
    return 2.0 * pairs * attention.n_heads * (attention.head_dim + attention.v_head_dim)


def matrices_only(model: ModelSpec) -> ModelSpec:
    """The model without biases and norms: its parameters are those of matrix products."""
    attention = replace(model.attention, qkv_bias=False, out_bias=False, qk_norm=QkNorm.NONE, sinks=False)
    moe = model.moe and replace(model.moe, router_bias=False, shared_gate=False, expert_bias=False)
    mlp = replace(model.mlp, bias=False)
    return replace(model, attention=attention, mlp=mlp, moe=moe, norm=NormKind.NON_PARAMETRIC)


def attention_matrix_parameters(model: ModelSpec, tp: Count) -> Count:
    """Entries of one layer's attention matrices on one tensor-parallel rank."""
    latent = model.attention.latent
    latent_norms = (latent.q_lora_rank or 0) + latent.kv_lora_rank if latent else 0
    return attention_rank_parameters(matrices_only(model), tp) - latent_norms


def layer_matmul_flops_per_token(model: ModelSpec, kind: str) -> float:
    """Forward FLOPs of one layer's matrices for one token: two per entry that the token meets."""
    weights, bare = attention_matrix_parameters(model, 1), matrices_only(model)
    if kind == "dense":
        return 2.0 * (weights + dense_mlp_rank_parameters(bare, 1))
    assert model.moe is not None
    experts = model.moe.top_k * expert_parameters(bare)
    return 2.0 * (weights + shared_expert_rank_parameters(bare, 1) + router_parameters(bare) + experts)


def forward_layer_flops(model: ModelSpec, workload: Workload) -> float:
    """Forward FLOPs of all layers for one sequence; embeddings and head left out."""
    s, n_moe = workload.seq_len, model.n_moe_layers
    matmul = (model.n_layers - n_moe) * layer_matmul_flops_per_token(model, "dense")
    if n_moe:
        matmul += n_moe * layer_matmul_flops_per_token(model, "moe")
    scores = sum(
        attention_score_flops(model, s, window, workload.attention_flops) for window in model.window_of_layer
    )
    return s * matmul + scores


def head_flops_per_token(model: ModelSpec) -> float:
    """Forward FLOPs of the output projection for one token: 2 h V."""
    return 2.0 * model.d_model * model.embedding.vocab_size


def predict_forward_flops(model: ModelSpec, workload: Workload) -> float:
    """Forward FLOPs of the multi-token-prediction modules for one sequence, their heads included."""
    n = model.n_predict_layers
    if not n:
        return 0.0
    per_token = 2.0 * predict_rank_parameters(matrices_only(model), 1) + n * head_flops_per_token(model)
    if model.moe is not None:
        per_token += 2.0 * n * model.moe.top_k * expert_parameters(matrices_only(model))
    return workload.seq_len * per_token + n * attention_score_flops(
        model, workload.seq_len, None, workload.attention_flops
    )


def model_flops_per_step(model: ModelSpec, workload: Workload) -> float:
    """FLOPs that one optimizer step needs: three forward passes' worth over the global batch.

    For a GPT (4h-wide MLP, full attention) this is 72 B s L h² (1 + s / 6h + V / 12Lh).

    Source
    ------
    Narayanan et al. (2021), arXiv:2104.04473, appendix, without its recomputation.
    """
    forward = forward_layer_flops(model, workload) + predict_forward_flops(model, workload)
    forward += workload.seq_len * head_flops_per_token(model)
    return (1 + BACKWARD_OVER_FORWARD) * workload.global_batch * forward


def hardware_flops_per_step(model: ModelSpec, workload: Workload, *, recomputed_layers: float) -> float:
    """FLOPs that the devices do: the model's, and the forward pass again of a share of the layers.

    With all layers recomputed, a GPT and full attention: 96 B s L h² (1 + s / 6h + V / 16Lh).

    Source
    ------
    Narayanan et al. (2021), arXiv:2104.04473, equation 3.
    """
    again = recomputed_layers / model.n_layers * forward_layer_flops(model, workload)
    return model_flops_per_step(model, workload) + workload.global_batch * again


def hardware_over_model_flops(model: ModelSpec, workload: Workload, plans: Plans) -> Floats:
    """FLOPs that the devices do over those that the model needs; shape (n_plans,).

    Counted again: every r-th whole layer, or the attention's scores, MLPs and experts that a plan redoes;
    norms, activations and latent attention's up-projections are left out.

    Source
    ------
    Narayanan et al. (2021), arXiv:2104.04473, equation 3; scores alone: Korthikanti et al. (2022),
    arXiv:2205.05198, section 5.
    """
    full, s = plans.is_recompute(Recompute.FULL), workload.seq_len
    share = np.ceil(model.n_layers / plans.recompute_every) / model.n_layers
    again: Floats = full * share * forward_layer_flops(model, workload)
    scores = sum(
        attention_score_flops(model, s, window, workload.attention_flops) for window in model.window_of_layer
    )
    again = again + plans.is_recompute(Recompute.SELECTIVE) * scores
    if plans.recompute_modules.any():
        again = again + ~full * s * _redone_flops_per_token(model, plans)
    needed = model_flops_per_step(model, workload) / workload.global_batch
    ratio: Floats = np.asarray(1 + again / needed, dtype=np.float64)
    return ratio


def _redone_flops_per_token(model: ModelSpec, plans: Plans) -> Floats:
    """Forward FLOPs of the dense and the expert MLPs that a plan redoes by name."""
    bare = matrices_only(model)
    dense = 2.0 * (model.n_layers - model.n_moe_layers) * dense_mlp_rank_parameters(bare, 1)
    redone: Floats = np.asarray(plans.redoes(Module.MLP) * float(dense), dtype=np.float64)
    if model.moe is None:
        return redone
    experts = model.moe.top_k * expert_parameters(bare) + shared_expert_rank_parameters(bare, 1)
    redone += plans.redoes(Module.MOE) * (2.0 * model.n_moe_layers * float(experts))
    return redone
