"""FLOPs against the papers' closed forms and the Frontier log."""

from dataclasses import replace

import pytest

from objectives.cost.flops import (
    attention_score_flops,
    hardware_flops_per_step,
    model_flops_per_step,
)
from search_spaces.model_presets import load_model
from search_spaces.parameters import total_parameters, trained_parameters
from search_spaces.units import TFLOPS
from search_spaces.workload import AttentionFlops, Workload
from tests.objectives.jobs import frontier_job

GPTS = ["frontier-22b", "frontier-175b", "frontier-1t", "megatron-1t"]
LOG_STEP_S, LOG_DEVICES = 196.496, 128


def full_attention(global_batch=1):
    return Workload(seq_len=2048, global_batch=global_batch, attention_flops=AttentionFlops.FULL)


def recomputing_flops(model, workload):
    return hardware_flops_per_step(model, workload, recomputed_layers=model.n_layers)


@pytest.mark.parametrize(
    ("factor", "head", "flops"), [(72, 12, model_flops_per_step), (96, 16, recomputing_flops)]
)
@pytest.mark.parametrize("name", GPTS)
def test_a_gpts_step_is_narayanans_equation_3(name, factor, head, flops):
    model, s, B = load_model(name), 2048, 640
    L, h, V = model.n_layers, model.d_model, model.embedding.vocab_size
    closed = factor * B * s * L * h**2 * (1 + s / (6 * h) + V / (head * L * h))
    # Only the order of additions differs.
    assert flops(model, full_attention(B)) == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize(("global_batch", "tflops"), [(1280, 149.456), (320, 37.364)])
def test_the_frontier_log_is_reproduced_with_the_reported_and_the_true_batch(global_batch, tflops):
    model = load_model("frontier-175b")
    rate = recomputing_flops(model, full_attention(global_batch)) / LOG_STEP_S / LOG_DEVICES
    assert rate / TFLOPS == pytest.approx(tflops, abs=0.0006)  # printed to three decimals


# Per GCD, from the Frontier study; its TFLOP/s count recomputation.
@pytest.mark.parametrize(
    ("size", "tflops", "percent"), [("22b", 73.5, 38.38), ("175b", 69.2, 36.14), ("1t", 61.2, 31.96)]
)
def test_mfu_is_three_quarters_of_a_fully_recomputing_hfu(size, tflops, percent):
    job = frontier_job(f"frontier-{size}")
    flops = recomputing_flops(job.model, job.workload)
    step_s = flops / (tflops * TFLOPS * job.cluster.n_devices)
    hfu = flops / (step_s * job.cluster.n_devices * job.cluster.device.peak(job.workload.precision))
    assert 100 * hfu == pytest.approx(percent, abs=0.005)
    # The head is not recomputed, hence up to 0.5 % more than three quarters.
    assert job.mfu(step_s) / hfu == pytest.approx(3 / 4, rel=0.006)


def rule_of_thumb(model, tokens):
    """FLOPs to train N parameters on D tokens, 6 N D: Kaplan et al. (2020), arXiv:2001.08361, section 2.1."""
    return 6 * trained_parameters(model) * tokens


def test_a_trillion_parameters_on_twenty_trillion_tokens_take_120_million_exaflop():
    # The preset has 1.008e12 parameters.
    assert rule_of_thumb(load_model("frontier-1t"), 20e12) == pytest.approx(1.2e26, rel=0.01)


def test_six_times_parameters_times_tokens_is_most_of_a_dense_step():
    model, workload = load_model("megatron-175b"), full_attention(8)
    rule = rule_of_thumb(model, workload.tokens_per_step)
    # The rule leaves attention scores out: s / 6h = 3 % here.
    assert model_flops_per_step(model, workload) == pytest.approx(rule, rel=0.04)


@pytest.mark.parametrize("seq_len", [1, 7, 64])
@pytest.mark.parametrize("window", [None, 1, 5, 64, 100])
def test_causal_scores_are_those_of_the_pairs_a_window_allows(seq_len, window):
    model = load_model("mistral-7b")
    span = min(window or seq_len, seq_len)
    pairs = sum(min(i + 1, span) for i in range(seq_len))
    per_pair = 2 * model.attention.n_heads * (model.attention.head_dim + model.attention.v_head_dim)
    flops = attention_score_flops(model, seq_len, window, AttentionFlops.CAUSAL)
    # The closed form counts half of each token's own score: span / 2 pairs.
    assert flops == (pairs - span / 2) * per_pair


@pytest.mark.parametrize("seq_len", [1, 7, 64])
@pytest.mark.parametrize("chunk", [1, 5, 64, 100])
def test_chunked_scores_are_those_of_the_pairs_within_a_chunk(seq_len, chunk):
    model = load_model("mistral-7b")
    chunked = replace(model, attention=replace(model.attention, window=chunk, chunked=True))
    places = [i % chunk for i in range(seq_len)]
    per_pair = 2 * model.attention.n_heads * (model.attention.head_dim + model.attention.v_head_dim)
    causal = attention_score_flops(chunked, seq_len, chunk, AttentionFlops.CAUSAL)
    # The closed form counts half of each token's own score.
    assert causal == sum(place + 0.5 for place in places) * per_pair
    assert attention_score_flops(chunked, seq_len, chunk, AttentionFlops.FULL) == 2 * causal
    assert attention_score_flops(chunked, seq_len, None, AttentionFlops.CAUSAL) == attention_score_flops(
        model, seq_len, None, AttentionFlops.CAUSAL
    )


def test_sinks_and_biases_of_experts_cost_no_flops():
    model = load_model("mixtral-8x7b")
    biased = replace(
        model,
        attention=replace(model.attention, sinks=True),
        moe=replace(model.moe, expert_bias=True),
    )
    more = model.n_layers * (model.attention.n_heads + 8 * (2 * model.moe.expert_width + model.d_model))
    assert total_parameters(biased) == total_parameters(model) + more
    assert model_flops_per_step(biased, full_attention()) == model_flops_per_step(model, full_attention())


def test_a_token_pays_for_the_experts_it_meets_only():
    model = load_model("mixtral-8x7b")
    more = replace(model, moe=replace(model.moe, n_experts=16))
    router = 2 * 3 * model.n_layers * model.d_model * 8 * 2048
    difference = model_flops_per_step(more, full_attention()) - model_flops_per_step(model, full_attention())
    assert difference == pytest.approx(router)


def test_a_prediction_module_costs_about_one_layer_and_one_head():
    model = load_model("deepseek-v3")
    without = replace(model, n_predict_layers=0)
    share = model_flops_per_step(model, full_attention()) / model_flops_per_step(without, full_attention())
    # One expert layer of 58 and three dense ones, a second head, a projection.
    assert 1 + 1 / 61 < share < 1 + 3 / 61
