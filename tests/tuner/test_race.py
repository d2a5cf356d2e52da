"""The race: a tiny one of every kind of arena and engine, its results kept and printed again."""

import numpy as np
import pytest

from benchmarks.race import Task, arguments, main, run
from benchmarks.race_arenas import HIDDEN_JOBS, hidden_cases, replay_cases
from benchmarks.race_engines import ENGINES
from benchmarks.race_feasibility import after_trials
from benchmarks.race_table import Search, first_within, quantile, read, report, write
from objectives.outcome import Failed, Measured

FAST = ("meshtune", "best_first", "random")


@pytest.fixture(scope="module")
def hidden():
    return next(iter(hidden_cases(HIDDEN_JOBS[0], [3], 24)))


@pytest.fixture(scope="module")
def searches():
    given = arguments(["--quick", "--rows", "24", "--engines", ",".join(FAST)])
    return run(Task(arena="hidden", machines=(3,)), given)


def test_every_engine_searches_the_same_table(searches):
    assert {each.engine for each in searches} == set(FAST)
    assert len({(each.case, each.seed, each.n_plans) for each in searches}) == 1
    for each in searches:
        assert 1 <= each.n_trials <= each.n_plans
        assert each.within_5 <= each.within_2 <= each.within_1 <= each.n_trials
        assert each.regret_5 >= each.regret_40 >= 0


def test_the_same_seed_makes_the_same_race(searches):
    given = arguments(["--quick", "--rows", "24", "--engines", ",".join(FAST)])
    again = run(Task(arena="hidden", machines=(3,)), given)
    assert [(s.engine, s.n_trials, s.within_1, s.regret_5) for s in again] == [
        (s.engine, s.n_trials, s.within_1, s.regret_5) for s in searches
    ]


def test_results_are_printed_again_from_their_file(searches, tmp_path, capsys):
    path = tmp_path / "race.csv"
    write(searches, path)
    kept = read(path)
    assert [(s.engine, s.n_trials) for s in kept] == sorted((s.engine, s.n_trials) for s in searches)
    main(["--from", str(path)])
    assert capsys.readouterr().out.strip() == report(kept, ENGINES).strip()


def test_a_hidden_machine_differs_from_its_description_and_readings_from_the_truth(hidden):
    ratio = np.log(hidden.step_s / hidden.table.estimate.step_s)
    assert np.ptp(ratio[np.isfinite(ratio)]) > 0.05
    for step_s, outcome in zip(hidden.step_s, hidden.outcomes, strict=True):
        assert isinstance(outcome, Measured if np.isfinite(step_s) else Failed)
        if isinstance(outcome, Measured):
            assert 0.95 < outcome.step_s / step_s < 1.7
            assert outcome.step_s != step_s


def test_published_groups_hold_their_failures_and_learning_from_them_helps():
    cases = [case for case in replay_cases() if np.isinf(case.step_s).sum() >= 40]
    assert sum(int(np.isinf(case.step_s).sum()) for case in cases) > 150
    errors = []
    for case in cases:
        before, after, works = after_trials(case, 40, seed=0)
        errors.append([((each - works) ** 2).mean() for each in (before, after)])
    alone, learned = np.mean(errors, axis=0)
    assert learned < alone


@pytest.mark.filterwarnings("ignore")
def test_smac_proposes_rows_and_learns_from_those_that_ran(hidden):
    pytest.importorskip("smac")
    from benchmarks.race import search

    found = search(hidden, "smac", 0, 14)
    assert 1 <= found.n_trials <= 14


@pytest.mark.parametrize(
    ("trials", "share", "words"), [([1, 2, 3, 0], 0.5, "3"), ([1, 2, 3, 0], 0.9, "never"), ([7], 0.25, "7")]
)
def test_a_search_that_never_came_near_counts_as_the_longest(trials, share, words):
    assert quantile(trials, share) == words


def test_the_first_trial_within_a_share_counts_from_one():
    assert first_within(np.array([0.5, 0.02, 0.0]), 0.02) == 2
    assert first_within(np.array([0.5, 0.3]), 0.02) == 0


def test_an_arena_that_there_is_not_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--arenas", "moon"])
    assert "must be of replay, groups, hidden, real; got 'moon'" in capsys.readouterr().err


def test_cells_name_what_is_measured():
    figures = dict(n_plans=9, n_trials=4, n_failed=1, ask_s=0.012, within_1=0, within_2=3, within_5=2)
    regrets = dict(regret_5=0.05, regret_10=0.02, regret_20=0.02, regret_40=np.inf)
    one = Search(arena="real", case="a", held_out=True, seed=0, engine="tpe", **figures, **regrets)
    line = report([one], ENGINES).splitlines()[-1]
    assert "| tpe | 1 | 2 (2 to 2), 2 | 3 (3 to 3), 3 | never (never to never), never | 5.0 / 5.0 |" in line
    assert "none ran / none ran | 25 % | 12 |" in line
