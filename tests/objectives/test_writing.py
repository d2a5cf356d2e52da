"""Trials written as a measurements file and read back: the same job, the same plan, the same outcome."""

import json
from dataclasses import replace

import pytest

from objectives.measurements import RunOutcome, read_measurements
from objectives.measurements.writing import Provenance, measurements_text, row_of
from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Measured, OutcomeOrigin
from runners.replay import ReplayRunner, replay_plans
from search_spaces.cluster_file import cluster_toml
from search_spaces.cluster_presets import load_cluster
from search_spaces.local_cluster import local_cluster
from search_spaces.model import AttentionSpec, EmbeddingSpec, MlpSpec, ModelSpec, MoeSpec
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans
from search_spaces.units import GB
from search_spaces.workload import Precision, Workload

CLUSTER = "mine.toml"
STEP_S = 0.25
DENSE = ModelSpec(
    name="small",
    source="made up",
    n_layers=4,
    d_model=64,
    attention=AttentionSpec(n_heads=4, n_kv_heads=2, head_dim=16),
    mlp=MlpSpec(width=128),
    embedding=EmbeddingSpec(vocab_size=256),
)
MOE = replace(DENSE, moe=MoeSpec(n_experts=4, top_k=2, expert_width=32, shared_width=64, n_dense_layers=1))
PLANS = [
    "dp=2 micro_batch=2 zero=3",
    "pp=2 extra_warmup=1",
    "pp=2 vpp=2 schedule=zb-v overlap_pp=true",
    "tp=2 sequence_parallel=true recompute_modules=layernorm+mlp",
    "cp=2 cp_kind=all-gather recompute=selective",
    "pp=2 first_layers=1 recompute=full recompute_every=2",
    "dp=2 overlap_dp=true",
]


def job_of(model=DENSE):
    workload = Workload(seq_len=64, global_batch=8, precision=Precision.FP32, framework="meshtune")
    return Job(model=model, cluster=local_cluster().with_devices(2), workload=workload)


def measured(**effective):
    return Measured(
        step_s=STEP_S, step_spread_s=0.01, peak_memory_bytes=0.4 * GB, origin=OutcomeOrigin.MEASURED,
        n_steps=5, effective=effective,
    )  # fmt: skip


def write(folder, job, *outcomes, **changed):
    """A table with a row for each plan and outcome, and its cluster's file beside it."""
    (folder / CLUSTER).write_text(cluster_toml(job.cluster))
    rows = [
        row_of(job, plan, outcome, Provenance(id=f"mine-{i}", source="here", cluster=CLUSTER)) | changed
        for i, (plan, outcome) in enumerate(outcomes)
    ]
    path = folder / "runs.csv"
    path.write_text(measurements_text(rows))
    return path


@pytest.mark.parametrize("words", PLANS)
@pytest.mark.parametrize("model", [DENSE, MOE], ids=["dense", "moe"])
def test_a_trial_reads_back_as_it_was(tmp_path, words, model):
    job, plan = job_of(model), Plan.parse(words)
    found = read_measurements(write(tmp_path, job, (plan, measured())))
    assert found.rejected == ()
    (run,) = found.runs
    assert (run.plan, run.step_s, run.job.workload, run.notes) == (plan, STEP_S, job.workload, ())
    assert replace(run.job.model, source=model.source) == model
    assert (run.job.cluster.device, run.job.cluster.n_devices) == (job.cluster.device, 2)
    assert run.trusted
    assert run.alternatives == ()


@pytest.mark.parametrize("words", PLANS)
def test_a_replay_answers_with_the_very_trial(tmp_path, words):
    job, plan = job_of(), Plan.parse(words)
    other = replace(plan, micro_batch=4)
    path = write(tmp_path, job, (plan, measured()), (other, replace(measured(), step_s=9.0)))
    outcomes = ReplayRunner(job, path=str(path)).run(Plans.of([plan, other, replace(plan, zero=1, dp=2)]))
    assert [getattr(each, "step_s", None) for each in outcomes] == [STEP_S, 9.0, None]


def test_a_failure_keeps_its_cause_and_words(tmp_path):
    job, plan = job_of(), Plan.parse(PLANS[0])
    failed = Failed(cause=Cause.HANG, message="rank 1 is\nsilent", origin=OutcomeOrigin.MEASURED)
    path = write(tmp_path, job, (plan, failed))
    (run,) = read_measurements(path).runs
    assert (run.outcome, run.step_s) == (RunOutcome.FAILED, None)
    (outcome,) = ReplayRunner(job, path=str(path)).run(Plans.of([plan]))
    assert (outcome.cause, outcome.message) == (Cause.HANG, "rank 1 is silent")


