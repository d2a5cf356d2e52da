"""A ModelSpec as Megatron-LM arguments (core 0.19.2), and what of a model Megatron-LM cannot build."""

from runners.launchers.base import Arguments, binding_window, flag
from search_spaces.model import AttentionSpec, ModelSpec, MoeSpec, NormKind, QkNorm
from search_spaces.workload import Workload

AUX_LOSS_COEFFICIENT = 1e-3  # free of cost; any value keeps the load-balancing loss in the step


def model_lacks(model: ModelSpec, workload: Workload) -> list[str]:
    """Fields of a model that no Megatron-LM argument stands for."""
    attention, embedding = model.attention, model.embedding
    absent = {
        f"norm={model.norm}": model.norm not in (NormKind.RMS, NormKind.LAYER),
        f"norms_per_layer={model.norms_per_layer}": model.norms_per_layer != 2,
        "parallel_block=true": model.parallel_block,
        "final_norm=false": not model.final_norm,
        f"attention.qk_norm={attention.qk_norm}": attention.qk_norm is QkNorm.FULL,
        "attention.sinks=true": attention.sinks,
        "moe.expert_bias=true": model.moe is not None and model.moe.expert_bias,
        "attention.chunked=true": attention.chunked and binding_window(model, workload) is not None,
        "embedding.head_bias=true": embedding.head_bias,
        f"embedding.width={embedding.width}": embedding.width not in (None, model.d_model),
    }
    found = [f"{what}: Megatron-LM has no argument for it" for what, is_absent in absent.items() if is_absent]
    return [*found, *_bias_lacks(model), *_mixed_mlp_lacks(model), *position_lacks(model, workload)]


def position_lacks(model: ModelSpec, workload: Workload) -> list[str]:
    """A learned position table that is shorter than the sequence."""
    n_positions = model.embedding.n_positions
    if 0 < n_positions < workload.seq_len:
        return [f"seq_len={workload.seq_len}: the model's learned positions end at {n_positions}"]
    return []


def biases(model: ModelSpec) -> tuple[bool, bool, bool]:
    """Whether the projections into attention, out of it, and the dense feed-forward blocks have a bias."""
    attention = model.attention
    has_dense = model.n_moe_layers < model.n_layers
    return attention.qkv_bias, attention.out_bias, model.mlp.bias if has_dense else attention.out_bias


def n_matrices(model: ModelSpec) -> int:
    """Matrices of a feed-forward block: 3 where it is gated."""
    return (
        model.moe.n_matrices if model.moe and model.n_moe_layers == model.n_layers else model.mlp.n_matrices
    )


def _bias_lacks(model: ModelSpec) -> list[str]:
    into, out, mlp = biases(model)
    if out == mlp and (into or not out):
        return []
    what = f"attention.qkv_bias={into}, attention.out_bias={out}, mlp.bias={mlp}".lower()
    return [
        f"{what}: Megatron-LM has biases everywhere, nowhere, or on the query, key and value projections only"
    ]


def _mixed_mlp_lacks(model: ModelSpec) -> list[str]:
    moe = model.moe
    if moe is None or moe.n_matrices == n_matrices(model):
        return []
    return [f"moe.n_matrices={moe.n_matrices}: dense layers with {model.mlp.n_matrices} cannot stand beside"]


def model_arguments(model: ModelSpec, workload: Workload) -> Arguments:
    """Shapes, norms, positions and biases of the whole model."""
    embedding = model.embedding
    return [
        flag("--num-layers", model.n_layers),
        flag("--hidden-size", model.d_model),
        flag("--ffn-hidden-size", model.mlp.width),
        flag("--num-attention-heads", model.attention.n_heads),
        *_attention(model.attention, binding_window(model, workload)),
        *_mlp(model),
        flag("--normalization", "RMSNorm" if model.norm is NormKind.RMS else "LayerNorm"),
        flag("--position-embedding-type", "learned_absolute" if embedding.n_positions else "rope"),
        flag("--max-position-embeddings", embedding.n_positions or workload.seq_len),
        *([] if embedding.tied else [flag("--untie-embeddings-and-output-weights")]),
        *([flag("--mtp-num-layers", model.n_predict_layers)] if model.n_predict_layers else []),
        flag("--attention-dropout", 0.0),
        flag("--hidden-dropout", 0.0),
        *([] if workload.flash_attention else [flag("--attention-backend", "unfused")]),
        *(_moe(model, model.moe) if model.moe else []),
    ]


