"""Piper: pipeline stages times expert parallelism, chosen by a resource model; HALO; expert migration.

The paper's text was not at hand: formulas and figures are those of a third party's review.  It does not say
on how many devices the full models ran, nor with which batch: what is assumed stands beside each figure.

Source: Piper (2026), arXiv:2605.05049; review: zzz0906.github.io/2026/05/07.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from types import MappingProxyType
from typing import Any

import numpy as np

from objectives.cost import mesh, piper
from objectives.cost.collectives import all_to_all_line, hierarchical_line
from objectives.cost.migration import migration_s
from objectives.cost.moe import expert_migration_bytes
from objectives.cost.step import estimate, stage_profile
from objectives.metrics import Job
from search_spaces.cluster_presets import load_cluster
from search_spaces.model import AttentionSpec, EmbeddingSpec, MlpSpec, ModelSpec, MoeSpec
from search_spaces.model_presets import load_model
from search_spaces.parameters import layer_parameters
from search_spaces.plan import Plan, Plans
from search_spaces.state import TrainingState
from search_spaces.units import BILLION, GB, GIB
from tuner.papers.figure import Figure, Kind, Paper, Provenance, figure_of
from tuner.papers.pricing import best_tflops, job_on, tflops
from tuner.papers.xmoe import RUNS, paper_job

NAME = "piper"
TITLE = "Piper: mixtures of experts over pipelines, by a resource model"
SOURCE = "arXiv:2605.05049, review"
# E, d, f, what the table lists, and the unit that it means by GB.
MIGRATION: Mapping[str, tuple[int, int, int, float, float]] = MappingProxyType({
    "Switch-Base": (128, 768, 2048, 1.21, GB),
    "Mixtral 8x7B": (8, 4096, 14336, 2.63, GIB),
    "Mixtral 8x22B": (8, 6144, 16384, 4.50, GIB),
    "Grok-1": (8, 6144, 32768, 9.00, GIB),
    "GLaM": (64, 8192, 32768, 102.88, GB),
    "DeepSeek-V2": (160, 5120, 1536, 7.04, GIB),
    "DeepSeek-V3": (256, 7168, 2048, 21.00, GIB),
})  # fmt: skip
FAMILY = {"110b": (64, 110.7, 45.15), "862b": (512, 862.3, 39.38), "1.7t": (1024, 1721.3, 33.04)}
# TFLOP/s of a GCD, and the devices assumed: powers of two that hold the model as it was run.
MODELS = {
    "mixtral-8x7b": (32, "none", 102.8),
    "mixtral-8x22b": (64, "full", 55.4),
    "deepseek-v2": (128, "full", 46.8),
}
# X-MoE's models: GCDs that Piper took, and its TFLOP/s over X-MoE's own.
AGAINST = {
    "small": (8, 90.44, 44.0), "medium": (32, 57.83, 24.2), "large": (80, 46.89, 24.1),
    "super": (512, 36.96, 10.2),
}  # fmt: skip
SEQUENCES = 256  # a replica and step: the micro-batches of the authors' later launch scripts
DEGREES = (8, 16, 32)
MESH: Mapping[str, Any] = MappingProxyType(
    dict(
        where=["pp * ep = devices", "ep <= switch"], tp=1, cp=1, schedule="1f1b", vpp=1,
        micro_batch=[1, 2, 4],
        zero=[0, 1], recompute_every=1, overlap_dp=True, offload_optimizer=False, rank_order="tp-cp-dp-pp",
    )
)  # fmt: skip
MESSAGE_BYTES = 16e6


def mesh_tflops(model: str, n_devices: int, *, recompute: list[str], seq_len: int = 4096) -> float:
    """Of the best plan that keeps Piper's constraints, with 256 sequences a replica."""
    spec = load_model(model)
    more = {"dispatch": "padding-free"} if spec.has_capacity else {}
    found = []
    for ep in DEGREES:
        job = job_on(
            "frontier", spec, n_devices, seq_len=seq_len, global_batch=SEQUENCES * ep, memory_share=1.0
        )
        found.append(best_tflops(job, **(dict(MESH) | more | dict(ep=ep, recompute=recompute))))
    return max(each for each in found if each is not None)


