"""Free nodes for trials of several sizes: none given twice, and large trials not passed over for ever."""

import pytest

from runners.node_pool import MOST_PASSED, NodePool
from search_spaces.errors import InvalidSpec


def test_trials_of_different_sizes_share_the_nodes():
    pool = NodePool(8)
    assert pool.take("large", 4)
    assert pool.take("small", 2)
    assert not pool.take("large", 4)
    assert pool.take("small", 2)
    assert pool.n_free == 0
    pool.give_back(4)
    assert pool.take("large", 4)


def test_a_large_trial_is_waited_for_after_a_few_small_ones():
    pool = NodePool(4)
    assert pool.take("small", 1)
    assert not pool.take("large", 4)
    for _ in range(MOST_PASSED):
        assert pool.take("small", 1)
        pool.give_back(1)
    assert not pool.take("small", 1)
    pool.give_back(1)
    assert pool.take("large", 4)
    pool.give_back(4)
    assert pool.take("small", 1)


@pytest.mark.parametrize("n_nodes", [0, 5])
def test_a_trial_takes_what_the_pool_has(n_nodes):
    with pytest.raises(InvalidSpec, match="from 1 to 4 nodes"):
        NodePool(4).take("trial", n_nodes)
