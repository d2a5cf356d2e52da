"""The gated residual: scikit-learn's own checks, silence where it knows nothing, nonsense among its rows."""

import numpy as np
import pytest
from sklearn.utils.estimator_checks import check_estimator

from tuner.gate import gate_of, passed
from tuner.residual import GatedResidual
from tuner.surrogate import LogRatioSurrogate

N_VALUES = 5
GRID = (
    np.stack(np.meshgrid(np.arange(N_VALUES), np.arange(N_VALUES), [0.0]), axis=-1)
    .reshape(-1, 3)
    .astype(float)
)


def truth(x, *, slope=0.1):
    """A correction that grows along the first axis."""
    return slope * x[:, 0] + 0.05 * np.sin(x[:, 1])


def fitted(x=GRID, noise=0.005, seed=0, **options):
    y = truth(x) + noise * np.random.default_rng(seed).standard_normal(len(x))
    return GatedResidual(**options).fit(x, y)


def test_scikit_learn_finds_an_estimator():
    check_estimator(GatedResidual(), on_skip=None)


def test_between_its_rows_it_predicts_what_it_learned():
    inside = GRID[GRID[:, 0] != 2]
    there = GRID[GRID[:, 0] == 2]
    assert np.abs(fitted(inside).predict(there) - truth(there)).max() < 0.05


def test_on_an_axis_with_one_value_nothing_is_carried_over():
    model, far = fitted(), GRID + np.array([0.0, 0.0, 3.0])
    assert (model.predict(far) == 0).all()
    assert (model.trust(far) == 0).all()
    assert model.predict(far, return_std=True)[1].min() > np.abs(fitted().predict(GRID)).min()


def test_the_nearer_the_more_of_it_remains():
    steps = [fitted().predict(GRID[-1:] + np.array([0.0, 0.0, d]))[0] for d in (0.0, 0.3, 0.6, 0.9, 1.0, 2.0)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 0.2
    assert steps[-1] == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_group_that_follows_no_rule_closes_its_axis(seed):
    rng = np.random.default_rng(seed)
    levels = rng.standard_normal(N_VALUES)
    y = levels[GRID[:, 0].astype(int)] + 0.01 * rng.standard_normal(len(GRID))
    model = GatedResidual().fit(GRID, y)
    new = GRID[:3] + np.array([10.0, 0.0, 0.0])
    assert np.abs(model.predict(new)).max() < 0.5 * np.abs(levels).max()


def test_what_is_held_back_is_what_a_fit_without_it_says():
    model = fitted().model_
    held, rows = model.held_back(), np.flatnonzero(GRID[:, 0] == 2)
    kept = np.setdiff1d(np.arange(len(GRID)), rows)
    other = LogRatioSurrogate(offset_std=model.offset_std)
    other.n_features_in_ = model.n_features_in_
    for name in ("share_std_", "residual_std_", "noise_std_"):
        setattr(other, name, getattr(model, name))
    other._take_rows(GRID[kept])
    other._solve(model.targets_[kept], model.variances_[kept])
    error, _ = held.without(rows)
    np.testing.assert_allclose(model.targets_[rows] - error, other.predict(GRID[rows]), atol=1e-8)


def test_the_gate_is_open_at_every_value_that_was_tried():
    model = fitted().model_
    share, widening = passed(gate_of(GRID, model.targets_, model.held_back()), GRID)
    assert (share == 1).all()
    assert (widening == 1).all()


@pytest.mark.parametrize("n_rows", [12, 18])
def test_intervals_hold_about_as_often_as_they_say(n_rows):
    covered, rng = [], np.random.default_rng(3)
    for seed in range(40):
        rows = rng.permutation(len(GRID))
        y = truth(GRID) + 0.05 * np.random.default_rng(seed).standard_normal(len(GRID))
        seen, rest = rows[:n_rows], rows[n_rows:]
        mean, std = GatedResidual().fit(GRID[seen], y[seen]).predict(GRID[rest], return_std=True)
        covered.append(np.mean(np.abs(y[rest] - mean) < 1.2816 * std))
    assert 0.7 < np.mean(covered) < 0.9


@pytest.mark.parametrize("factor", [100.0, 0.01])
def test_one_row_a_hundred_times_off_stays_within_the_stated_spread(factor):
    y = truth(GRID) + 0.005 * np.random.default_rng(0).standard_normal(len(GRID))
    before, std = GatedResidual().fit(GRID, y).predict(GRID, return_std=True)
    spoiled = y.copy()
    spoiled[7] += np.log(factor)
    after, now = GatedResidual().fit(GRID, spoiled).predict(GRID, return_std=True)
    others = np.arange(len(GRID)) != 7
    assert (np.abs(after - before) < 1.2816 * np.maximum(std, now))[others].mean() > 0.8


@pytest.mark.parametrize(
    "y", [np.zeros(25), np.full(25, 0.3), np.full(25, 1.0)], ids=["exact", "same", "far"]
)
def test_constant_outcomes_are_learned_as_they_are(y):
    mean, std = GatedResidual().fit(GRID, y).predict(GRID, return_std=True)
    np.testing.assert_allclose(mean, y, atol=0.01 + 0.05 * np.abs(y).max())
    assert np.isfinite(std).all()


def test_rows_given_twice_change_no_prediction_beyond_its_spread():
    y = truth(GRID) + 0.005 * np.random.default_rng(0).standard_normal(len(GRID))
    once, std = GatedResidual().fit(GRID, y).predict(GRID, return_std=True)
    twice = GatedResidual().fit(np.repeat(GRID, 3, axis=0), np.repeat(y, 3)).predict(GRID)
    assert (np.abs(twice - once) < 1.2816 * std).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused(bad):
    y = truth(GRID)
    y[3] = bad
    with pytest.raises(ValueError, match=r"NaN|infinity"):
        GatedResidual().fit(GRID, y)


def test_equal_rows_give_equal_answers():
    np.testing.assert_array_equal(fitted().predict(GRID), fitted().predict(GRID))
