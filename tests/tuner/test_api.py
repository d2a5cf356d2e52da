"""Plans that a user writes, as the Python API and the command line read them."""

import pytest

from search_spaces.errors import InvalidSpec
from search_spaces.plan import Plan
from tests.objectives.jobs import job_of
from tuner.api import read_plan

JOB = job_of("llama-3-8b", "dgx-h100", 32, global_batch=64)
WHOLE = Plan(tp=2, dp=16, sequence_parallel=True)


@pytest.mark.parametrize("words", ["", "nodes=4", "n_microbatches=4", "nodes=4 n_microbatches=4"])
def test_a_plan_on_all_nodes_with_the_whole_batch_has_one_name(words):
    assert read_plan(JOB, f"tp=2 sequence_parallel=true {words}") == WHOLE


def test_fewer_nodes_and_sequences_stay_as_they_are_written():
    plan = read_plan(JOB, "tp=2 sequence_parallel=true nodes=2 n_microbatches=4")
    assert (plan.nodes, plan.dp, plan.n_microbatches) == (2, 8, 4)


def test_more_nodes_than_there_are_stay_refused():
    with pytest.raises(InvalidSpec, match="nodes are at most the cluster's"):
        read_plan(JOB, "dp=40 nodes=5")
