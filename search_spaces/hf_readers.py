"""What the values of a Hugging Face config mean: one small reader per architecture, to the parts of a spec.

The shapes are those of the modules that transformers 5 builds; tests count their parameters on torch's meta
device.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from search_spaces.errors import InvalidSpec
from search_spaces.hf_fields import Values
from search_spaces.model import (
    AttentionSpec,
    EmbeddingSpec,
    LatentAttention,
    MlpSpec,
    MoeSpec,
    NormKind,
    QkNorm,
)

Parts = dict[str, Any]


# Parts that many architectures share


def _head_dim(v: Values) -> int:
    """The stated width of a head, or hidden size over heads."""
    if v.get("head_dim") is not None:
        return int(v["head_dim"])
    hidden, heads = int(v["hidden_size"]), int(v["num_attention_heads"])
    if hidden % heads:
        raise InvalidSpec(
            "num_attention_heads must divide hidden_size where head_dim is absent",
            f"hidden_size={hidden}, num_attention_heads={heads}",
        )
    return hidden // heads


def _attention(v: Values, **changes: Any) -> AttentionSpec:
    heads = v["num_attention_heads"]
    kv_heads = v.get("num_key_value_heads") or heads
    return AttentionSpec(**{"n_heads": heads, "n_kv_heads": kv_heads, "head_dim": _head_dim(v), **changes})


def _biased(v: Values) -> Parts:
    """`attention_bias` of these architectures is on all four projections."""
    return {"qkv_bias": v["attention_bias"], "out_bias": v["attention_bias"]}


def _embedding(v: Values, **changes: Any) -> EmbeddingSpec:
    return EmbeddingSpec(vocab_size=v["vocab_size"], tied=v["tie_word_embeddings"], **changes)


def _parts(v: Values, attention: AttentionSpec, *, mlp: MlpSpec | None = None, **changes: Any) -> Parts:
    """What nearly all decoders share: RMS norms, a gated MLP, rotary positions."""
    return {
        "n_layers": v["num_hidden_layers"],
        "d_model": v["hidden_size"],
        "attention": attention,
        "mlp": mlp or MlpSpec(width=v["intermediate_size"]),
        "embedding": _embedding(v),
        **changes,
    }


def _layer_kinds(v: Values, default: Callable[[int], bool]) -> list[str]:
    """The stated kind of each layer, or the architecture's rule (true: sliding window)."""
    n_layers = v["num_hidden_layers"]
    kinds = v["layer_types"] or [
        "sliding_attention" if default(i) else "full_attention" for i in range(n_layers)
    ]
    for kind in kinds:
        if kind not in ("sliding_attention", "full_attention"):
            raise InvalidSpec("layer_types must be sliding_attention or full_attention", repr(kind))
    if len(kinds) != n_layers:
        raise InvalidSpec("layer_types must name every layer", f"{len(kinds)} of {n_layers}")
    return list(kinds)


def _window(kinds: list[str], window: int | None) -> Parts:
    """A pattern of layers as window and global_every, where every n-th layer sees the whole sequence."""
    full = [i + 1 for i, kind in enumerate(kinds) if kind == "full_attention"]
    if not window or len(full) == len(kinds):
        return {}
    every = full[0] if full else 0
    if full and full != list(range(every, len(kinds) + 1, every)):
        raise InvalidSpec("full_attention must be every n-th of layer_types", f"layers {full}")
    return {"window": window, "global_every": every}


# Readers


def gpt2(v: Values) -> Parts:
    """GPT-2: learned positions, biases everywhere."""
    width = v["intermediate_size"] or 4 * v["hidden_size"]
    return _parts(
        v,
        _attention(v, qkv_bias=True, out_bias=True),
        mlp=MlpSpec(width=width, n_matrices=2, bias=True),
        embedding=_embedding(v, n_positions=v["max_position_embeddings"]),
        norm=NormKind.LAYER,
    )


def gpt_neox(v: Values) -> Parts:
    """GPT-NeoX and Pythia: attention and MLP side by side, each with its norm."""
    return _parts(
        v,
        _attention(v, **_biased(v)),
        mlp=MlpSpec(width=v["intermediate_size"], n_matrices=2, bias=True),
        norm=NormKind.LAYER,
        parallel_block=v["use_parallel_residual"],
    )


