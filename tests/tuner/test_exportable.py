"""Who tunes for a framework can export the winner: its rules and its launcher agree, plan by plan."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from objectives.ranking import rank
from runners.launchers import LAUNCHERS, load_launcher
from runners.launchers.base import Options
from runners.launchers.export import export_files
from search_spaces.errors import CannotExport, NoLegalPlan, NothingFits
from search_spaces.space import SearchSpace, SpaceSpec
from tuner.api import describe_job
from tuner.exportable import RULE, exportable

N_BEST = 200
JOBS = {
    "dense": dict(model="llama-3-70b", cluster="dgx-h100", devices=512, global_batch=1024, seq_len=8192),
    "dense, with biases": dict(
        model="gpt3-175b", cluster="dgx-a100", devices=1024, global_batch=1536, seq_len=2048
    ),
    "long sequence": dict(
        model="llama-3-8b", cluster="dgx-h100", devices=128, global_batch=64, seq_len=131072
    ),
    "experts": dict(model="mixtral-8x7b", cluster="dgx-h100", devices=64, global_batch=128, seq_len=4096),
    "many experts": dict(
        model="qwen3-30b-a3b", cluster="dgx-h100", devices=32, global_batch=64, seq_len=4096
    ),
    "latent attention": dict(
        model="deepseek-v2-lite", cluster="dgx-h100", devices=32, global_batch=64, seq_len=4096
    ),
}
# What no plan can change: torchtitan has neither GPT-3 nor Mixtral, Megatron-DeepSpeed neither Qwen3 nor MLA.
IMPOSSIBLE = {
    ("torchtitan", "dense, with biases"): "norm=layer",
    ("torchtitan", "experts"): "moe",
    ("llm-foundry", "experts"): "moe",
    ("llm-foundry", "many experts"): "moe",
    ("llm-foundry", "latent attention"): "attention.latent",
    ("axonn", "many experts"): "moe",
    ("axonn", "latent attention"): "moe",
    ("deepspeed", "many experts"): "qk_norm=per_head",
    ("deepspeed", "latent attention"): "attention.latent",
    ("x-moe", "many experts"): "qk_norm=per_head",
    ("x-moe", "latent attention"): "attention.latent",
}
PAIRS = [(framework, name) for framework in LAUNCHERS for name in JOBS]
# More devices than sequences: what only replicates and shards cannot use them all.
NO_ROOM = [("llm-foundry", "dense, with biases"), ("llm-foundry", "long sequence")]
# AxoNN of 2021 holds 20 bytes a parameter on every replica, and offloads in fp16 only.
TOO_LARGE = [("axonn", name) for name in ("dense", "dense, with biases", "long sequence", "experts")]
POSSIBLE = [pair for pair in PAIRS if pair not in IMPOSSIBLE and pair not in [*NO_ROOM, *TOO_LARGE]]


def job_of(framework, name):
    return describe_job(**JOBS[name], framework=framework)


def refusals(job, framework, plans):
    launcher = load_launcher(framework)
    return {plan.key: lacks for plan in plans if (lacks := launcher.lacks(job, plan))}


@pytest.mark.parametrize(("framework", "name"), POSSIBLE)
def test_every_one_of_the_best_plans_exports(framework, name):
    job = job_of(framework, name)
    ranking = rank(job, SpaceSpec(), keep=N_BEST)
    assert refusals(job, framework, ranking.candidates.plans) == {}
    assert exportable(job, ranking) is ranking
    for plan in islice(ranking.candidates.plans, 0, None, 20):
        assert export_files(job, plan, framework, "both", Options())


@pytest.mark.parametrize(("framework", "name"), POSSIBLE)
def test_plans_from_all_over_the_space_export(framework, name):
    job, rng = job_of(framework, name), np.random.default_rng(0)
    space = SearchSpace(job.model, job.cluster, job.workload, SpaceSpec())
    for chunk in islice(space.chunks(), 8):
        some = chunk.take(rng.integers(len(chunk), size=100))
        assert refusals(job, framework, some) == {}


@pytest.mark.parametrize(("framework", "name", "reason"), [(*pair, why) for pair, why in IMPOSSIBLE.items()])
def test_a_model_that_a_framework_cannot_build_is_refused_with_the_reason(framework, name, reason):
    job = job_of(framework, name)
    must = f"{framework} must be able to express at least one of the plans that fit; got .*{reason}"
    with pytest.raises(CannotExport, match=must):
        exportable(job, rank(job, SpaceSpec(), keep=20))


@pytest.mark.parametrize(("framework", "name"), NO_ROOM)
def test_a_job_that_a_framework_has_no_plan_for_is_refused_by_its_rules(framework, name):
    with pytest.raises(NoLegalPlan, match="at least one plan must pass every rule"):
        rank(job_of(framework, name), SpaceSpec(), keep=20)


@pytest.mark.parametrize(("framework", "name"), TOO_LARGE)
def test_a_job_that_a_framework_holds_too_much_of_fits_nowhere(framework, name):
    with pytest.raises(NothingFits, match="at least one legal plan must fit"):
        rank(job_of(framework, name), SpaceSpec(), keep=20)


def test_offloading_in_buckets_makes_room_and_the_best_plans_export():
    job = describe_job(
        model="frontier-22b", cluster="summit", devices=192, global_batch=1536, seq_len=2048,
        precision="fp16", framework="axonn",
    )  # fmt: skip
    ranking = rank(job, SpaceSpec(), keep=N_BEST)
    assert refusals(job, "axonn", ranking.candidates.plans) == {}
    assert ranking.candidates.plans.offload_optimizer.any()


def test_candidates_that_the_launcher_refuses_are_dropped_and_counted():
    priced_for_any = rank(describe_job(**JOBS["dense"]), SpaceSpec(), keep=N_BEST)
    job = job_of("megatron-lm", "dense")
    left = exportable(job, priced_for_any)
    n_dropped = len(priced_for_any.candidates) - len(left.candidates)
    assert 0 < n_dropped < N_BEST
    assert left.ledger.removed[RULE] == n_dropped
    ledger = left.ledger
    assert ledger.enumerated == sum(ledger.removed.values()) + ledger.too_large + ledger.feasible
    assert refusals(job, "megatron-lm", left.candidates.plans) == {}
    assert list(left.candidates.score) == sorted(left.candidates.score)


def test_where_no_launcher_is_named_nothing_is_dropped():
    job = describe_job(**JOBS["dense"])
    ranking = rank(job, SpaceSpec(), keep=N_BEST)
    assert exportable(job, ranking) is ranking


@pytest.mark.parametrize(
    ("framework", "name", "asked"),
    [
        (
            "torchtitan",
            "dense",
            {"first_layers": [0, 4, 10], "last_layers": [0, 4], "pp": [4], "vpp": [1, 2]},
        ),
        ("torchtitan", "dense", {"first_layers": [20, 60], "pp": [2], "vpp": [1, 2]}),
        ("megatron-lm", "many experts", {"ep": [2, 8], "tp": [2], "pp": [2, 4], "micro_batch": [1]}),
    ],
)
def test_plans_that_a_user_asks_for_export_or_are_illegal(framework, name, asked):
    job = job_of(framework, name)
    space = SearchSpace(job.model, job.cluster, job.workload, SpaceSpec.of(asked))
    plans = [plan for chunk in space.chunks() for plan in islice(chunk, 300)]
    assert plans
    assert refusals(job, framework, plans) == {}


def test_experts_beside_biases_are_split_only_where_the_framework_can():
    job = job_of("megatron-lm", "many experts")
    biased = replace(job.model, attention=replace(job.model.attention, qkv_bias=True))
    job = replace(job, model=biased)
    space = SearchSpace(job.model, job.cluster, job.workload, SpaceSpec.of({"tp": [2], "pp": [1]}))
    plans = [plan for chunk in islice(space.chunks(), 1) for plan in islice(chunk, 500)]
    assert {plan.etp for plan in plans} == {1}
    assert refusals(job, "megatron-lm", plans) == {}
