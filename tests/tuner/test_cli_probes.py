"""The verb calibrate measuring this very machine: its file, its documents, going on, Ctrl-C, bad input."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import psutil
import pytest

from runners.probes.record import beside
from search_spaces.cluster import Origin
from search_spaces.cluster_presets import load_cluster
from tests.tuner.cli import complaint, meshtune
from tests.tuner.schemas import COUNT, FINITE, NUMBER, TEXT, document, many, record
from tuner import probing

ROOT = Path(__file__).parents[2]
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs the torch extra")
CONSTANT = record(value=FINITE, origin={"enum": list(Origin)}, source=TEXT, spread=FINITE)
WORDS = {"type": "object", "additionalProperties": TEXT}
MEASURE = document(
    "measure",
    cluster=TEXT,
    file=TEXT,
    probes_file=TEXT,
    machine=record(
        kind={"enum": ["cpu", "cuda"]}, device=TEXT, torch=TEXT, formats=many(TEXT, 1), memory_bytes=FINITE,
        n_multiprocessors=COUNT, n_devices=COUNT, n_cores=COUNT,
    ),
    devices=COUNT,
    ended=TEXT,
    probes=record(all=COUNT, measured=COUNT),
    failed=WORDS,
    missing=many(TEXT),
    constants=many(record(name=TEXT, before=FINITE, after=CONSTANT, probes=COUNT), 2),
    overlap=many(record(group=TEXT, compute_slowdown=FINITE, collective_slowdown=FINITE)),
    not_measured=WORDS,
    remarks=many(TEXT),
    comparisons=many(
        record(
            group=TEXT, kind=TEXT, what={"type": "object"}, measured_s=FINITE, spread=NUMBER, before_s=FINITE,
            predicted_s=FINITE,
        ),
        1,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("probes") / "mine.toml"


@pytest.fixture(scope="module")
def answer(out):
    """Eight seconds of probes of two processes; what they do not reach stays for the next run."""
    return meshtune("calibrate", "-o", out, "--on", "cpu", "--devices", 2, "--budget-s", 8, "--json")


def probes_of(out):
    return json.loads(beside(out).read_text())["results"]


@needs_torch
@pytest.mark.torch
def test_the_document_has_the_documented_form(answer):
    assert answer.code == 0
    jsonschema.validate(answer.document, MEASURE)
    counts = answer.document["probes"]
    assert counts["all"] == counts["measured"] + len(answer.document["missing"]) + len(
        answer.document["failed"]
    )


@needs_torch
@pytest.mark.torch
def test_every_probe_is_told_as_it_ends(answer):
    lines = [line for line in answer.err.splitlines() if line.startswith("probe ")]
    assert len(lines) == answer.document["probes"]["measured"]
    assert " ± " in lines[-1]


@needs_torch
@pytest.mark.torch
def test_the_file_is_a_cluster_whose_measured_numbers_say_so(answer, out):
    machine, text = load_cluster(str(out), 2), out.read_text()
    found = {each["name"]: each["after"] for each in answer.document["constants"]}
    assert machine.device.kernel_launch_s.origin is Origin.MEASURED
    assert machine.device.kernel_launch_s.value == found["device.kernel_launch_s"]["value"]
    assert "torch" in machine.device.kernel_launch_s.source
    assert machine.step_fixed_s.origin is Origin.ASSUMED
    assert "step_fixed_s" in answer.document["not_measured"]
    assert "memory_bandwidth_bytes_per_s = " in text
    (line,) = [each for each in text.splitlines() if each.startswith("memory_bandwidth")]
    assert "# measured, spread" in line


@needs_torch
@pytest.mark.torch
def test_other_verbs_take_the_file(answer, out):
    job = ("--model", "gpt2", "--devices", 2, "--global-batch", 4, "--seq-len", 128, "--precision", "fp32")
    priced = meshtune("estimate", *job, "--cluster", out, "--plan", "tp=1 dp=2 micro_batch=1", "--json")
    assert priced.code == 0
    assert priced.document["step_time_s"] > 0


@needs_torch
@pytest.mark.torch
def test_the_next_run_keeps_what_is_measured_and_goes_on(answer, out):
    before = {(each["kind"], json.dumps(each["what"])): each for each in probes_of(out)}
    again = meshtune("calibrate", "-o", out, "--on", "cpu", "--devices", 2, "--budget-s", 3)
    after = {(each["kind"], json.dumps(each["what"])): each for each in probes_of(out)}
    assert again.code == 0
    assert {key: after[key] for key in before} == before
    assert len(after) > len(before) or not answer.document["missing"]
    for words in ("gemm_efficiency", "formulas against the probes", "not measured", "step_fixed_s"):
        assert words in again.out


@needs_torch
@pytest.mark.torch
def test_one_process_measures_no_collectives_and_says_so(tmp_path):
    words = ("calibrate", "-o", tmp_path / "one.toml", "--on", "cpu", "--devices", 1, "--budget-s", 2)
    answer = meshtune(*words)
    assert answer.code == 0
    assert "collectives and overlap: they need two devices" in answer.out
    assert load_cluster(str(tmp_path / "one.toml"), 1).tiers[0].latency_s.origin is Origin.ASSUMED


@needs_torch
@pytest.mark.torch
def test_probes_of_another_number_of_devices_are_refused(answer, out):
    said = complaint("calibrate", "-o", out, "--on", "cpu", "--devices", 3, "--budget-s", 1)
    assert "must be of this machine (3 x cpu" in said
    assert "--fresh starts anew" in said


@needs_torch
@pytest.mark.torch
def test_an_interrupt_keeps_the_probes_and_leaves_no_process(tmp_path):
    out = tmp_path / "mine.toml"
    words = ["calibrate", "-o", str(out), "--on", "cpu", "--devices", "2", "--budget-s", "60"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner", *words],
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    wait_for(lambda: beside(out).exists(), process)
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "is kept in" in said
    assert len(ranks) == 2
    assert not [each for each in ranks if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    assert probes_of(out)
    assert not out.exists()


def wait_for(condition, process, limit_s=60.0):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_torch_one_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("runners.probes.crew.find_spec", lambda name: None)
    said = complaint("calibrate", "-o", tmp_path / "a.toml")
    assert "measuring this machine needs PyTorch" in said
    assert "pip install 'meshtune[torch]'" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--all"], "--all must come with --from"),
        (["--budget-s", "0"], "the budget must be a positive number of seconds; got 0"),
        (["--budget-s", "nan"], "the budget must be a positive number of seconds; got nan"),
        (["--budget-s", "soon"], "got 'soon'"),
        (["--devices", "0"], "--devices must be from 1 to 256; got 0"),
        (["--cluster", "dgx-h1000"], "cluster must be one of"),
        (["--on", "tpu"], "--on must be cpu or cuda; got 'tpu'"),
        (["--from", "runs.csv", "--fresh"], "with --from nothing is measured; got --fresh"),
        (["--from", "runs.csv", "--devices", "2"], "with --from nothing is measured; got --devices"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, words, said):
    assert said in complaint("calibrate", "-o", tmp_path / "a.toml", *words)
    assert not (tmp_path / "a.toml").exists()


def test_the_output_must_be_a_cluster_file(tmp_path):
    assert "must be a .toml file" in complaint("calibrate", "-o", tmp_path / "a.txt")


def test_earlier_probes_must_be_readable(tmp_path):
    beside(tmp_path / "a.toml").write_text("{")
    if HAS_TORCH:
        assert "must be one that calibrate wrote" in complaint("calibrate", "-o", tmp_path / "a.toml")


@needs_torch
@pytest.mark.torch
def test_an_accelerator_that_is_not_here_is_said(tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has an accelerator")
    said = complaint("calibrate", "-o", tmp_path / "a.toml", "--on", "cuda")
    assert "torch finds no accelerator" in said


def test_help_loads_no_torch():
    code = (
        "import sys; from tuner.cli import run; run(['calibrate', '--help']); print('torch' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=240
    )
    assert answer.stdout.splitlines()[-1] == "False"


SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


@needs_torch
@pytest.mark.torch
def test_the_ranks_of_an_allocation_measure_together_and_the_first_writes(tmp_path):
    out = tmp_path / "mine.toml"
    words = [
        sys.executable,
        "-m",
        "tuner",
        "calibrate",
        "-o",
        str(out),
        "--on",
        "cpu",
        "--budget-s",
        "3",
        "--json",
    ]
    ranks = [
        subprocess.Popen(
            words,
            cwd=ROOT,
            env={**os.environ, **SRUN, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            text=True,
            stdout=subprocess.PIPE,
        )
        for rank in (0, 1)
    ]
    told = [rank.communicate(timeout=400)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert told[1] == ""
    assert json.loads(told[0])["devices"] == 2
    assert load_cluster(str(out), 2).device.kernel_launch_s.origin is Origin.MEASURED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.probes.json", "mine.toml"]


@needs_torch
@pytest.mark.torch
def test_ranks_end_with_a_parent_that_is_killed(tmp_path):
    out = tmp_path / "mine.toml"
    words = ["calibrate", "-o", str(out), "--on", "cpu", "--devices", "2", "--budget-s", "60"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner", *words], cwd=ROOT, text=True, stderr=subprocess.PIPE
    )
    wait_for(lambda: beside(out).exists(), process)
    ranks = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=120)
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert len(ranks) == 2
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    assert probes_of(out)


@needs_torch
@pytest.mark.torch
def test_more_processes_than_the_memory_carries_are_refused_before_they_start(tmp_path, monkeypatch):
    monkeypatch.setattr(probing, "MIN_PROCESS_BYTES", 1e15)
    said = complaint("calibrate", "-o", tmp_path / "many.toml", "--on", "cpu", "--devices", 2)
    assert "--devices must be at most 1, so that each process has" in said
