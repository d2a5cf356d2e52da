"""Hugging Face configs: counts equal the real modules, and what is not understood is refused by name."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.hf_config import load_hf_config, model_from_hf_config, model_types
from search_spaces.model import QkNorm
from search_spaces.parameters import total_parameters

HF = Path(__file__).parent.parent / "data" / "hf"
PUBLISHED = {path.stem: json.loads(path.read_text()) for path in sorted(HF.glob("*.json"))}

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 250,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
EXPERTS_ALONE = {"num_experts": 6, "num_experts_per_tok": 2}
EXPERTS = {**EXPERTS_ALONE, "moe_intermediate_size": 24}
LLAMA4 = {"num_local_experts": 6, "head_dim": 16, "intermediate_size_mlp": 100}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 12, "qk_rope_head_dim": 4, "v_head_dim": 20}
DEEPSEEK = {**SMALL, **LATENT, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DEEPSEEK |= {"n_group": 1, "topk_group": 1}
GLM = {**GROUPED, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

# What the published files leave at its default: every switch of every architecture at least once.
BARE = {name: value for name, value in SMALL.items() if name != "intermediate_size"}
FALCON = {**BARE, "bos_token_id": None, "eos_token_id": None}
OPT = {**BARE, "ffn_dim": 96, "pad_token_id": None}
VARIANTS = {
    "gpt2 wide": ("gpt2", BARE, {"n_inner": 100, "n_positions": 32}),
    "gpt2 untied": ("gpt2", BARE, {"tie_word_embeddings": False}),
    "gpt_neox": ("gpt_neox", SMALL, {"use_parallel_residual": False, "attention_bias": False}),
    "opt": ("opt", OPT, {}),
    "opt no final norm": ("opt", OPT, {"_remove_final_layer_norm": True}),
    "opt bare": ("opt", OPT, {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    "opt untied": ("opt", OPT, {"tie_word_embeddings": False, "word_embed_proj_dim": 32}),
    "mpt": ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 3, "vocab_size": 250}, {}),
    "llama biased": ("llama", SMALL, {"attention_bias": True, "mlp_bias": True}),
    "llama head_dim": ("llama", GROUPED, {"head_dim": 24, "tie_word_embeddings": True}),
    "gpt_oss": ("gpt_oss", GROUPED | EXPERTS_ALONE, {"sliding_window": 16}),
    "gpt_oss bare": ("gpt_oss", GROUPED | EXPERTS_ALONE, {"attention_bias": False, "head_dim": 24}),
    "llama4_text": ("llama4_text", GROUPED | LLAMA4, {}),
    "llama4_text interleaved": (
        "llama4_text",
        GROUPED | LLAMA4,
        {"interleave_moe_layer_step": 2, "attention_bias": True, "attention_chunk_size": None},
    ),
    "mistral": ("mistral", GROUPED, {"sliding_window": None}),
    "mixtral": ("mixtral", GROUPED, {"num_local_experts": 3, "num_experts_per_tok": 1}),
    "qwen2 sliding": ("qwen2", GROUPED, {"use_sliding_window": True, "max_window_layers": 0}),
    "qwen2_moe": ("qwen2_moe", GROUPED | EXPERTS, {"shared_expert_intermediate_size": 40}),
    "qwen2_moe sparse": ("qwen2_moe", GROUPED | EXPERTS, {"decoder_sparse_step": 2, "qkv_bias": False}),
    "qwen3": ("qwen3", GROUPED, {"attention_bias": True}),
    "qwen3_moe": ("qwen3_moe", GROUPED | EXPERTS, {"mlp_only_layers": [0, 1]}),
    "qwen3_moe biased": ("qwen3_moe", GROUPED | EXPERTS, {"attention_bias": True}),
    "deepseek_v2": ("deepseek_v2", DEEPSEEK, {"q_lora_rank": 24, "attention_bias": True}),
    "deepseek_v2 direct": ("deepseek_v2", DEEPSEEK, {"q_lora_rank": None}),
    "deepseek_v3": ("deepseek_v3", DEEPSEEK, {"q_lora_rank": 24, "first_k_dense_replace": 1}),
    "deepseek_v3 direct": ("deepseek_v3", DEEPSEEK, {"q_lora_rank": None, "attention_bias": True}),
    "phi3": ("phi3", GROUPED, {"tie_word_embeddings": True, "pad_token_id": None}),
    "phimoe": ("phimoe", GROUPED, {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "gemma2": ("gemma2", GROUPED, {"attention_bias": True, "tie_word_embeddings": False}),
    "gemma3_text": ("gemma3_text", GROUPED, {"attention_bias": True, "head_dim": 8}),
    "olmo2": ("olmo2", GROUPED, {"attention_bias": True}),
    "kimi_k2": ("kimi_k2", DEEPSEEK, {"q_lora_rank": 24, "first_k_dense_replace": 1}),
    "glm4_moe": ("glm4_moe", GLM, {}),
    "glm4_moe biased": ("glm4_moe", GLM, {"attention_bias": True, "use_qk_norm": True, "head_dim": 24}),
    "olmoe": ("olmoe", GROUPED | EXPERTS_ALONE, {"attention_bias": True}),
    "falcon 7b": ("falcon", FALCON, {}),
    "falcon serial": ("falcon", FALCON, {"parallel_attn": False, "multi_query": False, "bias": True}),
    "falcon 40b": ("falcon", FALCON, {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon 11b": (
        "falcon",
        FALCON,
        {
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 1,
            "ffn_hidden_size": 100,
            "tie_word_embeddings": False,
        },
    ),
    "cohere": ("cohere", GROUPED, {}),
    "cohere normed": ("cohere", GROUPED, {"use_qk_norm": True, "attention_bias": True}),
    "starcoder2": ("starcoder2", GROUPED, {"sliding_window": 16}),
    "starcoder2 bare": ("starcoder2", GROUPED, {"use_bias": False, "tie_word_embeddings": False}),
    "granite": ("granite", GROUPED, {"attention_bias": True, "mlp_bias": True}),
    "smollm3": ("smollm3", GROUPED, {"mlp_bias": True, "pad_token_id": None}),
    "nemotron": ("nemotron", GROUPED, {"attention_bias": True, "mlp_bias": True}),
}
CONFIGS = PUBLISHED | {
    name: {"model_type": model_type, **shapes, **switches}
    for name, (model_type, shapes, switches) in VARIANTS.items()
}

CONFIGS["llama4"] = {
    "model_type": "llama4",
    "text_config": {**CONFIGS["llama4_text"], "model_type": "llama4_text"},
    "vision_config": {"hidden_size": 32},
}
# Published with code of its own, which is a copy of another's classes.
COPY_OF = {"kimi_k2": "deepseek_v3"}


def config_class_of(config):
    """The config as transformers understands it."""
    transformers = pytest.importorskip("transformers")
    model_type = config["model_type"]
    return transformers.AutoConfig.for_model(**{**config, "model_type": COPY_OF.get(model_type, model_type)})


def parameters_of_the_module(config):
    """Parameters of the module that transformers builds, tied ones once, with V3's router biases."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    if "text_config" in config:
        config = config["text_config"]
    storage = ("quantization_config", "auto_map")
    config = config_class_of({k: v for k, v in config.items() if k not in storage})
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config)
    biases = [b for name, b in module.named_buffers() if name.endswith("e_score_correction_bias")]
    return sum(tensor.numel() for tensor in (*module.parameters(), *biases))


