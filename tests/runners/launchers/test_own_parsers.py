"""Every export is put before the launcher's own parser, which must take it and understand what we meant.

All questions to one launcher go into one process: importing it takes longer than answering.
"""

import json
import os
import random
from dataclasses import replace
from itertools import islice

import pytest

from runners.launchers import load_launcher
from runners.launchers.base import Options, n_microbatches, stage_layers, words
from runners.launchers.deepspeed import CONFIG
from search_spaces.parameters import total_parameters, trained_parameters
from search_spaces.space import SearchSpace, SpaceSpec
from tests.runners.launchers.cases import DEEPSPEED, LLAMA_8B, MEGATRON, MIXTRAL, TORCHTITAN, Case, ask

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(900)]
N_DRAWN = 40
PYTHON = os.environ.get("MESHTUNE_LAUNCHER_PYTHON", "")


def launch(name, case):
    launcher = load_launcher(name)
    assert launcher.lacks(case.job, case.plan) == []
    return launcher.launch(case.job, case.plan, Options(tokenizer="a b", data_path="c d"))


def megatron_question(case):
    made = launch("megatron-lm", case)
    return {
        "argv": words(made.arguments),
        "world_size": case.job.cluster.n_devices,
        "environment": dict(made.environment),
        "vocab_size": case.job.model.embedding.vocab_size,
    }


def torchtitan_question(case, folder):
    made = launch("torchtitan", case)
    folder.mkdir()
    for name, text in made.files.items():
        (folder / name).write_text(text)
    return {"argv": words(made.arguments), "world_size": case.job.cluster.n_devices, "folder": str(folder)}


def drawn(job, framework, n):
    """Some of a framework's legal plans that its launcher takes, spread over the whole space."""
    job = replace(job, workload=replace(job.workload, framework=framework))
    narrow = SpaceSpec.of({"micro_batch": [1, 2]})
    space = SearchSpace(job.model, job.cluster, job.workload, narrow)
    rng, launcher = random.Random(0), load_launcher(framework)
    plans = [plan for chunk in islice(space.chunks(), 40) for plan in chunk.take(_some(rng, len(chunk)))]
    taken = [plan for plan in plans if not launcher.lacks(job, plan)]
    return [Case(plan.key, job, plan.key) for plan in rng.sample(taken, min(n, len(taken)))]


