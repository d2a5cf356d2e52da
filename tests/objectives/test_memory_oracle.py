"""Bytes against real modules: torch's memory tracker counts what fake tensors would hold."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.cost.activations import boundary_bytes, layer_bytes, stage_activations
from objectives.cost.stages import rank_parameters, stages_of
from objectives.cost.states import held_states
from search_spaces.framework import FRAMEWORKS
from search_spaces.model import AttentionSpec, EmbeddingSpec, MlpSpec, ModelSpec, MoeSpec
from search_spaces.parameters import layer_rank_parameters, norm_parameters
from search_spaces.plan import ModuleSet, Plan, Plans
from search_spaces.workload import Precision
from tests.objectives.jobs import job_of

pytest.importorskip("torch")
from tests.objectives import torch_layers

pytestmark = pytest.mark.torch

SEQ_LEN, N_LAYERS = 256, 2
LLAMA = ModelSpec(
    name="a small Llama",
    source="made up",
    n_layers=N_LAYERS,
    d_model=512,
    attention=AttentionSpec(n_heads=8, n_kv_heads=4, head_dim=64),
    mlp=MlpSpec(width=1536, n_matrices=3),
    embedding=EmbeddingSpec(vocab_size=4096),
)
GPT = replace(
    LLAMA,
    name="a small GPT",
    attention=AttentionSpec(n_heads=8, n_kv_heads=8, head_dim=64),
    mlp=MlpSpec(width=2048, n_matrices=2),
)
MOE = replace(
    LLAMA,
    name="a small mixture",
    moe=MoeSpec(n_experts=8, top_k=2, expert_width=768, n_matrices=3),
)
MODELS = {"llama": LLAMA, "gpt": GPT}
NORM_STATISTICS = 2 * 4  # bytes a token: an fp32 number of each norm, which the formula leaves out


def job(model, framework="any"):
    return job_of(model, "dgx-h100", 8, seq_len=SEQ_LEN, global_batch=8, framework=framework)


def shape_of(plan):
    shards = plan.tp if plan.sequence_parallel else 1
    return plan.micro_batch, SEQ_LEN // shards, LLAMA.d_model


def formula(model, plan, framework="any"):
    one = Plans.of([plan])
    priced = job(model, framework)
    kept = stage_activations(priced, one, stages_of(priced, one, np.zeros((1, 1), np.int64))).kept_bytes
    return kept[0, 0]


def statistics(plan):
    return N_LAYERS * NORM_STATISTICS * np.prod(shape_of(plan)[:2])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_layers_keep_what_the_formula_says(name, tp, sequence_parallel, micro_batch):
    plan = Plan(tp=tp, micro_batch=micro_batch, sequence_parallel=sequence_parallel)
    kept = torch_layers.kept_by(
        N_LAYERS,
        lambda: torch_layers.Layer(MODELS[name], tp, sequence_parallel=sequence_parallel),
        shape_of(plan),
    )
    assert kept == formula(MODELS[name], plan) + statistics(plan)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_an_unfused_gate_is_one_tensor_more(tp):
    plan = Plan(tp=tp, sequence_parallel=True)
    kept = torch_layers.kept_by(
        N_LAYERS,
        lambda: torch_layers.Layer(LLAMA, tp, sequence_parallel=True, keeps_gate=True),
        shape_of(plan),
    )
    share = FRAMEWORKS["nanotron"].memory.kept_share
    rows = layer_bytes(job(LLAMA), Plans.of([plan]), "dense").core_bytes[0] * N_LAYERS
    assert kept == pytest.approx((formula(LLAMA, plan, "nanotron") - rows) / share + rows + statistics(plan))


@pytest.mark.parametrize("tp", [2, 4])
def test_a_product_that_keeps_its_gathered_input_keeps_the_whole_sequence(tp, monkeypatch):
    plan = Plan(tp=tp, sequence_parallel=True)
    kept = torch_layers.kept_by(
        N_LAYERS,
        lambda: torch_layers.Layer(LLAMA, tp, sequence_parallel=True, keeps_gathered=True),
        shape_of(plan),
    )
    gathering = replace(FRAMEWORKS["any"], memory=replace(FRAMEWORKS["any"].memory, keeps_gathered=True))
    monkeypatch.setattr("objectives.cost.activations.framework_named", lambda _: gathering)
    assert kept == formula(LLAMA, plan) + statistics(plan)


@pytest.mark.parametrize("tp", [1, 2])
def test_a_core_done_again_keeps_no_statistics(tp):
    plan = Plan.parse(f"tp={tp} pp=1 dp=1 micro_batch=1 recompute=selective")
    kept = torch_layers.kept_by(
        N_LAYERS, lambda: torch_layers.Layer(LLAMA, tp, redoes_core=True), shape_of(plan)
    )
    assert kept == formula(LLAMA, plan) + statistics(plan)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_layers_done_again_keep_their_inputs(micro_batch):
    plan = Plan.parse(f"tp=1 pp=1 dp=1 micro_batch={micro_batch} recompute=full")
    kept = torch_layers.kept_by(
        N_LAYERS, lambda: torch_layers.Layer(LLAMA), shape_of(plan), redoes_layers=True
    )
    assert kept == formula(LLAMA, plan) == N_LAYERS * boundary_bytes(job(LLAMA), Plans.of([plan]))[0]


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_experts_keep_every_copy_of_a_token(top_k):
    model = replace(MOE, moe=replace(MOE.moe, top_k=top_k))
    plan = Plan()
    kept = torch_layers.kept_by(N_LAYERS, lambda: torch_layers.Layer(model), shape_of(plan))
    # The router's probabilities, four bytes a copy, are in neither.
    assert kept == formula(model, plan) + statistics(plan)


def test_a_loss_in_fp32_holds_twelve_bytes_an_entry():
    """Logarithms of the softmax and their gradient in fp32, the logits in 16 bits and their gradient."""
    tokens, vocab = 2048, 4096
    peak = torch_layers.loss_peak_bytes(tokens, vocab)
    assert peak == pytest.approx(tokens * vocab * FRAMEWORKS["nanotron"].logits_bytes_per_entry, rel=0.01)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_states_in_fp32_are_sixteen_bytes_a_parameter(tp):
    layers = torch_layers.state_bytes(N_LAYERS, lambda: torch_layers.Layer(LLAMA, tp))
    priced = job_of(LLAMA, "dgx-h100", 8, seq_len=SEQ_LEN, global_batch=8, precision=Precision.FP32)
    one = Plans.of([Plan(tp=tp)])
    held = held_states(priced, one)
    # The modules have neither embedding, head nor norms with weights.
    share = N_LAYERS * (layer_rank_parameters(LLAMA, tp) - norm_parameters(LLAMA))
    share /= rank_parameters(priced, one, stages_of(priced, one, np.zeros((1, 1), np.int64))).total[0, 0]
    for kind, table in (("parameter", held.weights_bytes), ("gradient", held.gradients_bytes)):
        assert layers[kind] == pytest.approx(share * table[0, 0], rel=1e-12)
    steps = 4 * 4 * N_LAYERS  # Adam counts the steps of each of a layer's four matrices
    assert layers["optstate"] - steps == pytest.approx(share * held.optimizer_bytes[0, 0], rel=1e-12)


def whole_layers_bytes(n_devices):
    """Layers' worth of fp32 that the formula holds whole: two of weights, one of gradients."""
    priced = job_of(LLAMA, "dgx-h100", 8, seq_len=SEQ_LEN, global_batch=8, precision=Precision.FP32)
    one = Plans.of([Plan(dp=n_devices, zero=3)])
    table = held_states(priced, one)
    a_layer = table.weights_bytes[0, 0] * n_devices / N_LAYERS
    return table.whole_bytes[0, 0] / a_layer


