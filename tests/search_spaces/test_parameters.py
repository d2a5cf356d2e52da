"""Parameter counts against published integers, papers' formulas, and their own sharding."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.model_presets import load_model, model_names
from search_spaces.parameters import (
    active_parameters,
    attention_rank_parameters,
    dense_mlp_rank_parameters,
    embedding_rank_parameters,
    expert_rank_parameters,
    head_rank_parameters,
    layer_parameters,
    layer_rank_parameters,
    parameters_without_embeddings,
    predict_parameters,
    predict_rank_parameters,
    shared_expert_rank_parameters,
    total_parameters,
    trained_parameters,
)
from search_spaces.units import BILLION, GIB

# name: (parameters, where the integer is published)
SAFETENSORS = "safetensors index of the Hugging Face repository: metadata.total_size / 2 bytes"
MODULE = "numel of the module that transformers builds; published only as billions"
FOUNDRY = "llm-foundry scripts/train/benchmarking/README.md, column ParamCount, sequence length 2,048"
PUBLISHED_INTEGERS = {
    "gpt2": (124_439_808, MODULE),
    "gpt2-xl": (1_557_611_200, MODULE),
    "llama-2-7b": (6_738_415_616, SAFETENSORS),
    "llama-2-13b": (13_015_864_320, MODULE),
    "llama-2-70b": (68_976_648_192, MODULE),
    "llama-3-8b": (8_030_261_248, SAFETENSORS),
    "llama-3-70b": (70_553_706_496, SAFETENSORS),
    "llama-3-405b": (405_853_388_800, SAFETENSORS),
    "mistral-7b": (7_241_732_096, SAFETENSORS),
    "mixtral-8x7b": (46_702_792_704, SAFETENSORS),
    "mixtral-8x22b": (140_620_634_112, SAFETENSORS),
    "qwen3-8b": (8_190_735_360, SAFETENSORS),
    "qwen3-32b": (32_762_123_264, SAFETENSORS),
    "qwen3-30b-a3b": (30_532_122_624, SAFETENSORS),
    "qwen3-235b-a22b": (235_093_634_560, SAFETENSORS),
    "deepseek-v2-lite": (15_706_484_224, SAFETENSORS),
    "phi-3-mini": (3_821_079_552, SAFETENSORS),
    "phi-3.5-moe": (41_873_153_344, MODULE),
    "deepseek-v2": (235_741_434_880, "safetensors.total of deepseek-ai/DeepSeek-V2"),
    "deepseek-v3": (671_026_419_200, "61 main layers of the safetensors, router biases included"),
    "mpt-1b": (1_315_950_592, FOUNDRY),
    "mpt-3b": (2_651_837_440, FOUNDRY),
    "mpt-7b": (6_658_859_008, FOUNDRY),
    "mpt-13b": (12_853_954_560, FOUNDRY),
    "mpt-30b": (29_975_214_080, FOUNDRY),
    "mpt-70b": (64_862_437_376, FOUNDRY),
}

# name: (billions as printed, digits after the point, where)
SC21 = "arXiv:2104.04473 table 1"
FRONTIER = "arXiv:2312.12705 with vocabulary 50,688: L(12h² + 13h) + (V + s)h + 2h"
PUBLISHED_TOTALS = {
    "gpt3-175b": (175, 0, "arXiv:2005.14165 table 2.1 (174.6 in its table D.1)"),
    "megatron-1.7b": (1.7, 1, SC21),
    "megatron-3.6b": (3.6, 1, SC21),
    "megatron-7.5b": (7.5, 1, SC21),
    "megatron-18.4b": (18.4, 1, SC21),
    "megatron-39.1b": (39.1, 1, SC21),
    "megatron-76.1b": (76.1, 1, SC21),
    "megatron-145.6b": (145.6, 1, SC21),
    "megatron-310.1b": (310.1, 1, SC21),
    "megatron-530b": (529.6, 1, SC21),
    "megatron-1t": (1008.0, 1, SC21),
    "megatron-22b": (22, 0, "arXiv:2205.05198 table 3"),
    "megatron-175b": (175, 0, "arXiv:2205.05198 table 3"),
    "frontier-22b": (22.07, 2, FRONTIER),
    "frontier-175b": (174.61, 2, FRONTIER),
    "frontier-1t": (1008.0, 1, FRONTIER),
    "deepseek-v2": (236, 0, "arXiv:2405.04434 section 3.1.2"),
    "deepseek-v3": (671, 0, "arXiv:2412.19437 section 4.2"),
    "phi-3.5-moe": (41.9, 1, "model card of Phi-3.5-MoE-instruct: 16 x 3.8B, 41.9B"),
}
PUBLISHED_ACTIVE = {
    "mixtral-8x7b": (13, 0, "arXiv:2401.04088 section 1"),
    "mixtral-8x22b": (39, 0, "mistral.ai/news/mixtral-8x22b"),
    "qwen3-30b-a3b": (3.3, 1, "model card: 3.3B activated"),
    "qwen3-235b-a22b": (22, 0, "arXiv:2505.09388 table 2"),
    "deepseek-v2": (21, 0, "arXiv:2405.04434 section 3.1.2"),
    "phi-3.5-moe": (6.6, 1, "arXiv:2404.14219 abstract"),
}
PUBLISHED_WITHOUT_EMBEDDINGS = {
    "qwen3-8b": (6.95, 2, "model card"),
    "qwen3-32b": (31.2, 1, "model card"),
    "qwen3-30b-a3b": (29.9, 1, "model card"),
    "qwen3-235b-a22b": (234, 0, "model card"),
    "nemotron-4-340b": (331.6, 1, "arXiv:2406.11704 section 2.2"),
}
# Attention's projections and experts of two matrices alone, in billions.
PIPER = {"piper-110b": 110.7, "piper-862b": 862.3, "piper-1.7t": 1721.3}


@pytest.mark.parametrize("name", PUBLISHED_INTEGERS)
def test_total_is_the_published_integer(name):
    assert total_parameters(load_model(name)) == PUBLISHED_INTEGERS[name][0]


@pytest.mark.parametrize(
    ("count", "table"),
    [
        (total_parameters, PUBLISHED_TOTALS),
        (active_parameters, PUBLISHED_ACTIVE),
        (parameters_without_embeddings, PUBLISHED_WITHOUT_EMBEDDINGS),
    ],
    ids=["total", "active", "without embeddings"],
)
def test_count_is_the_published_billions(count, table):
    for name, (printed, digits, _) in table.items():
        billions = count(load_model(name)) / BILLION
        cut = math.floor(billions * 10**digits) / 10**digits  # Qwen3-30B-A3B: 3.35 is printed as 3.3
        assert printed in (round(billions, digits), cut), name


def test_every_preset_has_a_published_count():
    x_moe = {f"x-moe-{size}" for size in X_MOE}
    tables = (PUBLISHED_INTEGERS, PUBLISHED_TOTALS, PUBLISHED_WITHOUT_EMBEDDINGS, PIPER, x_moe)
    assert set(model_names()) == set().union(*tables)


def test_deepseek_v3_equals_its_safetensors_with_the_prediction_module():
    """The files hold 680,571,043,840 FP8 and 3,918,786,560 BF16 weights and 59 × 256 fp32 router biases.

    Each prediction module stores its own copy of embedding and head.
    """
    model = load_model("deepseek-v3")
    copies = 2 * model.embedding.vocab_size * model.d_model
    assert total_parameters(model) == 671_026_419_200
    assert predict_parameters(model) == 11_610_068_224  # README_WEIGHTS.md: 11.5B unique parameters
    assert trained_parameters(model) + copies == 680_571_043_840 + 3_918_786_560 + 59 * 256


def test_deepseek_v3_activates_what_its_weights_file_says():
    model = load_model("deepseek-v3")
    embedding = model.embedding.vocab_size * model.d_model
    # README_WEIGHTS.md: 36.6B with the output head and without the embedding.
    assert round((active_parameters(model) - embedding) / BILLION, 1) == 36.6


class TestFrontierLog:
    """One 128-GCD run of GPT 175B: tp 4, pp 16, 6 layers a stage (Megatron-DeepSpeed; arXiv:2312.12705)."""

    model = load_model("frontier-175b")
    middle = 6 * layer_rank_parameters(model, 4)
    first = middle + embedding_rank_parameters(model, 4)
    last = middle + head_rank_parameters(model, 4, 16, copies_positions=True)

    def test_parameters_of_each_stage(self):
        assert (self.first, self.middle, self.last) == (2_899_359_744, 2_718_480_384, 2_899_384_320)

    def test_total_sums_all_ranks_with_the_tied_module_twice(self):
        assert 4 * (self.first + 14 * self.middle + self.last) == 175_429_877_760

    def test_unique_sums_all_ranks_with_the_tied_module_once(self):
        tied = embedding_rank_parameters(self.model, 4)
        assert 4 * (self.first + 14 * self.middle + self.last - tied) == 174_706_360_320

    def test_megatron_lm_copies_the_word_table_only(self):
        h, s = self.model.d_model, self.model.embedding.n_positions
        assert self.last - 6 * layer_rank_parameters(self.model, 4) == (
            head_rank_parameters(self.model, 4, 16) + s * h
        )


@pytest.mark.parametrize("name", ["frontier-22b", "frontier-1t", "megatron-76.1b"])
def test_gpt_total_is_the_closed_form(name):
    model = load_model(name)
    L, h = model.n_layers, model.d_model
    V, s = model.embedding.vocab_size, model.embedding.n_positions
    # Narayanan et al. (2021), equation 2, plus the final norm.
    assert total_parameters(model) == L * (12 * h**2 + 13 * h) + (V + s) * h + 2 * h


# size: (total, activated) of L (E 2 H f + 4 H²) in units of 2^30; arXiv:2508.13337 table 3.
X_MOE = {
    "small": (10.06, 1.34),
    "medium": (55.23, 5.20),
    "large": (201.36, 11.48),
    "super": (545.43, 28.36),
}


def projections_and_experts(model, n_experts):
    layer = layer_parameters(model, "moe")
    return model.n_layers * (layer.attention + layer.experts * n_experts // model.moe.n_experts)


@pytest.mark.parametrize("size", X_MOE)
def test_x_moe_counts_projections_and_two_matrix_experts_only(size):
    model = load_model(f"x-moe-{size}")
    counted = [projections_and_experts(model, k) / GIB for k in (model.moe.n_experts, model.moe.top_k)]
    assert [round(count, 2) for count in counted] == list(X_MOE[size])


@pytest.mark.parametrize(("name", "billions"), PIPER.items())
def test_piper_counts_two_matrix_experts(name, billions):
    """arXiv:2605.05049: d=5120, f=20480, L=32, k=2; the sizes come out with two matrices, no embeddings."""
    model = load_model(name)
    assert round(projections_and_experts(model, model.moe.n_experts) / BILLION, 1) == billions


# Sharding

DEGREES = [1, 2, 4, 8]
KINDS = [
    pytest.param("llama-3-70b", "dense", id="gqa"),
    pytest.param("frontier-175b", "dense", id="biases"),
    pytest.param("mixtral-8x22b", "moe", id="moe"),
    pytest.param("deepseek-v3", "dense", id="mla"),
    pytest.param("deepseek-v3", "moe", id="mla, shared experts"),
    pytest.param("qwen3-235b-a22b", "moe", id="kv heads replicated above 4"),
]


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("tp", DEGREES)
def test_ranks_hold_the_layer_once_and_its_replicated_part_each(name, kind, tp):
    model = load_model(name)
    layer = layer_parameters(model, kind)
    kv_copies = max(tp // model.attention.n_kv_heads, 1)
    once = layer.query_heads + layer.mlp + kv_copies * layer.kv_heads
    ranks = tp * layer_rank_parameters(model, tp, kind)
    assert ranks == once + tp * (layer.router + layer.replicated)


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_whole_layer_is_one_rank_of_degree_1(name, kind):
    model = load_model(name)
    experts = expert_rank_parameters(model, 1, 1) if kind == "moe" else 0
    assert layer_parameters(model, kind).total == layer_rank_parameters(model, 1, kind) + experts


@pytest.mark.parametrize(("ep", "etp"), [(1, 1), (8, 1), (64, 2), (256, 4)])
def test_experts_split_over_ep_and_etp(ep, etp):
    model = load_model("deepseek-v3")
    whole = layer_parameters(model, "moe").experts
    assert ep * etp * expert_rank_parameters(model, ep, etp) == whole


@pytest.mark.parametrize(
    "count",
    [
        attention_rank_parameters,
        dense_mlp_rank_parameters,
        shared_expert_rank_parameters,
        embedding_rank_parameters,
        layer_rank_parameters,
        predict_rank_parameters,
        lambda model, tp: expert_rank_parameters(model, tp, tp),
        lambda model, tp: head_rank_parameters(model, tp, tp),
    ],
    ids=["attention", "mlp", "shared", "embedding", "layer", "predict", "experts", "head"],
)
def test_columns_hold_what_single_degrees_give(count):
    model = load_model("deepseek-v3")
    columns = count(model, np.array(DEGREES))
    assert columns.dtype == np.int64
    assert columns.tolist() == [count(model, tp) for tp in DEGREES]


@given(name=st.sampled_from(model_names()), tp=st.integers(1, 256))
def test_a_higher_degree_never_holds_more(name, tp):
    model = load_model(name)
    assert layer_rank_parameters(model, tp + 1) <= layer_rank_parameters(model, tp)
    assert embedding_rank_parameters(model, tp + 1) <= embedding_rank_parameters(model, tp)


def test_a_tied_head_is_copied_only_to_another_stage():
    model = load_model("gpt3-175b")
    table = model.embedding.vocab_size * model.d_model
    assert head_rank_parameters(model, 1, 2) - head_rank_parameters(model, 1, 1) == table
    assert head_rank_parameters(load_model("llama-3-8b"), 1, 1) == head_rank_parameters(
        load_model("llama-3-8b"), 1, 2
    )


@pytest.mark.parametrize("name", model_names())
def test_every_count_is_consistent(name):
    model = load_model(name)
    total = total_parameters(model)
    assert 0 < active_parameters(model) <= total
    assert (active_parameters(model) < total) == (model.moe is not None)
    assert 0 < parameters_without_embeddings(model) < total
    assert (trained_parameters(model) > total) == (model.n_predict_layers > 0)