@pytest.mark.torch
@pytest.mark.parametrize("name", CONFIGS)
def test_total_equals_the_real_module(name):
    config = CONFIGS[name]
    assert total_parameters(model_from_hf_config(config, name)) == parameters_of_the_module(config)


@pytest.mark.torch
@pytest.mark.parametrize("name", CONFIGS)
def test_what_transformers_saves_is_read_the_same(name):
    """Its files hold every key of the config class: each must be known, and mean what the original meant."""
    saved = json.loads(config_class_of(CONFIGS[name]).to_json_string(use_diff=False))
    model = model_from_hf_config(CONFIGS[name], name)
    assert replace(model_from_hf_config(saved, name), name=model.name) == model


def test_every_architecture_is_compared_with_its_module():
    compared = {config["model_type"] for config in CONFIGS.values()}
    assert compared == set(model_types())


def test_readme_example_is_llama_3_70b():
    example = Path(__file__).parents[2] / "docs" / "examples" / "llama-3-70b" / "config.json"
    assert total_parameters(load_hf_config(example)) == 70_553_706_496


# What changes cost but not the count


def read(name, **changes):
    return model_from_hf_config({**CONFIGS[name], **changes}, "config.json")


@pytest.mark.parametrize(
    ("name", "window", "global_every"),
    [("gemma2-9b", 4096, 2), ("gemma3-4b", 1024, 6), ("mistral-7b", 4096, 0), ("qwen3-8b", None, 0)],
)
def test_windows(name, window, global_every):
    attention = read(name).attention
    assert (attention.window, attention.global_every) == (window, global_every)


