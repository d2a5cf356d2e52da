"""Recomputation by module: what a plan says, what it saves and costs, how rows and launchers name it."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.cost.step import estimate
from objectives.measurements.cells import Cells
from objectives.measurements.layouts import plan_of
from objectives.uncertainty import constants, with_constant
from runners.launchers.megatron_lm import _recompute
from search_spaces.errors import InvalidSpec
from search_spaces.plan import NO_MODULES, Module, ModuleSet, Plan, Plans, Recompute, module_set
from search_spaces.space import SearchSpace, SpaceSpec
from tests.objectives.jobs import JOBS, job_of, legal_plans

EVERY = [ModuleSet(module) for module in Module]


def with_modules(plans, word):
    bits = list(ModuleSet).index(ModuleSet(word))
    return replace(plans, recompute_modules=np.full_like(plans.recompute_modules, bits))


def test_a_set_of_modules_is_one_word_and_one_code():
    plan = Plan.parse("tp=1 pp=1 dp=1 micro_batch=1 recompute_modules=layernorm+moe_act")
    assert Plan.parse(plan.key) == plan
    plans = Plans.of([plan, Plan()])
    assert list(plans) == [plan, Plan()]
    assert plans.redoes(Module.MOE_ACT).tolist() == [True, False]
    assert plans.redoes(Module.MLP).tolist() == [False, False]
    assert module_set([Module.MOE_ACT, Module.LAYERNORM]) == plan.recompute_modules
    assert "recompute_modules" not in Plan().key


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("word", EVERY)
def test_a_module_done_again_never_keeps_more_and_never_saves_time(name, word):
    job, plans = JOBS[name], legal_plans(name, 100)
    plans = plans.take(~plans.is_recompute(Recompute.FULL))
    without, redone = estimate(job, plans), estimate(job, with_modules(plans, word))
    assert (redone.memory.activations_bytes <= without.memory.activations_bytes).all()
    assert (redone.time.recompute_s >= without.time.recompute_s).all()


@pytest.mark.parametrize(
    ("name", "word"),
    [("grouped", "mlp"), ("experts", "moe"), ("experts", "moe_act"), ("latent", "mla_up_proj"),
     ("dense", "layernorm")],
)  # fmt: skip
def test_a_module_that_a_model_has_saves_bytes_and_costs_seconds(name, word):
    job, plans = JOBS[name], Plans.of([Plan(tp=1), Plan(tp=8, sequence_parallel=True)])
    without, redone = estimate(job, plans), estimate(job, with_modules(plans, word))
    assert (redone.memory.activations_bytes < without.memory.activations_bytes).all()
    assert (redone.time.recompute_s > 0).all()


@pytest.mark.parametrize(("name", "word"), [("grouped", "mlp"), ("experts", "moe"), ("experts", "moe_act")])
@pytest.mark.parametrize("habit", ["trainer.traffic", "trainer.expert_traffic"])
def test_what_is_redone_moves_its_bytes_once(name, word, habit):
    job, plans = JOBS[name], with_modules(Plans.of([Plan(tp=1)]), word)

    def recompute_s(value):
        constant = replace(constants(job)[habit], value=value)
        return estimate(with_constant(job, habit, constant), plans).time.recompute_s

    assert recompute_s(3.0) - recompute_s(2.0) == pytest.approx(recompute_s(2.0) - recompute_s(1.0))


def test_modules_are_named_in_any_order_and_once():
    word = "tp=1 recompute_modules="
    assert Plan.parse(word + "mlp+layernorm") == Plan.parse(word + "layernorm+mlp")
    for wrong, match in (("foo", "layernorm, mla_up_proj, mlp, moe, moe_act, none"), ("mlp+mlp", "once"),
                         ("none+mlp", "layernorm"), ("", "layernorm")):  # fmt: skip
        with pytest.raises(InvalidSpec, match=match):
            Plan.parse(word + wrong)


def modules_in_the_space(**narrowed):
    job = job_of("mixtral-8x7b", "dgx-h100", 8, global_batch=16, framework="megatron-lm")
    fixed = {"tp": (1,), "ep": (8,), "zero": (1,), "pp": (1,), "micro_batch": (1,)}
    space = SearchSpace(job.model, job.cluster, job.workload, SpaceSpec.of({**fixed, **narrowed}))
    return {plan.recompute_modules for chunk in space.chunks() for plan in chunk}


def test_the_default_space_names_no_modules_and_a_user_may():
    assert modules_in_the_space() == {NO_MODULES}
    # Every layer of this model has experts: there is no dense MLP to redo.
    named = ["none", "moe_act", "layernorm+moe_act", "mlp"]
    assert modules_in_the_space(recompute_modules=named) == {"none", "moe_act", "layernorm+moe_act"}


def row_of(words):
    degrees = dict.fromkeys(("n_gpus", "tp", "pp", "dp", "micro_batch"), "1")
    stated = {"zero_stage": "0", "overlap": "{}", "recompute": words}
    return Cells(line=2, by_column={**degrees, **stated})


@pytest.mark.parametrize(
    ("words", "recompute", "modules"),
    [
        ("none", Recompute.NONE, "none"),
        ("selective", Recompute.SELECTIVE, "none"),
        ("selective:core_attn+mlp", Recompute.SELECTIVE, "mlp"),
        ("selective:mla_up_proj+mlp+moe_act", Recompute.NONE, "mlp+moe_act+mla_up_proj"),
        ("selective:norm+act", Recompute.NONE, "layernorm+moe_act"),
        ("full", Recompute.FULL, "none"),
    ],
)
def test_rows_name_modules(words, recompute, modules):
    plan, notes = plan_of(row_of(words), 4)
    assert (plan.recompute, plan.recompute_modules) == (recompute, modules)
    assert notes == []


def test_a_module_without_a_word_is_noted():
    row = {
        "n_gpus": "1",
        "tp": "1",
        "pp": "1",
        "dp": "1",
        "micro_batch": "1",
        "zero_stage": "0",
        "overlap": "{}",
    }
    plan, notes = plan_of(Cells(line=2, by_column={**row, "recompute": "selective:mlp+rope"}), 4)
    assert plan.recompute_modules == "mlp"
    assert notes == ["recomputes rope, which has no word here"]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(), []),
        (Plan(recompute=Recompute.SELECTIVE), ["core_attn"]),
        (Plan(recompute_modules=ModuleSet("mlp+moe_act")), ["mlp", "moe_act"]),
        (Plan(recompute=Recompute.SELECTIVE, recompute_modules=ModuleSet("mlp")), ["core_attn", "mlp"]),
    ],
)
def test_megatron_lm_is_told_the_modules(plan, words):
    flags = {name: list(values) for name, *values in _recompute(JOBS["dense"].model, plan)}
    assert flags.get("--recompute-modules", []) == words
