"""What an unknown machine does to all predictions together."""

import numpy as np
import pytest

from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.ranking import rank
from runners.hidden import hidden_machine
from search_spaces.cluster_presets import load_cluster
from search_spaces.model_presets import load_model
from search_spaces.space import SpaceSpec
from search_spaces.workload import Workload
from tuner.features import TIME_PARTS
from tuner.samplers.unknowns import N_DIRECTIONS, Unknowns, drawn_worlds


@pytest.fixture(scope="module", params=["llama-3-8b", "mixtral-8x7b"])
def job(request):
    workload = Workload(seq_len=8192, global_batch=128)
    return Job(model=load_model(request.param), cluster=load_cluster("dgx-h100", 64), workload=workload)


@pytest.fixture(scope="module")
def table(job):
    found = rank(job, SpaceSpec(), keep=2000).candidates
    return found.take(np.arange(0, len(found), 10))


@pytest.fixture(scope="module")
def unknowns(job, table):
    return Unknowns.of(job, table.plans, table.estimate)


@pytest.mark.parametrize("seed", range(4))
def test_a_machine_unlike_its_description_lies_along_few_directions(job, table, unknowns, seed):
    true = hidden_machine(job, seed=seed, hidden=0.3).job
    ratio = np.log(estimate(true, table.plans).step_s / table.estimate.step_s)
    terms = np.column_stack([np.ones(len(table)), unknowns.features(table.plans)])
    left = ratio - terms @ np.linalg.lstsq(terms, ratio, rcond=None)[0]
    assert left.std() < 0.6 * ratio.std()


def test_features_depend_on_the_plan_alone(table, unknowns):
    every, some = unknowns.features(table.plans), unknowns.features(table.plans.take(np.array([5, 1])))
    assert every.shape == (len(table), N_DIRECTIONS)
    np.testing.assert_allclose(some, every[[5, 1]], atol=1e-12)


def test_directions_are_the_same_each_time_and_ordered(job, table, unknowns):
    again = Unknowns.of(job, table.plans, table.estimate)
    np.testing.assert_allclose(again.directions, unknowns.directions)
    spread = unknowns.features(table.plans).std(axis=0)
    assert (np.diff(spread) <= 1e-9).all()
    assert unknowns.as_parts.shape == (N_DIRECTIONS, len(TIME_PARTS))


def test_worlds_come_in_pairs_about_what_is_known(job):
    worlds = drawn_worlds(job)
    for one, other in zip(worlds[::2], worlds[1::2], strict=True):
        ours = job.cluster.device.memory_efficiency.value
        found = [each.job.cluster.device.memory_efficiency.value for each in (one, other)]
        assert max(found) == 1.0 or found[0] * found[1] == pytest.approx(ours**2)
    assert all(0 < each.job.cluster.device.gemm_efficiency.value <= 1 for each in worlds)
