"""Probes without a device: the stopwatch, the session with its budget, what is kept, and the allocation."""

import json
from dataclasses import replace

import pytest

from runners.probes.allocation import Place, place_in
from runners.probes.cases import Case, cases_for
from runners.probes.crew import CaseFailed, CrewLost, Interrupted
from runners.probes.layout import groups_of
from runners.probes.record import ProbesFile, Result, beside
from runners.probes.session import Ended, Session
from runners.probes.timing import FEWEST, MOST, SAMPLE_S, WARM_UPS, Stopwatch
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec
from tests.runners.probe_cases import CPU, GPU

CASES = [Case(kind="memory", what={"kernel": "copy", "bytes": n}) for n in (1, 2, 3, 4)]


class FakeClock:
    """Moves only when told."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def advance(self, seconds):
        self.now_s += seconds


class FakeRanks:
    """Answers every case after some seconds, or as the script for its bytes says."""

    def __init__(self, clock, *, case_s=1.0, script=None, can_restart=True):
        self.clock, self.case_s, self.script, self.can_restart = clock, case_s, script or {}, can_restart
        self.asked, self.restarts = [], 0

    def ask(self, case, window_s):
        self.asked.append((case.what["bytes"], window_s))
        self.clock.advance(self.case_s)
        error = self.script.get(case.what["bytes"])
        if error:
            raise error
        return {"s": [1.0, 1.1, 0.9]}

    def restart(self):
        self.restarts += 1
        return self.can_restart


def session(tmp_path, *, budget_s=100.0, heard=None, **options):
    clock = FakeClock()
    ranks = FakeRanks(clock, **options)
    file = ProbesFile.at(tmp_path / "mine.probes.json")
    file.belongs_to(CPU, 2)
    hear = heard.append if heard is not None else lambda step: None
    return Session(
        ranks=ranks, file=file, budget_s=budget_s, start_s=0.0, on_step=hear, clock=clock, date="2026-05-01"
    )


def watch(clock, window_s, **options):
    return Stopwatch(clock=clock, synchronize=lambda: None, window_s=window_s, **options)


def test_a_slow_first_call_is_dropped():
    clock = FakeClock()
    durations = iter([50.0, 1.0])
    samples = watch(clock, 5.0).samples(lambda: clock.advance(next(durations, 1.0)))
    assert samples == [1.0] * 5


@pytest.mark.parametrize(
    ("call_s", "window_s", "n"),
    [(1.0, 0.1, FEWEST), (1e-3, 1e3, MOST), (1.0, 7.5, 7)],
    ids=["too long for the window", "short", "as many as fit"],
)
def test_repeats_fill_the_window_between_bounds(call_s, window_s, n):
    clock = FakeClock()
    assert len(watch(clock, window_s).samples(lambda: clock.advance(call_s))) == n


def test_short_calls_are_timed_in_batches_that_the_clock_resolves():
    clock, calls = FakeClock(), []
    samples = watch(clock, 0.1).samples(lambda: (calls.append(1), clock.advance(1e-6)))
    assert samples == pytest.approx([1e-6] * len(samples))
    assert len(calls) >= len(samples) * SAMPLE_S / 1e-6


def test_ranks_that_must_agree_call_equally_often():
    counts = []
    for own_s in (1e-3, 4e-3):
        clock, calls = FakeClock(), []
        common = watch(clock, 1.0, agree=lambda value: max(value, 4e-3))
        common.samples(lambda: (calls.append(1), clock.advance(own_s)))  # noqa: B023 - called at once
        counts.append(len(calls))
    assert counts[0] == counts[1] > WARM_UPS


def test_every_case_is_measured_once_and_kept(tmp_path):
    heard = []
    run = session(tmp_path, heard=heard)
    assert run.run(CASES) is Ended.DONE
    assert [step.n_done for step in heard if step.result] == [1, 2, 3, 4]
    again = ProbesFile.at(run.file.path)
    assert again.results == run.file.results
    assert {each.date for each in again.results.values()} == {"2026-05-01"}


def test_a_budget_ends_between_cases_and_the_next_run_goes_on(tmp_path):
    run = session(tmp_path, budget_s=2.5)
    assert run.run(CASES) is Ended.BUDGET
    assert [n for n, _ in run.ranks.asked] == [1, 2, 3]
    again = session(tmp_path, budget_s=2.5)
    assert again.run(CASES) is Ended.DONE
    assert [n for n, _ in again.ranks.asked] == [4]


def test_windows_share_what_is_left_by_weight(tmp_path):
    run = session(tmp_path, budget_s=16.0, case_s=0.0)
    run.run([replace(CASES[0], weight=3.0), CASES[1]])
    assert [window_s for _, window_s in run.ranks.asked] == [pytest.approx(4.0), pytest.approx(4.0)]
    run = session(tmp_path / "b", budget_s=4.0, case_s=0.0)
    run.run([replace(CASES[0], weight=3.0), CASES[1]])
    assert [window_s for _, window_s in run.ranks.asked] == [pytest.approx(1.5), pytest.approx(2.0)]


def test_a_case_that_fails_is_noted_and_tried_again_later(tmp_path):
    run = session(tmp_path, script={2: CaseFailed("a probe must", "no such kernel")})
    assert run.run(CASES) is Ended.DONE
    assert run.file.failed == {CASES[1].key: "no such kernel"}
    again = session(tmp_path)
    assert again.run(CASES) is Ended.DONE
    assert [n for n, _ in again.ranks.asked] == [2]
    assert again.file.failed == {}


def test_lost_ranks_are_started_again(tmp_path):
    run = session(tmp_path, script={2: CrewLost("a probe must", "no answer in 60 s")})
    assert run.run(CASES) is Ended.DONE
    assert run.ranks.restarts == 1
    assert run.file.failed == {CASES[1].key: "no answer in 60 s"}
    assert len(run.file.results) == 3


@pytest.mark.parametrize("can_restart", [True, False])
def test_ranks_that_stay_lost_end_the_session(tmp_path, can_restart):
    script = {n: CrewLost("a probe must", "gone") for n in (1, 2, 3, 4)}
    run = session(tmp_path, script=script, can_restart=can_restart)
    assert run.run(CASES) is Ended.LOST
    assert len(run.ranks.asked) == (3 if can_restart else 1)


def test_an_interrupted_session_keeps_what_is_measured(tmp_path):
    run = session(tmp_path, script={3: Interrupted()})
    assert run.run(CASES) is Ended.INTERRUPTED
    assert len(ProbesFile.at(run.file.path).results) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"schema": "meshtune.study", "version": 1}',
        '{"schema": "meshtune.probes", "version": 1, "machine": null, "results": [], "failed": {}}',
    ],
)
def test_a_file_that_is_no_probes_file_is_refused_unless_fresh(tmp_path, text):
    path = beside(tmp_path / "mine.toml")
    path.write_text(text)
    with pytest.raises(InvalidSpec, match="must be one that calibrate wrote"):
        ProbesFile.at(path)
    assert ProbesFile.at(path, fresh=True).results == {}


def test_readings_that_are_not_positive_are_refused(tmp_path):
    run = session(tmp_path)
    run.run(CASES[:1])
    table = json.loads(run.file.path.read_text())
    table["results"][0]["readings"]["s"][0] = -1.0
    run.file.path.write_text(json.dumps(table))
    with pytest.raises(InvalidSpec, match="is not positive"):
        ProbesFile.at(run.file.path)


@pytest.mark.parametrize(
    ("facts", "n_ranks"), [(GPU, 2), (CPU, 4)], ids=["another machine", "another number"]
)
def test_probes_of_another_machine_are_not_mixed(tmp_path, facts, n_ranks):
    run = session(tmp_path)
    run.run(CASES)
    again = ProbesFile.at(run.file.path)
    again.belongs_to(CPU, 2)
    with pytest.raises(InvalidSpec, match="must be of this machine") as refused:
        again.belongs_to(facts, n_ranks)
    assert "--fresh" in refused.value.hint


def test_a_result_knows_its_middle_and_spread():
    result = Result(kind="memory", what={"kernel": "copy", "bytes": 8}, readings={"s": [1, 1.1, 0.9, 1, 50]})
    assert result.median() == 1
    assert 0 < result.spread() < 0.2
    assert result.key == "memory kernel=copy bytes=8"


def test_the_most_needed_cases_come_first_and_no_two_are_the_same():
    cases = cases_for(GPU, groups_of(load_cluster("dgx-h200", 1), 16))
    assert [case.need for case in cases] == sorted(case.need for case in cases)
    assert len({case.key for case in cases}) == len(cases)
    first = {case.kind for case in cases if case.need == 0}
    assert first == {"reserve", "memory", "product", "attention", "launch", "copy", "collective"}
    assert {case.kind for case in cases} == first | {"sustained", "overlap"}


def test_every_collective_is_asked_of_every_tier():
    cases = cases_for(CPU, groups_of(load_cluster("dgx-h200", 1), 16))
    asked = {(case.what["tier"], case.what["operation"]) for case in cases if case.kind == "collective"}
    operations = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
    assert asked == {(tier, operation) for tier in ("node", "fabric") for operation in operations}


def test_a_device_alone_has_no_collectives():
    kinds = {case.kind for case in cases_for(CPU, groups_of(load_cluster("local", 1), 1))}
    assert kinds.isdisjoint({"collective", "overlap"})


TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "4", "SLURM_LOCALID": "1",
        "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "2"}  # fmt: skip


def test_torchrun_s_variables_name_the_place(tmp_path):
    place = Place(rank=3, n_ranks=8, local_rank=1, n_local=2)
    assert place_in(TORCHRUN, tmp_path / "a.toml") == place
    assert not place.leads


def test_srun_s_tasks_meet_through_a_file_beside_the_output(tmp_path):
    place = place_in(SRUN, tmp_path / "a.toml")
    assert (place.rank, place.n_ranks, place.local_rank, place.n_local) == (3, 8, 1, 2)
    assert place.store == str(tmp_path / "a.77-2.meet")
    assert place_in({**SRUN, "MASTER_ADDR": "node1"}, tmp_path / "a.toml").store == ""


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"},
        {**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"},
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},
    ],
    ids=["outside", "a batch script's shell", "alone under torchrun", "alone under srun"],
)
def test_a_process_alone_is_in_no_allocation(environment, tmp_path):
    assert place_in(environment, tmp_path / "a.toml") is None


def test_a_variable_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(InvalidSpec, match="RANK must be a whole number; got 'three'"):
        place_in({**TORCHRUN, "RANK": "three"}, tmp_path / "a.toml")
