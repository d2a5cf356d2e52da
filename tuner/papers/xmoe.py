"""X-MoE: padding-free token buffers, redundancy-bypassing dispatch, sequence-sharded expert blocks.

The paper's text gives the tables, the authors' launch scripts the plans: 256 GCDs of Frontier with fp16 and a
capacity factor of 1.25, and eight A100s of 40 GB with one sequence a micro-batch.

Source: X-MoE (2025), arXiv:2508.13337; github.com/yueming-yuan/Megatron-DeepSpeed-X-MoE@608415f,
examples_xmoe.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np

from objectives.cost import moe
from objectives.cost.dispatch import exchange_line, regroup_s, routed_tokens
from objectives.cost.moe import Dispatch
from objectives.cost.step import estimate
from objectives.metrics import Job
from search_spaces.cluster_presets import load_cluster, load_device
from search_spaces.model_presets import load_model
from search_spaces.parameters import layer_parameters
from search_spaces.plan import Plan, Plans
from search_spaces.units import GIB, MS
from search_spaces.workload import Precision
from tuner.papers.figure import Figure, Kind, Paper, Provenance, figure_of
from tuner.papers.pricing import best_tflops, job_on, peak_bytes, tflops

NAME = "x-moe"
TITLE = "X-MoE: fine-grained experts without padding, on AMD GPUs"
SOURCE = "arXiv:2508.13337"
SIZES: Mapping[str, float] = MappingProxyType(
    {"small": 10.06, "medium": 55.23, "large": 201.36, "super": 545.43}
)
REDUNDANCY = ((16, 75.1), (32, 54.8), (64, 33.8), (128, 18.5), (256, 9.2))
TABLE_4 = ((Dispatch.DROPLESS, 1.125), (Dispatch.DEEPSPEED_MOE, 2.8125), (Dispatch.TUTEL, 1.953125))
TUTEL, MASKS, FREE = (f"overlap_dp=true dispatch={each}" for each in ("padded", "einsum", "padding-free"))
WHOLE_SEQUENCES = "expert_tokens=dropped"  # attention keeps whole sequences, expert blocks shards of them
# Model FLOPs of a GCD, in T: the plan of the authors' script and what they publish.
RUNS: Mapping[str, tuple[str, str, float]] = MappingProxyType({
    "small, X-MoE": ("small", f"dp=256 ep=8 zero=1 micro_batch=4 {FREE}", 44.0),
    "small, Tutel": ("small", f"dp=256 ep=8 zero=1 micro_batch=4 {TUTEL}", 33.0),
    "small, DeepSpeed-MoE": ("small", f"dp=256 ep=8 zero=1 micro_batch=1 {MASKS}", 20.4),
    "medium, X-MoE": ("medium", f"dp=256 ep=64 zero=1 {FREE}", 24.2),
    "medium, Tutel": ("medium", f"dp=256 ep=64 zero=1 {TUTEL}", 17.0),
    "medium, TED": ("medium", f"tp=4 dp=64 ep=64 etp=4 zero=2 expert_tokens=duplicated {MASKS}", 4.7),
    "large, X-MoE": (
        "large", f"tp=2 dp=128 ep=64 zero=1 {WHOLE_SEQUENCES} deduplicate_ep=true {FREE}", 24.1
    ),
    "super, X-MoE": ("super", f"tp=8 dp=128 ep=256 zero=2 {WHOLE_SEQUENCES} {FREE}", 10.2),
})  # fmt: skip
PAIRS = (
    ("small, X-MoE", "small, Tutel"), ("small, X-MoE", "small, DeepSpeed-MoE"),
    ("medium, X-MoE", "medium, Tutel"), ("medium, X-MoE", "medium, TED"),
)  # fmt: skip
# What a baseline's sweep may set; TED's sweep holds DeepSpeed-MoE's too, as its tp = 1.
SWEEPS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "DeepSpeed-MoE": dict(dispatch=["einsum"], tp=[1], etp=[1]),
        "TED": dict(
            dispatch=["einsum"], tp=[2, 4, 8], etp=[2, 4, 8], expert_tokens=["duplicated"], where="etp = tp"
        ),
        "Tutel": dict(dispatch=["padded"], tp=[1], etp=[1]),
        "X-MoE": dict(
            dispatch=["padding-free"], tp=[1, 2, 4, 8], etp=[1], expert_tokens=["sharded", "dropped"]
        ),
    }
)
TRAINS = {  # published: a throughput, or out of memory
    "DeepSpeed-MoE": (True, False, False, False), "TED": (True, True, False, False),
    "Tutel": (True, True, False, False), "X-MoE": (True, True, True, True),
}  # fmt: skip
A100 = {  # TFLOP/s of one of eight A100s: DeepSpeed-MoE, Tutel, X-MoE
    "1,024 tokens": (27.08, 28.26, 27.33), "14 layers": (52.15, 64.0, 62.51),
}  # fmt: skip
FAR = "all-to-alls beyond 256 GCDs took ten times as long, with outliers of 0.5 to 2 s: no term has it"
FASTER = "ours leaves out the congestion of all-to-alls that the paper describes"


def paper_job(model: str) -> Job:
    """One of the four models as it was run on Frontier."""
    n_devices = 1024 if model == "super" else 256
    small = (
        dict(seq_len=2048, global_batch=8192) if model == "small" else dict(seq_len=4096, global_batch=1024)
    )
    return job_on(
        "frontier",
        f"x-moe-{model}",
        n_devices,
        precision=Precision.FP16,
        framework=NAME,
        memory_share=1.0,
        **small,
    )


def a100_job(variant: str) -> Job:
    """The small model's variants on one machine of eight A100s; 64 sequences a step."""
    model = load_model("x-moe-small")
    if variant == "14 layers":
        model = replace(model, n_layers=14)
    cluster = replace(load_cluster("dgx-a100", 8), device=load_device("a100-40"))
    seq_len = 1024 if variant == "1,024 tokens" else 2048
    return job_on(
        cluster, model, 8, seq_len=seq_len, global_batch=64, precision=Precision.FP16, framework=NAME
    )


