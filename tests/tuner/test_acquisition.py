"""Improvements and probabilities against their definitions, and far into the tails."""

import numpy as np
import pytest
from scipy import integrate, stats

from tuner.acquisition import (
    N_DRAWS,
    chebyshev,
    log_expected_improvement,
    log_h,
    log_probability_below,
    log_sampled_improvement,
    normal_draws,
    simplex_weights,
)


@pytest.mark.parametrize(("mean", "std", "best"), [(1.0, 0.2, 1.0), (0.7, 0.3, 1.0), (2.0, 0.5, 1.0)])
def test_expected_improvement_is_its_integral(mean, std, best):
    density = stats.norm(mean, std).pdf
    exact, _ = integrate.quad(lambda y: (best - y) * density(y), mean - 12 * std, best, epsabs=1e-14)
    log_ei = log_expected_improvement(np.array([mean]), np.array([std]), best)
    np.testing.assert_allclose(np.exp(log_ei), exact, rtol=1e-7)  # the integral's own error


def test_log_h_keeps_its_order_where_the_plain_form_is_zero():
    z = -np.logspace(0, 7, 400)
    assert np.isfinite(log_h(z)).all()
    assert (np.diff(log_h(z)) < 0).all()


@pytest.mark.parametrize("z", [-40.0, -1e3, -0.9e5, -1.1e5, -1e6])
def test_log_h_follows_its_expansion_in_the_tail(z):
    # Mills: φ(z) + zΦ(z) = φ(z) / z² (1 - 3/z² + ...)
    expansion = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) - 2 * np.log(-z) + np.log1p(-3 / z**2)
    np.testing.assert_allclose(log_h(np.array([z])), expansion, rtol=1e-8)


def test_expected_improvement_grows_with_the_spread_and_falls_with_the_mean():
    means, stds = np.linspace(0, 3, 50), np.linspace(0.01, 2, 50)
    assert (np.diff(log_expected_improvement(means, np.full(50, 0.3), 1.0)) < 0).all()
    assert (np.diff(log_expected_improvement(np.full(50, 1.5), stds, 1.0)) > 0).all()


def test_probability_below_is_the_normal_distribution():
    mean = np.array([0.0, 1.0, 5.0])
    logs = log_probability_below(mean, np.full(3, 0.5), 1.0)
    np.testing.assert_allclose(logs, stats.norm(mean, 0.5).logcdf(1.0))


def test_draws_have_the_moments_of_a_normal():
    draws = normal_draws(2, np.random.default_rng(0))
    assert draws.shape == (N_DRAWS, 2)
    np.testing.assert_allclose(draws.mean(axis=0), 0.0, atol=1e-12)  # strata are symmetric
    np.testing.assert_allclose(draws.std(axis=0), 1.0, atol=0.03)  # 64 strata cut the tails


def test_sampled_improvement_agrees_with_the_closed_form():
    mean, std = np.array([0.8, 1.0, 1.3]), np.array([0.2, 0.4, 0.3])
    draws = mean + std * normal_draws(1, np.random.default_rng(0))
    closed = log_expected_improvement(mean, std, 1.0)
    np.testing.assert_allclose(log_sampled_improvement(draws, 1.0), closed, atol=0.1)  # 64 draws


def test_rows_that_cannot_improve_are_ordered_below_those_that_can():
    draws = np.array([[0.9, 1.5, 3.0]])
    logs = log_sampled_improvement(draws, 1.0)
    assert logs[0] > logs[1] > logs[2]


@pytest.mark.parametrize("n_objectives", [2, 3])
def test_every_corner_of_a_front_wins_for_some_weights(n_objectives):
    rng = np.random.default_rng(0)
    front = 1.0 - np.eye(n_objectives) * 0.9
    unit = dict(ideal=np.zeros(n_objectives), extent=np.ones(n_objectives))
    winners = {
        int(np.argmin(chebyshev(front, simplex_weights(n_objectives, rng), **unit))) for _ in range(100)
    }
    assert winners == set(range(n_objectives))


def test_a_beaten_point_never_wins():
    rng, points = np.random.default_rng(0), np.array([[0.2, 0.4], [0.3, 0.4]])
    values = [
        chebyshev(points, simplex_weights(2, rng), ideal=np.zeros(2), extent=np.ones(2)) for _ in range(100)
    ]
    assert all(first < second for first, second in values)
