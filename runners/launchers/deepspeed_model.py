"""A ModelSpec as Megatron-DeepSpeed arguments, and what of a model Megatron-DeepSpeed cannot build."""

from runners.launchers.base import Arguments, binding_window, flag
from runners.launchers.megatron_model import biases, n_matrices, position_lacks
from search_spaces.model import ModelSpec, MoeSpec, NormKind, QkNorm
from search_spaces.workload import Workload


def model_lacks(model: ModelSpec, workload: Workload) -> list[str]:
    """Fields of a model that no Megatron-DeepSpeed argument stands for."""
    attention, embedding, window = model.attention, model.embedding, binding_window(model, workload)
    absent = {
        f"norm={model.norm}": model.norm not in (NormKind.RMS, NormKind.LAYER),
        f"norms_per_layer={model.norms_per_layer}": model.norms_per_layer != 2,
        "parallel_block=true": model.parallel_block,
        "final_norm=false": not model.final_norm,
        f"n_predict_layers={model.n_predict_layers}": model.n_predict_layers > 0,
        "attention.latent": attention.latent is not None,
        "attention.sinks=true": attention.sinks,
        f"attention.window={window}": window is not None,
        f"attention.qk_norm={attention.qk_norm}": attention.qk_norm is not QkNorm.NONE,
        "attention.qkv_bias, attention.out_bias, mlp.bias differ": len(set(biases(model))) > 1,
        "embedding.head_bias=true": embedding.head_bias,
        f"embedding.width={embedding.width}": embedding.width not in (None, model.d_model),
    }
    found = [
        f"{what}: Megatron-DeepSpeed has no argument for it"
        for what, is_absent in absent.items()
        if is_absent
    ]
    return [*found, *(_moe_lacks(model, model.moe) if model.moe else []), *position_lacks(model, workload)]


def _moe_lacks(model: ModelSpec, moe: MoeSpec) -> list[str]:
    has_dense = model.n_moe_layers < model.n_layers
    absent = {
        f"moe.shared_width={moe.shared_width}": moe.shared_width > 0,
        "moe.router_bias=true": moe.router_bias,
        "moe.expert_bias=true": moe.expert_bias,
        f"moe.n_dense_layers={moe.n_dense_layers}": moe.n_dense_layers > 0,
        f"moe.n_matrices={moe.n_matrices} beside mlp.n_matrices={model.mlp.n_matrices}": moe.n_matrices
        != n_matrices(model),
        f"moe.expert_width={moe.expert_width} beside mlp.width={model.mlp.width}": has_dense
        and moe.expert_width != model.mlp.width,
    }
    return [
        f"{what}: Megatron-DeepSpeed has no argument for it"
        for what, is_absent in absent.items()
        if is_absent
    ]


def model_arguments(model: ModelSpec, workload: Workload) -> Arguments:
    """Shapes, norms, positions and biases of the whole model."""
    attention, embedding, moe = model.attention, model.embedding, model.moe
    all_experts = moe is not None and model.n_moe_layers == model.n_layers
    found = [
        flag("--num-layers", model.n_layers),
        flag("--hidden-size", model.d_model),
        flag("--ffn-hidden-size", moe.expert_width if moe and all_experts else model.mlp.width),
        flag("--num-attention-heads", attention.n_heads),
        flag("--num-key-value-heads", attention.n_kv_heads),
        flag("--kv-channels", attention.head_dim),
        flag("--max-position-embeddings", embedding.n_positions or workload.seq_len),
        flag("--normalization", "rmsnorm" if model.norm is NormKind.RMS else "layernorm"),
        flag("--attention-dropout", 0.0),
        flag("--hidden-dropout", 0.0),
    ]
    switches = {
        "--use-rotary-position-embeddings": embedding.n_positions == 0,
        "--swiglu": n_matrices(model) == 3,
        "--disable-bias-linear": not biases(model)[0],
        "--untie-embeddings-and-output-weights": not embedding.tied,
        "--use-flash-attn-v2": workload.flash_attention,
    }
    found += [flag(name) for name, is_on in switches.items() if is_on]
    return [*found, *(_moe(moe) if moe else [])]


def _moe(moe: MoeSpec) -> Arguments:
    found = [
        flag("--num-experts", moe.n_experts),
        flag("--topk", moe.top_k),
        flag("--expert-interval", moe.layer_every),
    ]
    if moe.capacity_factor is None:
        return [*found, flag("--disable-moe-token-dropping")]
    return [*found, flag("--moe-train-capacity-factor", moe.capacity_factor)]