def a100_tflops(variant: str) -> tuple[float, ...]:
    """DeepSpeed-MoE, Tutel and X-MoE of a variant, one sequence a micro-batch."""
    job = a100_job(variant)
    return tuple(tflops(job, f"dp=8 ep=8 zero=1 {each}") for each in (MASKS, TUTEL, FREE))


def dispatch_s(ep: int = 32) -> tuple[float, float]:
    """Seconds of one dispatch of the large model: every copy alone, and once to each node."""
    job, base = paper_job("large"), f"dp=256 ep={ep} {FREE}"
    plans = Plans.of([Plan.parse(base), Plan.parse(f"{base} deduplicate_ep=true")])
    sent = 2 * routed_tokens(job, plans) * job.model.d_model
    plain, once = exchange_line(job, plans).seconds(sent) + regroup_s(job, plans, sent)
    return float(plain), float(once)


def all_to_alls_with_recompute() -> float:
    """All-to-alls of an expert layer and micro-batch where everything is computed again; four without."""
    job = paper_job("large")
    still = replace(
        job,
        cluster=replace(
            job.cluster,
            tiers=tuple(
                replace(
                    tier,
                    bandwidth_bytes_per_s=tier.bandwidth_bytes_per_s * FAST,
                    pair_bandwidth_bytes_per_s=tier.pair_bandwidth_bytes_per_s * FAST,
                    latency_s=replace(tier.latency_s, value=0.0),
                )
                for tier in job.cluster.tiers
            ),
        ),
    )
    plain, redone = (f"dp=256 ep=64 {FREE}{more}" for more in ("", " recompute=full"))
    ep_s, again_s, computed_s = (
        getattr(estimate(which, Plans.of([Plan.parse(words)])).time, part)[0]
        for which, words, part in (
            (job, plain, "ep_comm_s"),
            (job, redone, "recompute_s"),
            (still, redone, "recompute_s"),
        )
    )
    return float(4 * (1 + (again_s - computed_s) / ep_s))


FAST = 1e5  # links that cost next to nothing


@cache
def trains(system: str, model: str) -> bool:
    """Whether any plan of a system's sweep fits."""
    degrees = [8, 32, 64, 128, 256] if model == "small" else [32, 64, 128, 256]
    sweep = dict(
        pp=1,
        cp=1,
        zero=[1, 2],
        recompute="none",
        overlap_dp=True,
        offload_optimizer=False,
        ep=degrees,
        micro_batch=[1, 2, 4, 8],
        sequence_parallel=False,
    )
    return best_tflops(paper_job(model), **(sweep | SWEEPS[system])) is not None


def sharding_sequences_keeps_less(model: str) -> bool:
    """Whether a block that shards the sequence takes less memory than one that splits experts.

    With tp = 4 and one expert a device, as the rule assumes and the authors' runs on 1,024 GCDs have it.
    """
    spec = load_model(model)
    assert spec.moe is not None
    job = job_on(
        "frontier", spec, 1024, seq_len=4096, global_batch=1024, precision=Precision.FP16, framework=NAME
    )
    base = f"tp=4 dp=256 ep={spec.moe.n_experts} zero=1"
    sharded = peak_bytes(job, f"{base} {WHOLE_SEQUENCES}")
    return sharded < peak_bytes(job, f"{base} etp=4 expert_tokens=duplicated")


def figures() -> tuple[Figure, ...]:
    """Published figures beside ours."""
    return (*_exact(), *_dispatch(), *_runs(), *_orders())


_exactly, _nearly, _in_order = (
    figure_of(NAME, SOURCE, Provenance.SOURCE, kind) for kind in (Kind.EXACT, Kind.RATIO, Kind.ORDER)
)