def test_llama_4_attends_in_chunks_but_for_every_fourth_layer():
    attention = model_from_hf_config(CONFIGS["llama4"], "config.json").attention
    assert (attention.window, attention.global_every, attention.chunked) == (8192, 4, True)
    stated = {**CONFIGS["llama4_text"], "no_rope_layers": [1, 1, 1, 0]}
    assert model_from_hf_config(stated, "config.json").attention == attention
    whole = model_from_hf_config(CONFIGS["llama4_text interleaved"], "config.json").attention
    assert (whole.window, whole.chunked) == (None, False)


def test_layer_types_say_the_same_as_the_rule():
    kinds = ["sliding_attention", "full_attention"] * 21
    assert read("gemma2-9b", layer_types=kinds) == read("gemma2-9b")


def test_pythia_runs_attention_beside_its_mlp():
    assert read("pythia-6.9b").parallel_block
    assert not read("gpt2").parallel_block


def test_mpt_learns_positions_only_without_alibi():
    assert read("mpt-7b-released").embedding.n_positions == 0
    assert read("mpt-7b-released", attn_config={"alibi": False}).embedding.n_positions == 2048
    assert read("mpt-7b-released", attn_config=None).embedding.n_positions == 0


def test_norms_on_queries_and_keys():
    names = ("olmo2-7b", "qwen3-8b", "llama-3-8b")
    kinds = [read(name).attention.qk_norm for name in names]
    assert kinds == [QkNorm.FULL, QkNorm.PER_HEAD, QkNorm.NONE]


def test_prediction_modules_are_read():
    assert read("deepseek-v3").n_predict_layers == 1
    assert read("deepseek-v3", num_nextn_predict_layers=0).n_predict_layers == 0


def test_older_spellings_are_read():
    old = {"model_type": "llama", "n_embd": 64, "n_layer": 4, "n_head": 4, "n_inner": 96, "vocab_size": 250}
    assert model_from_hf_config(old, "a") == model_from_hf_config({"model_type": "llama", **SMALL}, "a")


def test_the_name_is_the_stated_one_or_the_file(tmp_path):
    assert read("phi-3-mini").name == "Phi-3-mini-4k-instruct"
    llama = PUBLISHED["llama-3-8b"]
    assert model_from_hf_config(llama, "somewhere/llama.json").name == "llama"
    assert model_from_hf_config({**llama, "_name_or_path": "org/a-model"}, "config.json").name == "a-model"
    assert model_from_hf_config(llama, str(tmp_path / "my-model" / "config.json")).name == "my-model"
    gemma = PUBLISHED["gemma3-4b"]
    assert model_from_hf_config(gemma, str(tmp_path / "my-gemma" / "config.json")).name == "my-gemma"


# What is refused

