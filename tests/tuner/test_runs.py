"""Who is to blame when plans fail by themselves."""

import numpy as np
import pytest

from tests.tuner.hidden_cluster import candidate_table
from tuner.features import knob_features
from tuner.samplers.runs import PRIOR_CHANCE, log_chances

TABLE = candidate_table()
KNOBS = knob_features(TABLE.plans)


def chances(rows, ran):
    return np.exp(log_chances(KNOBS, KNOBS[rows], np.asarray(ran)))


def test_the_knob_that_failures_share_is_blamed():
    bad = TABLE.plans.tp == 8
    rows = np.random.default_rng(0).permutation(len(TABLE))[:40]
    answer = chances(rows, ~bad[rows])
    assert np.median(answer[bad]) < 0.2
    assert np.median(answer[~bad]) > 0.9


@pytest.mark.parametrize("n_rows", [1, 5])
def test_failures_alone_lower_the_chance_most_where_they_were(n_rows):
    answer = chances(np.arange(n_rows), np.zeros(n_rows, dtype=bool))
    far = np.argmax(((KNOBS - KNOBS[0]) ** 2).sum(axis=1))
    assert answer[0] < answer[far]
    assert answer[0] < PRIOR_CHANCE


def test_it_settles_on_contradictory_rows():
    answer = chances(np.zeros(40, dtype=int), np.arange(40) % 2 == 0)
    assert 0.4 < answer[0] < 0.7