def _some(rng, n):
    return slice(rng.randrange(7), n, max(n // 40, 1))


@pytest.fixture(scope="module")
def megatron_answers():
    """Cases, plans drawn from the whole space, and broken ones: (case, answer) of each."""
    drawn_cases = [*drawn(LLAMA_8B, "megatron-lm", N_DRAWN), *drawn(MIXTRAL, "megatron-lm", N_DRAWN // 2)]
    cases = [*MEGATRON, *drawn_cases]
    good = megatron_question(MEGATRON[0])
    broken = [
        {**good, "argv": [*good["argv"], "--tensor-paralel", "8"]},
        {**good, "world_size": 500},
        {**good, "environment": {}},
        {**good, "argv": [*good["argv"], "--num-attention-heads", "60"]},
    ]
    answers = ask(PYTHON, "megatron_lm", [*map(megatron_question, cases), *broken])
    return list(zip(cases, answers[: len(cases)], strict=True)), answers[len(cases) :]


def test_megatron_lm_takes_every_case_and_plans_drawn_from_the_whole_space(megatron_answers):
    answered, _ = megatron_answers
    assert {case.name: answer["error"] for case, answer in answered if "error" in answer} == {}
    assert len(answered) > len(MEGATRON) + N_DRAWN // 2


def test_megatron_lm_understands_the_plan(megatron_answers):
    for case, answer in megatron_answers[0]:
        plan = case.plan
        assert answer["dp"] == plan.dp, case.name
        assert answer["n_microbatches"] == n_microbatches(case.job, plan), case.name
        assert answer["stages"] == list(stage_layers(case.job.model.n_layers, plan)), case.name
        assert answer["tp_ranks"] == list(range(plan.tp)), case.name
        stride = plan.tp * plan.cp * (plan.dp if plan.rank_order == "tp-cp-dp-pp" else 1)
        assert answer["pp_ranks"] == [stride * stage for stage in range(plan.pp)], case.name
        assert len(answer["ep_ranks"]) == plan.ep, case.name


def test_megatron_lm_counts_the_parameters_of_the_model(megatron_answers):
    for case, answer in megatron_answers[0]:
        # Its own count leaves out biases, learned positions and the small norms of its attention.
        assert answer["parameters"] == pytest.approx(trained_parameters(case.job.model), rel=0.005), case.name


def test_megatron_lm_refuses_what_is_broken(megatron_answers):
    typo, world, connections, heads = (answer["error"] for answer in megatron_answers[1])
    assert "unrecognized arguments: --tensor-paralel" in typo
    assert "not divisible by total_model_size" in world
    assert "CUDA_DEVICE_MAX_CONNECTIONS" in connections
    assert "num_attention_heads" in heads


@pytest.fixture(scope="module")
def deepspeed_answers():
    """Cases and broken ones."""
    questions = [
        {"config": json.loads(launch("deepspeed", c).files[CONFIG]), "dp": c.plan.dp} for c in DEEPSPEED
    ]
    good, dp = questions[0]["config"], questions[0]["dp"]
    broken = [good | {"train_batch_size": 7}, good | {"zero_optimization": {"stage": 1, "overlap_com": True}}]
    answers = ask(PYTHON, "deepspeed", [*questions, *({"config": config, "dp": dp} for config in broken)])
    return list(zip(DEEPSPEED, answers[: len(DEEPSPEED)], strict=True)), answers[len(DEEPSPEED) :]


def test_deepspeed_takes_every_case_and_understands_it(deepspeed_answers):
    for case, answer in deepspeed_answers[0]:
        plan, precision = case.plan, case.job.workload.precision
        assert answer == {
            "accepted": True,
            "dp": plan.dp,
            "micro_batch": plan.micro_batch,
            "n_microbatches": n_microbatches(case.job, plan),
            "global_batch": case.job.workload.global_batch,
            "stage": plan.zero,
            "overlap": plan.overlap_dp if plan.zero else answer["overlap"],
            "offload": "cpu" if plan.offload_optimizer else None,
            "bf16": precision == "bf16",
            "fp16": precision == "fp16",
        }, case.name


def test_deepspeed_refuses_what_is_broken(deepspeed_answers):
    batch, typo = (answer["error"] for answer in deepspeed_answers[1])
    assert "Check batch related parameters" in batch
    assert "Extra inputs are not permitted" in typo


@pytest.fixture(scope="module")
def torchtitan_answers(tmp_path_factory):
    """Cases, drawn plans, and broken ones."""
    folder = tmp_path_factory.mktemp("torchtitan")
    cases = [*TORCHTITAN, *drawn(LLAMA_8B, "torchtitan", N_DRAWN // 4)]
    questions = [torchtitan_question(case, folder / str(i)) for i, case in enumerate(cases)]
    good = questions[0]
    broken = [
        {**good, "argv": ["--parallelism.tensor_paralel_degree", "4", *good["argv"]]},
        {**good, "world_size": 500},
        {**good, "argv": [word for word in good["argv"] if word != "--training.disable_cuda_graphs"]},
    ]
    answers = ask(PYTHON, "torchtitan", [*questions, *broken])
    return list(zip(cases, answers[: len(cases)], strict=True)), answers[len(cases) :]


def test_torchtitan_takes_every_case_and_plans_drawn_from_the_whole_space(torchtitan_answers):
    assert {case.name: answer["error"] for case, answer in torchtitan_answers[0] if "error" in answer} == {}


def test_torchtitan_understands_the_plan(torchtitan_answers):
    recompute = {"none": "NoneType", "selective": "SelectiveAC.Config", "full": "FullAC.Config"}
    for case, answer in torchtitan_answers[0]:
        plan = case.plan
        assert answer["stages"] == list(stage_layers(case.job.model.n_layers, plan)), case.name
        assert answer["n_microbatches"] == n_microbatches(case.job, plan), case.name
        assert (answer["tp"], answer["pp"], answer["ep"]) == (plan.tp, plan.pp, plan.ep), case.name
        expected = (plan.dp, 1) if plan.zero == 0 else (1, plan.dp)
        assert (answer["dp_replicate"], answer["dp_shard"]) == expected, case.name
        assert answer["recompute"] == recompute[plan.recompute], case.name


def test_torchtitan_builds_the_very_model(torchtitan_answers):
    for case, answer in torchtitan_answers[0]:
        assert answer["parameters"] == total_parameters(case.job.model), case.name


def test_torchtitan_refuses_what_is_broken(torchtitan_answers):
    typo, world, graphs = (answer["error"] for answer in torchtitan_answers[1])
    assert "Unrecognized options" in typo
    assert "WORLD_SIZE(500)" in world
    assert "CUDA graphs do not support pipeline parallelism" in graphs
