"""Every part has a formula that makes it with the plan's own numbers, and names what it rests on."""

import re
from dataclasses import fields, replace

import numpy as np
import pytest

from objectives.cost.parts import PARTS
from objectives.cost.result import StepMemory, StepTime
from objectives.cost.step import estimate
from objectives.explain import FORMULAS, explain, part_terms, worked
from objectives.uncertainty import Z_SCORE, step_interval_s, with_constant
from search_spaces.cluster import Origin
from search_spaces.plan import Plan, Plans, Recompute
from tests.objectives.jobs import JOBS, legal_plans

every_job = pytest.mark.parametrize("name", JOBS)
PLAN = Plan(tp=4, pp=2, dp=4, micro_batch=1, zero=1, sequence_parallel=True, overlap_dp=True)


@pytest.fixture(scope="module")
def explained():
    return explain(JOBS["grouped"], PLAN)


def value_of(expression):
    """A worked formula with plain numbers, worked out."""
    return eval(re.sub("×", "*", expression.replace("−", "-"))) if expression else None  # our own text


def test_every_part_has_a_formula_and_a_source():
    names = [field.name for kind in (StepTime, StepMemory) for field in fields(kind)]
    assert list(PARTS) == names
    assert all(part.formula and part.source for part in PARTS.values())


@every_job
def test_a_worked_formula_makes_its_part(name):
    for plan in legal_plans(name, 12):
        check_worked(JOBS[name], plan)


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("grouped", dict(tp=2, dp=16, recompute=Recompute.FULL, offload_checkpoints=True)),
        ("grouped", dict(tp=2, dp=16, zero=3, hpz=2, quantized_weights=True, quantized_gradients=True)),
        ("grouped", dict(tp=2, dp=8, nodes=2)),
        ("grouped", dict(tp=2, dp=16, offload_optimizer=True, zero=1, overlap_offload=True)),
        ("grouped", dict(tp=2, dp=16, n_microbatches=1, power_cap_w=500)),
        ("grouped", dict(tp=2, dp=16, zero=1, power_cap_w=300)),
        ("grouped", dict(tp=2, dp=16, zero=1, optimizer_tile=2_000_000_000)),
        ("grouped", dict(tp=2, dp=16, zero=1, optimizer_tile=100_000)),
    ],
)
def test_a_worked_formula_makes_its_part_with_knobs_that_a_user_turns_on(name, knobs):
    check_worked(JOBS[name], Plan(**knobs))


def test_a_worked_step_has_its_share_of_moving_experts():
    job = JOBS["experts"]
    job = replace(job, workload=replace(job.workload, expert_imbalance=1.5))
    plan = replace(next(plan for plan in legal_plans("experts", 12) if plan.ep > 1), migrate_every=10)
    check_worked(job, plan)


def check_worked(job, plan):
    """Every part that has a worked formula is what it comes to."""
    priced, terms = estimate(job, Plans.of([plan])), part_terms(job, plan)
    for part, entry in PARTS.items():
        whole = priced.time if part.endswith("_s") else priced.memory
        value, expression = (
            float(getattr(whole, part)[0]),
            worked(entry.worked, terms, lambda _, x: repr(x)),
        )
        if expression and value > 1e-6:
            assert value_of(expression) == pytest.approx(value, rel=1e-6), (part, plan.key, expression)


def test_few_parts_go_without_a_worked_formula():
    assert {name for name, part in PARTS.items() if not part.worked} == {"offload_s", "buffers_bytes"}


def test_summands_of_nothing_and_factors_of_one_are_left_out():
    terms = {"a": 1, "b": 3, "c": 0, "d": 5}
    plain = lambda _, value: str(value)  # noqa: E731
    assert worked("{a} × {b} + {c} × {d} − {d} / {a}", terms, plain) == "3 − 5"
    assert worked("{a} × {none}", terms, plain) == ""


def test_parts_are_the_estimates_and_their_shares_add_up(explained):
    priced = estimate(JOBS["grouped"], Plans.of([PLAN]))
    assert sum(part.value for part in explained.time) == pytest.approx(priced.step_s[0])
    assert sum(part.value for part in explained.memory) == pytest.approx(priced.peak_memory_bytes[0])
    for parts in (explained.time, explained.memory):
        assert sum(part.share for part in parts) == pytest.approx(1)


def test_the_variance_is_the_intervals(explained):
    job, plans = JOBS["grouped"], Plans.of([PLAN])
    low_s, high_s = step_interval_s(job, plans)
    assert np.exp(2 * Z_SCORE * np.sqrt(explained.variance)) == pytest.approx(high_s[0] / low_s[0])
    assert sum(explained.variance_shares.values()) == pytest.approx(1)
    assert set(explained.variance_shares) <= {*map(str, Origin), FORMULAS}


def test_a_part_rests_on_what_changes_it(explained):
    rests_on = {
        part.name: [effect.name for effect in explained.rests_on(part.name)] for part in explained.time
    }
    assert rests_on["compute_s"][:2] == ["device.gemm_efficiency", "device.sustained_efficiency"]
    assert rests_on["tp_comm_s"][0] == "node.efficiency"
    assert "trainer.dp_overlap" in rests_on["dp_comm_s"]
    assert rests_on["optimizer_s"] == ["device.memory_efficiency"]
    assert [effect.name for effect in explained.rests_on("reserve_bytes")] == ["memory_reserve_bytes"]


def test_an_elasticity_predicts_a_small_change(explained):
    job, plans = JOBS["grouped"], Plans.of([PLAN])
    middle = estimate(job, plans).step_s[0]
    for effect in explained.effects:
        more = replace(effect.constant, value=effect.constant.value * 1.01)
        if effect.name != "memory_reserve_bytes" and more.value < 1:
            changed = estimate(with_constant(job, effect.name, more), plans).step_s[0]
            assert np.log(changed / middle) / np.log(1.01) == pytest.approx(effect.elasticity, abs=0.05)
