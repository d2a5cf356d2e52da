"""Enumeration against brute force: every combination of the same choices, asked of every rule."""

from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import pytest

from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec, NoLegalPlan, UnknownName
from search_spaces.first_names import all_names, first_name
from search_spaces.framework import FRAMEWORKS
from search_spaces.knobs import ORDER, default_splits, divisors
from search_spaces.model_presets import load_model
from search_spaces.plan import KNOB_NAMES, OptimizerSync, Plan, Plans, Schedule
from search_spaces.rule import Context
from search_spaces.rules import RULES
from search_spaces.space import CHUNK_ROWS, SearchSpace, SpaceSpec, Tally
from search_spaces.workload import Workload

FEW = dict(overlap_dp=False, overlap_tp=False, offload_optimizer=False, recompute_every=1)
SMALL_MOE = replace(
    load_model("mixtral-8x7b"), n_layers=4, moe=replace(load_model("mixtral-8x7b").moe, n_experts=4)
)


def space_of(model, n_devices, narrowed, **workload):
    model = load_model(model) if isinstance(model, str) else model
    given = Workload(**{"seq_len": 4096, "global_batch": 8, **workload})
    return SearchSpace(model, load_cluster("dgx-a100", n_devices), given, SpaceSpec.of(narrowed))


SPACES = {
    "pipelines": space_of(
        "gpt2", 4, dict(FEW, cp=1, cp_kind="ring", zero=0, recompute="none", micro_batch=[1, 4])
    ),
    "sequences": space_of(
        "gpt2", 4, dict(FEW, pp=[1, 2], vpp=1, zero=[0, 3], schedule="1f1b", recompute="none")
    ),
    "states": space_of(
        "gpt2", 2, dict(cp=1, cp_kind="ring", vpp=1, schedule=["1f1b", "zb-h1"], micro_batch=2)
    ),
    "experts": space_of(
        SMALL_MOE, 8, dict(FEW, cp=[1, 2], zero=1, vpp=1, schedule="1f1b", recompute="none", micro_batch=1)
    ),
    "splits": space_of(
        "gpt2",
        4,
        dict(
            FEW,
            cp=1,
            tp=1,
            first_layers=[0, 2, 3, 5],
            vpp=[1, 2],
            schedule=["1f1b", "interleaved"],
            last_layers=[0, 3, 4, 6],
            zero=0,
            recompute="none",
        ),
    ),
    "deepspeed": space_of(
        "gpt2", 4, dict(FEW, vpp=[1, 2], micro_batch=1, recompute="none"), framework="deepspeed"
    ),
}
every_space = pytest.mark.parametrize("name", SPACES)


