"""Fits of probes recover the machine that made them, from noisy timings with hiccups."""

from dataclasses import replace

import numpy as np
import pytest

from runners.probes.baseline import baseline, preset_of
from runners.probes.fit_network import fit_tier
from runners.probes.fits import fit_machine, source_of
from runners.probes.layout import groups_of, members, out_of_reach
from runners.probes.predictions import compare, predicted_s
from runners.probes.record import Result, scatter
from search_spaces.cluster import Origin
from search_spaces.cluster_file import cluster_toml
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec
from search_spaces.workload import Precision
from tests.runners.probe_cases import (
    CPU,
    GPU,
    TRUE_COPY,
    TRUE_LAUNCH_S,
    TRUE_SUSTAINED,
    probed,
    repeats,
    truth,
)

CLOSE = 0.06  # noise of 5 % over 15 repeats and several shapes


def fitted(base, facts, n_ranks, **options):
    machine = truth(base.cluster, facts.formats)
    results = probed(machine, facts, n_ranks, **options)
    return machine, fit_machine(base, results, facts=facts, n_ranks=n_ranks, name="mine")


@pytest.fixture(scope="module")
def gpus():
    return fitted(baseline("dgx-h200", GPU, n_ranks=16, n_local=8), GPU, 16)


@pytest.fixture(scope="module")
def processes():
    return fitted(baseline(None, CPU, n_ranks=4, n_local=4), CPU, 4)


@pytest.mark.parametrize(
    "name", ["gemm_efficiency", "fp8_gemm_efficiency", "attention_efficiency", "memory_efficiency"]
)
def test_efficiencies_against_rated_peaks_are_found(gpus, name):
    machine, found = gpus
    constant = getattr(found.cluster.device, name)
    assert constant.value == pytest.approx(getattr(machine.device, name).value, rel=CLOSE)
    assert constant.origin is Origin.MEASURED
    assert 0 < constant.spread < 0.2
    assert "2026-05-01" in constant.source
    assert "NVIDIA H200" in constant.source


@pytest.mark.parametrize("tier", [0, 1])
def test_latency_and_efficiency_of_every_tier_are_found(gpus, tier):
    machine, found = gpus
    for name in ("latency_s", "efficiency"):
        value, true = (getattr(each.tiers[tier], name).value for each in (found.cluster, machine))
        assert value == pytest.approx(true, rel=CLOSE)


def test_rated_peaks_and_bandwidths_stay(gpus):
    machine, found = gpus
    peaks = found.cluster.device.peak_flops_per_s
    assert {each: peaks[each] for each in machine.device.peak_flops_per_s} == machine.device.peak_flops_per_s
    for here, there in zip(found.cluster.tiers, machine.tiers, strict=True):
        assert here.bandwidth_bytes_per_s == there.bandwidth_bytes_per_s


def test_launches_copies_and_what_is_sustained_are_found(gpus):
    device = gpus[1].cluster.device
    assert device.kernel_launch_s.value == pytest.approx(TRUE_LAUNCH_S, rel=CLOSE)
    assert device.sustained_efficiency.value == pytest.approx(TRUE_SUSTAINED, rel=CLOSE)
    assert device.host_bandwidth_bytes_per_s == pytest.approx(TRUE_COPY, rel=2 * CLOSE)
    assert "host_bandwidth_bytes_per_s" in device.source


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_rated_peaks_the_rate_is_found_and_no_probe_exceeds_its_peak(processes, precision):
    machine, found = processes
    here, there = found.cluster.device, machine.device
    rates = [d.peak(Precision(precision)) * d.gemm_efficiency.value for d in (here, there)]
    assert rates[0] == pytest.approx(rates[1], rel=CLOSE)
    assert here.gemm_efficiency.value <= 1


def test_without_rated_bandwidths_what_is_reached_is_found(processes):
    for machine, tier in zip(processes[0].tiers, processes[1].cluster.tiers, strict=True):
        reached = [t.bandwidth_bytes_per_s * t.efficiency.value for t in (machine, tier)]
        assert reached[1] == pytest.approx(reached[0], rel=CLOSE)
        assert tier.latency_s.value == pytest.approx(machine.latency_s.value, rel=CLOSE)


def test_the_fitted_machine_predicts_its_probes(processes, gpus):
    for machine, found in (processes, gpus):
        n = found.cluster.max_devices or 16
        facts = CPU if machine.device.name == "cpu" else GPU
        for each in compare(found.before, found.cluster, probed(machine, facts, n, noise=0.0)):
            assert abs(each.error) < 2 * CLOSE, each.group


def test_what_no_probe_tells_stays_assumed_and_is_named(processes):
    _, found = processes
    assert set(found.not_measured) == {"step_fixed_s", "straggler_per_log2"}
    assert found.cluster.step_fixed_s == found.before.step_fixed_s


def test_a_device_alone_leaves_its_network_as_it_was():
    base = baseline("dgx-h200", GPU, n_ranks=1, n_local=1)
    _, found = fitted(base, GPU, 1)
    assert found.cluster.tiers == base.cluster.tiers
    assert "do not reach this tier" in found.not_measured["node.latency_s"]
    assert found.overlaps == ()


def test_overlap_says_how_much_longer_both_take(processes):
    (overlap,) = processes[1].overlaps
    assert overlap.compute_slowdown == pytest.approx(1.3, rel=CLOSE)
    assert overlap.collective_slowdown == pytest.approx(1.5, rel=CLOSE)