def gain(nodes: int, n_bytes: float = MESSAGE_BYTES) -> float:
    """Seconds of a flat all-to-all over those by way of nodes, all devices of so many nodes of Frontier."""
    n_devices = 8 * nodes
    cluster, n = load_cluster("frontier", n_devices), np.array([n_devices])
    members = mesh.ep_members(cluster, Plans.of([Plan(dp=n_devices, ep=n_devices)]))
    by_node = hierarchical_line(cluster, n, members, mesh.n_node_tiers(cluster))
    sizes = np.array([n_bytes])
    return float(all_to_all_line(cluster, n, members).seconds(sizes)[0] / by_node.seconds(sizes)[0])


def middle_stage_bytes() -> tuple[float, float]:
    """M(1) of X-MoE's medium model with three matrices, pp = 4 and ep = 16: Piper's law, and our stage."""
    model = load_model("x-moe-medium")
    assert model.moe is not None
    model = replace(model, moe=replace(model.moe, capacity_factor=None, n_matrices=3))
    state = TrainingState(gradient_bytes=2.0)
    job = job_on("frontier", model, 64, seq_len=4096, global_batch=1024, state=state)
    ours = stage_profile(job, Plan(pp=4, dp=16, ep=16)).memory
    held = ours.weights_bytes + ours.gradients_bytes + ours.optimizer_bytes + ours.activations_bytes
    return float(piper.stage_bytes(model, 4096, pp=4, ep=16, micro_batch=1)[1]), float(held[1])


def migration_job() -> Job:
    """DeepSeek-V3 with uneven experts, where moving them is to pay."""
    return job_on("frontier", "deepseek-v3", 1024, seq_len=4096, global_batch=4096, expert_imbalance=1.5)


def figures() -> tuple[Figure, ...]:
    """Published figures beside ours."""
    return (*_sizes(), *_migration(), *_halo(), *_models(), *_against_x_moe())


_exactly, _nearly, _in_order = (
    figure_of(NAME, SOURCE, Provenance.SECOND_HAND, kind) for kind in (Kind.EXACT, Kind.RATIO, Kind.ORDER)
)


def _sizes() -> Iterator[Figure]:
    for name, (_, billions, _) in FAMILY.items():
        model = load_model(f"piper-{name}")
        layer = layer_parameters(model, "moe")
        ours = model.n_layers * (layer.experts + layer.attention) / BILLION
        yield _exactly(
            f"parameters of {name}, no embeddings", "10^9", billions, ours, provenance=Provenance.DERIVED
        )
    theirs, ours_bytes = middle_stage_bytes()
    yield _nearly(
        "bytes of a middle stage, its law and our stage",
        "GiB",
        theirs / GIB,
        ours_bytes / GIB,
        provenance=Provenance.DERIVED,
        note="we keep tokens on both sides of the experts",
    )


def _migration() -> Iterator[Figure]:
    for name, (n_experts, d_model, width, listed, unit) in MIGRATION.items():
        moved = expert_migration_bytes(_experts(n_experts, d_model, width), np.array([8]))[0] / unit
        unit_name = "GB" if unit == GB else "GiB"
        yield _exactly(
            f"experts of a layer to move, {name}",
            unit_name,
            listed,
            moved,
            within=0.003,
            note=f"the table's GB are {unit_name}",
        )
    job = migration_job()
    words = "dp=128 pp=8 ep=64 zero=1 recompute=full overlap_dp=true"
    plans = Plans.of([Plan.parse(words), Plan.parse(f"{words} migrate_every=100")])
    step_s, share_s = estimate(job, plans).step_s, migration_s(job, plans)[1] / 100
    yield _in_order(
        "migrating every 100 steps takes under 5 % of a step, and pays",
        "of statements",
        2,
        int(share_s < 0.05 * step_s[1]) + int(step_s[1] < step_s[0]),
        note="DeepSeek-V3 on 1,024 GCDs, hottest device at 1.5 times the mean",
    )


