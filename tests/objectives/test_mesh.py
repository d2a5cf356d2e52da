"""Members of groups per tier, against ranks laid out one by one."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from objectives.cost import mesh
from search_spaces.cluster_presets import load_cluster
from search_spaces.plan import Plan, Plans, RankOrder

TIER_SIZES = (2, 8, 32)
FRONTIER = load_cluster("frontier", 1)

ALIGNED = [
    Plan(tp=tp, cp=cp, dp=dp, pp=pp, ep=ep, etp=etp, rank_order=order)
    for tp, cp, dp, pp in product((1, 2, 8), (1, 2), (1, 4), (1, 2, 8))
    for ep, etp in product((1, 2, 4, 8, 16), (1, 2))
    for order in RankOrder
    if etp <= tp and (tp * cp * dp) % (ep * etp) == 0 and tp * cp * dp * pp <= 256
]
UNALIGNED = [
    Plan(tp=tp, cp=cp, dp=dp, pp=pp, ep=ep, rank_order=order)
    for tp, cp, dp, pp in product((1, 3, 6), (1, 3), (2, 5), (1, 3))
    for ep in (1, 3, 5)
    for order in RankOrder
    if (tp * cp * dp) % ep == 0
]


def device_of(plan, tp, cp, dp, pp):
    """Where a coordinate lies."""
    if plan.rank_order is RankOrder.TP_CP_PP_DP:
        return tp + plan.tp * (cp + plan.cp * (pp + plan.pp * dp))
    return tp + plan.tp * (cp + plan.cp * (dp + plan.dp * pp))


def dense_groups(plan, axes):
    """Devices of every group along some axes of the mesh."""
    groups = {}
    for place in product(range(plan.tp), range(plan.cp), range(plan.dp), range(plan.pp)):
        fixed = tuple(x for x, axis in zip(place, ("tp", "cp", "dp", "pp"), strict=True) if axis not in axes)
        groups.setdefault(fixed, []).append(device_of(plan, *place))
    return list(groups.values())


def expert_groups(plan, axis):
    """The same for the mesh of etp x ep x edp over the tp x cp x dp places."""
    groups, places = {}, product(range(plan.pp), range(plan.dp), range(plan.cp), range(plan.tp))
    inner = plan.tp * plan.cp * plan.dp
    for number, (pp, dp, cp, tp) in enumerate(places):
        x = number % inner
        where = {
            "etp": x % plan.etp,
            "ep": x // plan.etp % plan.ep,
            "edp": x // (plan.etp * plan.ep),
            "pp": pp,
        }
        fixed = tuple(value for name, value in where.items() if name != axis)
        groups.setdefault(fixed, []).append(device_of(plan, tp, cp, dp, pp))
    return list(groups.values())


GROUPS = {
    "tp": (mesh.tp_members, lambda plan: dense_groups(plan, ("tp",))),
    "cp": (mesh.cp_members, lambda plan: dense_groups(plan, ("cp",))),
    "dp": (mesh.dp_members, lambda plan: dense_groups(plan, ("cp", "dp"))),
    "etp": (mesh.etp_members, lambda plan: expert_groups(plan, "etp")),
    "ep": (mesh.ep_members, lambda plan: expert_groups(plan, "ep")),
    "edp": (mesh.edp_members, lambda plan: expert_groups(plan, "edp")),
}
every_group = pytest.mark.parametrize("group", GROUPS)


def counted(groups, size):
    """Fewest and most members that share a domain, over all groups and domains they touch."""
    counts = [np.unique(np.array(each) // size, return_counts=True)[1] for each in groups]
    return min(c.min() for c in counts), max(c.max() for c in counts)


@every_group
def test_members_are_those_of_ranks_laid_out_one_by_one(group):
    members_of, groups_of = GROUPS[group]
    members = members_of(FRONTIER, Plans.of(ALIGNED))
    for i, plan in enumerate(ALIGNED):
        groups = groups_of(plan)
        expected = [counted(groups, size) for size in TIER_SIZES]
        assert [(m, m) for m in members[:-1, i]] == expected, plan.key
        assert members[-1, i] == len(groups[0]), plan.key


@every_group
def test_members_of_groups_that_straddle_domains_are_between_fewest_and_most(group):
    members_of, groups_of = GROUPS[group]
    members = members_of(FRONTIER, Plans.of(UNALIGNED))
    for i, plan in enumerate(UNALIGNED):
        for size, found in zip(TIER_SIZES, members[:-1, i], strict=True):
            fewest, most = counted(groups_of(plan), size)
            assert fewest <= found <= most, f"{plan.key}, domain of {size}"


def test_a_pipeline_lies_in_the_innermost_tier_that_holds_all_its_ranks():
    tiers = mesh.pp_tier(FRONTIER, Plans.of(ALIGNED))
    for plan, tier in zip(ALIGNED, tiers, strict=True):
        lines = dense_groups(plan, ("pp",))
        whole = [all(len({device // size for device in line}) == 1 for line in lines) for size in TIER_SIZES]
        if plan.pp > 1:
            assert [*whole, True].index(True) == tier, plan.key


def test_all_groups_multiply_to_the_world():
    plans = Plans.of(ALIGNED)
    one_tier = replace(FRONTIER, tiers=FRONTIER.tiers[-1:])
    sizes = {name: members_of(one_tier, plans)[0] for name, (members_of, _) in GROUPS.items()}
    world = plans.tp * plans.cp * plans.dp * plans.pp
    np.testing.assert_array_equal(sizes["tp"] * sizes["dp"] * plans.pp, world)
    np.testing.assert_array_equal(sizes["etp"] * sizes["ep"] * sizes["edp"] * plans.pp, world)