def _exact() -> Iterator[Figure]:
    for name, size in SIZES.items():
        model = load_model(f"x-moe-{name}")
        layer = layer_parameters(model, "moe")
        ours = model.n_layers * (layer.experts + layer.attention) / GIB
        yield _exactly(f"parameters of {name}, no embeddings", "2^30", size, ours)
    large = load_model("x-moe-large")
    assert large.moe is not None
    for dispatch, gib in TABLE_4:
        kept = moe.expert_layer_activation_bytes(large, np.array([4096.0]), dispatch, capacity_factor=1.25)
        yield _exactly(f"activations of an expert layer, {dispatch}", "GiB", gib, kept[0] / GIB)
    for ep, percent in REDUNDANCY:
        ours = 100 * moe.dispatch_redundancy(large.moe, np.array([ep // 8]))[0]
        yield _exactly(
            f"copies a node has already, ep = {ep}",
            "%",
            percent,
            ours,
            within=0.006,
            note="printed with three digits",
        )
    yield _exactly("all-to-alls of a layer with recomputation", "", 6, all_to_alls_with_recompute())


def _dispatch() -> Iterator[Figure]:
    plain, once = dispatch_s()
    assumed = "the fork's picking and rebuilding is fitted to this dispatch"
    yield _nearly("dispatch of the large model, ep = 32", "ms", 40.3, plain / MS)
    yield _nearly("the same, once to each node", "ms", 26.2, once / MS, note=assumed)
    yield _nearly("gain of redundancy-bypassing dispatch", "times", 1.55, plain / once, note=assumed)
    kept = moe.expert_layer_activation_bytes(load_model("x-moe-large"), np.array([4096.0]), Dispatch.DROPLESS)
    yield _nearly("activations of an expert layer, measured", "GiB", 1.21, kept[0] / GIB)
    job = paper_job("large")
    words = (f"dp=256 ep=64 {each}" for each in (TUTEL, FREE))
    padded, free = (estimate(job, Plans.of([Plan.parse(each)])).time.ep_comm_s[0] for each in words)
    yield _nearly(
        "all-to-alls of the large model that padding costs",
        "%",
        50.7,
        100 * (1 - free / padded),
        note="ours is the padding, 1 - 1 / 1.25; routers that are not trained yet drop tokens beyond "
        "the capacity, which are not sent either, and how many is not published",
    )


def _runs() -> Iterator[Figure]:
    ours = {name: tflops(paper_job(model), words) for name, (model, words, _) in RUNS.items()}
    for first, second in PAIRS:
        published = RUNS[first][2] / RUNS[second][2]
        yield _nearly(
            f"{first} over {second.partition(', ')[2]}",
            "times",
            published,
            ours[first] / ours[second],
            is_headline=first == "medium, X-MoE" and second == "medium, Tutel",
            note="plans of the authors' scripts",
        )
    for name, (_, _, rate) in RUNS.items():
        note = FAR if name.startswith("super") else FASTER
        yield _nearly(name, "TFLOP/s/GCD, model FLOPs", rate, ours[name], note=note)
    for variant, rates in A100.items():
        masks, tutel, free = a100_tflops(variant)
        note = "the fork's operations of an expert are fitted to these runs: its host sets their pace"
        yield _nearly(
            f"8 A100s, {variant}: X-MoE over Tutel", "times", rates[2] / rates[1], free / tutel, note=note
        )
        yield _nearly(
            f"8 A100s, {variant}: X-MoE over DeepSpeed-MoE",
            "times",
            rates[2] / rates[0],
            free / masks,
            note=note,
        )


def _orders() -> Iterator[Figure]:
    right = [
        trains(system, model) is fits
        for system, published in TRAINS.items() for model, fits in zip(SIZES, published, strict=True)
    ]  # fmt: skip
    yield _in_order("who trains which model at all", "of cases", len(right), sum(right))
    pairs = [
        (published[a] > published[b]) is (ours[a] > ours[b])
        for variant, published in A100.items() for ours in [a100_tflops(variant)]
        for a, b in combinations(range(3), 2)
    ]  # fmt: skip
    yield _in_order(
        "8 A100s: DeepSpeed-MoE, Tutel and X-MoE",
        "of pairs",
        len(pairs),
        sum(pairs),
        note="X-MoE does not win everywhere",
    )
    shapes = (("deepseek-v3", True), ("x-moe-large", True), ("mixtral-8x7b", False))
    rules = []
    for name, better in shapes:
        spec = load_model(name).moe
        assert spec is not None
        rules.append(bool(moe.sharding_sequences_saves_more(spec, np.array([4096]))[0]) is better)
    yield _in_order("rule: sharding sequences saves more than splitting experts", "of models", 3, sum(rules))
    kept = [sharding_sequences_keeps_less(name) is better for name, better in shapes[1:]]
    yield _in_order("memory: sharding sequences against splitting experts", "of models", 2, sum(kept))


PAPER = Paper(name=NAME, title=TITLE, source=SOURCE, figures=figures, presets=("xmoe",))
