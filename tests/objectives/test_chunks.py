"""Sequences in chunks and checkpoints on the host, beside Ulysses: bytes, waits, and the laws of both."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.cost import chunks
from objectives.cost.layers import layer_cost, sequence_bytes, ulysses_sent_bytes
from objectives.cost.step import estimate, stage_profile
from objectives.simulator.step import StepSimulator, simulate_step
from search_spaces.plan import Plan, Plans
from search_spaces.space import SearchSpace, SpaceSpec
from tests.objectives.jobs import job_of

K = 1024
UL = "cp=8 cp_kind=ulysses zero=3 recompute=full"
CHUNKED = f"{UL} sequence_chunk={16 * K}"
HOSTED = f"{CHUNKED} offload_sequence=true"
CHECKPOINTS = "offload_checkpoints=true"


def llama(seq_len=128 * K, n_devices=8, **workload):
    given = dict(global_batch=1, framework="deepspeed", memory_share=1.0, attention_flops="full")
    return job_of("llama-3-8b", "dgx-a100", n_devices, seq_len=seq_len, **given | workload)


def one(text):
    return Plans.of([Plan.parse(text)])


def with_host(job, bytes_per_s):
    device = replace(job.cluster.device, host_bandwidth_bytes_per_s=bytes_per_s)
    return replace(job, cluster=replace(job.cluster, device=device))


@pytest.mark.parametrize("degree", [2, 4, 8, 16, 32])
def test_megatron_moves_as_many_times_ulysses_bytes_as_there_are_ranks(degree):
    """Jacobs et al. (2023), arXiv:2309.14509, section 3.2: 4 N h against 4 N h / P."""
    job = job_of("llama-2-7b", "dgx-a100", 32, seq_len=32 * K, global_batch=32)
    rest = 32 // degree
    megatron = 4 * sequence_bytes(job, one(f"tp={degree} dp={rest} sequence_parallel=true"))
    ulysses = ulysses_sent_bytes(job, one(f"cp={degree} dp={rest} cp_kind=ulysses"))
    assert ulysses == pytest.approx(4 * 2.0 * 32 * K * 4096 / degree)
    assert megatron / ulysses == pytest.approx(degree)


def test_ulysses_bytes_stay_when_tokens_and_ranks_grow_together():
    sent = [
        ulysses_sent_bytes(
            job_of("llama-2-7b", "dgx-a100", 32, seq_len=8 * K * degree, global_batch=32),
            one(f"cp={degree} dp={32 // degree} cp_kind=ulysses"),
        )[0]
        for degree in (1, 2, 8, 32)
    ]
    assert sent == pytest.approx([sent[0]] * 4)


def test_ranks_beyond_the_key_value_heads_replicate_them():
    """Of 32 heads and 8 of keys and values: 16 ranks send 16 of these, 32 ranks as if there were 32."""
    job = llama(n_devices=32)
    sent = [ulysses_sent_bytes(job, one(f"cp={p} dp={32 // p} cp_kind=ulysses"))[0] * p for p in (8, 16, 32)]
    assert sent == pytest.approx([sent[0] * (32 + held) / (32 + 8) for held in (8, 16, 32)])


@pytest.mark.parametrize(("model", "most"), [("llama-3-8b", 32), ("mixtral-8x7b", 32), ("gpt2", 12)])
def test_ulysses_splits_no_further_than_the_heads(model, most):
    job = job_of(model, "dgx-a100", 96, seq_len=96 * K, global_batch=96)
    spec = SpaceSpec.of({"tp": 1, "pp": 1, "cp_kind": "ulysses", "micro_batch": 1, "zero": 0})
    space = SearchSpace(job.model, job.cluster, job.workload, spec)
    assert max(int(plans.cp.max()) for plans in space.chunks()) == most


def test_zero_shards_over_data_and_sequence_ranks():
    """Jacobs et al. (2023), section 3.3: the two groups combined."""
    job = llama(global_batch=8)
    held = [estimate(job, one(f"{text} zero=3")).memory for text in ("dp=8", "cp=8 cp_kind=ulysses")]
    assert held[0].optimizer_bytes == held[1].optimizer_bytes
    assert held[0].weights_bytes == held[1].weights_bytes


@pytest.mark.parametrize("u", [2, 4, 16, 64])
def test_two_buffers_stay_and_half_of_everything_again_travels(u):
    """Yao et al. (2024), arXiv:2408.16978, section 4: sum over i <= u of i chunks of u."""
    job = llama(u * 16 * K)
    plans = one(HOSTED)
    whole = chunks.key_value_bytes(job, plans)
    assert chunks.n_chunks(job, plans) == u
    assert chunks.resident_key_value_bytes(job, plans) == pytest.approx(2 / u * whole)
    assert chunks.forward_traffic_bytes(job, plans) == pytest.approx(sum(range(1, u + 1)) / u * whole)
    assert chunks.forward_traffic_bytes(job, one(CHUNKED)) == 0


def shortest_hidden_chunk(job, plans, core_s):
    """Tokens of the shortest chunk whose fetch hides behind a pair of chunks: s² (k + v) T / (2 core r s).

    `core_s` is one layer's core for the whole sequence, whose length cancels.
    """
    rate = job.cluster.device.host_bandwidth_bytes_per_s
    return job.workload.seq_len * chunks.key_value_bytes(job, plans) / (2 * core_s * rate)


def test_the_shortest_chunk_that_hides_does_not_depend_on_the_sequence():
    found = []
    for length in (128 * K, 512 * K):
        job, plans = llama(length), one(HOSTED)
        core_s = layer_cost(job, plans, "dense").core_forward_s
        found.append(shortest_hidden_chunk(job, plans, core_s)[0])
        faster = with_host(job, 2 * job.cluster.device.host_bandwidth_bytes_per_s)
        assert shortest_hidden_chunk(faster, plans, core_s)[0] == pytest.approx(found[-1] / 2)
    assert found[0] == pytest.approx(found[1], rel=0.01)


@pytest.mark.parametrize(("share", "waits"), [(0.5, False), (0.99, False), (1.01, True), (2.0, True)])
def test_chunks_wait_for_the_host_where_they_are_shorter(share, waits):
    """Forward, on a link so slow that the shortest chunk that hides is a share of the chunk in use."""
    job, plans = llama(1024 * K), one(HOSTED)
    cost = layer_cost(job, plans, "dense")
    rate = job.cluster.device.host_bandwidth_bytes_per_s
    shortest = shortest_hidden_chunk(job, plans, cost.core_forward_s)[0]
    slow = with_host(job, rate * shortest / (16 * K) / share)
    hides = shortest_hidden_chunk(slow, plans, cost.core_forward_s)[0]
    assert hides == pytest.approx(share * 16 * K)
    forward, _ = chunks.host_waits_s(slow, plans, cost, np.array([1]), np.array([0.0]))
    assert bool(forward[0] > 0) is waits


def test_a_slower_host_makes_longer_steps_and_nothing_else():
    jobs = [with_host(llama(), rate) for rate in (32e9, 2e9, 0.5e9)]
    found = [estimate(job, one(f"{HOSTED} {CHECKPOINTS}")) for job in jobs]
    waits = [each.time.offload_s[0] for each in found]
    assert waits == sorted(waits)
    assert waits[2] > waits[0]
    assert len({each.peak_memory_bytes[0] for each in found}) == 1
    for each, wait in zip(found, waits, strict=True):
        assert each.step_s[0] - wait == pytest.approx(found[0].step_s[0] - waits[0])


@pytest.mark.parametrize("text", [UL, "tp=8 recompute=full", "tp=4 pp=2 recompute=full"])
def test_checkpoints_on_the_host_leave_two_of_them(text):
    job = llama(32 * K, global_batch=4)
    here, away = (stage_profile(job, Plan.parse(f"{text} {each}")) for each in ("", CHECKPOINTS))
    assert (away.activation_bytes < 0.1 * here.activation_bytes).all()
    assert (away.memory.total_bytes < here.memory.total_bytes).all()
    assert away.in_flight.tolist() == here.in_flight.tolist()


def test_every_step_of_the_ladder_takes_less_memory():
    texts = ("cp=8 cp_kind=ulysses zero=3", UL, f"{UL} {CHECKPOINTS}", f"{CHUNKED} {CHECKPOINTS}",
             f"{HOSTED} {CHECKPOINTS}")  # fmt: skip
    peaks = [estimate(llama(1024 * K), one(text)).peak_memory_bytes[0] for text in texts]
    assert sorted(peaks, reverse=True) == peaks
    assert len(set(peaks)) == len(peaks)


def test_shorter_chunks_take_less_memory():
    peaks = [
        estimate(llama(1024 * K), one(f"{UL} {CHECKPOINTS} sequence_chunk={n * K} offload_sequence=true"))
        for n in (512, 128, 32)
    ]
    found = [float(each.peak_memory_bytes[0]) for each in peaks]
    assert sorted(found, reverse=True) == found


@pytest.mark.parametrize("text", [HOSTED, f"{HOSTED} {CHECKPOINTS}", f"tp=8 recompute=full {CHECKPOINTS}"])
def test_the_engine_waits_for_the_host_as_the_closed_form_does(text):
    job, plan = with_host(llama(), 1e9), Plan.parse(text)
    closed = estimate(job, Plans.of([plan]))
    step = simulate_step(job, plan)
    assert closed.time.offload_s[0] > 0
    assert StepSimulator(job, plan).seconds(0) == pytest.approx(closed.step_s[0], rel=1e-3)
    assert step.parts_s["offload_s"][0] == pytest.approx(closed.time.offload_s[0], rel=1e-3)
    assert step.peak_memory_bytes == pytest.approx(closed.peak_memory_bytes[0])


def test_a_plan_costs_the_same_beside_others():
    texts = ("cp=8 cp_kind=ulysses zero=1", UL, f"{UL} {CHECKPOINTS}", CHUNKED, HOSTED)
    together = estimate(llama(), Plans.of([Plan.parse(text) for text in texts]))
    for i, text in enumerate(texts):
        alone = estimate(llama(), one(text))
        assert alone.step_s[0] == together.step_s[i]
        assert alone.peak_memory_bytes[0] == together.peak_memory_bytes[i]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradients_come_as_activations_go_where_a_step_has_one_micro_batch(stage):
    """DeepSpeed frees gradients with the update: what they need beyond the activations counts, once."""
    text = f"cp=8 cp_kind=ulysses zero={stage}"
    long, twice = llama(64 * K), llama(64 * K, global_batch=2)
    assert estimate(long, one(text)).memory.gradients_bytes[0] == 0
    assert estimate(twice, one(text)).memory.gradients_bytes[0] > 0
    short = estimate(llama(128), one(text)).memory
    whole = estimate(llama(128, global_batch=2), one(text)).memory
    freed = whole.activations_bytes + whole.logits_bytes
    assert short.gradients_bytes == pytest.approx(np.maximum(whole.gradients_bytes - freed, 0), rel=0.02)