def _attention(attention: AttentionSpec, window: int | None) -> Arguments:
    latent = attention.latent
    found: Arguments = []
    if latent:
        found += [
            flag("--multi-latent-attention"),
            *([flag("--q-lora-rank", latent.q_lora_rank)] if latent.q_lora_rank else []),
            flag("--kv-lora-rank", latent.kv_lora_rank),
            flag("--qk-head-dim", latent.qk_nope_head_dim),
            flag("--qk-pos-emb-head-dim", latent.qk_rope_head_dim),
            flag("--v-head-dim", latent.v_head_dim),
            flag("--kv-channels", latent.v_head_dim),
        ]
    else:
        found.append(flag("--kv-channels", attention.head_dim))
    if attention.n_kv_heads != attention.n_heads:
        found += [flag("--group-query-attention"), flag("--num-query-groups", attention.n_kv_heads)]
    if attention.qk_norm is QkNorm.PER_HEAD:
        found.append(flag("--qk-layernorm"))
    if window:
        found.append(flag("--window-size", f"({window - 1}, 0)"))
        # "N": the last of every N layers attends to the whole sequence
        found += [flag("--window-attn-skip-freq", attention.global_every)] if attention.global_every else []
    return found


def _mlp(model: ModelSpec) -> Arguments:
    gated = n_matrices(model) == 3
    into, out, _ = biases(model)
    found: Arguments = [flag("--swiglu")] if gated else []
    if not out:
        found.append(flag("--disable-bias-linear"))
        found += [] if gated else [flag("--no-bias-gelu-fusion")]  # the fused kernel adds a bias
        found += [flag("--add-qkv-bias")] if into else []
    return found


def _moe(model: ModelSpec, moe: MoeSpec) -> Arguments:
    found = [
        flag("--num-experts", moe.n_experts),
        flag("--moe-router-topk", moe.top_k),
        flag("--moe-ffn-hidden-size", moe.expert_width),
        flag("--moe-layer-freq", layer_pattern(model)),
        flag("--moe-grouped-gemm"),
        flag("--moe-router-load-balancing-type", "aux_loss"),
        flag("--moe-aux-loss-coeff", AUX_LOSS_COEFFICIENT),
    ]
    if moe.shared_width:
        found.append(flag("--moe-shared-expert-intermediate-size", moe.shared_width))
        found += [flag("--moe-shared-expert-gate")] if moe.shared_gate else []
    if moe.router_bias:  # the load-balancing correction of DeepSeek-V3 exists for sigmoid scores only
        found += [flag("--moe-router-score-function", "sigmoid"), flag("--moe-router-enable-expert-bias")]
        found.append(flag("--moe-router-dtype", "fp32"))
    if moe.capacity_factor is not None:
        found.append(flag("--moe-expert-capacity-factor", moe.capacity_factor))
    return found


def layer_pattern(model: ModelSpec) -> str:
    """Expert layers as Megatron-LM writes them: `([0]*3+[1]*58)`."""
    runs: list[tuple[int, int]] = []
    for is_moe in model.is_moe_layer:
        kind = int(is_moe)
        if runs and runs[-1][0] == kind:
            runs[-1] = (kind, runs[-1][1] + 1)
        else:
            runs.append((kind, 1))
    return "(" + "+".join(f"[{kind}]*{n}" for kind, n in runs) + ")"