def combinations(space):
    """Every plan that the choices could make, legal or not; dp fills the devices."""
    names = [name for name in ORDER if name not in ("split", "dp")]
    for values in product(*(space.choices[name] for name in names)):
        knobs = dict(zip(names, values, strict=True))
        dp = max(space.context.cluster.n_devices // (knobs["tp"] * knobs["pp"] * knobs["cp"]), 1)
        for first, last in space.splits(knobs["pp"]):
            yield Plan(**knobs, dp=dp, first_layers=first, last_layers=last)


def legal_by_brute_force(space):
    """All combinations as columns, and all rules over them at once: no order, no early end."""
    plans = Plans.of(combinations(space))
    columns = {name: getattr(plans, name) for name in KNOB_NAMES}
    held = [np.broadcast_to(rule.holds(space.context, columns), (len(plans),)) for rule in RULES]
    return plans.take(np.logical_and.reduce(held))


def enumerated(space):
    tally = Tally()
    return Plans.concatenate(list(space.chunks(tally))), tally


@every_space
def test_enumeration_is_brute_force(name):
    space = SPACES[name]
    expected = set(legal_by_brute_force(space).keys())
    plans, _ = enumerated(space)
    keys = plans.keys()
    assert set(keys) == expected
    assert len(keys) == len(expected) > 0


@every_space
def test_the_ledger_counts_every_combination_once(name):
    space = SPACES[name]
    plans, tally = enumerated(space)
    others = prod(len(space.choices[knob]) for knob in ORDER if knob not in ("split", "dp", "pp"))
    n_splits = sum(len(space.splits(pp)) for pp in space.choices["pp"])
    assert tally.enumerated == others * n_splits == sum(tally.removed.values()) + len(plans)
    assert set(tally.removed) <= {rule.name for rule in RULES}


@every_space
def test_the_batch_and_the_devices_are_never_changed(name):
    space = SPACES[name]
    plans, _ = enumerated(space)
    batch, n_devices = space.context.workload.global_batch, space.context.cluster.n_devices
    n_microbatches = batch // (plans.micro_batch * plans.dp)
    assert (plans.micro_batch * n_microbatches * plans.dp == batch).all()
    assert (plans.tp * plans.cp * plans.dp * plans.pp == n_devices).all()
    assert (plans.etp * plans.ep * plans.edp * plans.pp == n_devices).all()


@every_space
def test_every_enumerated_plan_passes_the_check_of_single_plans(name):
    space = SPACES[name]
    plans, _ = enumerated(space)
    for i in np.random.default_rng(0).integers(len(plans), size=20):
        space.check(plans.row(int(i)))


def stage_layers(n_layers, plan):
    named = bool(plan.first_layers) + bool(plan.last_layers)
    middle = (n_layers - plan.first_layers - plan.last_layers) // max(plan.pp - named, 1)
    sizes = [middle] * plan.pp
    sizes[0], sizes[-1] = plan.first_layers or sizes[0], plan.last_layers or sizes[-1]
    return sizes


@pytest.mark.parametrize("name", ["pipelines", "splits", "experts"])
def test_no_layout_has_two_names(name):
    space = SPACES[name]
    plans, _ = enumerated(space)
    n_layers = space.context.model.n_layers
    layouts = [
        (replace(plan, first_layers=0, last_layers=0).key, tuple(stage_layers(n_layers, plan)))
        for plan in plans
    ]
    assert all(sum(sizes) == n_layers for _, sizes in layouts)
    assert len(set(layouts)) == len(layouts)


def test_chunks_are_bounded_and_their_order_is_fixed():
    space = space_of("gpt3-175b", 256, {}, global_batch=256, seq_len=2048)
    first = [plans.row(0).key for plans in space.chunks()]
    assert max(len(plans) for plans in space.chunks()) <= 2 * CHUNK_ROWS
    assert first == [plans.row(0).key for plans in space.chunks()]


@pytest.mark.parametrize("n_splits", [1, 10])
def test_many_splits_do_not_make_long_chunks(n_splits):
    narrowed = {"first_layers": list(range(1, n_splits + 1)), "last_layers": list(range(1, n_splits + 1))}
    space = space_of("gpt3-175b", 64, narrowed, global_batch=64, seq_len=2048)
    assert max(len(plans) for plans in space.chunks()) <= 2 * CHUNK_ROWS


@pytest.mark.parametrize(("n_layers", "pp"), list(product([1, 7, 12, 61, 96], [1, 2, 3, 4, 16])))
def test_default_splits_hold_all_layers_and_none_twice(n_layers, pp):
    splits = [split for split in default_splits(n_layers, pp) if n_layers % pp == 0 or split != (0, 0)]
    sizes = [tuple(stage_layers(n_layers, Plan(pp=pp, first_layers=a, last_layers=b))) for a, b in splits]
    assert all(sum(each) == n_layers and min(each) > 0 for each in sizes)
    assert len(set(sizes)) == len(sizes)


def test_narrowing_keeps_exactly_the_plans_with_the_values():
    narrowed = dict(FEW, cp=1, tp=2, zero=[0, 1])
    wide, _ = enumerated(space_of("gpt2", 4, dict(FEW, cp=1)))
    narrow, _ = enumerated(space_of("gpt2", 4, narrowed))
    kept = wide.take((wide.tp == 2) & (wide.zero <= 1))
    assert set(narrow.keys()) == set(kept.keys())


def test_dp_can_be_narrowed_like_any_knob():
    plans, tally = enumerated(space_of("gpt2", 8, dict(FEW, dp=[2, 4])))
    assert set(plans.dp.tolist()) == {2, 4}
    assert tally.enumerated == sum(tally.removed.values()) + len(plans)


@pytest.mark.parametrize(
    ("table", "error", "sentence"),
    [
        (
            {"tpp": [1]},
            UnknownName,
            r"a knob of \[space\] must be one of .*got 'tpp'.\nhint: did you mean 'tp'",
        ),
        ({"schedule": ["1f1"]}, UnknownName, "did you mean '1f1b'"),
        ({"tp": []}, InvalidSpec, r"\[space\] tp must list at least one value; got an empty list"),
        ({"tp": [1, 1]}, InvalidSpec, r"\[space\] tp must not repeat a value"),
        ({"tp": [0]}, InvalidSpec, r"\[space\] tp must be at least 1; got 0"),
        ({"tp": [-1]}, InvalidSpec, "tp must be a whole number; got '-1'"),
        ({"tp": [1.5]}, InvalidSpec, r"\[space\] tp must be a whole number; got 1.5"),
        ({"tp": [True]}, InvalidSpec, r"\[space\] tp must be a whole number; got true"),
        ({"tp": ["9" * 30]}, InvalidSpec, "tp must have at most 9 digits"),
        ({"zero": [4]}, InvalidSpec, r"\[space\] zero must be at least 0 and at most 3; got 4"),
        ({"overlap_dp": ["yes"]}, InvalidSpec, "overlap_dp must be true or false; got 'yes'"),
    ],
)
def test_a_value_that_no_knob_has_is_one_sentence(table, error, sentence):
    with pytest.raises(error, match=sentence):
        SpaceSpec.of(table)


@pytest.mark.parametrize(
    ("model", "n_devices", "narrowed", "rule"),
    [
        ("gpt2", 4, {"tp": 3}, "tp divides n_kv_heads|number of devices"),
        ("gpt2", 4, {"dp": 3}, "number of devices"),
        ("gpt2", 4, {"micro_batch": 64}, "micro_batch \\* dp divides the global batch"),
        ("gpt2", 4, {"ep": 2}, "ep divides n_experts"),
        ("gpt2", 4, {"recompute": "none", "recompute_every": 2}, "recompute_every above 1"),
    ],
)
def test_an_empty_space_names_the_last_rule(model, n_devices, narrowed, rule):
    space = space_of(model, n_devices, narrowed)
    with pytest.raises(
        NoLegalPlan, match=f"none of [0-9]+ plans.\nhint: the last ones were removed by: .*({rule})"
    ):
        list(space.chunks())


def test_a_single_plan_is_refused_with_the_rule_it_breaks():
    with pytest.raises(
        InvalidSpec, match="tp \\* cp \\* dp \\* pp is the number of devices; got tp=1 pp=1 dp=1"
    ):
        SPACES["pipelines"].check(Plan())


@pytest.mark.parametrize("n", [1, 12, 97, 1024, 2**16 * 9])
def test_divisors_are_all_of_them(n):
    assert divisors(n) == [i for i in range(1, n + 1) if n % i == 0]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_framework_only_takes_plans_away(framework):
    narrowed = dict(FEW, overlap_dp=[False, True], cp=1, micro_batch=1, schedule=list(Schedule))
    everything, _ = enumerated(space_of("gpt2", 4, narrowed))
    runs, _ = enumerated(space_of("gpt2", 4, narrowed, framework=framework))
    # In a pipeline "any" calls zero=2 by the name of what it is there, zero=1.
    new = {plan for plan in runs if not (plan.zero == 2 and plan.pp > 1)}
    assert new <= set(everything)
    assert (framework == "any") == (len(runs) == len(everything))


@pytest.mark.parametrize("framework", ["any", "zero-bubble"])
def test_rarer_schedules_are_tried_where_a_trainer_lists_them(framework):
    plans, _ = enumerated(space_of("gpt2", 4, dict(FEW, cp=1, micro_batch=1), framework=framework))
    tried = {plan.schedule for plan in plans}
    assert (Schedule.V_HALF in tried) == (framework == "zero-bubble")
    assert {plan.optimizer_sync for plan in plans} == {OptimizerSync.BARRIER}


def test_a_context_reads_its_framework_from_the_workload():
    context = SPACES["deepspeed"].context
    assert isinstance(context, Context)
    assert context.framework.name == "deepspeed"


def test_nodes_and_micro_batches_make_a_job_smaller_than_its_cluster_and_batch():
    space = space_of("gpt2", 32, dict(FEW, nodes=[1, 2, 4], n_microbatches=[1, 2, 8], micro_batch=[1, 2],
                                      cp=1, vpp=1, schedule="1f1b", recompute="none", zero=0))  # fmt: skip
    plans = Plans.concatenate(list(space.chunks()))
    assert set(plans.nodes.tolist()) == {1, 2, 4}
    assert (plans.tp * plans.pp * plans.dp == 8 * plans.nodes).all()
    assert (plans.micro_batch * plans.n_microbatches * plans.dp <= 8).all()
    assert len(set(plans.keys())) == len(plans)


def test_more_nodes_than_the_cluster_has_are_no_plan():
    with pytest.raises(NoLegalPlan, match="nodes are at most the cluster's"):
        list(space_of("gpt2", 32, {"nodes": 5}).chunks())


SMALL = dict(cp=1, vpp=1, schedule="1f1b", recompute="none", zero=0, micro_batch=[1, 2])


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        (dict(nodes=[0, 1, 4]), "beside 0, nodes are fewer than all of the cluster's"),
        (dict(n_microbatches=[0, 1, 2]), "beside 0, n_microbatches are fewer than the global batch asks"),
    ],
    ids=["nodes", "micro-batches"],
)
def test_no_plan_is_in_a_space_under_two_names(asked, rule):
    space, tally = space_of("gpt2", 32, FEW | SMALL | asked, global_batch=32), Tally()
    plans = list(Plans.concatenate(list(space.chunks(tally))))
    assert tally.removed[rule] > 0
    names = [first_name(space.context, plan) for plan in plans]
    assert names == plans  # all are first names already
    assert len(set(names)) == len(names)


