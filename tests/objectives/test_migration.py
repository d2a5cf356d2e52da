"""Experts that change places: what balances, what cannot, what it costs and when it pays."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.cost.migration import (
    balanced,
    exponent_of,
    left_imbalance,
    migration_s,
    zipf_shares,
)
from objectives.cost.moe import expert_migration_bytes
from objectives.cost.step import estimate
from objectives.simulator.randomness import ExpertLoad, Randomness, expert_loads
from objectives.simulator.step import simulate_step
from search_spaces.plan import Plan, Plans
from search_spaces.state import TrainingState
from tests.objectives.jobs import job_of, with_links


def uneven(imbalance, **other):
    return job_of("deepseek-v3", "h800-pod", 256, global_batch=2048, expert_imbalance=imbalance, **other)


def plans_of(*words):
    return Plans.of([Plan.parse(each) for each in words])


@pytest.mark.parametrize("ep", [2, 8, 32])
@pytest.mark.parametrize("exponent", [0.3, 0.8, 1.2])
def test_swapping_never_leaves_the_hottest_device_hotter(ep, exponent):
    shares = np.random.default_rng(1).permutation(zipf_shares(256, exponent))
    before = shares.reshape(ep, -1).sum(axis=1).max() * ep
    found = balanced(shares, ep)
    assert found.imbalance <= before
    assert sorted(found.order) == list(range(256))
    assert found.imbalance >= max(1.0, shares.max() * ep) * (1 - 1e-12)


def test_what_is_even_already_is_left_alone():
    found = balanced(np.full(64, 1 / 64), 8)
    assert (found.n_moved, found.imbalance) == (0, pytest.approx(1.0))


def test_two_hot_experts_of_one_device_are_parted():
    found = balanced(np.array([4.0, 4.0, 1.0, 1.0]), 2)
    assert (found.n_moved, found.imbalance) == (2, 1.0)


@pytest.mark.parametrize("imbalance", [1.05, 1.3, 2.0])
def test_the_exponent_is_the_one_whose_random_placements_are_so_uneven(imbalance):
    exponent = exponent_of(64, 8, imbalance)
    shares, rng = zipf_shares(64, exponent), np.random.default_rng(7)
    drawn = [rng.permutation(shares).reshape(8, 8).sum(axis=1).max() * 8 for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(imbalance, rel=0.08)  # 64 placements stand for all


def test_one_expert_a_device_cannot_be_balanced():
    assert left_imbalance(64, 64, 2.0) == pytest.approx(2.0)
    assert left_imbalance(64, 8, 1.5) < 1.2


def test_moving_all_experts_of_a_device_takes_pipers_bytes():
    """48 d f bytes an expert over the group's links, on all expert layers."""
    job = uneven(1.5, state=TrainingState(gradient_bytes=2.0))
    job = replace(job, cluster=with_links(job.cluster, latency=0.0))
    plans = plans_of("dp=256 ep=8 migrate_every=100")
    tier = job.cluster.tiers[0]
    link = tier.bandwidth_bytes_per_s * tier.efficiency.value * 8 / 7  # one part in eight stays
    one_layer = expert_migration_bytes(job.model, np.array([8])) / link
    assert migration_s(job, plans)[0] == pytest.approx(job.model.n_moe_layers * one_layer[0])


def test_migration_pays_where_loads_are_uneven_and_it_is_rare():
    plans = plans_of("dp=256 ep=32", *(f"dp=256 ep=32 migrate_every={n}" for n in (1, 50, 1000)))
    never, always, sometimes, rarely = estimate(uneven(1.6), plans).step_s
    assert rarely < sometimes < always
    assert rarely < never
    # Piper amortises it to under 5 % of the step.
    costs = estimate(uneven(1.6), plans).time.fixed_s
    assert (costs[3] - costs[0]) / rarely < 0.05


def test_a_step_that_migrates_each_time_costs_more_than_it_saves():
    plans = plans_of("dp=256 ep=32", "dp=256 ep=32 migrate_every=1")
    never, always = estimate(uneven(1.02), plans).step_s
    assert always > never


@pytest.mark.parametrize("words", ["dp=256 ep=32 migrate_every=20", "pp=4 dp=64 ep=32 migrate_every=5"])
def test_the_engine_counts_a_migration_as_the_closed_form_does(words):
    job, plan = uneven(1.4), Plan.parse(words)
    assert simulate_step(job, plan).step_s == pytest.approx(
        estimate(job, Plans.of([plan])).step_s[0], rel=0.02
    )


def test_balanced_experts_are_drawn_more_evenly():
    asked = Randomness(expert_load=ExpertLoad.ZIPF, zipf_exponent=0.4)
    hottest = [
        expert_loads(
            np.random.default_rng(0), replace(asked, balanced_experts=is_balanced), 50,
            n_experts=64, ep=8, n_copies=100_000,
        ).hottest.mean()
        for is_balanced in (False, True)
    ]  # fmt: skip
    assert hottest[1] < 1.05 < hottest[0]


def test_the_hottest_expert_and_the_coldest_others_bound_what_swapping_reaches():
    """A device holds E / ep experts: beside the hottest one lie at least the least popular."""
    shares = zipf_shares(64, 0.8)
    bound = 8 * (shares[0] + shares[-7:].sum())
    assert bound <= balanced(shares, 8).imbalance < 1.01 * bound
