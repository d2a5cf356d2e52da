"""What runs as the same thing runs once: within a call, after one, and never on a guess."""

from dataclasses import dataclass, field, replace

import pytest

from objectives.outcome import Cause, Failed, Measured, OutcomeOrigin
from runners.once_each import OnceEach
from runners.protocol import EffectiveRunner, Executor, RunnerRecipe
from runners.torch_trial.runner import TorchRunner
from search_spaces.plan import Plan, Schedule
from tests.runners.jobs import llama_job, tiny_job
from tuner.study import check_runner

MEASURED = OutcomeOrigin.MEASURED
MACHINE = {"kind": "cpu", "n_ranks": 8, "host_bytes": 1e11}
BIG, ALIKE, OTHER = (
    Plan(tp=2, pp=4, dp=8, sequence_parallel=True),
    Plan(tp=2, pp=2, dp=16, sequence_parallel=True, micro_batch=1),
    Plan(tp=2, pp=4, dp=8, sequence_parallel=True, micro_batch=2),
)
WAITS = Plan(tp=2, pp=4, dp=8, sequence_parallel=True, vpp=2, schedule=Schedule.INTERLEAVED)
OVERLAPS = replace(WAITS, overlap_pp=True)  # which is what torch does anyhow


def proxies(n_ranks=4):
    """The built-in trainer's runner of a job that no one machine takes."""
    return TorchRunner(llama_job(), device="cpu", proxy=True), {**MACHINE, "n_ranks": n_ranks}


@dataclass
class Bench:
    """An executor that keeps what is submitted until it is told its outcome."""

    n_slots: int = 4
    running: list = field(default_factory=list)
    arrived: list = field(default_factory=list)

    def submit(self, ticket, plan):
        self.running.append((ticket, plan))

    def wait(self, timeout_s):
        arrived, self.arrived = self.arrived, []
        return arrived

    def close(self):
        self.running.clear()

    def end(self, ticket, runner, *, machine=MACHINE, step_s=1.0):
        (plan,) = [plan for number, plan in self.running if number == ticket]
        self.arrived.append((ticket, measured(runner, plan, machine, step_s)))


def measured(runner, plan, machine, step_s=1.0):
    effective = {"key": runner.effective_key(plan, machine), "machine": machine}
    return Measured(
        step_s=step_s, step_spread_s=0, peak_memory_bytes=1.0, origin=MEASURED, effective=effective
    )


class TestTheKeyOfWhatRuns:
    def test_is_shared_by_plans_with_the_same_twin_and_by_no_others(self):
        runner, machine = proxies()
        key, alike, other = (runner.effective_key(plan, machine) for plan in (BIG, ALIKE, OTHER))
        assert key == alike
        assert key != other

    def test_depends_on_the_machine_where_the_twin_does(self):
        runner, machine = proxies()
        assert runner.effective_key(BIG, machine) != runner.effective_key(BIG, {**machine, "n_ranks": 8})

    def test_leaves_out_a_knob_that_does_nothing(self):
        runner, machine = proxies()
        assert runner.effective_key(WAITS, machine) == runner.effective_key(OVERLAPS, machine) is not None

    @pytest.mark.parametrize("plan", [Plan(dp=3), Plan(dp=2, zero=1, offload_optimizer=True)])
    def test_is_none_for_a_plan_that_does_not_run(self, plan):
        assert TorchRunner(tiny_job(), device="cpu").effective_key(plan, MACHINE) is None

    def test_is_none_for_a_plan_that_is_too_large(self):
        assert TorchRunner(llama_job(), device="cuda").effective_key(BIG, MACHINE) is None

    def test_is_known_of_the_torch_runner_without_torch(self):
        recipe = RunnerRecipe(kind="torch", job=tiny_job(), options={})
        check_runner(recipe)
        assert isinstance(recipe.build(), EffectiveRunner)


@pytest.fixture
def wrapped():
    runner, machine = proxies()
    bench = Bench()
    return OnceEach(bench, runner), bench, runner, machine


class TestThePlanThatRunsAsAnother:
    def test_is_answered_at_once_when_the_other_is_over(self, wrapped):
        once, bench, runner, machine = wrapped
        once.submit(0, BIG)
        bench.end(0, runner, machine=machine, step_s=3.0)
        once.wait(0)
        once.submit(1, ALIKE)
        ((ticket, outcome),) = once.wait(0)
        assert (ticket, outcome.step_s, outcome.effective["taken_over"]) == (1, 3.0, True)
        assert len(bench.running) == 1

    def test_waits_for_the_other_that_runs(self, wrapped):
        once, bench, runner, machine = wrapped
        once.submit(0, WAITS)
        once.submit(1, OVERLAPS)
        assert [ticket for ticket, _ in bench.running] == [0]
        bench.end(0, runner, machine=machine)
        assert [ticket for ticket, _ in once.wait(0)] == [0, 1]

    def test_runs_after_all_if_the_machine_lost_the_other(self, wrapped):
        once, bench, _, _ = wrapped
        once.submit(0, WAITS)
        once.submit(1, OVERLAPS)
        bench.arrived.append((0, Failed(cause=Cause.LOST_MACHINE, message="gone", origin=MEASURED)))
        assert [ticket for ticket, _ in once.wait(0)] == [0]
        assert [ticket for ticket, _ in bench.running] == [0, 1]

    def test_is_answered_from_what_the_study_knows(self, wrapped):
        _, bench, runner, machine = wrapped
        once = OnceEach(bench, runner, known=[measured(runner, BIG, machine)])
        once.submit(7, ALIKE)
        assert [ticket for ticket, _ in once.wait(0)] == [7]
        assert bench.running == []

    def test_another_machine_s_outcome_is_not_its_own(self, wrapped):
        once, bench, runner, machine = wrapped
        known = measured(runner, BIG, machine)
        odd = replace(known, effective={**known.effective, "machine": {**machine, "n_ranks": 2}})
        once = OnceEach(bench, runner, known=[odd])
        once.submit(0, BIG)
        assert [ticket for ticket, _ in bench.running] == [0]


def test_it_is_an_executor(wrapped):
    once: Executor = wrapped[0]
    assert once.n_slots == 4
    once.submit(0, BIG)
    once.close()
    assert wrapped[1].running == []