def opt(v: Values) -> Parts:
    """OPT: learned positions with two spare rows; the 350M model has a narrower embedding."""
    bias, width = v["enable_bias"], v["word_embed_proj_dim"]
    affine = v["layer_norm_elementwise_affine"]
    return _parts(
        v,
        _attention(v, qkv_bias=bias, out_bias=bias),
        mlp=MlpSpec(width=v["intermediate_size"], n_matrices=2, bias=bias),
        embedding=_embedding(
            v,
            n_positions=v["max_position_embeddings"] + 2,  # OPT's positions begin at 2
            width=width if width != v["hidden_size"] else None,
        ),
        norm=NormKind.LAYER if affine else NormKind.NON_PARAMETRIC,
        final_norm=v["do_layer_norm_before"] and not v["_remove_final_layer_norm"],
    )


def mpt(v: Values) -> Parts:
    """MPT, as llm-foundry builds it: positions are learned only without ALiBi and rotary."""
    bias = not v["no_bias"]
    attention = v["attn_config"]
    learned = v["learned_pos_emb"] and not attention["alibi"] and not attention["rope"]
    return _parts(
        v,
        _attention(v, qkv_bias=bias, out_bias=bias),
        mlp=MlpSpec(width=v["expansion_ratio"] * v["hidden_size"], n_matrices=2, bias=bias),
        embedding=_embedding(v, n_positions=v["max_seq_len"] if learned else 0),
        norm=NormKind.LAYER if bias else NormKind.LAYER_NO_BIAS,
    )


def llama(v: Values) -> Parts:
    """Llama 1 to 3."""
    mlp = MlpSpec(width=v["intermediate_size"], bias=v["mlp_bias"])
    return _parts(v, _attention(v, **_biased(v)), mlp=mlp)


def llama4(v: Values) -> Parts:
    """Llama 4: every n-th layer of experts beside a shared one; rotary layers attend within chunks."""
    n_layers, step = v["num_hidden_layers"], v["interleave_moe_layer_step"]
    moe_layers = list(range(step - 1, n_layers, step))
    if v["moe_layers"] not in (None, moe_layers):
        raise InvalidSpec("moe_layers must be every interleave_moe_layer_step-th layer", f"{v['moe_layers']}")
    width = v["intermediate_size"]
    return _parts(
        v,
        _attention(v, **_biased(v), **_llama4_chunks(v)),
        mlp=MlpSpec(width=v["intermediate_size_mlp"]),
        moe=_moe(v, width, shared_width=width, layer_every=step),
    )


def _llama4_chunks(v: Values) -> Parts:
    """Layers with rotary positions see a chunk, the others the whole sequence."""
    n_layers, every = v["num_hidden_layers"], v["no_rope_layer_interval"]
    rotary = v["no_rope_layers"] or [int((i + 1) % every != 0) for i in range(n_layers)]
    stated = v["layer_types"] or ["chunked_attention" if chunked else "full_attention" for chunked in rotary]
    sliding = ["sliding_attention" if kind == "chunked_attention" else kind for kind in stated]
    window = _window(_layer_kinds({**v, "layer_types": sliding}, bool), v["attention_chunk_size"])
    return {**window, "chunked": True} if window else {}


def mistral(v: Values) -> Parts:
    """Mistral and Phi-3: Llama without biases, perhaps with a sliding window."""
    return _parts(v, _attention(v, window=v["sliding_window"] or None))


def mixtral(v: Values) -> Parts:
    """Mixtral: every layer a mixture of experts."""
    return {**mistral(v), "moe": _moe(v, v["intermediate_size"])}


def _moe(v: Values, expert_width: int, **changes: Any) -> MoeSpec:
    experts, top_k = v["num_experts"], v["num_experts_per_tok"]
    return MoeSpec(n_experts=experts, top_k=top_k, expert_width=expert_width, **changes)


def _flagged_window(v: Values) -> int | None:
    """Qwen's window counts only where `use_sliding_window` says so."""
    return (v["sliding_window"] or None) if v["use_sliding_window"] else None


