"""Trials on real processes: what they answer, and what is left of them whatever goes wrong."""

import json
import os
import signal
import statistics
import threading
import time
from pathlib import Path

import psutil
import pytest

from objectives.outcome import Cause, Failed, Measured
from runners.torch_trial.runner import TorchRunner
from runners.trial_process import ProcessLost, TrialProcess
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Plan, Plans, Schedule
from tests.runners.jobs import llama_job, tiny_job
from tests.runners.misbehaving import below, gone

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]
QUICK = {"n_steps": 2, "n_warmup": 1, "device": "cpu"}
LONG = {**QUICK, "n_steps": 100_000}


@pytest.fixture(scope="module")
def server():
    """Makes trial servers, one for all tests with the same options, and ends them."""
    made = {}

    def make(**options):
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = TrialProcess(TorchRunner(tiny_job(), **{**QUICK, **options}))
        return made[key]

    yield make
    for each in made.values():
        each.close()


class Running:
    """A trial that runs beside the test, with the process ids of its ranks."""

    def __init__(self, server, plan, **options):
        self.server, self.outcome = server, None
        self.thread = threading.Thread(target=self._run, args=[plan], kwargs=options)
        self.thread.start()
        self.ranks = self._wait_for_ranks(plan.world_size)

    def _run(self, plan, **options):
        try:
            self.outcome = self.server.run(plan, **options)
        except ProcessLost as lost:
            self.outcome = lost

    def _wait_for_ranks(self, n_ranks):
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            pids = below(self.server.pid) if self.server.pid else []
            if len(pids) > n_ranks:  # the trial, and below it its ranks
                return pids[1:]
            time.sleep(0.02)
        raise AssertionError("no ranks were started")

    def end(self):
        self.thread.join(timeout=400)
        assert not self.thread.is_alive()
        return self.outcome


def open_folders(pid):
    """The folders of the files that a process holds open."""
    folders = [Path(each.path).parent for each in psutil.Process(pid).open_files() if "rank-" in each.path]
    assert folders
    return folders


@pytest.fixture(scope="module")
def measured():
    runner = TorchRunner(tiny_job(), **{**QUICK, "n_steps": 3})
    (outcome,) = runner.run(Plans.of([Plan(dp=2, zero=1)]))
    return outcome


def test_a_measurement_is_the_median_behind_the_warm_up(measured):
    steps_s = measured.effective["steps_s"]
    assert len(steps_s) == 4
    assert measured.step_s == pytest.approx(statistics.median(steps_s[1:]), abs=1e-6)
    assert measured.step_spread_s == pytest.approx(statistics.stdev(steps_s[1:]), abs=2e-6)
    assert measured.n_steps == 3


def test_a_measurement_says_what_ran(measured):
    effective = measured.effective
    assert effective["plan"] == Plan(dp=2, zero=1).key
    assert (effective["device"], effective["backend"], effective["proxy"]) == ("cpu", "gloo", {})
    assert effective["tokens_per_s"] == pytest.approx(8 * 32 / measured.step_s, rel=1e-3)
    assert measured.peak_memory_bytes == effective["peak_bytes"]["resident"]


def test_losses_are_those_of_a_model_that_knows_nothing_yet(measured):
    assert all(2 < loss < 8 for loss in measured.effective["losses"])  # ln 64 = 4.2


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV], ids=["kill", "segv"])
def test_a_rank_that_dies_is_a_crash_and_the_server_goes_on(server, sent):
    running = Running(server(**LONG), Plan(dp=2))
    os.kill(running.ranks[1], sent)
    outcome = running.end()
    assert (type(outcome), outcome.cause) == (Failed, Cause.CRASH)
    assert f"was killed by {sent.name}" in outcome.message
    assert gone(running.ranks)


def test_the_same_server_measures_after_a_crash(server):
    crashing = server(learning_rate=1e30)
    assert crashing.run(Plan(dp=2)).cause is Cause.NAN_LOSS
    assert below(crashing.pid) == []
    assert crashing.run(Plan(pp=2)).cause is Cause.NAN_LOSS


def test_a_rank_that_stops_for_ever_is_a_hang(server):
    running = Running(server(**LONG, step_limit_s=4.0), Plan(dp=2))
    os.kill(running.ranks[1], signal.SIGSTOP)
    outcome = running.end()
    assert (outcome.cause, "told of no progress for 4 s" in outcome.message) == (Cause.HANG, True)
    assert gone(running.ranks)


def test_a_device_that_is_full_is_out_of_memory(server):
    outcome = server(memory_limit_bytes=100_000.0).run(Plan(dp=2))
    assert outcome.cause is Cause.OUT_OF_MEMORY, outcome


def test_a_trial_over_its_time_limit_leaves_nothing(server):
    running = Running(server(**LONG), Plan(dp=2), time_limit_s=6.0)
    folders = open_folders(running.ranks[0])
    assert running.end().cause is Cause.TIMEOUT
    assert gone(running.ranks)
    assert [folder for folder in folders if folder.exists()] == []


def test_ranks_die_with_their_server(server):
    running = Running(server(**LONG), Plan(dp=2))
    os.kill(running.server.pid, signal.SIGKILL)
    assert isinstance(running.end(), ProcessLost)
    assert gone(running.ranks)


def test_a_closed_server_leaves_no_process(server):
    running = Running(server(**LONG), Plan(dp=2))
    folders = open_folders(running.ranks[0])
    running.server.kill()
    running.end()
    assert gone(running.ranks)
    assert [folder for folder in folders if folder.exists()] == []


