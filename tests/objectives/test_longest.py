"""The longest sequence of a plan: it fits, a longer one does not, and measurements move it."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.cost.step import estimate
from objectives.longest import MAX_SEQ_LEN, longest_sequence
from objectives.metrics import METRICS, Goal
from objectives.ranking import memory_limit_bytes, rank
from objectives.valuing import metric_values
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Plan, Plans
from search_spaces.space import SpaceSpec
from tests.objectives.jobs import JOBS, job_of, legal_plans

K = 1024
TEXTS = (
    "tp=8",
    "tp=8 recompute=full",
    "tp=2 cp=4 zero=1 sequence_parallel=true",
    "cp=8 cp_kind=ulysses zero=3 recompute=full",
    "cp=8 cp_kind=ulysses zero=3 recompute=full offload_checkpoints=true sequence_chunk=65536 "
    "offload_sequence=true",
)


def llama(seq_len=8 * K, **workload):
    given = dict(global_batch=1, framework="deepspeed")
    return job_of("llama-3-8b", "dgx-a100", 8, seq_len=seq_len, **given | workload)


def plans_of(*texts):
    return Plans.of([Plan.parse(text) for text in texts])


def peak(job, tokens, plans):
    longer = replace(job, workload=replace(job.workload, seq_len=int(tokens)))
    return estimate(longer, plans).peak_memory_bytes[0]


@pytest.mark.parametrize("text", TEXTS)
def test_it_fits_and_a_little_more_does_not(text):
    job, plans = llama(), plans_of(text)
    tokens, piece = longest_sequence(job, plans)[0], max(16, int(plans.sequence_chunk[0]))
    assert tokens % piece == 0
    assert peak(job, tokens, plans) <= memory_limit_bytes(job)
    assert peak(job, 1.1 * tokens + piece, plans) > memory_limit_bytes(job)


def test_it_does_not_depend_on_the_length_it_is_asked_at():
    found = [longest_sequence(llama(length), plans_of(*TEXTS)) for length in (4 * K, 16 * K, 64 * K)]
    assert found[1] == pytest.approx(found[0], rel=0.02)
    assert found[2] == pytest.approx(found[0], rel=0.02)


def test_one_plan_has_the_length_that_it_has_among_many():
    together = longest_sequence(llama(), plans_of(*TEXTS))
    assert together.tolist() == [longest_sequence(llama(), plans_of(text))[0] for text in TEXTS]


def test_a_plan_that_took_more_memory_holds_less():
    job, plans = llama(), plans_of(*TEXTS)
    predicted = estimate(job, plans).peak_memory_bytes
    lengths = [longest_sequence(job, plans, peak_bytes=factor * predicted) for factor in (0.9, 1.0, 1.3)]
    assert (lengths[0] > lengths[1]).all()
    assert (lengths[1] > lengths[2]).all()
    assert lengths[1].tolist() == longest_sequence(job, plans).tolist()


def test_a_model_too_large_for_a_device_holds_nothing():
    assert longest_sequence(llama(), plans_of("dp=8"))[0] == 0


def test_learned_positions_bound_a_sequence():
    job = job_of("gpt2", "dgx-a100", 8, seq_len=256, global_batch=8)
    assert longest_sequence(job, plans_of("dp=8"))[0] == job.model.embedding.n_positions


@pytest.mark.parametrize("name", JOBS)
def test_any_legal_plan_has_one_that_fits(name):
    job, plans = JOBS[name], legal_plans(name, 60)
    tokens = longest_sequence(job, plans)
    assert np.isfinite(tokens).all()
    fits = estimate(job, plans).peak_memory_bytes <= memory_limit_bytes(job)
    bounded = job.model.embedding.n_positions or np.inf
    piece = 2 * plans.cp * plans.tp
    assert (tokens[fits] + piece[fits] > min(job.workload.seq_len, bounded)).all()


def test_a_ranking_by_it_puts_the_longest_first():
    spec = SpaceSpec.of({"recompute": ["none", "full"], "offload_checkpoints": [False, True]})
    ranking = rank(llama(), spec, metric=MAX_SEQ_LEN, keep=20)
    lengths = longest_sequence(llama(), ranking.candidates.plans)
    assert METRICS[MAX_SEQ_LEN].goal is Goal.MAXIMIZE
    assert lengths.tolist() == sorted(lengths, reverse=True)
    assert (-ranking.candidates.score).tolist() == lengths.tolist()
    assert ranking.candidates.plans.offload_checkpoints[0]


def test_every_metric_has_its_value_by_name_and_this_one_only_with_its_plans():
    job, plans = llama(), plans_of("tp=8", "tp=8 recompute=full")
    priced = estimate(job, plans)
    assert metric_values(job, "step_time", plans, priced).tolist() == priced.step_s.tolist()
    lengths = metric_values(job, MAX_SEQ_LEN, plans, priced)
    assert lengths.tolist() == longest_sequence(job, plans, peak_bytes=priced.peak_memory_bytes).tolist()
    among = metric_values(job, MAX_SEQ_LEN, plans, priced, among=np.array([False, True]))
    assert np.isnan(among[0])
    assert among[1] == lengths[1]
    with pytest.raises(InvalidSpec, match="max_seq_len must be asked of plans"):
        job.values(MAX_SEQ_LEN, priced.step_s, priced.peak_memory_bytes, plans)
