"""The Hugging Face architectures that Meshtune knows: a reader and the keys of each.

Keys and defaults are those of the config classes of transformers 5. To add an architecture: a row here, a
reader in `hf_readers`, a small config in the tests' table.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from search_spaces import hf_readers
from search_spaces.hf_fields import Field, Keys, Values, count, flag, list_of, one_of, size, span, table
from search_spaces.model import MAX_LAYERS


@dataclass(frozen=True, slots=True)
class Architecture:
    """One `model_type`: how its values are read, and which keys it has."""

    read: Callable[[Values], hf_readers.Parts]
    keys: Keys


# Element-wise functions: which one it is changes no shape and hardly any time.
_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "relu2")


def _decoder(
    activation: str = "silu", *, tied: bool = False, kv_heads: int | None = None
) -> dict[str, Field]:
    """Keys of nearly every decoder; as many key-value heads as heads where they are null."""
    return {
        "vocab_size": size(),
        "hidden_size": size(),
        "intermediate_size": size(),
        "num_hidden_layers": size(most=MAX_LAYERS),
        "num_attention_heads": size(),
        "num_key_value_heads": size(kv_heads, nullable=True),
        "head_dim": size(None),
        "hidden_act": one_of(activation, *_ACTIVATIONS),
        "tie_word_embeddings": flag(tied),
    }


def _multi_head(activation: str, *, tied: bool) -> dict[str, Field]:
    """Keys of a decoder that has no grouped queries."""
    fields = _decoder(activation, tied=tied)
    return {name: fields[name] for name in fields if name not in ("num_key_value_heads", "head_dim")}


_ATTENTION_BIAS = {"attention_bias": flag(False)}
_MLP_BIAS = {"mlp_bias": flag(False)}
_EXPERTS = {"num_experts": size(), "num_experts_per_tok": size()}
_WINDOW = {"sliding_window": span()}
_WINDOW_FLAG = {"use_sliding_window": flag(False), "sliding_window": span(4096)}
_LAYER_TYPES = {"layer_types": list_of(str)}
_QWEN_WINDOW = {**_WINDOW_FLAG, **_LAYER_TYPES, "max_window_layers": count(28)}
_QWEN_EXPERTS = {
    **_EXPERTS,
    "moe_intermediate_size": size(),
    "decoder_sparse_step": size(1),
    "mlp_only_layers": list_of(int),
}
_QWEN_FIXED: Mapping[str, tuple[object, ...]] = {"use_mrope": (False, None)}

_GPT2 = Keys(
    fields={
        **_multi_head("gelu_new", tied=True),
        "intermediate_size": size(None),
        "max_position_embeddings": size(1024),
    },
    harmless=frozenset(
        {"n_ctx", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"}
    ),
)
_GPT_NEOX = Keys(
    fields={
        **_multi_head("gelu", tied=False),
        "attention_bias": flag(True),
        "use_parallel_residual": flag(True),
    }
)
_OPT = Keys(
    fields={
        **_multi_head("relu", tied=True),
        "max_position_embeddings": size(2048),
        "word_embed_proj_dim": size(None),
        "enable_bias": flag(True),
        "layer_norm_elementwise_affine": flag(True),
        "do_layer_norm_before": flag(True),
        "_remove_final_layer_norm": flag(False),
    }
)
_MPT = Keys(
    fields={
        "vocab_size": size(),
        "hidden_size": size(),
        "num_hidden_layers": size(most=MAX_LAYERS),
        "num_attention_heads": size(),
        "tie_word_embeddings": flag(True),
        "expansion_ratio": size(4),
        "max_seq_len": size(2048),
        "learned_pos_emb": flag(True),
        "no_bias": flag(True),
        "attn_config": table(),
    },
    fixed={"norm_type": ("low_precision_layernorm", "layernorm"), "use_norm_bias": (False,)},
    harmless=frozenset(
        {
            "init_device",
            "init_config",
            "tokenizer_name",
            "logit_scale",
            "embedding_fraction",
            "verbose",
            "use_pad_tok_in_ffn",
        }
    ),
)
_DEEPSEEK_V2 = Keys(
    fields={
        **_multi_head("silu", tied=False),
        **_ATTENTION_BIAS,
        **_EXPERTS,
        "moe_intermediate_size": size(),
        "n_shared_experts": size(2, nullable=True),
        "first_k_dense_replace": count(0),
        "n_group": size(1, nullable=True),
        "topk_group": size(1, nullable=True),
        "q_lora_rank": size(1536, nullable=True),
        "kv_lora_rank": size(512),
        "qk_nope_head_dim": size(128),
        "qk_rope_head_dim": size(64),
        "v_head_dim": size(128),
    },
    fixed={"moe_layer_freq": (1,), "mlp_bias": (False,)},
    harmless=frozenset({"ep_size", "num_key_value_heads", "head_dim", "qk_head_dim"}),
)
_DEEPSEEK_V3 = Keys(
    fields={
        **_DEEPSEEK_V2.fields,
        "n_shared_experts": size(1, nullable=True),
        "first_k_dense_replace": count(3),
        "n_group": size(8),
        "topk_group": size(4),
        "num_nextn_predict_layers": count(1),
    },
    fixed=_DEEPSEEK_V2.fixed,
    harmless=_DEEPSEEK_V2.harmless,
)
_GEMMA2 = Keys(
    fields={
        **_decoder("gelu_pytorch_tanh", tied=True, kv_heads=4),
        **_ATTENTION_BIAS,
        **_LAYER_TYPES,
        "head_dim": size(256),
        "sliding_window": span(4096),
    },
    fixed={"use_bidirectional_attention": (False, None)},
    harmless=frozenset(
        {"query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping", "sliding_window_size"}
    ),
)
# The released files leave out what equals the config class, the shapes of the 4B model's heads among it.
_GEMMA3 = Keys(
    fields={
        **_GEMMA2.fields,
        "vocab_size": size(262208),
        "num_attention_heads": size(8),
        "sliding_window_pattern": size(6),
    },
    fixed=_GEMMA2.fixed,
    harmless=_GEMMA2.harmless,
)
_FALCON = Keys(
    fields={
        **_multi_head("gelu", tied=True),
        "intermediate_size": size(None),
        "num_kv_heads": size(None),
        "new_decoder_architecture": flag(False),
        "multi_query": flag(True),
        "parallel_attn": flag(True),
        "num_ln_in_parallel_attn": size(None, most=2),
        "bias": flag(False),
    },
    harmless=frozenset({"alibi", "apply_residual_connection_post_layernorm"}),
)
_GLM4_MOE = Keys(
    fields={
        **_decoder(kv_heads=8),
        **_ATTENTION_BIAS,
        **_EXPERTS,
        "moe_intermediate_size": size(),
        "n_shared_experts": size(1, nullable=True),
        "first_k_dense_replace": count(1),
        "n_group": size(1),
        "topk_group": size(1),
        "use_qk_norm": flag(False),
        "num_nextn_predict_layers": count(1),
    }
)
_LLAMA4 = Keys(
    fields={
        **_decoder(kv_heads=8),
        **_ATTENTION_BIAS,
        **_LAYER_TYPES,
        "head_dim": size(128),
        "intermediate_size": size(8192),
        "intermediate_size_mlp": size(16384),
        "num_experts": size(16),
        "num_experts_per_tok": size(1),
        "interleave_moe_layer_step": size(1),
        "moe_layers": list_of(int),
        "no_rope_layers": list_of(int),
        "no_rope_layer_interval": size(4),
        "attention_chunk_size": span(8192),
    },
    # Its norm of queries and keys has no weights.
    harmless=frozenset(
        {"use_qk_norm", "attn_temperature_tuning", "floor_scale", "attn_scale", "for_llm_compressor"}
    ),
)
_GPT_OSS = Keys(
    fields={
        **_decoder(kv_heads=8),
        **_EXPERTS,
        **_LAYER_TYPES,
        "head_dim": size(64),
        "attention_bias": flag(True),
        "sliding_window": span(128),
    },
    harmless=frozenset({"swiglu_alpha", "swiglu_limit", "initial_context_length"}),
)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "gpt2": Architecture(hf_readers.gpt2, _GPT2),
        "gpt_neox": Architecture(hf_readers.gpt_neox, _GPT_NEOX),
        "opt": Architecture(hf_readers.opt, _OPT),
        "mpt": Architecture(hf_readers.mpt, _MPT),
        "llama": Architecture(hf_readers.llama, Keys(fields={**_decoder(), **_ATTENTION_BIAS, **_MLP_BIAS})),
        "llama4_text": Architecture(hf_readers.llama4, _LLAMA4),
        "mistral": Architecture(
            hf_readers.mistral, Keys(fields={**_decoder(kv_heads=8), "sliding_window": span(4096)})
        ),
        "mixtral": Architecture(
            hf_readers.mixtral, Keys(fields={**_decoder(kv_heads=8), **_EXPERTS, **_WINDOW})
        ),
        "qwen2": Architecture(
            hf_readers.qwen2, Keys(fields={**_decoder(kv_heads=32), **_QWEN_WINDOW}, fixed=_QWEN_FIXED)
        ),
        "qwen2_moe": Architecture(
            hf_readers.qwen2_moe,
            Keys(
                fields={
                    **_decoder(kv_heads=16),
                    **_QWEN_WINDOW,
                    **_QWEN_EXPERTS,
                    "shared_expert_intermediate_size": size(5632),
                    "qkv_bias": flag(True),
                },
                fixed=_QWEN_FIXED,
            ),
        ),
        "qwen3": Architecture(
            hf_readers.qwen3,
            Keys(fields={**_decoder(kv_heads=32), **_QWEN_WINDOW, **_ATTENTION_BIAS, "head_dim": size(128)}),
        ),
        "qwen3_moe": Architecture(
            hf_readers.qwen3_moe,
            Keys(
                fields={**_decoder(kv_heads=4), **_WINDOW_FLAG, **_ATTENTION_BIAS, **_QWEN_EXPERTS},
                harmless=frozenset({"max_window_layers"}),
            ),
        ),
        "deepseek_v2": Architecture(hf_readers.deepseek, _DEEPSEEK_V2),
        "deepseek_v3": Architecture(hf_readers.deepseek_v3, _DEEPSEEK_V3),
        # DeepSeek-V3's classes under another name, with other sizes.
        "kimi_k2": Architecture(hf_readers.deepseek_v3, _DEEPSEEK_V3),
        "glm4_moe": Architecture(hf_readers.glm4_moe, _GLM4_MOE),
        "gpt_oss": Architecture(hf_readers.gpt_oss, _GPT_OSS),
        "phi3": Architecture(
            hf_readers.mistral,
            Keys(
                fields={**_decoder(), **_WINDOW},
                fixed=dict.fromkeys(("attention_bias", "mlp_bias", "lm_head_bias"), (False,)),
            ),
        ),
        "phimoe": Architecture(
            hf_readers.phimoe,
            Keys(
                fields={
                    **_decoder(kv_heads=8),
                    **_WINDOW,
                    **_ATTENTION_BIAS,
                    **_EXPERTS,
                    "lm_head_bias": flag(False),
                }
            ),
        ),
        "gemma2": Architecture(hf_readers.gemma2, _GEMMA2),
        "gemma3_text": Architecture(hf_readers.gemma3, _GEMMA3),
        "olmo2": Architecture(hf_readers.olmo2, Keys(fields={**_decoder(), **_ATTENTION_BIAS})),
        "olmoe": Architecture(
            hf_readers.olmoe,
            Keys(fields={**_decoder(), **_ATTENTION_BIAS, **_EXPERTS}, harmless=frozenset({"clip_qkv"})),
        ),
        "falcon": Architecture(hf_readers.falcon, _FALCON),
        "cohere": Architecture(
            hf_readers.cohere,
            Keys(
                fields={**_decoder(tied=True), **_ATTENTION_BIAS, "use_qk_norm": flag(False)},
                harmless=frozenset({"logit_scale"}),
            ),
        ),
        "starcoder2": Architecture(
            hf_readers.starcoder2,
            Keys(
                fields={
                    **_decoder("gelu_pytorch_tanh", tied=True, kv_heads=2),
                    **_WINDOW,
                    "use_bias": flag(True),
                },
                fixed={"mlp_type": ("default",), "norm_type": ("layer_norm",)},
                harmless=frozenset({"residual_dropout", "embedding_dropout"}),
            ),
        ),
        "granite": Architecture(
            hf_readers.llama,
            Keys(
                fields={**_decoder(), **_ATTENTION_BIAS, **_MLP_BIAS},
                harmless=frozenset(
                    {"embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"}
                ),
            ),
        ),
        "smollm3": Architecture(
            hf_readers.llama,
            Keys(
                fields={**_decoder(tied=True, kv_heads=4), **_ATTENTION_BIAS, **_MLP_BIAS},
                fixed={"use_sliding_window": (False,)},
                harmless=frozenset(
                    {
                        "no_rope_layers",
                        "no_rope_layer_interval",
                        "sliding_window",
                        "layer_types",
                        "max_window_layers",
                    }
                ),
            ),
        ),
        "nemotron": Architecture(
            hf_readers.nemotron, Keys(fields={**_decoder("relu2"), **_ATTENTION_BIAS, **_MLP_BIAS})
        ),
    }
)

# Attention's own table inside an MPT config.
MPT_ATTENTION = Keys(
    fields={"alibi": flag(True), "rope": flag(False)},
    fixed={
        "attn_type": ("multihead_attention",),
        "prefix_lm": (False,),
        "qk_ln": (False,),
        "qk_gn": (False,),
    },
    harmless=frozenset(
        {"attn_impl", "softmax_scale", "clip_qkv", "attn_uses_sequence_id", "alibi_bias_max", "rope_impl"}
    ),
)
_OUTER_WORDS = """
    vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index image_token_id
    boi_token_id eoi_token_id vision_soft_tokens_per_image
"""


def _outer(*, tied: bool) -> Keys:
    return Keys(
        fields={"text_config": table(), "tie_word_embeddings": flag(tied)},
        harmless=frozenset(_OUTER_WORDS.split()),
    )


# What surrounds the text model in a multimodal config; only the text model, of that type, is described.
MULTIMODAL: Mapping[str, tuple[str, Keys]] = MappingProxyType(
    {"gemma3": ("gemma3_text", _outer(tied=True)), "llama4": ("llama4_text", _outer(tied=False))}
)
