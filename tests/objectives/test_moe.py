"""Mixture-of-experts laws against the tables of X-MoE (arXiv:2508.13337) and Piper (arXiv:2605.05049)."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.cost import moe
from objectives.cost.moe import Dispatch
from search_spaces.model import AttentionSpec, EmbeddingSpec, MlpSpec, ModelSpec, MoeSpec
from search_spaces.model_presets import load_model
from search_spaces.units import GB, GIB

LARGE = load_model("x-moe-large")
SEQ_LEN = 4096


def expert_model(n_experts, d_model, expert_width):
    """A model of which only the experts matter; three matrices each, as Piper assumes."""
    return ModelSpec(
        name="experts",
        source="arXiv:2605.05049, migration table",
        n_layers=1,
        d_model=d_model,
        attention=AttentionSpec(n_heads=1, n_kv_heads=1, head_dim=128),
        mlp=MlpSpec(width=expert_width),
        moe=MoeSpec(n_experts=n_experts, top_k=1, expert_width=expert_width),
        embedding=EmbeddingSpec(vocab_size=1),
    )


@pytest.mark.parametrize(
    ("dispatch", "gib"),
    [(Dispatch.DROPLESS, 1.125), (Dispatch.DEEPSPEED_MOE, 2.8125), (Dispatch.TUTEL, 1.953125)],
)
def test_an_expert_layer_keeps_what_x_moe_table_4_says(dispatch, gib):
    kept = moe.expert_layer_activation_bytes(LARGE, np.array([SEQ_LEN]), dispatch, capacity_factor=1.25)
    assert kept[0] / GIB == gib


def test_dropless_dispatch_has_no_capacity_to_pay_for():
    tokens = np.array([SEQ_LEN])
    bytes_of = [
        moe.expert_layer_activation_bytes(LARGE, tokens, Dispatch.DROPLESS, capacity_factor=c) for c in (1, 4)
    ]
    assert bytes_of[0] == bytes_of[1]


@pytest.mark.parametrize(
    ("ep", "percent"), [(8, 87.5), (16, 75.1), (32, 54.8), (64, 33.8), (128, 18.5), (256, 9.2)]
)
def test_dispatch_repeats_what_x_moe_says(ep, percent):
    # X-MoE's nodes hold eight devices.
    redundancy = moe.dispatch_redundancy(LARGE.moe, np.array([ep // 8]))
    assert round(100 * redundancy[0], 1) == percent


def test_redundancy_is_what_random_routing_shows():
    spec, n_nodes, rng = MoeSpec(n_experts=16, top_k=4, expert_width=1), 4, np.random.default_rng(0)
    nodes = [{e // 4 for e in rng.choice(16, size=4, replace=False)} for _ in range(20_000)]
    shown = 1 - np.mean([len(each) for each in nodes]) / spec.top_k
    # 20,000 draws leave a standard error of 0.001.
    assert moe.dispatch_redundancy(spec, np.array([n_nodes]))[0] == pytest.approx(shown, abs=0.005)


@pytest.mark.parametrize(
    ("model", "better"), [("deepseek-v3", True), ("x-moe-large", True), ("mixtral-8x7b", False)]
)
def test_sharding_sequences_suits_small_experts_and_many_of_them(model, better):
    assert moe.sharding_sequences_saves_more(load_model(model).moe, np.array([SEQ_LEN]))[0] == better


def test_the_sharding_rule_is_the_comparison_of_both_savings():
    spec, c = LARGE.moe, 1.25
    break_even = 2 * spec.expert_width / (c * spec.top_k)
    around = np.array([0.99, 1.01]) * break_even
    saves = moe.sharding_sequences_saves_more(spec, around, capacity_factor=c)
    assert saves.tolist() == [False, True]


# name: (E, d, f, what the table lists, the unit it means by "GB")
MIGRATION = {
    "Switch-Base": (128, 768, 2048, 1.21, GB),
    "Mixtral 8x7B": (8, 4096, 14336, 2.63, GIB),
    "Mixtral 8x22B": (8, 6144, 16384, 4.50, GIB),
    "Grok-1": (8, 6144, 32768, 9.00, GIB),
    "GLaM": (64, 8192, 32768, 102.88, GB),
    "DeepSeek-V2": (160, 5120, 1536, 7.04, GIB),
    "DeepSeek-V3": (256, 7168, 2048, 21.00, GIB),
}


@pytest.mark.parametrize("name", MIGRATION)
def test_expert_migration_is_pipers_table(name):
    n_experts, d_model, width, listed, unit = MIGRATION[name]
    model = expert_model(n_experts, d_model, width)
    moved = moe.expert_migration_bytes(model, np.array([8]))[0] / unit
    # The table rounds to 0.01, and lists GLaM 0.2 % low.
    assert moved == pytest.approx(listed, rel=0.003)


def test_a_padded_layer_keeps_more_the_larger_its_capacity():
    kept = [
        moe.expert_layer_activation_bytes(LARGE, np.array([SEQ_LEN]), Dispatch.TUTEL, capacity_factor=c)[0]
        for c in (1.0, 1.25, 2.0)
    ]
    assert kept == sorted(kept)


def test_finer_experts_keep_weights_and_multiply_dispatch():
    """E=e, f=h, k=1 against E=em, f=h/m, k=m (X-MoE, section 2)."""
    spec = MoeSpec(n_experts=8, top_k=1, expert_width=8192, n_matrices=2)
    coarse = replace(LARGE, moe=spec)
    fine = replace(LARGE, moe=replace(spec, n_experts=64, top_k=8, expert_width=1024))
    kept = [
        moe.expert_layer_activation_bytes(model, np.array([1.0]), Dispatch.DROPLESS)[0]
        for model in (coarse, fine)
    ]
    assert kept[1] - kept[0] == 7 * 4 * LARGE.d_model


def test_a_token_goes_to_no_more_nodes_than_its_groups_lie_on():
    """DeepSeek-V3: 8 groups of experts on 8 nodes, a token's 8 experts in 4 of them."""
    spec = load_model("deepseek-v3").moe
    nodes = spec.top_k * moe.deduplicated_share(spec, np.array([8.0]))[0]
    free = spec.top_k * moe.deduplicated_share(replace(spec, n_groups=1, top_groups=1), np.array([8.0]))[0]
    assert 3 < nodes < 4 < free < 8


def test_sending_once_to_a_node_is_what_redundancy_leaves():
    spec, n_nodes = LARGE.moe, np.array([1.0, 2.0, 8.0, 32.0])
    left = 1 - moe.dispatch_redundancy(spec, n_nodes)
    np.testing.assert_allclose(moe.deduplicated_share(spec, n_nodes), left)