def test_a_rate_above_the_rated_peak_is_capped_and_said():
    base = baseline("dgx-h200", GPU, n_ranks=1, n_local=1)
    quick = {
        key: replace(each, readings={name: [s / 3 for s in values] for name, values in each.readings.items()})
        for key, each in probed(truth(base.cluster, GPU.formats), GPU, 1).items()
    }
    found = fit_machine(base, quick, facts=GPU, n_ranks=1, name="mine")
    assert found.cluster.device.gemm_efficiency.value == 1
    assert any("gemm_efficiency would be 1.8" in remark for remark in found.remarks)


def test_probes_of_one_collective_and_size_leave_the_other_constant():
    tier = baseline(None, CPU, n_ranks=2, n_local=2).cluster.tiers[0]
    what = {"operation": "all_gather", "bytes": 2**28, "tier": tier.name, "n": 2, "stride": 1}
    large = Result(kind="collective", what=what, readings={"s": [0.5, 0.5, 0.5]})
    line = fit_tier(tier, [large])
    assert line.latency_s is None
    assert line.bandwidth_bytes_per_s == pytest.approx(2**27 / 0.5, rel=0.02)


def test_the_file_reads_back_as_the_fitted_machine(processes, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(cluster_toml(processes[1].cluster, {"machine.bandwidth_bytes_per_s": "measured"}))
    assert load_cluster(str(path), 1) == processes[1].cluster
    assert "  # measured\n" in path.read_text()


def test_hiccups_hardly_move_the_scatter():
    rng = np.random.default_rng(3)
    assert scatter(repeats(rng, 2.0, 0.05, n=400)) == pytest.approx(0.05, abs=0.02)


@pytest.mark.parametrize(
    ("device", "memory_bytes", "preset"),
    [
        ("NVIDIA H200", 150e9, "h200"),
        ("NVIDIA H100 80GB HBM3", 85e9, "h100-80"),
        ("NVIDIA A100-SXM4-40GB", 42e9, "a100-40"),
        ("NVIDIA A100-SXM4-80GB", 85e9, "a100-80"),
        ("Tesla V100-SXM2-32GB", 34e9, "v100-32"),
        ("AMD Instinct MI250X", 68e9, "mi250x-gcd"),
        ("NVIDIA GeForce RTX 4090", 24e9, None),
    ],
)
def test_the_driver_s_name_means_a_preset(device, memory_bytes, preset):
    assert preset_of(replace(GPU, device=device, memory_bytes=memory_bytes)) == preset


def test_an_unknown_accelerator_takes_its_peaks_from_the_probes():
    facts = replace(GPU, device="Some GPU 9000", formats=("bf16", "fp32"))
    base = baseline(None, facts, n_ranks=8, n_local=8)
    machine, found = fitted(base, facts, 8)
    assert found.cluster.device.name == "some-gpu-9000"
    for precision in machine.device.peak_flops_per_s:
        rates = [d.peak(precision) * d.gemm_efficiency.value for d in (found.cluster.device, machine.device)]
        assert rates[0] == pytest.approx(rates[1], rel=CLOSE)


@pytest.mark.parametrize(
    ("given", "facts", "words"),
    [
        ("dgx-h100", GPU, "it has h100-80"),
        ("dgx-h100", CPU, "it has h100-80"),
        ("local", GPU, "must be measured on processors"),
    ],
)
def test_a_cluster_that_is_another_machine_is_refused(given, facts, words):
    with pytest.raises(InvalidSpec, match=words):
        baseline(given, facts, n_ranks=2, n_local=2)


def test_groups_use_one_tier_alone_or_check_it():
    cluster = load_cluster("dgx-h200", 1)
    groups = groups_of(cluster, 16)
    assert {(g.n, g.stride) for g in groups if g.tier == "node"} == {(2, 1), (4, 1), (8, 1)}
    assert {(g.n, g.stride, g.is_pure) for g in groups if g.tier == "fabric"} == {
        (2, 8, True),
        (16, 1, False),
    }
    assert out_of_reach(cluster, 8) == ["fabric"]
    assert members(2, 2, 8) == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert members(2, 1, 3) == [[0, 1]]


def test_an_all_reduce_takes_the_faster_of_ring_and_tree():
    cluster = load_cluster("dgx-h200", 1)
    what = {"operation": "all_reduce", "tier": "node", "n": 8, "stride": 1}
    small, large = (
        predicted_s(cluster, Result(kind="collective", what={**what, "bytes": n}, readings={"s": [1.0]}))
        for n in (1024, 2**30)
    )
    latency_s = cluster.tiers[0].latency_s.value
    assert small == pytest.approx(2 * 3 * latency_s, rel=0.01)
    reached = cluster.tiers[0].bandwidth_bytes_per_s * cluster.tiers[0].efficiency.value
    assert large == pytest.approx(2 * 7 / 8 * 2**30 / reached + 14 * latency_s, rel=0.01)


def test_the_source_names_days_number_and_machine():
    results = probed(baseline(None, CPU, n_ranks=2, n_local=2).cluster, CPU, 2)
    assert source_of(CPU, 2, results) == (
        "probes of 2026-05-01, 2 processes at once on Some CPU, 4 cores, torch 2.13.0"
    )
