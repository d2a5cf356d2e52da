"""Who is to blame when plans fail by themselves."""

import numpy as np
import pytest

from tests.tuner.hidden_cluster import candidate_table
from tuner.features import knob_features
from tuner.samplers.runs import PRIOR_CHANCE, blamed, log_chances

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


def test_a_crash_of_a_plan_that_hardly_fits_is_no_more_than_a_hint_against_its_knobs():
    rows, ran = np.arange(12), np.arange(12) % 2 == 0
    center = KNOBS.mean(axis=0)
    sure = blamed(KNOBS[rows], ran, np.full(12, 0.999), center=center)
    hardly = blamed(KNOBS[rows], ran, np.full(12, 0.02), center=center)
    assert (sure[ran] == 1).all()
    assert (hardly[ran] == 1).all()
    assert sure[~ran].max() < 0.1
    assert hardly[~ran].min() > 0.7
    chances_of = [np.exp(log_chances(KNOBS, KNOBS[rows], each))[rows].mean() for each in (sure, hardly)]
    assert chances_of[0] < chances_of[1]
