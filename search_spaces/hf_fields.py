"""Reading a Hugging Face `config.json` without guessing: every key is read, fixed, or known to be harmless.

An architecture says which keys set its shapes (with the default of its transformers config class), which
keys are understood at one value only, and which change neither shapes nor computation. Any other key is an
error that names it.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from search_spaces.errors import InvalidSpec

Values = dict[str, Any]
REQUIRED: Any = object()

# Keys of every architecture that change neither shapes nor the work of a training step.
_HARMLESS_WORDS = """
    architectures auto_map model_type _name_or_path name_or_path _commit_hash transformers_version
    torch_dtype dtype use_cache cache_implementation initializer_range init_std _attn_implementation
    attn_implementation _attn_implementation_autoset unsloth_fixed unsloth_version language_model
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id mask_token_id
    decoder_start_token_id forced_bos_token_id forced_eos_token_id begin_suppress_tokens suppress_tokens
    rms_norm_eps layer_norm_eps layer_norm_epsilon norm_eps norm_epsilon layernorm_epsilon
    attention_dropout attn_pdrop resid_pdrop embd_pdrop emb_pdrop hidden_dropout dropout layerdrop
    activation_dropout classifier_dropout hidden_dropout_prob attention_probs_dropout_prob
    rope_theta rope_scaling rope_parameters rope_interleave rope_local_base_freq default_theta rotary_pct
    rotary_emb_base rotary_embedding_base rotary_base partial_rotary_factor rotary_percentage
    max_position_embeddings original_max_position_embeddings model_max_length max_length min_length
    pretraining_tp quantization_config compression_config output_attentions output_hidden_states
    output_scores return_dict return_dict_in_generate torchscript use_bfloat16 gradient_checkpointing
    id2label label2id num_labels problem_type finetuning_task task_specific_params tokenizer_class prefix
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences exponential_decay_length_penalty remove_invalid_values tf_legacy_loss is_decoder
    router_aux_loss_coef aux_loss_alpha seq_aux output_router_logits router_jitter_noise input_jitter_noise
    norm_topk_prob scoring_func topk_method routed_scaling_factor
"""
HARMLESS = frozenset(_HARMLESS_WORDS.split())

# Keys of every architecture that are understood at these values only.
FIXED: Mapping[str, tuple[object, ...]] = {
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "chunk_size_feed_forward": (0, None),
}


# Other spellings of one field: the config classes' own attribute maps, and older files.
ALIASES: Mapping[str, str] = {
    "n_embd": "hidden_size",
    "d_model": "hidden_size",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "n_inner": "intermediate_size",
    "ffn_dim": "intermediate_size",
    "ffn_hidden_size": "intermediate_size",
    "activation": "hidden_act",
    "n_positions": "max_position_embeddings",
    "activation_function": "hidden_act",
    "hidden_activation": "hidden_act",
    "num_local_experts": "num_experts",
    "n_routed_experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "num_mtp_layers": "num_nextn_predict_layers",
    "_sliding_window_pattern": "sliding_window_pattern",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One key that sets shapes: which values it takes and what its absence means."""

    default: Any
    accepts: Callable[[Any], bool]
    says: str


def _is_whole(value: object, least: int, most: int = 2**31 - 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def size(default: Any = REQUIRED, *, nullable: bool = False, most: int = 2**31 - 1) -> Field:
    """A whole number of at least 1, or null where null has a meaning (the default is null, or `nullable`)."""
    may_be_null = nullable or default is None
    return Field(
        default=default,
        accepts=lambda value: _is_whole(value, 1, most) or (may_be_null and value is None),
        says=f"a whole number from 1 to {most}" + (", or null" if may_be_null else ""),
    )


def count(default: Any = REQUIRED) -> Field:
    """A whole number of at least 0."""
    return Field(
        default=default, accepts=lambda value: _is_whole(value, 0), says="a whole number of at least 0"
    )


def span(default: Any = None) -> Field:
    """A window of tokens; null or 0 for none."""
    return Field(
        default=default,
        accepts=lambda value: value is None or _is_whole(value, 0),
        says="a whole number of tokens, or null",
    )


def flag(default: Any) -> Field:
    """True or false."""
    return Field(default=default, accepts=lambda value: isinstance(value, bool), says="true or false")


def one_of(default: Any, *choices: object) -> Field:
    """One of a few known values; anything else is not understood."""
    known = ", ".join(str(choice) for choice in choices)
    return Field(
        default=default,
        accepts=lambda value: isinstance(value, str) and value in choices,
        says=f"one of {known}",
    )


def list_of(kind: type) -> Field:
    """A list of words or of whole numbers, or null."""
    name = "words" if kind is str else "whole numbers"
    return Field(
        default=None,
        accepts=lambda value: (
            value is None or (isinstance(value, list) and all(type(item) is kind for item in value))
        ),
        says=f"a list of {name}, or null",
    )


def table() -> Field:
    """A nested object, or null."""
    return Field(
        default=None,
        accepts=lambda value: value is None or isinstance(value, dict),
        says="a JSON object, or null",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What an architecture knows about its keys.

    `fields` set shapes (with the default of the config class), `fixed` are understood at the given values
    only, `harmless` change nothing that a plan costs.
    """

    fields: Mapping[str, Field]
    fixed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()


def read_values(config: Values, keys: Keys, where: str) -> Values:
    """The shape-setting values of a config under today's spellings, defaults filled in.

    Raises
    ------
    InvalidSpec
        A key that is not understood, missing, of the wrong kind, not finite, or given twice with two values.
    """
    spelled: dict[str, str] = {}
    for key, value in config.items():
        name = ALIASES.get(key, key)
        check_finite(value, f"{where}: {key}")
        check_known(key, value, keys, where)
        other = spelled.setdefault(name, key)
        if config[other] != value:
            raise InvalidSpec(f"{where}: {other} and {key} are one field and must agree", _json(value))
    return {
        name: _value(config, spelled.get(name, name), known, where) for name, known in keys.fields.items()
    }


def check_finite(value: object, where: str) -> None:
    """Raise `InvalidSpec` if a number anywhere in a JSON value is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidSpec(f"{where} must be a finite number", str(value))
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in inner:
        check_finite(item, where)


def check_known(key: str, value: object, keys: Keys, where: str) -> None:
    """Raise `InvalidSpec` for a key, or a fixed key's value, that is not understood."""
    fixed = {**FIXED, **keys.fixed}
    if key in fixed:
        if not any(type(value) is type(known) and value == known for known in fixed[key]):
            known = " or ".join(_json(known) for known in fixed[key])
            raise InvalidSpec(f"{where}: {key} is understood only as {known}", _json(value), hint=_WAY_OUT)
    elif ALIASES.get(key, key) not in {*keys.fields, *keys.harmless, *HARMLESS}:
        raise InvalidSpec(
            f"{where}: the key {key} may change the cost and is not understood", _json(value), hint=_WAY_OUT
        )


_WAY_OUT = "remove the key if it changes neither shapes nor work, or describe the model inline under [model]"


def _json(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _value(config: Values, name: str, known: Field, where: str) -> Any:
    value = config.get(name, known.default)
    if value is REQUIRED:
        raise InvalidSpec(f"{where} must have the key {name}", "none")
    if not known.accepts(value):
        raise InvalidSpec(f"{where}: {name} must be {known.says}", _json(value))
    return value
