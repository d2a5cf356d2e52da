"""What every runner owes: an answer for every plan, in order, the same every time, and nothing raised."""

import json
import sys

import numpy as np
import pytest

from objectives.outcome import Cause, Failed, Measured, OutcomeOrigin, outcome_from_dict, outcome_to_dict
from runners.protocol import RUNNERS, RunnerRecipe
from search_spaces.errors import UnknownName
from search_spaces.plan import Plan, Plans
from tests.runners import fake_trainer
from tests.runners.jobs import PLANS, WRONG_WORLD, llama_job, tiny_job, write_recording

# Trials on real processes: its own class below.
REAL = {"torch"}


@pytest.fixture(params=[name for name in RUNNERS if name not in REAL])
def recipe(request, tmp_path):
    """A recipe for each row of the table."""
    kind = request.param
    return RunnerRecipe(kind=kind, job=llama_job(), options=options_of(kind, tmp_path))


def options_of(kind, folder):
    """Options that a runner cannot do without."""
    if kind == "replay":
        return {"path": write_recording(folder)}
    trainer = [sys.executable, fake_trainer.__file__, "measured", "{n_steps}"]
    return {"command": trainer, "reader": "json-lines", "n_steps": 8} if kind == "command" else {}


@pytest.fixture
def runner(recipe):
    return recipe.build()


class TestEveryRunner:
    def test_answers_every_plan_in_order(self, runner):
        together = runner.run(PLANS)
        alone = [runner.run(PLANS.take(slice(i, i + 1)))[0] for i in range(len(PLANS))]
        assert len(together) == len(PLANS)
        assert list(together) == alone

    def test_answers_in_another_order_with_the_same_outcomes(self, runner):
        backwards = runner.run(PLANS.take(np.arange(len(PLANS))[::-1]))
        assert list(backwards)[::-1] == list(runner.run(PLANS))

    def test_another_of_the_same_recipe_gives_the_same_outcomes(self, recipe, runner):
        assert list(recipe.build().run(PLANS)) == list(runner.run(PLANS))

    def test_no_plan_needs_no_answer(self, runner):
        assert list(runner.run(Plans.of([]))) == []

    def test_a_plan_for_another_cluster_is_invalid_and_nothing_is_raised(self, runner):
        (outcome,) = runner.run(Plans.of([WRONG_WORLD]))
        assert isinstance(outcome, Failed)
        assert outcome.cause is Cause.INVALID
        assert outcome.message

    def test_measures_at_least_one_of_the_plans(self, runner):
        assert any(isinstance(outcome, Measured) for outcome in runner.run(PLANS))

    def test_knows_its_origin_before_it_is_built(self, recipe, runner):
        assert recipe.origin is runner.origin
        assert {outcome.origin for outcome in runner.run(PLANS)} == {OutcomeOrigin(runner.origin)}

    def test_outcomes_survive_json(self, runner):
        for outcome in runner.run(PLANS):
            assert outcome_from_dict(json.loads(json.dumps(outcome_to_dict(outcome)))) == outcome


REAL_PLANS = Plans.of(
    [Plan(dp=2), WRONG_WORLD, Plan(tp=2, offload_optimizer=True), Plan(pp=2, micro_batch=4)]
)


@pytest.fixture(scope="module", params=sorted(REAL))
def real(request):
    """A recipe for each row of the table whose trials are real."""
    options = {"n_steps": 1, "n_warmup": 0, "device": "cpu"}
    return RunnerRecipe(kind=request.param, job=tiny_job(), options=options)


@pytest.fixture(scope="module")
def outcomes(real):
    return list(real.build().run(REAL_PLANS))


@pytest.mark.torch
class TestEveryRealRunner:
    """What can be asked of trials whose seconds differ each time."""

    def test_answers_every_plan_in_order(self, outcomes):
        kinds = [getattr(outcome, "cause", None) for outcome in outcomes]
        assert kinds == [None, Cause.INVALID, Cause.INVALID, None]

    def test_says_what_it_ran(self, outcomes):
        plans = [outcome.effective.get("plan") for outcome in outcomes if isinstance(outcome, Measured)]
        assert plans == [REAL_PLANS.row(0).key, REAL_PLANS.row(3).key]

    def test_no_plan_needs_no_answer(self, real):
        assert list(real.build().run(Plans.of([]))) == []

    def test_knows_its_origin_before_it_is_built(self, real, outcomes):
        assert {outcome.origin for outcome in outcomes} == {real.origin} == {OutcomeOrigin.MEASURED}

    def test_outcomes_survive_json(self, outcomes):
        for outcome in outcomes:
            assert outcome_from_dict(json.loads(json.dumps(outcome_to_dict(outcome)))) == outcome


def test_an_unknown_runner_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match="did you mean 'simulated'"):
        RunnerRecipe(kind="simulate", job=llama_job()).build()