def test_an_error_in_a_rank_comes_with_its_traceback(server, tmp_path):
    path = tmp_path / "missing.csv"
    path.write_text("0F0,0F1,0F2,0F3,0B0,0B1,0B2,0B3\n1F0,1B0,1F1,1B1,1F2,1B2,1F3,1B3\n")
    running = server(schedule_file=str(path))
    path.unlink()
    outcome = running.run(Plan(pp=2, micro_batch=2))
    assert outcome.cause is Cause.CRASH
    assert "missing.csv" in outcome.message
    assert "Traceback" in outcome.log_tail


def test_a_schedule_file_is_run(server, tmp_path):
    path = tmp_path / "schedule.csv"
    ranks = [["0F0", "0F1", "0F2", "0F3", "0B0", "0B1", "0B2", "0B3"], ["1F0", "1B0", "1F1", "1I1", "1W1"]]
    ranks[1] += ["1F2", "1B2", "1F3", "1B3"]
    path.write_text("\n".join(",".join(row) for row in ranks))
    outcome = server(schedule_file=str(path)).run(Plan(pp=2, micro_batch=2))
    assert isinstance(outcome, Measured), outcome


SHORT = "0F0,0B0\n1F0,1B0\n"
SWAPPED = "1F0,1F1,1F2,1F3,1B0,1B1,1B2,1B3\n0F0,0F1,0F2,0F3,0B0,0B1,0B2,0B3\n"
HALVES = "0F0,0F1,0F2,0F3,0B0,0B1,0B2,0B3\n1F0,1I0,1W0,1F1,1B1,1F2,1B2,1F3,1B3\n"


@pytest.mark.parametrize(
    ("text", "plan", "words"),
    [
        (SHORT, Plan(pp=2, micro_batch=2), "has 2 ranks and 1 micro-batches, the plan 2 and 4"),
        (SWAPPED, Plan(pp=2, micro_batch=2), "holds stages on other ranks than the plan"),
        (HALVES, Plan(pp=2, dp=2, zero=3), "splits backward passes"),
    ],
)
def test_a_schedule_file_that_is_not_the_plan_s_is_refused(text, plan, words, tmp_path):
    path = tmp_path / "schedule.csv"
    path.write_text(text)
    (outcome,) = TorchRunner(tiny_job(plan.world_size), **QUICK, schedule_file=str(path)).run(
        Plans.of([plan])
    )
    assert outcome.cause is Cause.INVALID
    assert words in outcome.message


@pytest.mark.parametrize(
    ("name", "plan", "words"),
    [
        ("1F1B", Plan(pp=2, vpp=2, schedule=Schedule.INTERLEAVED), "holds one stage a rank, and vpp=2"),
        ("LoopedBFS", Plan(pp=2, vpp=2, schedule=Schedule.ZB_V), "in loops, and zb-v in a V"),
        ("ZBVZeroBubble", Plan(pp=2, vpp=2, schedule=Schedule.INTERLEAVED), "in a V: it replaces zb-v"),
        ("InterleavedZeroBubble", Plan(pp=2, dp=2, zero=3), "splits backward passes"),
    ],
)
def test_a_schedule_class_that_cannot_hold_the_plan_s_stages_is_refused(name, plan, words):
    (outcome,) = TorchRunner(tiny_job(plan.world_size), **QUICK, schedule_class=name).run(Plans.of([plan]))
    assert outcome.cause is Cause.INVALID
    assert words in outcome.message


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(dp=2, offload_optimizer=True, zero=1), "keeps the optimizer on the device"),
        (Plan(dp=2, zero=3, overlap_dp=True), "overlaps gradients at zero=0"),
        (Plan(pp=2, schedule=Schedule.DUALPIPE), "holds the model twice"),
        (Plan(dp=3), "the plan breaks the rule"),
    ],
    ids=["offload", "overlap", "dualpipe", "world"],
)
def test_a_plan_it_cannot_run_is_refused_before_anything_starts(plan, words):
    (outcome,) = TorchRunner(tiny_job(), **QUICK).run(Plans.of([plan]))
    assert outcome.cause is Cause.INVALID
    assert words in outcome.message
    assert psutil.Process().children() == [] or outcome.effective == {}


def test_a_plan_too_large_for_this_machine_is_refused():
    (outcome,) = TorchRunner(llama_job(), **QUICK).run(
        Plans.of([Plan(tp=4, pp=2, dp=8, sequence_parallel=True)])
    )
    assert outcome.cause is Cause.INVALID
    assert "64 processes where" in outcome.message
    assert "proxy=true" in outcome.message


def test_its_twin_runs_and_says_so():
    runner = TorchRunner(llama_job(), **QUICK, proxy=True, proxy_parameters=1e6, proxy_tokens=512)
    (outcome,) = runner.run(Plans.of([Plan(tp=2, pp=4, dp=8, sequence_parallel=True)]))
    assert isinstance(outcome, Measured), outcome
    assert outcome.effective["proxy"]["devices"][1] == 64
    assert outcome.effective["proxy"]["layers"][1] == 32
    assert json.loads(json.dumps(outcome.effective)) == outcome.effective


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"schedule_class": "ZBV"}, "schedule_class must be one of"),
        ({"schedule_file": "none.csv"}, "a schedule file must be readable text; got none.csv"),
        ({"schedule_class": "1F1B", "schedule_file": "none.csv"}, "takes schedule_class or schedule_file"),
        ({"device": "tpu"}, "device must be auto, cpu or cuda"),
        ({"step_limit_s": 0.0}, "step_limit_s must be positive"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_options_are_checked_at_once(options, words):
    with pytest.raises(InvalidSpec, match=words):
        TorchRunner(tiny_job(), **options)
