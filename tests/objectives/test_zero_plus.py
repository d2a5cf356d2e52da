"""ZeRO++: what leaves a node, what a second shard takes, and when fewer bits pay."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.cost.stages import RankParameters
from objectives.cost.step import estimate, stage_profile
from objectives.cost.zero_plus import conversions_s, crossing_bytes
from objectives.simulator.step import StepOptions, StepSimulator, simulate_step
from objectives.simulator.step_graph import Activity
from search_spaces.cluster import assumed
from search_spaces.parameters import total_parameters
from search_spaces.plan import Plan, Plans
from search_spaces.state import TrainingState
from tests.objectives.jobs import job_of, with_links

QWZ, HPZ, QGZ = "quantized_weights=true", "hpz=8", "quantized_gradients=true"
ALL = f"{QWZ} {HPZ} {QGZ}"
PLAIN = "dp=32 zero=3 recompute=full"
JOB = job_of("llama-2-13b", "dgx-a100", 32, seq_len=2048, global_batch=32, framework="deepspeed")
MOE = job_of("mixtral-8x7b", "dgx-a100", 32, global_batch=32)


def priced(job, *texts, base=PLAIN):
    return estimate(job, Plans.of([Plan.parse(f"{base} {text}") for text in texts]))


def slower_network(job, factor):
    *inner, fabric = job.cluster.tiers
    slow = with_links(replace(job.cluster, tiers=(fabric,)), bandwidth=factor).tiers
    return replace(job, cluster=replace(job.cluster, tiers=(*inner, *slow)))


@pytest.mark.parametrize(
    ("features", "between_nodes", "inside"),
    [
        ("", (1, 1, 1), (1, 1, 1)),
        (QWZ, (0.5, 0.5, 1), (0.5, 0.5, 1)),
        (HPZ, (1, 0, 1), (1, 1, 1)),
        (QGZ, (1, 1, 0.25), (1, 1, 0.25)),
        (ALL, (0.5, 0, 0.25), (0.5, 0.5, 0.25)),
    ],
    ids=["ZeRO-3", "qwZ", "hpZ", "qgZ", "all"],
)
def test_bytes_of_each_collective_in_units_of_the_weights(features, between_nodes, inside):
    """Wang et al. (2023), arXiv:2306.10209, table 1; inside the node a device sends all of M."""
    plans, entries = Plans.of([Plan.parse(f"{PLAIN} {features}")]), np.array([8.0e9])
    node, fabric = (crossing_bytes(JOB, plans, entries)[:, tier, 0] / (2 * 8.0e9) for tier in (0, 1))
    assert tuple(fabric) == between_nodes
    assert tuple(node) == inside


def test_one_hop_inside_a_node_has_no_second_one():
    job = job_of("llama-2-13b", "dgx-a100", 8, global_batch=8, framework="deepspeed")
    plans, entries = Plans.of([Plan.parse(f"dp=8 zero=3 {QGZ}")]), np.array([1.0e9])
    assert crossing_bytes(job, plans, entries)[2, :, 0].tolist() == [0.5e9, 0.0]


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_second_shard_takes_two_bytes_a_parameter_over_its_size(size):
    found = priced(JOB, "", f"hpz={size}").memory.weights_bytes
    assert found[1] - found[0] == pytest.approx(2 * total_parameters(JOB.model) / size, rel=1e-12)
    profile = stage_profile(JOB, Plan.parse(f"{PLAIN} hpz={size}"))
    assert profile.memory.weights_bytes[0] == pytest.approx(found[1], rel=1e-12)


def test_bits_alone_take_no_memory():
    found = priced(JOB, "", QWZ, QGZ).peak_memory_bytes
    assert np.all(found == found[0])


@pytest.mark.parametrize("features", [QWZ, HPZ, QGZ, ALL])
def test_the_gain_falls_with_bandwidth_and_with_tokens(features):
    def gain(factor, micro_batch):
        job = slower_network(JOB, factor)
        job = replace(job, workload=replace(job.workload, global_batch=32 * micro_batch))
        step_s = priced(job, "", features, base=f"{PLAIN} micro_batch={micro_batch}").step_s
        return step_s[0] / step_s[1]

    by_bandwidth = [gain(factor, 1) for factor in (0.05, 0.1, 0.25, 1.0)]
    by_tokens = [gain(0.05, tokens) for tokens in (1, 2, 4)]
    assert sorted(by_bandwidth, reverse=True) == by_bandwidth
    assert sorted(by_tokens, reverse=True) == by_tokens
    assert by_bandwidth[0] > 1.05


def test_without_computation_the_gain_nears_four():
    """3 M to 0.75 M, as the time between nodes becomes all of the step."""
    comm_s = priced(slower_network(JOB, 1e-3), "", ALL).time.dp_comm_s
    many_nodes_s = (31 / 32) / (3 / 4)  # a ring leaves out 1 / n, the second hop 1 / nodes of its bytes
    assert comm_s[0] / comm_s[1] == pytest.approx(3 / (0.5 + 0.25 / many_nodes_s), rel=0.01)


def test_on_a_fast_network_converting_costs_more_than_it_saves():
    """Between nodes as fast as inside: fewer bits are not free."""
    step_s = priced(slower_network(JOB, 50.0), "", QWZ, QGZ, base=f"{PLAIN} overlap_dp=true").step_s
    assert np.all(step_s[1:] > step_s[0])


def test_conversions_move_their_bytes_through_memory():
    plans = Plans.of([Plan.parse(f"{PLAIN} {each}") for each in ("", QWZ, f"{QWZ} {HPZ}", QGZ)])
    entries = np.full(4, 1.0e9)
    forward, backward = conversions_s(JOB, plans, RankParameters(dense=entries, expert=0 * entries))
    device = JOB.cluster.device
    rate = device.memory_bandwidth_bytes_per_s * device.memory_efficiency.value
    gathered, reduced = 3e9 * (1 + 1 / 32), 1e9 * (2.5 + 0.5 + 1.0 / 8 + 2 / 32)
    assert forward * rate == pytest.approx([0, gathered, gathered, 0])
    assert backward * rate == pytest.approx([0, gathered, 3e9 * (1 + 1 / 8), reduced])


def test_what_converts_is_part_of_the_computation_and_not_hidden():
    bare, hidden = (priced(JOB, "", ALL, base=f"{PLAIN} {each}").time for each in ("", "overlap_dp=true"))
    extra = bare.compute_s[1] - bare.compute_s[0]
    assert extra > 0
    assert hidden.compute_s[1] - hidden.compute_s[0] == pytest.approx(extra)


@pytest.mark.parametrize("features", ["", QWZ, HPZ, QGZ, ALL])
@pytest.mark.parametrize(("job", "base"), [(JOB, PLAIN), (MOE, "dp=32 ep=4 zero=3")], ids=["dense", "moe"])
def test_the_engine_agrees_where_nothing_overlaps(job, base, features):
    plan = Plan.parse(f"{base} {features}")
    closed_s = estimate(job, Plans.of([plan])).step_s[0]
    assert StepSimulator(job, plan).seconds(0) == pytest.approx(closed_s, rel=1e-3)


def test_a_gather_before_a_backward_pass_is_the_nearer_one():
    job = slower_network(JOB, 0.05)
    step = simulate_step(job, Plan.parse(f"{PLAIN} {HPZ}"), StepOptions(slowdown=assumed(1.0)))
    tasks = step.activities
    gathers = tasks.activity == Activity.GATHER
    order = np.argsort(tasks.start_s[gathers])
    first, second = (tasks.finish_s - tasks.start_s)[gathers][order][:2]
    assert second < 0.2 * first


def test_experts_are_shared_over_their_own_replicas():
    """Of 8 experts over 4 ranks each is held by 8 devices: a second shard over 8 would be the first."""
    found = priced(MOE, "", "hpz=4", base="dp=32 ep=4 zero=3")
    assert found.memory.weights_bytes[1] > found.memory.weights_bytes[0]
    assert found.time.dp_comm_s[1] < found.time.dp_comm_s[0]


def test_a_plan_costs_the_same_beside_others():
    texts = ("", QWZ, HPZ, QGZ, ALL)
    together = priced(JOB, *texts)
    for i, text in enumerate(texts):
        alone = priced(JOB, text)
        assert alone.step_s[0] == together.step_s[i]
        assert alone.peak_memory_bytes[0] == together.peak_memory_bytes[i]


def test_wide_gradients_are_scattered_wide_and_quantized_alike():
    wide = replace(JOB, workload=replace(JOB.workload, state=TrainingState(gradient_bytes=4.0)))
    comm_s = [priced(job, "", QGZ).time.dp_comm_s for job in (JOB, wide)]
    assert comm_s[1][0] > comm_s[0][0]
    assert comm_s[1][1] == pytest.approx(comm_s[0][1])
