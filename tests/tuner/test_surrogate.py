"""The surrogate: scikit-learn's own checks, exact where that can be checked, honest elsewhere."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern
from sklearn.utils.estimator_checks import check_estimator

from tests.tuner.hidden_cluster import candidate_table, hidden_cluster
from tuner.features import knob_features, time_shares
from tuner.surrogate import LENGTH, LogRatioSurrogate

TABLE = candidate_table()
SHARES = time_shares(TABLE.estimate.time)
X = np.hstack([SHARES, knob_features(TABLE.plans)])
SEEDS = range(12)

# No row leaves the prior: a study asks before anything was tried.
EXPECTED_FAILURES = {
    "check_estimators_empty_data_messages": "an empty X is a study that has tried nothing yet"
}


def surrogate(**options):
    return LogRatioSurrogate(n_shares=SHARES.shape[1], **options)


def log_ratios(seed):
    return np.log(hidden_cluster(TABLE, seed).step_s / TABLE.estimate.step_s)


def sampled(seed, n_rows):
    """Rows to learn from, the rest, and the noisy truth."""
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(TABLE))
    return rows[:n_rows], rows[n_rows:], log_ratios(seed) + 0.01 * rng.standard_normal(len(TABLE))


def test_scikit_learn_finds_an_estimator():
    check_estimator(LogRatioSurrogate(), expected_failed_checks=EXPECTED_FAILURES, on_skip=None)


def test_mean_and_spread_are_those_of_scikit_learns_gaussian_process():
    rows, rest, y = sampled(0, 12)
    ours = LogRatioSurrogate(offset_std=0.5, residual_stds=(0.1,), noise_stds=(0.03,))
    knobs = X[:, SHARES.shape[1] :]
    ours.fit(knobs[rows], y[rows])
    kernel = ConstantKernel(0.25) + ConstantKernel(0.01) * Matern(length_scale=LENGTH, nu=1.5)
    theirs = GaussianProcessRegressor(kernel, alpha=ours.variances_, optimizer=None).fit(knobs[rows], y[rows])
    mean, std = theirs.predict(knobs[rest], return_std=True)
    np.testing.assert_allclose(ours.predict(knobs[rest]), mean, atol=1e-8)
    np.testing.assert_allclose(ours.predict(knobs[rest], return_std=True)[1], np.hypot(std, 0.03), atol=1e-6)


def test_without_rows_it_is_the_analytic_model_and_its_prior_spread():
    mean, std = surrogate().fit(X[:0], []).predict(X, return_std=True)
    assert (mean == 0).all()
    assert ((std > 0.5) & (std < 0.7)).all()


@pytest.mark.parametrize("n_rows", [1, 2])
def test_one_or_two_rows_move_everything_by_a_factor(n_rows):
    y = np.full(n_rows, 0.4)
    mean, std = surrogate().fit(X[:n_rows], y).predict(X, return_std=True)
    assert ((mean > 0.2) & (mean < 0.45)).all()
    assert std.max() < 0.5


def test_far_from_the_data_only_the_offset_and_the_prior_spread_of_the_residual_remain():
    rows, _, y = sampled(1, 30)
    model = surrogate().fit(X[rows], y[rows])
    far = X[:1].copy()
    far[:, SHARES.shape[1] :] += 50.0
    mean, std = model.predict(far, return_std=True)
    np.testing.assert_allclose(mean, model.offset_ + far[:, : SHARES.shape[1]] @ model.beta_, atol=1e-9)
    assert std[0] > model.residual_std_


def test_it_never_predicts_worse_than_an_offset_in_the_median():
    ours, offset = [], []
    for seed in SEEDS:
        rows, rest, y = sampled(seed, 10)
        ours.append(np.median(np.abs(surrogate().fit(X[rows], y[rows]).predict(X[rest]) - y[rest])))
        offset.append(np.median(np.abs(np.median(y[rows]) - y[rest])))
    assert np.median(ours) < 0.85 * np.median(offset)


@pytest.mark.parametrize("n_rows", [5, 20, 60])
def test_eighty_percent_intervals_cover_about_eighty_percent(n_rows):
    covered = []
    for seed in SEEDS:
        rows, rest, y = sampled(seed, n_rows)
        mean, std = surrogate().fit(X[rows], y[rows]).predict(X[rest], return_std=True)
        covered.append((np.abs(mean - y[rest]) < 1.2816 * std).mean())
    assert 0.7 < np.mean(covered) < 0.92  # twelve clusters: a few percent either way


@pytest.mark.parametrize("factor", [100.0, 0.01])
def test_one_row_a_hundred_times_off_hardly_moves_the_rest(factor):
    rows, rest, y = sampled(3, 20)
    before, std = surrogate().fit(X[rows], y[rows]).predict(X[rest], return_std=True)
    y[rows[7]] += np.log(factor)
    after = surrogate().fit(X[rows], y[rows]).predict(X[rest])
    assert np.median(np.abs(after - before) / std) < 1.0


@pytest.mark.parametrize("y", [np.zeros(15), np.full(15, 0.3)], ids=["exact", "constant"])
def test_constant_and_repeated_rows_do_no_harm(y):
    model = surrogate().fit(np.repeat(X[:5], 3, axis=0), y)
    np.testing.assert_allclose(model.predict(X[:5]), y[:5], atol=0.02)  # the offset's prior pulls a little


def test_the_same_rows_give_the_same_answer_in_any_order():
    rows, rest, y = sampled(4, 30)
    one = surrogate().fit(X[rows], y[rows]).predict(X[rest])
    two = surrogate().fit(X[rows[::-1]], y[rows[::-1]]).predict(X[rest])
    np.testing.assert_allclose(one, two, atol=1e-9)


@pytest.mark.parametrize(
    ("above", "moved"), [(-3.0, (-0.01, 0.01)), (0.5, (0.05, 0.6))], ids=["known", "news"]
)
def test_a_lower_bound_moves_the_mean_only_if_it_is_news(above, moved):
    rows, rest, y = sampled(5, 15)
    plain = surrogate().fit(X[rows], y[rows]).predict(X[rest[:1]])
    bounded, bounds = np.append(rows, rest[0]), np.append(y[rows], plain + above)
    model = surrogate().fit(X[bounded], bounds, censored=np.arange(16) == 15)
    assert moved[0] < model.predict(X[rest[:1]])[0] - plain[0] < moved[1]


def test_believing_keeps_the_mean_and_shrinks_the_spread_there():
    rows, rest, y = sampled(6, 10)
    model = surrogate().fit(X[rows], y[rows])
    believing = model.believing(X[rest[:3]])
    np.testing.assert_allclose(believing.predict(X[rest]), model.predict(X[rest]), atol=1e-9)
    before, after = (each.predict(X[rest], return_std=True)[1] for each in (model, believing))
    assert (after <= before + 1e-9).all()
    assert (after[:3] < before[:3]).all()


def test_the_quick_spread_bounds_the_exact_one():
    rows, rest, y = sampled(7, 40)
    model = surrogate().fit(X[rows], y[rows])
    exact = np.sqrt(model.predict(X[rest], return_std=True)[1] ** 2 - model.noise_std_**2)
    assert (model.outer_std_at(SHARES[rest]) >= exact - 1e-9).mean() > 0.98


def test_options_survive_cloning():
    assert clone(surrogate(offset_std=0.1)).get_params()["offset_std"] == 0.1
