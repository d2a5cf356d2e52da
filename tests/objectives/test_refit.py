"""Constants fitted anew, intervals and ablations, on few rows with known answers."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.ablation import (
    Judge,
    constant_effects,
    formula_effects,
    memory_accuracies,
    part_effects,
    replaced,
)
from benchmarks.fit_constants import Intervals, priors_of
from benchmarks.fitting import fit, prior
from benchmarks.rows import Key, Rows, thinned, trusted_runs
from objectives.cost import pipeline
from objectives.uncertainty import (
    FORMULA_SPREAD,
    PART_SPREADS,
    constants,
    formula_spread,
    with_constant,
    with_constants,
)
from search_spaces.cluster import Origin

SOURCES = ("korthikanti", "zero-bubble", "simumax-b200", "moe-modelzoo")
LAUNCH = Key("a100-80", "device.kernel_launch_s")
RATE = Key("a100-80", "device.sustained_efficiency")


@pytest.fixture(scope="module")
def rows():
    return Rows(run for run in trusted_runs() if run.labels["source"] in SOURCES)


def measured_as(rows, step_s):
    """The same rows with other measured seconds."""
    return Rows(replace(run, step_s=float(s)) for run, s in zip(rows.runs, step_s, strict=True))


def test_several_constants_change_as_one_after_the_other(rows):
    job = rows.runs[0].job
    changed = {
        name: replace(constant, value=constant.value * 0.9)
        for name, constant in constants(job).items()
        if name != "memory_reserve_bytes"
    }
    one_by_one = job
    for name, constant in changed.items():
        one_by_one = with_constant(one_by_one, name, constant)
    assert constants(with_constants(job, changed)) == constants(one_by_one)


def test_a_constant_moves_its_owners_rows_only(rows):
    before, after = rows.step_s({}), rows.step_s({RATE: 0.5})
    is_a100 = np.array([run.labels["accelerator"] == "A100-80" for run in rows.runs])
    assert np.all(after[is_a100] > before[is_a100])
    np.testing.assert_array_equal(after[~is_a100], before[~is_a100])
    np.testing.assert_array_equal(rows.step_s({RATE: 0.5}, only=RATE, start_s=before), after)


def test_a_fit_finds_the_constant_that_made_the_rows(rows):
    made = measured_as(rows, rows.step_s({RATE: 0.7}))
    made.measured_s[0] *= 5  # one row is wrong
    found = fit(made, {RATE: prior(RATE.place, 0.9, 0.3)})
    assert found.values[RATE] == pytest.approx(0.7, rel=0.02)
    assert 0 < found.spread[RATE] < 1


def test_a_constant_that_no_row_shows_stays_at_its_prior(rows):
    few = Rows(run for run in rows.runs if run.labels["source"] == "simumax-b200")
    shown, hidden = Key("b200", RATE.place), Key("h100-80", RATE.place)
    found = fit(few, {shown: prior(RATE.place, 0.9, 0.1), hidden: prior(RATE.place, 0.9, 0.1)}, most_steps=2)
    assert set(found.values) == {shown}


@pytest.mark.parametrize("place", ["device.memory_efficiency", "fabric.latency_s", "trainer.dp_overlap"])
def test_a_prior_knows_where_a_value_lies(place):
    belief = prior(place, 0.5, 0.3)
    assert belief.value(belief.position(0.4)) == pytest.approx(0.4)
    assert belief.value(0.0) == 0.5


def test_every_fitted_constant_has_a_prior(rows):
    assert set(priors_of(rows)) == set(rows.keys(Origin.FITTED))


def test_few_rows_of_a_source_are_kept_in_order(rows):
    kept = thinned(rows.runs, 5)
    assert [run.id for run in kept] == [run.id for run in rows.runs if run in kept]
    assert max(sum(run.labels["source"] == name for run in kept) for name in SOURCES) == 5


def test_an_interval_widens_with_the_parts_that_are_hard_to_foresee(rows):
    for _, priced in rows.estimates():
        spread = formula_spread(priced)
        assert np.all(spread >= FORMULA_SPREAD)
        shares = sum(getattr(priced.time, part) for part in PART_SPREADS) if PART_SPREADS else 0.0
        assert np.all((spread > FORMULA_SPREAD) == (shares > np.zeros_like(spread)))


def test_fitted_intervals_hold_as_often_as_they_say(rows):
    errors = np.random.default_rng(0).normal(0.0, 0.2, len(rows))
    intervals = Intervals(rows, errors)
    intervals.constants[:] = 0.0
    assert intervals.coverage(intervals.fitted())["all"] == pytest.approx(0.8, abs=0.08)


def test_a_perfect_prediction_makes_no_error_and_the_best_choice(rows):
    figures = Judge(rows).figures(rows.measured_s)
    assert (figures.error, figures.rescaled, figures.order, figures.regret) == (0.0, 0.0, 1.0, 0.0)


def test_every_effect_can_be_switched_off(rows):
    effects = [*constant_effects(rows), *part_effects(rows), *formula_effects(rows)]
    for words, predict in effects:
        step_s = predict()
        assert np.all(np.isfinite(step_s) & (step_s > 0)), words
    assert len({words for words, _ in effects}) == len(effects)


def test_a_replaced_formula_comes_back():
    before = pipeline.bubble_s
    with pytest.raises(ZeroDivisionError), replaced(pipeline, "bubble_s", lambda _: 1 / 0):
        pipeline.bubble_s()
    assert pipeline.bubble_s is before


def test_flat_collectives_are_never_faster(rows):
    flat = dict(formula_effects(rows))["hierarchy of collectives (flat instead)"]()
    assert np.all(flat >= rows.step_s({}) * (1 - 1e-9))


def test_a_memory_habit_taken_away_moves_its_trainers_rows_alone(rows):
    whole, off = memory_accuracies(rows.runs), memory_accuracies(rows.runs, "layer_gradient_bytes")
    assert set(whole) == {"simumax-b200", "zero-bubble"}
    assert off["simumax-b200"].memory_median_ape > whole["simumax-b200"].memory_median_ape
    assert memory_accuracies(rows.runs, "whole_sequences") == whole


def test_whole_sequences_are_taken_from_the_trainer_that_has_them():
    sources = ("playbook",)
    runs = [run for run in trusted_runs() if run.labels["source"] in sources and run.plan.tp > 1][::40]
    whole, off = memory_accuracies(runs), memory_accuracies(runs, "whole_sequences")
    assert off["playbook"].memory_median_ape != whole["playbook"].memory_median_ape