LLAMA = PUBLISHED["llama-3-70b"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"attention_sinks": True}, r"attention_sinks may change the cost and is not understood; got true\."),
        ({"layer_types": ["full_attention"]}, "the key layer_types may change the cost"),
        ({"parallel_attention": True}, "the key parallel_attention may change the cost"),
        ({"num_nextn_predict_layers": 1}, "the key num_nextn_predict_layers may change the cost"),
        ({"num_experts": 8}, "the key num_experts may change the cost"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is understood only as false or null; got true"),
        ({"add_cross_attention": 1}, "add_cross_attention is understood only as false or null; got 1"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is understood only as {} or null"),
        ({"hidden_act": "swiglu_limited"}, 'hidden_act must be one of silu, .*; got "swiglu_limited"'),
        ({"hidden_act": ["silu"]}, "hidden_act must be one of silu"),
        ({"hidden_size": "8192"}, 'hidden_size must be a whole number from 1 to .*; got "8192"'),
        ({"hidden_size": 8192.0}, "hidden_size must be a whole number from 1 to .*; got 8192.0"),
        ({"hidden_size": True}, "hidden_size must be a whole number from 1 to .*; got true"),
        ({"hidden_size": None}, "hidden_size must be a whole number from 1 to .*; got null"),
        ({"hidden_size": float("nan")}, "hidden_size must be a finite number; got nan"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps must be a finite number; got inf"),
        ({"rope_scaling": {"factor": float("nan")}}, "rope_scaling must be a finite number; got nan"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1 to 10000"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number from 1"),
        ({"num_attention_heads": 60}, "num_attention_heads must divide hidden_size where head_dim is absent"),
        ({"num_key_value_heads": 7}, "config.json: AttentionSpec.n_kv_heads must divide n_heads; got"),
        ({"tie_word_embeddings": "no"}, 'tie_word_embeddings must be true or false; got "no"'),
        ({"n_embd": 4096}, "hidden_size and n_embd are one field and must agree; got 4096"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_llama_that_is_not_understood_is_refused_by_key(changes, match):
    with pytest.raises(InvalidSpec, match=match):
        model_from_hf_config({**LLAMA, **changes}, "config.json")


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("gemma2-9b", {"layer_types": ["full_attention"]}, "layer_types must name every layer; got 1 of 42"),
        ("gemma2-9b", {"layer_types": ["mamba"] * 42}, "layer_types must be sliding_attention or full"),
        ("gemma2-9b", {"layer_types": "full_attention"}, "layer_types must be a list of words, or null"),
        ("gemma2-9b", {"use_bidirectional_attention": True}, "bidirectional_attention is understood only as"),
        ("qwen2.5-7b", {"use_sliding_window": True, "max_window_layers": 20}, "must be every n-th"),
        ("qwen2.5-7b", {"use_mrope": True}, "use_mrope is understood only as false"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [7]}, "mlp_only_layers must be the first layers"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [0.5]}, "mlp_only_layers must be a list of whole numbers"),
        ("qwen3-30b-a3b", {"num_experts_per_tok": 129}, "top_k must be between 1 and n_experts"),
        ("deepseek-v3", {"moe_layer_freq": 2}, "moe_layer_freq is understood only as 1; got 2"),
        ("deepseek-v3", {"n_routed_experts": None}, "n_routed_experts must be a whole number from 1"),
        ("mpt-7b-released", {"attn_config": {"qk_ln": True}}, "attn_config: qk_ln is understood only as"),
        ("mpt-7b-released", {"attn_config": {"sinks": 4}}, "attn_config: the key sinks may change the cost"),
        ("mpt-7b-released", {"attn_config": 8}, "attn_config must be a JSON object, or null"),
        ("mpt-7b-released", {"norm_type": "rmsnorm"}, "norm_type is understood only as"),
        ("phi-3-mini", {"attention_bias": True}, "attention_bias is understood only as false"),
        ("gemma3-4b", {"text_config": None}, r"\(text_config\) must have the key hidden_size"),
        ("gemma3-4b", {"audio_config": {}}, "the key audio_config may change the cost"),
        ("llama4_text", {"moe_layers": [0, 3]}, "moe_layers must be every interleave_moe_layer_step-th"),
        ("llama4_text", {"no_rope_layers": [0, 1, 1, 1]}, "full_attention must be every n-th of layer_types"),
    ],
)  # fmt: skip
def test_other_architectures_refuse_by_key(name, changes, match):
    with pytest.raises(InvalidSpec, match=match):
        read(name, **changes)


@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_missing_key_is_named(key):
    config = {name: value for name, value in LLAMA.items() if name != key}
    with pytest.raises(InvalidSpec, match=rf"config.json must have the key {key}; got none\."):
        model_from_hf_config(config, "config.json")


@pytest.mark.parametrize(
    ("model_type", "hint"),
    [("llama5", "llama"), ("qwen3-moe", "qwen3_moe"), ("deepseek_v32", "deepseek_v3")],
)
def test_an_unknown_architecture_suggests_the_nearest(model_type, hint):
    with pytest.raises(UnknownName, match=f"model_type of config.json must be one of .*\n.*'{hint}"):
        model_from_hf_config({"model_type": model_type}, "config.json")


@pytest.mark.parametrize("config", [{}, {"model_type": 3}, {"model_type": None}])
def test_a_config_without_architecture_is_refused(config):
    with pytest.raises(InvalidSpec, match=r"config\.json must have the key model_type, a word"):
        model_from_hf_config(config, "config.json")


@pytest.mark.parametrize(
    ("text", "match"), [("[]", "one JSON object"), ("{", "a JSON file"), (None, "a readable text")]
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, match):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidSpec, match=match):
        load_hf_config(path)


def test_an_error_says_the_way_out():
    with pytest.raises(InvalidSpec, match="hint: remove the key if it changes neither shapes nor work"):
        model_from_hf_config({**LLAMA, "attention_sinks": True}, "config.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


def sentence_of(config):
    """What the reader says of a config it refuses; nothing of one that it takes."""
    try:
        model_from_hf_config(config, "config.json")
    except InvalidSpec as error:
        return str(error)
    return ""


@given(data=st.data())
def test_any_value_of_any_key_is_read_or_refused_in_a_sentence(data):
    config = CONFIGS[data.draw(st.sampled_from(sorted(CONFIGS)))]
    key = data.draw(st.sampled_from(sorted(config)))
    sentence = sentence_of({**config, key: data.draw(JSON)})
    assert not sentence or sentence.startswith(("config.json", "model_type of config.json"))
