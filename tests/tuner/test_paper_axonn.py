"""AxoNN: state on the host in buckets, gradients reduced beside their update, the grid in its own words."""

import json
from dataclasses import fields

import numpy as np
import pytest

from objectives.cost.result import StepTime
from objectives.cost.step import estimate
from objectives.simulator.step import StepSimulator
from runners.launchers.axonn import AxoNN
from runners.launchers.base import Options
from search_spaces.plan import Plan, Plans
from search_spaces.rule import Context
from search_spaces.rules import broken_rules
from search_spaces.space import SearchSpace
from search_spaces.units import BILLION, MILLION
from tests.search_spaces.test_rules import broken, context_of
from tests.tuner.studies import ROOT
from tuner.config import config_from_tables, read_config
from tuner.papers.axonn import GRID, OFFLOADED, state_of, study_job
from tuner.presets import preset_path
from tuner.shortlist import shortlist

JOB = study_job()
CONTEXT = Context(model=JOB.model, cluster=JOB.cluster, workload=JOB.workload)


def priced(*texts):
    return estimate(JOB, Plans.of([Plan.parse(f"{GRID} {text}") for text in texts]))


@pytest.mark.parametrize("bucket", [0, 4_000_000, 64_000_000])
def test_a_device_keeps_4_bytes_a_parameter_and_16_of_a_bucket(bucket):
    held = state_of(BILLION, f"{GRID} {OFFLOADED} offload_bucket={bucket}")
    assert held == 4 * BILLION + 16 * (bucket or 16 * MILLION)
    assert state_of(BILLION, GRID) == 20 * BILLION


def test_a_bucket_is_never_more_than_there_is():
    assert state_of(MILLION, f"{GRID} {OFFLOADED}") == 20 * MILLION


def test_master_weights_and_moments_cross_the_host_link_both_ways():
    n_parameters = (state_of(1.0, GRID), priced("", OFFLOADED).memory.weights_bytes[0] / 2)[1]
    on_device, offloaded = priced("", OFFLOADED).time.optimizer_s[0], priced(OFFLOADED).time.offload_s[0]
    crossing_s = 24 * n_parameters / JOB.cluster.device.host_bandwidth_bytes_per_s
    # The stage that owns the most is not the fullest in memory: its parameters are a little more.
    assert offloaded - on_device == pytest.approx(crossing_s, rel=0.1)


def test_pieces_hide_behind_the_update_and_never_more_than_it_takes():
    coalesced = [f"offload_optimizer=true coalesced_buckets={k}" for k in (1, 4, 16, 10_000)]
    time = priced("", *coalesced).time
    whole_s, update_s = time.dp_comm_s[0], time.offload_s[1:]
    assert (np.diff(time.dp_comm_s[1:]) >= -1e-3).all()  # coarser pieces hide less
    assert (time.dp_comm_s[1:] >= whole_s - update_s - 1e-9).all()
    # One piece hides nothing; it is one message where plain reduction sends buckets.
    assert time.dp_comm_s[-1] == pytest.approx(whole_s, rel=5e-3)


@pytest.mark.parametrize("k", [1, 4, 16, 10_000])
def test_the_simulator_ends_a_step_when_the_formula_does(k):
    text = f"{GRID} offload_optimizer=true coalesced_buckets={k} n_microbatches=24"
    plan = Plan.parse(text)
    ends = ("dp_comm_s", "optimizer_s", "offload_s")
    time = estimate(JOB, Plans.of([plan])).time
    by_formula = sum(float(getattr(time, name)[0]) for name in ends)
    bare = StepSimulator(JOB, Plan.parse(f"{GRID} n_microbatches=24"))
    plain = estimate(JOB, Plans.of([Plan.parse(f"{GRID} n_microbatches=24")])).time
    without = sum(float(getattr(plain, name)[0]) for name in ends)
    gain = StepSimulator(JOB, plan).seconds(0) - bare.seconds(0)
    assert gain == pytest.approx(by_formula - without, abs=0.15 * by_formula)


