"""Relations between knobs, as text: what they allow, and what is none."""

import pytest

from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec, NoLegalPlan, UnknownName
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans
from search_spaces.relations import parse_relations
from search_spaces.space import SearchSpace, SpaceSpec, Tally
from search_spaces.workload import Workload

FEW = dict(
    cp=1, vpp=1, schedule="1f1b", recompute="none", micro_batch=1, zero=1, overlap_dp=True, overlap_tp=False,
    overlap_pp=False, offload_optimizer=False, first_layers=0, last_layers=0,
)  # fmt: skip


def space_of(model="mixtral-8x7b", n_devices=64, **asked):
    workload = Workload(seq_len=4096, global_batch=256)
    cluster = load_cluster("frontier", n_devices)
    return SearchSpace(load_model(model), cluster, workload, SpaceSpec.of(FEW | asked))


def plans_of(space, tally=None):
    return Plans.concatenate(list(space.chunks(tally)))


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("pp * ep = devices", lambda p: p.pp * p.ep == 64),
        ("etp = tp", lambda p: p.etp == p.tp),
        ("ep <= node", lambda p: p.ep <= 8),
        ("tp*pp >= 8", lambda p: p.tp * p.pp >= 8),
        ("dp < n_experts", lambda p: p.dp < 8),
        ("2 * pp > devices_per_node", lambda p: 2 * p.pp > 8),
        ("devices = dp * tp * pp * 1", lambda p: p.dp >= 1),
    ],
)
def test_a_relation_keeps_the_plans_of_which_it_is_true_and_no_others(where, holds):
    everything, kept = plans_of(space_of()), plans_of(space_of(where=where))
    expected = {plan.key for plan in everything if holds(plan)}
    assert {plan.key for plan in kept} == expected
    assert expected


def test_several_relations_hold_together_and_the_ledger_names_each():
    tally = Tally()
    found = plans_of(space_of(where=["pp * ep = devices", "ep <= node"]), tally)
    assert all(plan.pp * plan.ep == 64 and plan.ep <= 8 for plan in found)
    assert {"asked: pp * ep = devices"} <= set(tally.removed)
    assert tally.enumerated - sum(tally.removed.values()) == len(found)


def test_a_plan_outside_is_not_held():
    space = space_of(where="pp * ep = devices")
    inside = plans_of(space).row(0)
    assert space.holds(inside)
    assert not space.holds(Plan(dp=64, ep=8, zero=1, overlap_dp=True))


def test_relations_that_no_plan_keeps_are_named():
    with pytest.raises(NoLegalPlan, match="at least one plan must pass"):
        list(space_of(where="tp > devices").chunks())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("pp ep", "must be relations like"),
        ("pp ** 2 = 4", "must be relations like"),
        ("pp = ", "must be relations like"),
        (3, "must be relations like"),
        ("3 = 4", "must name a knob"),
        ("recompute = 1", "must name a knob"),
        ("pp = 1234567890", "at most 9 digits"),
        ("__import__('os') = pp", "must be relations like"),
    ],
)
def test_what_is_no_relation_is_one_sentence(given, sentence):
    with pytest.raises(InvalidSpec, match=r"\[space\] where") as refusal:
        parse_relations(given)
    assert sentence in str(refusal.value)


def test_an_unknown_factor_suggests_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'switch'"):
        space_of(where="ep <= swich")


def test_a_relation_is_stored_as_it_is_read():
    spec = SpaceSpec.of({"where": ["pp*ep   =devices"]})
    assert spec.narrowed["where"] == ("pp * ep = devices",)
    assert SpaceSpec.of(dict(spec.narrowed)) == spec