def _halo() -> Iterator[Figure]:
    yield _nearly(
        "largest gain of all-to-alls by way of nodes, 512 nodes",
        "times",
        9.0,
        gain(512, 1.0),
        note="messages that cost their latency alone",
    )
    several = [1.1 <= gain(nodes) <= 9.0 for nodes in (16, 32, 64, 128, 256, 512)]
    few = [gain(nodes, 16 * MESSAGE_BYTES) <= 1.0 for nodes in (1, 2, 4, 8)]
    yield _in_order(
        "gains of 1.1 to 9 times on 16 to 512 nodes, none on up to 8",
        "of sizes",
        10,
        sum(several) + sum(few),
        note="messages of 16 MB, and on few nodes of 256 MB; the paper's are not known",
    )


def _models() -> Iterator[Figure]:
    unit = "TFLOP/s/GCD, model FLOPs"
    found = {name: mesh_tflops(name, n, recompute=[redone]) for name, (n, redone, _) in MODELS.items()}
    for name, (n, redone, published) in MODELS.items():
        yield _nearly(
            f"{name}, recompute {redone}",
            unit,
            published,
            found[name],
            note=f"on {n} GCDs, 256 sequences a replica: neither is published",
        )
    right = sum((MODELS[a][2] > MODELS[b][2]) is (found[a] > found[b]) for a, b in combinations(MODELS, 2))
    yield _in_order("the three models by throughput", "of pairs", 3, right)
    family = {name: mesh_tflops(f"piper-{name}", n, recompute=["full"]) for name, (n, _, _) in FAMILY.items()}
    for name, (n, _, published) in FAMILY.items():
        yield _nearly(
            f"{name} on {n} GCDs",
            unit,
            published,
            family[name],
            note="everything recomputed, 256 sequences a replica: the paper's batch is not known",
        )
    yield _nearly(
        "weak scaling, 64 to 1,024 GCDs",
        "%",
        100 * 33.04 / 45.15,
        100 * family["1.7t"] / family["110b"],
        is_headline=True,
        note="everything recomputed, 256 sequences a replica",
    )


def _against_x_moe() -> Iterator[Figure]:
    ratios = {}
    for name, (n_devices, piper_tflops, x_moe_tflops) in AGAINST.items():
        seq_len = 2048 if name == "small" else 4096
        ours = mesh_tflops(f"x-moe-{name}", n_devices, recompute=["none", "full"], seq_len=seq_len)
        theirs = tflops(paper_job(name), RUNS[f"{name}, X-MoE"][1])
        ratios[name] = ours / theirs
        yield _nearly(
            f"over X-MoE, {name}",
            "times",
            piper_tflops / x_moe_tflops,
            ratios[name],
            note=f"on {n_devices} GCDs against X-MoE's 256 (super: 1,024): most of that gain is "
            "in X-MoE's runs, which are slower than the links' rates explain",
        )
    yield _in_order("Piper over X-MoE", "of models", len(ratios), sum(each > 1 for each in ratios.values()))


def _experts(n_experts: int, d_model: int, width: int) -> ModelSpec:
    """A model of which only the experts matter; three matrices each, as the table has them."""
    return ModelSpec(
        name="experts",
        source="arXiv:2605.05049, migration table",
        n_layers=1,
        d_model=d_model,
        attention=AttentionSpec(n_heads=1, n_kv_heads=1, head_dim=128),
        mlp=MlpSpec(width=width),
        moe=MoeSpec(n_experts=n_experts, top_k=1, expert_width=width),
        embedding=EmbeddingSpec(vocab_size=1),
    )


PAPER = Paper(name=NAME, title=TITLE, source=SOURCE, figures=figures, presets=("piper",))
