"""The second opinion on a ranking: which plans get one, what it orders, what it costs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from objectives.simulator.step import simulate_step
from search_spaces.space import SpaceSpec
from tests.objectives.jobs import job_of
from tests.tuner.cli import JOB, NARROW, meshtune
from tuner import api
from tuner.report.rescored import simulated_lines, why
from tuner.rescore import MOST_CLOSE, PLAN_S, close_to_best, rescored, simulated_s, within_budget

ROOT = Path(__file__).parents[2]
SPACE = SpaceSpec.of({
    "tp": [4, 8], "pp": [2, 4, 8], "cp": [1], "vpp": [1, 2, 5], "micro_batch": [1, 2], "zero": [1],
    "schedule": ["1f1b", "interleaved"], "recompute": ["none"], "recompute_every": [1], "first_layers": [0],
    "last_layers": [0], "offload_optimizer": [False], "rank_order": ["tp-cp-dp-pp"],
})  # fmt: skip


@pytest.fixture(scope="module")
def job():
    return job_of("llama-3-70b", "dgx-h100", 64, global_batch=64)


@pytest.fixture(scope="module")
def plain(job):
    return api.rank(job, SPACE, keep=MOST_CLOSE)


@pytest.fixture(scope="module")
def again(job):
    return api.rank(job, SPACE, keep=MOST_CLOSE, simulate=True)


def test_without_asking_there_is_no_second_opinion(plain):
    assert plain.second is None


def test_the_same_plans_come_in_the_engine_s_order_and_then_in_the_closed_form_s(plain, again):
    assert set(again.candidates.plans.keys()) == set(plain.candidates.plans.keys())
    n = again.second.n_simulated
    assert n > 1
    assert np.all(np.diff(again.second.step_s[:n]) >= 0)
    assert np.all(np.isnan(again.second.step_s[n:]))
    assert np.all(np.diff(again.candidates.estimate.step_s[n:]) >= 0)


def test_what_was_simulated_is_what_simulate_says(job, again):
    for row in range(again.second.n_simulated):
        step = simulate_step(job, again.candidates.plans.row(row))
        assert again.second.step_s[row] == pytest.approx(step.step_s, rel=1e-12)


def test_a_difference_has_a_reason(again):
    closed_s = again.candidates.estimate.step_s
    for i in range(again.second.n_simulated):
        differs = abs(again.second.step_s[i] / closed_s[i] - 1) > 1e-3
        assert bool(again.second.reasons[i]) == differs


def test_only_plans_within_the_error_of_the_forms_are_close(job, plain):
    candidates = plain.candidates
    is_close = close_to_best(job, candidates)
    assert is_close[0]
    assert 1 < is_close.sum() < len(is_close)
    flat = replace(candidates, plans=replace(candidates.plans, pp=np.ones_like(candidates.plans.pp)))
    step_s = candidates.estimate.step_s
    # Without a pipeline the two opinions are one: only what ties with the best is close.
    assert np.array_equal(close_to_best(job, flat), step_s <= step_s.min())


@pytest.mark.parametrize(
    "case",
    [
        dict(model="gpt2", cluster="dgx-a100", n_devices=16, global_batch=64, seq_len=1024),
        dict(model="llama-3-8b", cluster="dgx-h100", n_devices=32, global_batch=64),
    ],
    ids=lambda case: case["model"],
)
def test_the_engine_s_best_plan_is_among_the_close_ones(case):
    job = job_of(**case)
    space = SpaceSpec.of({"pp": [4], "zero": [1], "cp": [1], "recompute": ["none"], "recompute_every": [1]})
    ranking = api.rank(job, space, keep=150)
    step_s = [simulated_s(job, plan) for plan in ranking.candidates.plans]
    best = int(np.argmin(step_s))
    assert close_to_best(job, ranking.candidates)[best]
    assert rescored(job, ranking, budget_s=60).second.step_s[0] == pytest.approx(step_s[best])


@pytest.mark.parametrize("budget_s", [0.0, 0.5, 2.0])
def test_a_budget_bounds_how_many_are_simulated(budget_s, job, plain):
    rows = within_budget(job, plain.candidates, np.ones(len(plain.candidates), bool), budget_s)
    assert rows == list(range(len(rows)))
    assert 1 <= len(rows) <= max(1, budget_s / PLAN_S)
    assert budget_s == 0 or len(rows) > 5


def test_a_cut_list_says_so(job, plain):
    cut = rescored(job, plain, budget_s=0.0)
    assert (cut.second.n_simulated, cut.second.n_close > 1) == (1, True)
    assert simulated_lines(cut, 3)[0][1].startswith("1 of the ")


def test_reasons_are_listed_with_the_plans_they_hold_for(again):
    second = replace(again.second, reasons=(("a", "b"), ("a",), (), ("a",), ("c",)))
    assert why(second, 4) == [("a", [1, 2, 4]), ("b", [1])]
    assert ("they differ", "a (1-2, 4)") in simulated_lines(replace(again, second=second), 4)


def test_peak_memory_asks_for_no_second_opinion(job):
    space = SpaceSpec.of({"tp": [4], "pp": [2]})
    assert api.rank(job, space, metric="peak_memory", simulate=True).second is None


def test_rank_shows_both_opinions():
    answer = meshtune("rank", *JOB, *NARROW)
    assert "simulated  differs" in answer.out
    assert "that the engine could put first" in " ".join(answer.out.split())
    assert answer.err.startswith("simulated ")
    assert max(map(len, answer.out.splitlines())) <= 100


def test_no_simulate_turns_it_off():
    answer = meshtune("rank", *JOB, *NARROW, "--no-simulate")
    assert "simulated" not in answer.out + answer.err
    document = meshtune("rank", *JOB, *NARROW, "--no-simulate", "--json").document
    assert document["second_opinion"] is None
    assert [row["simulated"] for row in document["best"]] == [None] * len(document["best"])


def test_no_simulate_loads_no_compiler():
    code = (
        "import sys; from tuner.cli import run; code = run(sys.argv[1:]);"
        " sys.exit(code or 'numba' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "rank", *JOB, *NARROW, "--no-simulate"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr
