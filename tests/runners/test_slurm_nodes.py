"""The queue of an allocation's nodes, without Slurm: each program that it asks answers that all is well."""

import threading
import time

import pytest

from runners.placeholders import NODES
from runners.slurm import nodes as queue_of_nodes
from runners.slurm.nodes import NodeQueue
from search_spaces.errors import RunnerError

NAMES = ("n1", "n2", "n3", "n4")


@pytest.fixture
def queue(monkeypatch):
    monkeypatch.setattr(queue_of_nodes, "job_states", lambda jobs: dict.fromkeys(jobs, ("RUNNING", "")))
    monkeypatch.setattr(queue_of_nodes, "lost_nodes", lambda job, nodes: set())
    monkeypatch.setattr(queue_of_nodes, "steps_named", lambda job, name: [])
    return NodeQueue("7", NAMES, 2)


def names(lent):
    return lent[NODES].split(",")


def test_tries_of_different_sizes_have_nodes_of_their_own(queue):
    with queue.lease(1) as one, queue.lease(3) as three:
        assert sorted([*names(one), *names(three)]) == sorted(NAMES)
    with queue.lease() as usual, queue.lease() as other:
        assert [len(names(each)) for each in (usual, other)] == [2, 2]


def test_a_large_try_is_not_passed_over_by_smaller_ones(queue):
    """First come, first served: what asks after the large one waits behind it."""
    served = []

    def ask(n):
        with queue.lease(n):
            served.append(n)

    with queue.lease(3):
        threads = []
        for n in (4, 1):
            threads.append(threading.Thread(target=ask, args=[n]))
            threads[-1].start()
            time.sleep(0.1)
        assert served == []
    for thread in threads:
        thread.join(timeout=60)
    assert served == [4, 1]


def test_more_nodes_than_there_are_is_a_sentence(queue):
    with pytest.raises(RunnerError, match="4 of 4 nodes left, 5 a trial"), queue.lease(5):
        pass
    with queue.lease(4):  # who asked for too many stands in nobody's way
        pass
