"""Jobs and plans that several tests price."""

from dataclasses import replace
from functools import cache

import numpy as np

from objectives.metrics import Job
from search_spaces.cluster import assumed
from search_spaces.cluster_presets import load_cluster
from search_spaces.model_presets import load_model
from search_spaces.plan import (
    KNOB_NAMES,
    CpKind,
    Dispatch,
    ExpertTokens,
    ModuleSet,
    OptimizerSync,
    Plans,
    Recompute,
    Schedule,
    column,
)
from search_spaces.rules import RULES
from search_spaces.space import SearchSpace, SpaceSpec
from search_spaces.state import TrainingState
from search_spaces.workload import AttentionFlops, Precision, Workload


def job_of(model, cluster, n_devices, *, seq_len=4096, global_batch=256, **workload):
    return Job(
        model=load_model(model) if isinstance(model, str) else model,
        cluster=load_cluster(cluster, n_devices),
        workload=Workload(seq_len=seq_len, global_batch=global_batch, **workload),
    )


def frontier_job(model="frontier-175b", n_devices=128, global_batch=640):
    """The Frontier study's trainer: DeepSpeed fp16, 16-bit gradients, 2,048 tokens."""
    return job_of(
        model,
        "frontier",
        n_devices,
        seq_len=2048,
        global_batch=global_batch,
        precision=Precision.FP16,
        framework="deepspeed",
        state=TrainingState(gradient_bytes=2.0),
        attention_flops=AttentionFlops.FULL,
    )


EVERY_OTHER_LAYER = replace(
    load_model("deepseek-v2-lite"),
    name="an expert layer after every two dense ones",
    n_layers=30,
    moe=replace(load_model("deepseek-v2-lite").moe, n_dense_layers=2, layer_every=3),
)
MANY_DENSE = replace(
    load_model("mixtral-8x7b"),
    name="eight dense layers before the experts",
    moe=replace(load_model("mixtral-8x7b").moe, n_dense_layers=8),
)

# Dense, tied, grouped heads, experts everywhere, after dense layers, and on some layers; layers by compute.
JOBS = {
    "dense": job_of("gpt3-175b", "dgx-a100", 64, seq_len=2048, global_batch=64),
    "deepspeed": frontier_job(n_devices=64, global_batch=64),
    "grouped": job_of("llama-3-70b", "dgx-h100", 32, seq_len=8192, global_batch=32),
    "experts": job_of("mixtral-8x7b", "frontier", 16, global_batch=16),
    "dense-first": job_of(MANY_DENSE, "dgx-h100", 32, global_batch=32),
    "latent": job_of("deepseek-v3", "h800-pod", 64, global_batch=128),
    "balanced": job_of("llama-3-8b", "aws-p5", 64, framework="nanotron"),
    "every-third": job_of(EVERY_OTHER_LAYER, "dgx-h100", 120, global_batch=120),
}


@cache
def legal_plans(name, n=400, seed=0, **narrowed):
    """A seeded sample of a job's legal plans, from all over its space."""
    job = JOBS[name]
    space = SearchSpace(job.model, job.cluster, job.workload, SpaceSpec.of(narrowed))
    rng, picked = np.random.default_rng(seed), []
    for number, chunk in enumerate(space.chunks()):
        picked.append(chunk.take(rng.integers(len(chunk), size=n // (number + 1) + 1)))
    plans = Plans.concatenate(picked)
    return plans.take(rng.permutation(len(plans))[:n])


def with_links(cluster, *, bandwidth=1.0, latency=1.0):
    """The cluster with all links' bandwidths and latencies multiplied."""
    tiers = [
        replace(
            tier,
            bandwidth_bytes_per_s=tier.bandwidth_bytes_per_s * bandwidth,
            pair_bandwidth_bytes_per_s=tier.pair_bandwidth_bytes_per_s * bandwidth,
            latency_s=assumed(tier.latency_s.value * latency),
        )
        for tier in cluster.tiers
    ]
    return replace(cluster, tiers=tuple(tiers))


# Settings of the knobs that are off unless named; several of them together are often legal.
ASKED = {
    "overlap_ep": [True],
    "deduplicate_ep": [True],
    "hierarchical_ep": [True],
    "dispatch": list(Dispatch),
    "recompute": list(Recompute),
    "recompute_stages": [1, 2, 3],
    "recompute_modules": list(ModuleSet)[1:],
    "migrate_every": [10],
    "optimizer_sync": list(OptimizerSync),
    "schedule": list(Schedule),
    "vpp": [1, 2],
    "pipeline_limit": [4, 16],
    "extra_warmup": [1, 7],
    "zero": [0, 1, 3],
    "quantized_weights": [True],
    "quantized_gradients": [True],
    "hpz": [2, 8],
    "cp_kind": list(CpKind),
    "sequence_chunk": [1024],
    "offload_sequence": [True],
    "offload_checkpoints": [True],
    "offload_optimizer": [True],
    "overlap_offload": [True],
    "power_cap_w": [200, 350, 500],
    "n_microbatches": [1, 8],
    "expert_tokens": list(ExpertTokens),
    "keep_received": [True],
    "offload_bucket": [2**22, 2**26],
    "coalesced_buckets": [4],
    "optimizer_tile": [2**20, 2**24],
    "overlap_dp": [False],
}


PADDED = replace(
    load_model("mixtral-8x7b"),
    name="experts of a fixed capacity",
    moe=replace(load_model("mixtral-8x7b").moe, capacity_factor=1.25),
)
# The same, and jobs of trainers that know what others do not.
UNUSUAL_JOBS = JOBS | {
    "padded": job_of(PADDED, "frontier", 64, global_batch=256, expert_imbalance=1.5),
    "x-moe": job_of(PADDED, "frontier", 64, global_batch=256, framework="x-moe"),
    "axonn": job_of("gpt3-175b", "dgx-a100", 64, seq_len=2048, global_batch=256, framework="axonn"),
    "ted": job_of(PADDED, "frontier", 64, global_batch=256, framework="deepspeed-ted"),
    "deepspeed-experts": job_of("mixtral-8x7b", "frontier", 64, global_batch=256, framework="deepspeed"),
}


@cache
def unusual_plans(name, n=300, n_walks=6, n_steps=80, seed=0):
    """Legal plans with knobs set that are off unless named: walks from legal plans by legal steps."""
    job = UNUSUAL_JOBS[name]
    space = SearchSpace(job.model, job.cluster, job.workload, SpaceSpec())
    rng, legal = np.random.default_rng(seed), next(space.chunks())
    return Plans.concatenate(
        [
            _walked(legal.take(rng.integers(len(legal), size=n // n_walks)), space, n_steps, rng)
            for _ in range(n_walks)
        ]
    )


def _walked(plans, space, n_steps, rng):
    n, columns = len(plans), {knob: getattr(plans, knob) for knob in KNOB_NAMES}
    for knob in rng.choice(list(ASKED), size=n_steps).tolist():
        choices = column(ASKED[knob], knob)
        changed = columns | {knob: choices[rng.integers(len(choices), size=n)]}
        legal = np.logical_and.reduce(
            [np.broadcast_to(rule.holds(space.context, changed), n) for rule in RULES]
        )
        columns = columns | {knob: np.where(legal, changed[knob], columns[knob])}
    return Plans(**columns)
