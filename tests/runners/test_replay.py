import pytest

from objectives.outcome import Cause, Failed, Measured
from runners.replay import ReplayRunner, replay_plans
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Plan, Plans, Recompute
from search_spaces.units import GB
from tests.runners.jobs import COLUMNS, FITS, ROWS, TOO_BIG, llama_job, write_recording


@pytest.fixture
def path(tmp_path):
    return write_recording(tmp_path)


def look_up(path, plan):
    (outcome,) = ReplayRunner(llama_job(), path=path).run(Plans.of([plan]))
    return outcome


def test_several_runs_of_a_plan_give_their_median_spread_and_highest_peak(path):
    measured = look_up(path, FITS)
    assert (measured.step_s, measured.n_steps, measured.peak_memory_bytes) == (4.5, 2, 50.5 * GB)
    assert measured.step_spread_s == pytest.approx(0.5**0.5)
    assert measured.log_tail == "runs.csv, lines 2, 3"


def test_a_peak_that_nobody_recorded_is_the_cost_models(path):
    measured = look_up(path, Plan(tp=8, dp=8, micro_batch=2))
    assert isinstance(measured, Measured)
    assert measured.peak_memory_bytes > GB


@pytest.mark.parametrize(
    ("plan", "cause"),
    [(TOO_BIG, Cause.OUT_OF_MEMORY), (Plan(tp=2, dp=32, zero=1), Cause.CRASH)],
    ids=["oom", "failed_or_oom"],
)
def test_recorded_failures_are_failures(path, plan, cause):
    assert look_up(path, plan).cause is cause


@pytest.mark.parametrize(
    "plan",
    [
        Plan(tp=4, pp=2, dp=8, micro_batch=2),
        Plan(tp=4, pp=2, dp=8, recompute=Recompute.FULL),
        Plan(tp=8, dp=8),  # recorded, but of a model with 80 layers
    ],
    ids=["other micro-batch", "other recomputation", "other model"],
)
def test_a_plan_that_was_not_run_is_not_in_the_recording(path, plan):
    failed = look_up(path, plan)
    assert isinstance(failed, Failed)
    assert (failed.cause, failed.message) == (Cause.INVALID, "not in the recording")


def test_knobs_that_a_row_leaves_open_may_be_anything(path):
    assert look_up(path, Plan(dp=64, zero=3)).cause is Cause.OUT_OF_MEMORY
    assert look_up(path, Plan(tp=4, pp=2, dp=8, sequence_parallel=True, overlap_dp=True)) == look_up(
        path, FITS
    )


def test_the_plans_of_a_recording_are_found_in_it_again(path):
    plans = replay_plans(path, llama_job())
    outcomes = ReplayRunner(llama_job(), path=path).run(plans)
    assert len(plans) == len(set(plans.keys())) == 4
    assert all(getattr(outcome, "cause", None) is not Cause.INVALID for outcome in outcomes)


def test_a_bad_row_among_good_ones_costs_only_itself(tmp_path):
    path = write_recording(tmp_path, rows=[*ROWS, "ok,32,64,8,8,x,1,0,1f1b,none,H100-80,1.0,"])
    assert len(replay_plans(path, llama_job())) == 4


UNUSABLE = {
    "columns": (
        "tp,pp",
        [],
        "must have the columns .*; got none named outcome, n_gpus, dp, micro_batch, step_time_s",
    ),
    "no number": (
        COLUMNS,
        ["ok,32,64,4,x,8,1,0,1f1b,none,H100-80,4,"],
        "line 2: pp must be a number; got 'x'",
    ),
    "no time": (COLUMNS, ["ok,32,64,4,2,8,1,0,1f1b,none,H100-80,,"], "line 2: step_time_s must be positive"),
    "not finite": (
        COLUMNS,
        ["ok,32,64,4,2,8,1,0,1f1b,none,H100-80,nan,"],
        "line 2: step_time_s must be finite",
    ),
    "schedule": (
        COLUMNS,
        ["ok,32,64,4,2,8,1,0,chimera,none,H100-80,4,"],
        "line 2: schedule must be one of gpipe",
    ),
    "other jobs": (COLUMNS, [ROWS[-1]], "must hold runs of this job; got 1 rows of other jobs"),
    "empty": ("", [], "must have the columns"),
}


@pytest.mark.parametrize(("columns", "rows", "match"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_file_that_cannot_be_used_says_why(tmp_path, columns, rows, match):
    with pytest.raises(InvalidSpec, match=match):
        ReplayRunner(llama_job(), path=write_recording(tmp_path, rows=rows, columns=columns))


def test_a_file_that_does_not_exist_is_one_sentence(tmp_path):
    with pytest.raises(InvalidSpec, match="must be a readable text file"):
        ReplayRunner(llama_job(), path=str(tmp_path / "none.csv"))
