"""What the built-in trainer measures beside seconds: bytes on fake tensors, exchanges, where it failed."""

import tempfile
from functools import partial
from pathlib import Path

import pytest

from objectives.outcome import Cause, Measured
from runners.torch_trial.mesh import leaders
from runners.torch_trial.runner import TorchRunner
from runners.trial_process import TrialProcess
from search_spaces.plan import Plan, Schedule
from tests.runners.jobs import tiny_job
from tests.runners.torch_cases import MODELS, Case, work_for

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]
# A tensor on its way to another stage lies in memory until it is sent; with fake tensors it is gone at once.
# The same of tokens that do not go evenly to experts, and of exchanges under way: where ranks wait for the
# processor, a gathered layer or a message lives on beside the next one.
CASES = {
    "llama: dp=2": 0.002,
    "llama: dp=2 zero=3": 0.05,
    "llama: dp=2 zero=2 recompute=full": 0.002,
    "llama: tp=2 sequence_parallel=true recompute=selective": 0.002,
    "llama: cp=2": 0.02,
    "llama: pp=2 vpp=2 schedule=zb-v": 0.05,
    "moe: dp=2 ep=2": 0.02,
}


def setting(case):
    from runners.torch_trial.train import Setting

    return Setting(model=MODELS[case.model], workload=work_for(case), plan=case.parsed)


def _real(case, folder, rank, tell):
    import torch
    import torch.distributed as dist

    from runners.torch_trial import fake
    from runners.torch_trial.train import Trainer

    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), case.parsed.world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=case.parsed.world_size)
    return fake.count(Trainer(setting(case), rank, scratch=folder))


def _fake(case, folder, of_rank, rank, tell):
    from runners.torch_trial.worker import count_on_fake_tensors

    return count_on_fake_tensors(setting(case), of_rank, folder)


def _run(n_ranks, body):
    """In processes forked from one that has torch, as trials are; what each rank answers."""
    from runners.torch_trial import worker
    from runners.torch_trial.ranks import run_ranks

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fate = run_ranks(n_ranks, partial(body, folder), explain=worker.explain, folder=folder, silence_s=100)
        assert fate.culprit is None, (fate.culprit.broken, fate.culprit.last_lines)
        return [rank.done.value for rank in fate.ranks]


def main(out):
    """Count every case on real tensors and on fake ones; a process of its own, because it forks."""
    import json

    from runners.torch_trial import worker

    worker.prepare()
    found = {}
    for words in CASES:
        model, plan = words.split(": ")
        case = Case(model, plan)
        real = _run(case.parsed.world_size, lambda folder, *rest, case=case: _real(case, folder, *rest))
        for leader in leaders(case.parsed):
            (fake,) = _run(
                1, lambda folder, *rest, case=case, leader=leader: _fake(case, folder, leader, *rest)
            )
            found.setdefault(words, []).append((real[leader], fake))
    Path(out).write_text(json.dumps(found))


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    import json
    import subprocess
    import sys

    out = tmp_path_factory.mktemp("fake") / "counted.json"
    code = f"from tests.runners.test_torch_measures import main; main({str(out)!r})"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize("words", CASES)
def test_fake_tensors_weigh_what_real_ones_do(words, counted):
    for real, fake in counted[words]:
        assert fake["total"] == pytest.approx(real["total"], rel=CASES[words] + 1e-9)
        for kind in ("weights", "gradients", "optimizer"):
            assert fake[kind] == pytest.approx(real[kind], rel=0.005)


@pytest.fixture(scope="module")
def outcome():
    options = {"n_steps": 2, "n_warmup": 1, "device": "cpu", "fake_memory": True, "profile": True}
    server = TrialProcess(TorchRunner(tiny_job(), **options))
    yield server.run(Plan(pp=2, micro_batch=2, schedule=Schedule.ONE_F_ONE_B))
    server.close()


def test_peaks_are_told_by_source(outcome):
    assert isinstance(outcome, Measured), outcome
    peaks = outcome.effective["peak_bytes"]
    assert set(peaks) == {"resident", "fake"}
    assert peaks["fake"] == outcome.effective["fake_bytes"]["total"] < peaks["resident"]
    assert sum(outcome.effective["fake_bytes"][kind] for kind in ("weights", "optimizer")) > 0


def test_seconds_of_exchanges_are_part_of_their_step(outcome):
    found = outcome.effective["communication"]
    assert 0 < found["total_s"] <= found["step_s"]
    assert {"send", "recv"} <= set(found["by_kind_s"])
    assert len(outcome.effective["steps_s"]) == 3  # the profiled step is not among them


@pytest.mark.parametrize(
    ("intervals", "length"),
    [([], 0), ([(1, 3)], 2), ([(1, 3), (2, 5)], 4), ([(4, 5), (1, 2)], 2), ([(0, 9), (2, 3)], 9)],
)
def test_overlapping_exchanges_count_once(intervals, length):
    from runners.torch_trial.communication import union_length

    assert union_length(intervals) == length


@pytest.mark.parametrize("plan", [Plan(pp=2), Plan(dp=2)], ids=lambda plan: plan.key)
def test_a_failure_names_rank_and_stage(plan):
    server = TrialProcess(
        TorchRunner(tiny_job(), n_steps=2, n_warmup=1, device="cpu", memory_limit_bytes=1e5)
    )
    try:
        failed = server.run(plan)
    finally:
        server.close()
    assert failed.cause is Cause.OUT_OF_MEMORY, failed
    found = failed.effective["failed"]
    assert failed.message.startswith(f"rank {found['rank']}")
    assert found["stage"] == (found["rank"] if plan.pp > 1 else 0)
    assert (f"(stage {found['stage']} of 2)" in failed.message) is (plan.pp > 1)