def test_finer_pieces_end_a_simulated_step_sooner():
    texts = [
        f"{GRID} offload_optimizer=true coalesced_buckets={k} n_microbatches=24" for k in (1, 16, 10_000)
    ]
    seconds = [StepSimulator(JOB, Plan.parse(text)).seconds(0) for text in texts]
    assert seconds[0] < seconds[1] < seconds[2]


@pytest.mark.parametrize(
    ("more", "rule"),
    [
        ("coalesced_buckets=4", "coalesced_buckets need an optimizer offloaded in buckets"),
        ("offload_bucket=4000000", "offload_bucket needs offload_optimizer"),
        ("offload_optimizer=true", "the framework always coalesces the buckets"),
        ("optimizer_tile=100", "the framework updates parameters in tiles"),
    ],
)
def test_what_axonn_cannot_do_is_no_plan_of_its_own(more, rule):
    columns = {name: getattr(Plans.of([Plan.parse(f"{GRID} {more}")]), name) for name in Plans.__slots__}
    assert any(each.startswith(rule) for each in broken_rules(CONTEXT, columns))


def test_a_trainer_whose_host_updates_takes_no_bucket():
    named = broken(
        context_of(framework="megatron-lm"), "dp=64 zero=1 offload_optimizer=true offload_bucket=100"
    )
    assert named == ["offload_bucket needs offload_optimizer, and a framework that sets it"]


def test_the_preset_holds_the_grid_and_its_best_plan_offloads():
    inputs = read_config(preset_path("axonn")).inputs
    candidates = shortlist(inputs).candidates
    assert set(candidates.plans.pp.tolist()) <= {6, 12, 16, 24, 48}
    assert candidates.plans.row(0).offload_optimizer
    assert SearchSpace(inputs.model, inputs.cluster, inputs.workload, inputs.space).holds(
        candidates.plans.row(0)
    )


@pytest.mark.parametrize(
    ("words", "grid"),
    [
        (f"{GRID} {OFFLOADED}", {"G_inter": 12, "G_data": 8, "cpu_offload": True}),
        (GRID, {"G_inter": 12, "G_data": 8, "cpu_offload": False}),
        ("tp=3 dp=32 zero=3", {"G_data": 1, "G_intra_r": 3, "G_intra_c": 1, "G_intra_d": 32}),
        ("tp=3 dp=32", {"G_data": 32, "G_intra_r": 3, "G_intra_d": 1}),
    ],
)
def test_a_plan_is_the_arguments_of_axonns_calls(words, grid):
    given = json.loads(AxoNN().launch(JOB, Plan.parse(words), Options()).files["axonn.json"])
    assert given["axonn.init"].items() >= grid.items()
    degrees = [value for name, value in given["axonn.init"].items() if name.startswith("G_")]
    assert np.prod(degrees) == 96
    assert given["axonn.create_dataloader"]["batch_size"] == 16384


def test_buckets_are_arguments_of_the_optimizer():
    words = f"{GRID} offload_optimizer=true coalesced_buckets=8 offload_bucket=4000000"
    given = json.loads(AxoNN().launch(JOB, Plan.parse(words), Options()).files["axonn.json"])
    assert given["axonn.optim.CPUAdam"] == {"bucket_size": 4_000_000, "coalescing_factor": 8}


def test_state_in_fp32_gradients_can_be_named_in_a_study():
    state = dict(weight_bytes=2, gradient_bytes=2, master_bytes=4, moment_bytes=8, update_gradient_bytes=4)
    tables = {
        "model": {"preset": "gpt2"},
        "cluster": {"preset": "dgx-a100", "devices": 8},
        "workload": {"seq_len": 1024, "global_batch": 64, "state": state},
    }
    assert config_from_tables(tables, folder=ROOT).inputs.workload.training_state.optimizer_bytes == 16


def test_the_parts_of_a_coalesced_step_add_up():
    time = priced(OFFLOADED).time
    parts = [getattr(time, field.name) for field in fields(StepTime)]
    assert (np.array(parts) >= 0).all()
    np.testing.assert_allclose(sum(parts), time.total_s)
