"""Devices that are processes on a processor's cores: no tiles, nothing hidden, idle cores used by others."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.cost.kernels import gemm_s
from objectives.cost.step import estimate
from objectives.explain import explain
from objectives.metrics import Job
from search_spaces.cluster_file import cluster_toml
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec
from search_spaces.local_cluster import local_cluster
from search_spaces.plan import Plan, Plans
from search_spaces.workload import Precision, Workload
from tests.objectives.test_writing import DENSE

PARTS = ("compute_s", "recompute_s", "tp_comm_s", "cp_comm_s", "ep_comm_s", "launch_s")


def machine(turns, n_devices=4):
    """Four processes; with `turns` of them on a core, each has that much less of it."""
    local = local_cluster()
    device = replace(local.device, processes_per_core=turns)
    return replace(local, device=device, devices_per_node=4, max_devices=4).with_devices(n_devices)


def job_on(cluster, **workload):
    given = dict(seq_len=256, global_batch=8, precision=Precision.FP32, framework="meshtune")
    return Job(model=DENSE, cluster=cluster, workload=Workload(**{**given, **workload}))


def time_of(job, words):
    return estimate(job, Plans.of([Plan.parse(words)])).time


def test_a_product_of_any_shape_has_the_same_rate():
    rows = np.array([1.0, 100.0, 129.0])
    job = job_on(machine(1.0))
    peak = job.cluster.device.peak(Precision.FP32)
    rate = peak * job.cluster.device.gemm_efficiency.value * job.cluster.device.sustained_efficiency.value
    wide = gemm_s(job, rows, np.full(3, 4096.0), 4096.0)[1:]
    np.testing.assert_allclose(wide, 2 * rows[1:] * 4096.0**2 / rate)


def test_every_operation_adds_its_launch():
    job = job_on(machine(1.0))
    one_s = job.cluster.device.kernel_launch_s.value
    trainer = job.trainer
    forward = DENSE.n_layers * trainer.operations_per_layer.value
    expected_s = forward * (1 + trainer.backward_operations.value) * one_s * 8
    assert time_of(job, "micro_batch=1").launch_s[0] == pytest.approx(expected_s)


@pytest.mark.parametrize("words", ["dp=4 overlap_dp=true", "cp=2 dp=2", "dp=2 tp=2"])
def test_nothing_hides_behind_what_the_same_core_computes(words):
    job = job_on(machine(1.0))
    shown, plain = time_of(job, words), time_of(job, words.replace(" overlap_dp=true", ""))
    assert shown.dp_comm_s[0] == plain.dp_comm_s[0] > 0
    assert job.trainer.cp_overlap.value == job.trainer.dp_overlap.value == 0


@pytest.mark.parametrize(("n_devices", "turns"), [(4, 2.0), (2, 1.0), (1, 1.0)], ids=["four", "two", "one"])
def test_fewer_processes_take_fewer_turns(n_devices, turns):
    assert machine(2.0, n_devices).turns == turns


def test_a_pipelines_idle_stages_give_their_core_to_the_others():
    alone, shared = (time_of(job_on(machine(turns)), "pp=4") for turns in (1.0, 2.0))
    assert shared.bubble_s[0] < alone.bubble_s[0] / 3
    # What is done is the mean over the stages, not what the last one, with its head, does.
    assert shared.compute_s[0] < alone.compute_s[0]


def test_nor_do_they_work_faster_than_the_schedule_with_a_core_for_each():
    words, turns = "pp=4 micro_batch=4", 2.0  # two micro-batches: little to fill four stages with
    alone, shared = (time_of(job_on(machine(each)), words) for each in (1.0, turns))
    busy = [sum(getattr(each, part)[0] for part in PARTS) + each.bubble_s[0] for each in (alone, shared)]
    assert busy[1] == pytest.approx(busy[0] / turns)


def test_a_layer_at_a_time_costs_a_message_for_each_layer():
    one, other = (
        time_of(job_on(machine(1.0), framework=name), "dp=4 zero=3") for name in ("meshtune", "any")
    )
    latency_s = machine(1.0).tiers[0].latency_s.value
    n_messages = 3 * 2 * (DENSE.n_layers + 1)  # two micro-batches: a reduction and two gathers each
    assert one.dp_comm_s[0] - other.dp_comm_s[0] > (n_messages - 3 * 2) * latency_s * 3


def test_an_open_ring_pays_for_its_scores():
    job = job_on(machine(1.0))
    ring, ulysses = (time_of(job, f"cp=2 dp=2 cp_kind={kind}").compute_s[0] for kind in ("ring", "ulysses"))
    fused = replace(job, workload=replace(job.workload, framework="any"))
    both = [time_of(fused, f"cp=2 dp=2 cp_kind={kind}").compute_s[0] for kind in ("ring", "ulysses")]
    assert ring > ulysses
    assert both[0] == both[1]


@pytest.mark.parametrize("words", ["pp=4", "dp=4 zero=2", "dp=2 pp=2 zero=3"])
def test_what_is_explained_is_what_is_predicted(words):
    job, plan = job_on(machine(2.0)), Plan.parse(words)
    assert explain(job, plan)


def test_a_file_keeps_the_turns(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(cluster_toml(machine(2.0)))
    assert load_cluster(str(path), 4).device.processes_per_core == 2.0


@pytest.mark.parametrize("turns", [0.5, -1.0, float("inf")])
def test_a_process_has_at_most_a_core(turns):
    with pytest.raises(InvalidSpec, match="processes_per_core must be 0 for an accelerator, or at least 1"):
        machine(turns)


def test_an_accelerator_has_a_host_of_its_own():
    cluster = load_cluster("dgx-h100", 8)
    assert not cluster.device.is_host
    assert cluster.turns == 1