def _qwen_window(v: Values) -> Parts:
    """Layers from `max_window_layers` on slide, if `use_sliding_window` says that any do."""
    window = _flagged_window(v)
    kinds = _layer_kinds(v, lambda i: window is not None and i >= v["max_window_layers"])
    return _window(kinds, window)


def qwen2(v: Values) -> Parts:
    """Qwen2 and 2.5: biases on queries, keys and values."""
    return _parts(v, _attention(v, qkv_bias=True, **_qwen_window(v)))


def qwen2_moe(v: Values) -> Parts:
    """Qwen1.5-MoE and Qwen2-MoE: shared experts behind a gate."""
    window = _flagged_window(v)
    kinds = _layer_kinds(v, lambda i: window is not None and i % 2 == 0 and i < v["max_window_layers"])
    shared = v["shared_expert_intermediate_size"]
    moe = _moe(v, v["moe_intermediate_size"], shared_width=shared, shared_gate=True, **_moe_layers(v))
    return _parts(v, _attention(v, qkv_bias=v["qkv_bias"], **_window(kinds, window)), moe=moe)


def _moe_layers(v: Values) -> Parts:
    """Which layers are dense: the first few, or all but every n-th."""
    dense, step = sorted(v["mlp_only_layers"] or []), v["decoder_sparse_step"]
    if dense and (dense != list(range(len(dense))) or step != 1):
        raise InvalidSpec(
            "mlp_only_layers must be the first layers, with decoder_sparse_step 1",
            f"mlp_only_layers={dense}, decoder_sparse_step={step}",
        )
    return {"n_dense_layers": len(dense), "layer_every": step}


def qwen3(v: Values) -> Parts:
    """Qwen3: norms on the queries and keys of each head."""
    return _parts(v, _attention(v, qk_norm=QkNorm.PER_HEAD, **_biased(v), **_qwen_window(v)))


def qwen3_moe(v: Values) -> Parts:
    """Qwen3-MoE: no shared experts."""
    window = _flagged_window(v)
    attention = _attention(v, qk_norm=QkNorm.PER_HEAD, window=window, **_biased(v))
    return _parts(v, attention, moe=_moe(v, v["moe_intermediate_size"], **_moe_layers(v)))


def deepseek(v: Values) -> Parts:
    """DeepSeek-V2: latent attention, shared experts, first layers dense."""
    latent = LatentAttention(
        q_lora_rank=v["q_lora_rank"],
        kv_lora_rank=v["kv_lora_rank"],
        qk_nope_head_dim=v["qk_nope_head_dim"],
        qk_rope_head_dim=v["qk_rope_head_dim"],
        v_head_dim=v["v_head_dim"],
    )
    attention = AttentionSpec(
        n_heads=v["num_attention_heads"],
        n_kv_heads=v["num_attention_heads"],
        head_dim=latent.qk_nope_head_dim + latent.qk_rope_head_dim,
        latent=latent,
        **_biased(v),
    )
    return _parts(v, attention, moe=_deepseek_moe(v))


def _deepseek_moe(v: Values) -> MoeSpec:
    """Shared experts, first layers dense, experts in groups."""
    return _moe(
        v,
        v["moe_intermediate_size"],
        shared_width=(v["n_shared_experts"] or 0) * v["moe_intermediate_size"],
        n_dense_layers=min(v["first_k_dense_replace"], v["num_hidden_layers"]),
        n_groups=v["n_group"] or 1,
        top_groups=v["topk_group"] or 1,
    )


def deepseek_v3(v: Values) -> Parts:
    """DeepSeek-V3: a balancing bias on the router (arXiv:2412.19437, equation 16), prediction modules."""
    parts = deepseek(v)
    moe = replace(parts["moe"], router_bias=True)
    return {**parts, "moe": moe, "n_predict_layers": v["num_nextn_predict_layers"]}


def glm4_moe(v: Values) -> Parts:
    """GLM-4.5: DeepSeek-V3's experts behind grouped queries, whose output alone has no bias."""
    attention = _attention(
        v,
        qkv_bias=v["attention_bias"],
        qk_norm=QkNorm.PER_HEAD if v["use_qk_norm"] else QkNorm.NONE,
    )
    moe = replace(_deepseek_moe(v), router_bias=True)
    return _parts(v, attention, moe=moe, n_predict_layers=v["num_nextn_predict_layers"])