@pytest.mark.parametrize("n_devices", [2, 8])
def test_fully_sharded_parameters_are_gathered_two_layers_at_a_time(n_devices):
    """FSDP2 on a process group that only pretends: the running layer, and the one it prefetches."""
    n_layers = 4
    held = torch_layers.fsdp_bytes(
        n_layers, lambda: torch_layers.Layer(LLAMA), n_devices, SEQ_LEN, LLAMA.d_model
    )
    a_layer = 4 * (layer_rank_parameters(LLAMA, 1) - norm_parameters(LLAMA))
    assert held["sharded param"] == n_layers * a_layer / n_devices
    assert held["optstate"] == pytest.approx(2 * n_layers * a_layer / n_devices, rel=1e-4)
    whole = held["unsharded param"] + held["all gather"] + held["reduce scatter"]
    assert whole == 3 * a_layer == pytest.approx(whole_layers_bytes(n_devices) * a_layer)


@pytest.mark.parametrize("name", ["llama", "gpt"])
@pytest.mark.parametrize("tp", [1, 2])
def test_an_mlp_done_again_keeps_its_input_only(name, tp):
    plan = Plan(tp=tp, sequence_parallel=tp > 1, recompute_modules=ModuleSet("mlp"))
    kept = torch_layers.kept_by(
        N_LAYERS,
        lambda: torch_layers.Layer(MODELS[name], tp, sequence_parallel=tp > 1, redoes_mlp=True),
        shape_of(plan),
    )
    assert kept == formula(MODELS[name], plan) + statistics(plan)


@pytest.mark.parametrize("top_k", [1, 4])
def test_experts_done_again_keep_their_input_only(top_k):
    model = replace(MOE, moe=replace(MOE.moe, top_k=top_k))
    plan = Plan(recompute_modules=ModuleSet("moe"))
    kept = torch_layers.kept_by(N_LAYERS, lambda: torch_layers.Layer(model, redoes_mlp=True), shape_of(plan))
    assert kept == formula(model, plan) + statistics(plan)
