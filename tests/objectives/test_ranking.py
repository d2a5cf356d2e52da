"""Ranking against pricing everything at once and sorting."""

from dataclasses import replace

import numpy as np
import pytest

from objectives import ranking
from objectives.cost.step import estimate
from objectives.metrics import METRICS, Goal, metric_named
from objectives.ranking import memory_limit_bytes, rank
from objectives.valuing import metric_values
from search_spaces.errors import InvalidSpec, NothingFits, UnknownName
from search_spaces.plan import Plans
from search_spaces.space import SearchSpace, SpaceSpec
from search_spaces.units import GB
from tests.objectives.jobs import job_of

JOB = job_of("llama-2-7b", "dgx-a100", 8, global_batch=16, device_hour_price=2.0)
SPACE = SpaceSpec.of({"cp": 1})
every_metric = pytest.mark.parametrize("metric", METRICS)


def everything(job=JOB, space=SPACE):
    chunks = SearchSpace(job.model, job.cluster, job.workload, space).chunks()
    plans = Plans.concatenate(list(chunks))
    return plans, estimate(job, plans)


def with_memory(job, memory_bytes):
    device = replace(job.cluster.device, memory_bytes=memory_bytes)
    return replace(job, cluster=replace(job.cluster, device=device))


@every_metric
def test_the_ranking_is_the_sorted_space(metric):
    plans, priced = everything()
    sign = 1 if metric_named(metric).goal is Goal.MINIMIZE else -1
    score = sign * metric_values(JOB, metric, plans, priced)
    fits = priced.peak_memory_bytes <= memory_limit_bytes(JOB)
    order = np.argsort(np.where(fits, score, np.inf), kind="stable")[: fits.sum()]
    found = rank(JOB, SPACE, metric=metric, keep=len(plans)).candidates
    assert found.plans.keys() == plans.take(order).keys()
    assert found.score.tolist() == score[order].tolist()
    assert found.estimate.step_s.tolist() == priced.step_s[order].tolist()


@pytest.mark.parametrize("keep", [1, 7, 100])
@every_metric
def test_keeping_fewer_keeps_the_first(metric, keep):
    many = rank(JOB, SPACE, metric=metric, keep=1000).candidates
    few = rank(JOB, SPACE, metric=metric, keep=keep).candidates
    assert few.plans.keys() == many.take(slice(0, keep)).plans.keys()


@pytest.mark.parametrize("chunk_rows", [64, 1000])
def test_the_answer_does_not_depend_on_chunks(monkeypatch, chunk_rows):
    """Ties (plans that differ where it costs nothing) stay in the order of enumeration."""
    whole = rank(JOB, SPACE, keep=50).candidates.plans.keys()
    monkeypatch.setattr("search_spaces.space.CHUNK_ROWS", chunk_rows)
    assert rank(JOB, SPACE, keep=50).candidates.plans.keys() == whole


def test_what_is_held_is_bounded_whatever_the_number_of_plans(monkeypatch):
    held = []
    offer = ranking._Best.offer
    monkeypatch.setattr("search_spaces.space.CHUNK_ROWS", 256)
    monkeypatch.setattr(
        ranking._Best, "offer", lambda self, *rows: (offer(self, *rows), held.append(self.n_held))
    )
    assert rank(JOB, SPACE, keep=10).ledger.enumerated > 1000
    assert max(held) <= 2 * 10


def test_the_ledger_adds_up():
    plans, priced = everything()
    ledger = rank(JOB, SPACE).ledger
    assert ledger.enumerated == sum(ledger.removed.values()) + ledger.too_large + ledger.feasible
    short = priced.peak_memory_bytes - memory_limit_bytes(JOB)
    assert (ledger.too_large, ledger.feasible) == ((short > 0).sum(), (short <= 0).sum())
    assert ledger.too_large + ledger.feasible == len(plans)
    assert ledger.smallest_shortfall_bytes == short[short > 0].min()


def test_a_space_that_fits_entirely_has_no_shortfall():
    assert rank(with_memory(JOB, 1e6 * GB), SPACE).ledger.smallest_shortfall_bytes is None


def test_nothing_fits_says_what_the_leanest_plan_lacks():
    _, priced = everything()
    leanest = priced.peak_memory_bytes.min()
    with pytest.raises(
        NothingFits, match=r"must fit in 4.2 GiB .*none of \d+; the leanest is [\d.]+ GiB too large"
    ) as error:
        rank(with_memory(JOB, 5 * GB), SPACE)
    assert f"{(leanest - 0.9 * 5 * GB) / 2**30:.1f} GiB too large" in str(error.value)


def test_a_metric_has_a_direction_and_a_known_name():
    with pytest.raises(UnknownName, match=r"a metric must be one of .*\nhint: did you mean 'step_time'"):
        rank(JOB, SPACE, metric="step_tim")


def test_cost_without_a_price_is_refused_with_the_way_out():
    free = replace(JOB, workload=replace(JOB.workload, device_hour_price=None))
    with pytest.raises(InvalidSpec, match=r"the metric cost needs a price .*\nhint: set .*device_hour_price"):
        rank(free, SPACE, metric="cost")


def test_keeping_nothing_is_refused():
    with pytest.raises(InvalidSpec, match="rank must keep at least one plan; got 0"):
        rank(JOB, SPACE, keep=0)


def test_cost_is_device_hours_times_their_price():
    assert JOB.cost_per_million_tokens(np.array([3600.0])) == 8 * 2.0 * 1_000_000 / (16 * 4096)