def phimoe(v: Values) -> Parts:
    """Phi-3.5-MoE: layer norms and biases, also on the head."""
    attention = _attention(v, window=v["sliding_window"] or None, **_biased(v))
    embedding = _embedding(v, head_bias=v["lm_head_bias"])
    moe = _moe(v, v["intermediate_size"])
    return _parts(v, attention, embedding=embedding, moe=moe, norm=NormKind.LAYER)


def gpt_oss(v: Values) -> Parts:
    """GPT-OSS: biases everywhere, attention sinks, every second layer with a window."""
    window = _window(_layer_kinds(v, lambda i: i % 2 == 0), v["sliding_window"])
    moe = _moe(v, v["intermediate_size"], router_bias=True, expert_bias=True)
    return _parts(v, _attention(v, sinks=True, **_biased(v), **window), moe=moe)


def gemma2(v: Values) -> Parts:
    """Gemma 2: four norms a layer, every second layer with a window."""
    window = _window(_layer_kinds(v, lambda i: i % 2 == 0), v["sliding_window"])
    return _parts(v, _attention(v, **_biased(v), **window), norms_per_layer=4)


def gemma3(v: Values) -> Parts:
    """Gemma 3's text model: every sixth layer without a window."""
    every = v["sliding_window_pattern"]
    window = _window(_layer_kinds(v, lambda i: (i + 1) % every != 0), v["sliding_window"])
    attention = _attention(v, qk_norm=QkNorm.PER_HEAD, **_biased(v), **window)
    return _parts(v, attention, norms_per_layer=4)


def olmo2(v: Values) -> Parts:
    """OLMo 2: norms over all heads of queries and of keys, and after each block."""
    return _parts(v, _attention(v, qk_norm=QkNorm.FULL, **_biased(v)))


def nemotron(v: Values) -> Parts:
    """Nemotron-3 and 4: squared ReLU, layer norms."""
    mlp = MlpSpec(width=v["intermediate_size"], n_matrices=2, bias=v["mlp_bias"])
    return _parts(v, _attention(v, **_biased(v)), mlp=mlp, norm=NormKind.LAYER)


def olmoe(v: Values) -> Parts:
    """OLMoE: OLMo 2's norms of queries and keys, every layer a mixture of experts."""
    return {**olmo2(v), "moe": _moe(v, v["intermediate_size"])}


def falcon(v: Values) -> Parts:
    """Falcon: attention and MLP side by side; one norm for both, or in the newer models one each."""
    newer, parallel = v["new_decoder_architecture"], v["parallel_attn"]
    heads = v["num_attention_heads"]
    kv_heads = v["num_kv_heads"] or heads if newer else 1 if v["multi_query"] else heads
    two = (v["num_ln_in_parallel_attn"] or 2) == 2 if newer else not parallel
    return _parts(
        v,
        _attention(v, n_kv_heads=kv_heads, qkv_bias=v["bias"], out_bias=v["bias"]),
        mlp=MlpSpec(width=v["intermediate_size"] or 4 * v["hidden_size"], n_matrices=2, bias=v["bias"]),
        norm=NormKind.LAYER,
        norms_per_layer=2 if two else 1,
        parallel_block=newer or parallel,
    )


def cohere(v: Values) -> Parts:
    """Command R: attention and MLP side by side behind one norm without a bias."""
    attention = _attention(v, qk_norm=QkNorm.FULL if v["use_qk_norm"] else QkNorm.NONE, **_biased(v))
    norms: Parts = {"norm": NormKind.LAYER_NO_BIAS, "norms_per_layer": 1}
    return _parts(v, attention, parallel_block=True, **norms)


def starcoder2(v: Values) -> Parts:
    """StarCoder 2: layer norms, a plain MLP, biases everywhere, perhaps a sliding window."""
    bias = v["use_bias"]
    attention = _attention(v, window=v["sliding_window"] or None, qkv_bias=bias, out_bias=bias)
    mlp = MlpSpec(width=v["intermediate_size"], n_matrices=2, bias=bias)
    return _parts(v, attention, mlp=mlp, norm=NormKind.LAYER)