def test_a_plan_is_in_a_space_under_either_of_its_names():
    space = space_of("gpt2", 32, FEW | SMALL | dict(nodes=[2, 4], n_microbatches=1), global_batch=32)
    plan = Plan(dp=32, nodes=4, n_microbatches=1)
    assert all(space.holds(each) for each in all_names(space.context, plan))
    assert len(all_names(space.context, plan)) == 4
    assert not space.holds(Plan(dp=32, n_microbatches=2))
    assert not space.holds(Plan(dp=8, nodes=1, n_microbatches=1))


@pytest.mark.parametrize(
    ("framework", "ways"),
    [
        ("any", {"plain"}),
        ("megatron-lm", {"plain"}),
        ("deepspeed", {"einsum", "padded"}),
        ("x-moe", {"einsum", "padded", "padding-free"}),
    ],
)
def test_tokens_are_sent_to_experts_of_limited_capacity_as_the_trainer_can(framework, ways):
    limited = replace(SMALL_MOE, moe=replace(SMALL_MOE.moe, capacity_factor=1.25))
    asked = FEW | dict(tp=1, pp=1, cp=1, ep=[2, 4], zero=1, recompute="none", micro_batch=1)
    plans = Plans.concatenate(list(space_of(limited, 8, asked, framework=framework).chunks()))
    assert {plan.dispatch for plan in plans} == ways
    dropless = Plans.concatenate(list(space_of(SMALL_MOE, 8, asked, framework=framework).chunks()))
    assert {plan.dispatch for plan in dropless} == {"plain"}


def test_the_trainers_own_bucket_has_one_name():
    context = space_of("gpt2", 8, {}, framework="axonn", precision="fp16").context
    plan = Plan(dp=8, offload_optimizer=True, offload_bucket=16_000_000, coalesced_buckets=4)
    assert first_name(context, plan) == replace(plan, offload_bucket=0)
    other = replace(plan, offload_bucket=8_000_000)
    assert first_name(context, other) == other
    assert first_name(space_of("gpt2", 8, {}).context, plan) == plan  # where the host updates otherwise
