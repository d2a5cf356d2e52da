"""Explanations: Shapley values against the definition and the shap package, steps, rivals, edges."""

import json
from dataclasses import replace
from itertools import permutations

import jsonschema
import numpy as np
import pytest

from objectives.cost.step import estimate
from objectives.uncertainty import with_constant
from search_spaces.plan import KNOB_NAMES, Plans
from tests.tuner import schemas, studies
from tests.tuner.cli import complaint, meshtune
from tuner import study as study_module
from tuner.features import knob_columns, knob_features
from tuner.insight.beliefs import stored_posterior
from tuner.insight.shapley import MOST_EXACT, _sampled, contributions, local_game, shapley
from tuner.insight.study import explain
from tuner.surrogate import LogRatioSurrogate
from tuner.view import load_study

NUMBERS = np.random.default_rng(0)
KNOBS = {"tp": [0], "pp": [1, 2], "zero": [3]}


def fitted(n=12):
    shares = NUMBERS.dirichlet(np.ones(2), n)
    X = np.hstack([shares, NUMBERS.integers(0, 3, (n, 4)).astype(float)])
    y = 0.3 * shares[:, 0] + 0.05 * X[:, 2] * X[:, 5] + 0.01 * NUMBERS.standard_normal(n)
    return LogRatioSurrogate(n_shares=2).fit(X, y), X


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Storage of a finished study of 12 trials."""
    storage = studies.storage_url(tmp_path_factory.mktemp("insight"), "sqlite")
    study_module.tune(studies.config(storage, study={"sampler": "meshtune"}, budget={"trials": 12}))
    return storage


def explained(tmp_path, n_trials, **changes):
    storage = studies.storage_url(tmp_path, "sqlite")
    study_module.tune(studies.config(storage, budget={"trials": n_trials}, **changes))
    return explain(studies.NAME, storage)


def by_orders(game, n):
    """Shapley values from their first definition: the mean over all orders of joining."""
    total = np.zeros(n)
    for order in permutations(range(n)):
        members = np.zeros((n + 1, n), dtype=bool)
        for place, player in enumerate(order):
            members[place + 1 :, player] = True
        total[list(order)] += np.diff(game(members))
    return total / len(list(permutations(range(n))))


def test_exact_values_are_the_mean_over_all_orders():
    model, X = fitted()
    game = local_game(model, X[3, 2:], X[:, 2:], list(KNOBS.values()))
    np.testing.assert_allclose(shapley(game, 3), by_orders(game, 3), atol=1e-12)


def test_values_add_up_to_what_the_plan_differs_by():
    model, X = fitted()
    values = contributions(model, X[3], X, shares=("a", "b"), knobs=KNOBS)
    difference = model.predict(X[[3]])[0] - model.predict(X).mean()
    assert sum(values.values()) == pytest.approx(difference, abs=1e-12)


def test_sampled_values_are_near_the_exact_ones():
    n = MOST_EXACT
    weights = NUMBERS.standard_normal((n, n))

    def game(members):
        return np.einsum("ci,ij,cj->c", members * 1.0, weights, members * 1.0)

    exact = shapley(game, n)
    sampled = _sampled(game, n, np.random.default_rng(1))
    assert sampled.sum() == pytest.approx(exact.sum())
    np.testing.assert_allclose(sampled, exact, atol=1e-9)  # orders and their reverses: exact for pairs


def test_the_shap_package_finds_the_same_values():
    shap = pytest.importorskip("shap", reason="an oracle of this test only")
    model, X = fitted()
    local = lambda rows: model.predict(np.hstack([np.tile(X[3, :2], (len(rows), 1)), rows]))  # noqa: E731
    explainer = shap.explainers.Exact(local, shap.maskers.Independent(X[:, 2:], max_samples=len(X)))
    single = {str(column): [column] for column in range(4)}
    ours = contributions(model, X[3], np.hstack([np.tile(X[3, :2], (len(X), 1)), X[:, 2:]]),
                         shares=("a", "b"), knobs=single)  # fmt: skip
    theirs = explainer(X[[3], 2:]).values[0]
    assert [ours.get(name, 0.0) for name in single] == pytest.approx(theirs.tolist(), abs=1e-9)


def test_every_column_of_the_features_belongs_to_one_knob(tried):
    columns = sorted(column for group in knob_columns().values() for column in group)
    plans = stored_posterior(studies.NAME, tried).table.candidates.plans
    features = knob_features(plans)
    assert columns == list(range(features.shape[1]))
    assert knob_columns().keys() == set(KNOB_NAMES)
    tp = features[:, knob_columns()["tp"][0]]
    np.testing.assert_allclose(tp, np.log2(plans.tp))


def test_steps_are_legal_one_knob_away_and_know_what_was_tried(tried):
    insight = explain(studies.NAME, tried)
    trials = {trial.plan.key: trial.number for trial in load_study(studies.NAME, tried).finished}
    legal = [step for step in insight.steps if step.plan]
    assert {"tp", "pp", "micro_batch"} <= {step.knob for step in insight.steps}
    assert all(step.why_not for step in insight.steps if not step.plan)
    for step in legal:
        moved = {name for name in ("tp", "pp", "micro_batch", "zero", "overlap_dp")
                 if getattr(step.plan, name) != getattr(insight.best, name)}  # fmt: skip
        assert moved <= {step.knob} | {words.split()[0] for words in step.moved}
        assert step.trial == trials.get(step.plan.key)
        assert step.spread >= 0
        assert 0 <= step.fits <= 1


def test_a_measured_step_is_expected_near_what_was_measured(tried):
    insight, view = explain(studies.NAME, tried), load_study(studies.NAME, tried)
    seconds = {trial.number: trial.outcome.step_s for trial in view.measured}
    known = [step for step in insight.steps if step.trial is not None and step.trial in seconds]
    assert known
    for step in known:
        true = np.log(seconds[step.trial] / seconds[insight.best_trial])
        assert abs(step.change - true) < 4 * step.spread + 0.02


def test_rivals_come_likeliest_first_and_those_measured_are_certain(tried):
    insight = explain(studies.NAME, tried)
    chances = [rival.overtakes for rival in insight.rivals]
    assert chances == sorted(chances, reverse=True)
    assert insight.best.key not in {rival.plan.key for rival in insight.rivals}
    assert all(rival.overtakes == 0.0 for rival in insight.rivals if rival.trial is not None)


def test_a_turned_constant_really_puts_the_other_plan_first(tried):
    insight, posterior = explain(studies.NAME, tried), stored_posterior(studies.NAME, tried)
    keys, job = posterior.table.candidates.plans.keys(), load_study(studies.NAME, tried).inputs.job
    for turn in insight.turns:
        plans = Plans.of([insight.best, turn.plan])
        rows = [keys.index(insight.best.key), keys.index(turn.plan.key)]
        taught = posterior.every.mean[rows, 0] - np.log(estimate(job, plans).step_s)
        other = with_constant(job, turn.name, replace(turn.constant, value=turn.constant.value * turn.factor))
        now, then = (np.log(estimate(each, plans).step_s) + taught for each in (job, other))
        assert now[0] <= now[1]
        assert then[1] < then[0]


def test_corrections_say_what_the_trials_settled(tried):
    insight = explain(studies.NAME, tried)
    by_part = {each.part: each for each in insight.corrections["time"]}
    assert by_part["compute_s"].settled > 0.5
    assert all(each.factor > 0 and each.spread > 0 for each in by_part.values())


@pytest.mark.parametrize("n_trials", [1, 2])
def test_a_young_study_is_explained_as_far_as_it_goes(n_trials, tmp_path):
    insight = explained(tmp_path, n_trials)
    assert insight.best is not None
    assert all(each.skipped for each in insight.importance)
    assert insight.rivals
    assert insight.worth.n_trials == n_trials


def test_a_study_of_failures_says_that_nothing_was_measured(tmp_path):
    insight = explained(tmp_path, 3, runner={"options": {"crash_probability": 1.0}})
    assert (insight.best, insight.n_failed) == (None, 3)
    assert insight.missing == "no plan has been measured yet"
    assert insight.steps == insight.rivals == ()


def test_a_study_without_trials_says_so_too(tmp_path):
    storage = studies.storage_url(tmp_path, "sqlite")
    studies.open_book(storage)
    assert explain(studies.NAME, storage).missing == "no plan has been measured yet"


def test_trials_all_alike_have_no_importance_and_no_rival(tmp_path):
    one = {name: values[:1] for name, values in studies.SPACE.items()}
    insight = explained(tmp_path, 3, space=one)
    assert insight.n_measured == 1
    assert insight.rivals == insight.turns == ()
    assert insight.shap == {}


@pytest.mark.parametrize("metric", [["peak_memory"], ["step_time", "peak_memory"]], ids=" ".join)
def test_other_objectives_are_explained_by_their_first_metric(metric, tmp_path):
    insight = explained(tmp_path, 8, objective={"metric": metric})
    assert insight.quantity == ("memory" if metric[0] == "peak_memory" else "time")
    assert insight.rivals
    assert insight.worth is not None


def test_explain_prints_the_documented_form(tried):
    answer = meshtune("explain", studies.NAME, "--storage", tried, "--json")
    assert answer.code == 0, answer.err
    jsonschema.validate(answer.document, schemas.EXPLAIN)
    assert json.dumps(answer.document, allow_nan=False)


def test_explain_tells_a_person_and_the_report_has_it_too(tried, tmp_path):
    text = meshtune("explain", studies.NAME, "--storage", tried, columns=140).out
    assert "nearest rivals" in text
    assert "one step from the best plan" in text
    page = tmp_path / "page.html"
    assert meshtune("report", studies.NAME, "--storage", tried, "--html", page).code == 0
    assert "Nearest rivals" in page.read_text()


def test_an_unknown_study_is_answered_with_the_nearest(tried):
    assert f"did you mean '{studies.NAME}'?" in complaint("explain", "stduy", "--storage", tried)
