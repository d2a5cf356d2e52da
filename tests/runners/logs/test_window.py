"""Which steps count: warm-up left out by rule, stretches between disturbances, too few steps refused."""

import pytest

from runners.logs.facts import Disturbance
from runners.logs.window import TimedStep, coarse_joined, window_of

SKIPPED = frozenset({Disturbance.SKIPPED})


def steps(*seconds, disturbed=(), n_steps=1):
    return [
        TimedStep(
            step=n_steps * (i + 1),
            n_steps=n_steps,
            step_s=step_s,
            disturbed_by=SKIPPED if i in disturbed else frozenset(),
        )
        for i, step_s in enumerate(seconds)
    ]


def test_the_first_two_steps_are_warm_up():
    window = window_of(steps(90, 9, 11, 12, 13, 14, 15))
    assert (window.first, window.last, window.step_s) == (3, 7, 13)
    assert window.spread_s == pytest.approx(2.5**0.5)  # of five numbers in a row


def test_a_line_of_many_steps_is_warm_up_as_a_whole():
    window = window_of(steps(90, 1, 1, 1, n_steps=10))
    assert (window.first, window.last, window.n_steps, window.n_lines) == (11, 40, 30, 3)


@pytest.mark.parametrize("n", [3, 6])
def test_too_few_steps_have_no_window(n):
    assert window_of(steps(*[1.0] * n)) is None


def test_two_lines_have_no_window_however_many_steps_they_cover():
    assert window_of(steps(1, 1, 1, n_steps=100)) is None


def test_a_disturbed_step_ends_a_stretch_and_the_longest_counts():
    seconds = [*[5.0] * 8, 50.0, *[3.0] * 9]
    window = window_of(steps(*seconds, disturbed={8}))
    assert (window.first, window.last, window.step_s) == (12, 18, 3.0)


def test_what_comes_after_a_disturbance_warms_up_again():
    assert window_of(steps(*[1.0] * 12, disturbed={5})) is None


def test_a_spike_is_named_and_left_out_of_the_spread():
    window = window_of(steps(1, 1, 1, 1, 1, 1, 9))
    assert (window.step_s, window.spread_s, window.spikes) == (1, 0, (7,))


def test_a_clock_of_whole_seconds_is_read_over_many_ticks():
    joined = coarse_joined(steps(*[2, 1] * 20), tick_s=1.0)
    assert [each.step_s for each in joined] == pytest.approx([1.5, 1.5], rel=0.06)
    assert sum(each.n_steps for each in joined) == 27