def test_rows_of_experts_are_none_of_a_dense_job(tmp_path):
    path = write(tmp_path, job_of(MOE), (Plan.parse(PLANS[0]), measured()))
    with pytest.raises(Exception, match="1 rows of other jobs"):
        ReplayRunner(job_of(), path=str(path))


def test_what_was_measured_stands_in_the_row(tmp_path):
    path = write(
        tmp_path, job_of(), (Plan.parse(PLANS[0]), measured(steps_s=[0.3, 0.25], busy_s=0.4, spikes=[]))
    )
    assert '""steps_s"": [0.3, 0.25]' in path.read_text()
    assert '""busy_s"": 0.4' in path.read_text()
    assert "spikes" not in path.read_text()


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("extra", '{"plan": "dp=2 zreo=3"}', "extra.plan: a knob of a plan must be one of"),
        ("extra", '{"plan": "dp=2 micro_batch=1"}', "extra.plan must have the row's micro_batch 2; got 1"),
        ("cluster", "nowhere.toml", "nowhere.toml"),
    ],
)
def test_a_row_that_contradicts_itself_is_rejected(tmp_path, column, value, why):
    path = write(tmp_path, job_of(), (Plan.parse(PLANS[0]), measured()), **{column: value})
    (rejected,) = read_measurements(path).rejected
    assert why in rejected.reason


def test_a_plan_on_some_nodes_reads_back_on_its_own_devices_and_replays_in_the_whole_job(tmp_path):
    workload = Workload(seq_len=8192, global_batch=64)
    job = Job(model=load_model("llama-3-8b"), cluster=load_cluster("dgx-h100", 32), workload=workload)
    plan = Plan(tp=2, dp=4, sequence_parallel=True, nodes=1, n_microbatches=4)
    path = write(tmp_path, job, (plan, replace(measured(), step_s=2.5)), cluster="dgx-h100")
    found = read_measurements(path)
    assert found.rejected == ()
    (run,) = found.runs
    alone = replace(plan, nodes=0, n_microbatches=0)  # in a job of its own devices and sequences
    assert (run.plan, run.job.cluster.n_devices, run.job.workload.global_batch) == (alone, 8, 16)
    (again,) = ReplayRunner(job, path=path).run(Plans.of([plan]))
    assert (again.step_s, again.peak_memory_bytes) == (2.5, 0.4 * GB)


WHOLE = "tp=2 dp=16 sequence_parallel=true"


@pytest.mark.parametrize("words", ["", " nodes=4", " n_microbatches=4", " nodes=4 n_microbatches=4"])
def test_a_recorded_plan_is_found_under_its_other_name(tmp_path, words):
    job = Job(
        model=load_model("llama-3-8b"),
        cluster=load_cluster("dgx-h100", 32),
        workload=Workload(seq_len=8192, global_batch=64),
    )
    path = write(tmp_path, job, (Plan.parse(WHOLE + words), measured()), cluster="dgx-h100")
    assert list(replay_plans(path, job)) == [Plan.parse(WHOLE)]
    wanted = [WHOLE, f"{WHOLE} nodes=4", f"{WHOLE} n_microbatches=4"]
    found = ReplayRunner(job, path=path).run(Plans.of(map(Plan.parse, wanted)))
    assert all(isinstance(each, Measured) for each in found)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("nodes=2", "extra.plan's nodes must hold the row's n_gpus 8; got 2 of 8 devices"),
        (
            "n_microbatches=3",
            "extra.plan's n_microbatches x micro_batch x dp must be the row's 16; got 3 x 1 x 4",
        ),
    ],
)
def test_a_row_of_other_devices_or_sequences_than_its_plans_is_rejected(tmp_path, word, why):
    job = Job(
        model=load_model("llama-3-8b"),
        cluster=load_cluster("dgx-h100", 8),
        workload=Workload(seq_len=8192, global_batch=16),
    )
    extra = {"plan": f"tp=2 dp=4 sequence_parallel=true {word}"}
    plan = Plan.parse("tp=2 dp=4 sequence_parallel=true")
    path = write(tmp_path, job, (plan, measured()), cluster="dgx-h100", extra=json.dumps(extra))
    (rejected,) = read_measurements(path).rejected
    assert rejected.reason == why
