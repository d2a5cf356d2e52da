"""Piper's resource model (arXiv:2605.05049) in closed form, and beside the memory of our own stages."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.cost import piper
from objectives.cost.step import stage_profile
from objectives.ranking import rank
from search_spaces.model_presets import load_model
from search_spaces.parameters import total_parameters
from search_spaces.plan import Plan
from search_spaces.space import SpaceSpec
from search_spaces.state import TrainingState
from search_spaces.units import BILLION
from tests.objectives.jobs import job_of

SIXTEEN = TrainingState(gradient_bytes=2.0)


@pytest.mark.parametrize(("name", "billions"), [("110b", 110.7), ("862b", 862.3), ("1.7t", 1721.3)])
def test_the_scaling_family_has_pipers_sizes_with_two_matrix_experts(name, billions):
    model = load_model(f"piper-{name}")
    outside = 2 * model.embedding.vocab_size * model.d_model  # the sizes leave out both tables
    routers = model.n_layers * model.moe.n_experts * model.d_model
    norms = (2 * model.n_layers + 1) * model.d_model
    found = (total_parameters(model) - outside - routers - norms) / BILLION
    assert round(found, 1) == billions


def test_three_matrices_would_make_the_family_half_as_large_again():
    model = load_model("piper-110b")
    wide = replace(model, moe=replace(model.moe, n_matrices=3))
    assert round(total_parameters(wide) / BILLION) == 165  # 164 without embeddings and routers


@pytest.mark.parametrize("pp", [1, 2, 4, 8])
def test_the_first_stage_keeps_more_than_the_last_by_pipers_difference(pp):
    model = load_model("mixtral-8x7b")
    stages = piper.stage_bytes(model, 4096, pp=pp, ep=8, micro_batch=1)
    kept = piper.layer_activation_bytes(model, 4096, np.array(1.0))
    assert stages[0] - stages[-1] == pytest.approx(model.n_layers * (pp - 1) / pp * kept)


def test_a_fused_core_keeps_no_scores():
    model = load_model("mixtral-8x7b")
    fused, stored = (
        piper.layer_activation_bytes(model, 4096, np.array(2.0), flash=flash) for flash in (True, False)
    )
    assert stored - fused == 4 * 2 * model.attention.n_heads * 4096**2


@pytest.mark.parametrize(
    ("name", "n_devices", "pp", "ep"),
    [("x-moe-medium", 64, 4, 16), ("x-moe-small", 32, 4, 8), ("x-moe-large", 224, 14, 16)],
)
def test_our_stages_hold_what_pipers_do(name, n_devices, pp, ep):
    """Attention with as many key-value heads as heads, which Piper assumes, and dropless tokens."""
    model = load_model(name)
    model = replace(model, moe=replace(model.moe, capacity_factor=None, n_matrices=3))
    job = job_of(model, "frontier", n_devices, global_batch=64 * ep, state=SIXTEEN)
    ours = stage_profile(job, Plan(pp=pp, dp=ep, ep=ep)).memory
    theirs = piper.stage_bytes(model, 4096, pp=pp, ep=ep, micro_batch=1)
    held = ours.total_bytes - ours.reserve_bytes - ours.buffers_bytes - ours.logits_bytes
    middle = slice(1, -1)  # neither embedding nor head
    # Beside Piper's we keep the tokens that come back, the expert block's norm and residual, a fused core's
    # row statistics, and the state of router and norms.
    moe, d, in_flight = model.moe, model.d_model, pp - np.arange(pp)
    more = in_flight * 4096 * (2 * moe.top_k * d + 4 * d + 4 * model.attention.n_heads)
    expected = theirs + model.n_layers / pp * (more + 16 * (moe.n_experts * d + 2 * d))
    np.testing.assert_allclose(held[middle], expected[middle], rtol=1e-9)
    assert np.all(expected <= 1.5 * theirs)


def test_pipers_constraints_narrow_a_space():
    job = job_of("piper-110b", "frontier", 64, global_batch=512)
    asked = dict(tp=[1], cp=[1], micro_batch=[1], zero=[1], schedule=["1f1b"], recompute=["full"])
    found = rank(
        job, SpaceSpec.of(asked | {"where": ["pp * ep = devices", "ep <= switch"]}), keep=1000
    ).candidates
    assert set((found.plans.pp * found.plans.ep).tolist()) == {64}
    assert set(found.plans.dp == found.plans.ep) == {True}
    assert found.plans.ep.max() <= 32
    everything = rank(job, SpaceSpec.of(asked), keep=1000).candidates
    assert len(everything) > len(found) > 0


def test_ranking_by_mfu_is_ranking_by_time():
    job = job_of("piper-110b", "frontier", 64, global_batch=512)
    asked = SpaceSpec.of(
        dict(tp=[1], cp=[1], micro_batch=[1], zero=[1], schedule=["1f1b"], where="pp * ep = devices")
    )
    by_time, by_mfu = (
        rank(job, asked, metric=metric, keep=20).candidates.plans.keys() for metric in ("step_time", "mfu")
    )
    assert by_time == by_mfu
