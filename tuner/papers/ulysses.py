"""DeepSpeed-Ulysses (arXiv:2309.14509) beside Megatron-LM's and Colossal-AI's sequence parallelism.

A GPT of 7B on 32 A100 of 40 GB, 8K to 256K tokens.  As published, each system takes the degree and the
micro-batch that are best for it, Ulysses with ZeRO-3 over all devices.  Not read, and assumed: a batch of 4M
tokens, whole layers redone, Megatron-LM without ZeRO, and one habit of kernels for all.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np

from objectives.cost.layers import sequence_bytes, ulysses_sent_bytes
from objectives.longest import MAX_SEQ_LEN
from objectives.metrics import Job
from objectives.ranking import rank
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import NothingFits
from search_spaces.model import AttentionSpec, EmbeddingSpec, MlpSpec, ModelSpec, NormKind
from search_spaces.plan import Plan, Plans
from search_spaces.space import SpaceSpec
from search_spaces.units import TFLOPS
from search_spaces.workload import AttentionFlops, Workload
from tuner.papers.figure import Figure, Kind, Paper, Provenance, figure_of

NAME = "ulysses"
SOURCE = "arXiv:2309.14509"
_in_order = figure_of(NAME, SOURCE, Provenance.SOURCE, Kind.ORDER)
N_DEVICES, K = 32, 1024
BATCH_TOKENS = 4096 * K
# TFLOP/s a device of Ulysses and of Megatron-LM by length in K; None: out of memory.
MEASURED: Mapping[int, tuple[float, float | None]] = MappingProxyType(
    {8: (159, 106), 16: (175, 143), 32: (178, 164), 64: (181, 165), 128: (175, 158), 256: (174, None)}
)
DEGREES = (1, 2, 4, 8, 16, 32)
FIXED: Mapping[str, Any] = MappingProxyType(
    {
        "pp": 1,
        "overlap_dp": True,
        "overlap_tp": False,
        "offload_optimizer": False,
        "rank_order": "tp-cp-dp-pp",
        "recompute": "full",
        "recompute_every": 1,
    }
)
SYSTEMS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "Ulysses": {
            "tp": 1,
            "zero": 3,
            "cp": DEGREES,
            "cp_kind": ["ring", "ulysses"],
            "sequence_parallel": False,
        },
        "Megatron-LM": {"cp": 1, "zero": 0, "tp": DEGREES, "sequence_parallel": [False, True]},
        "Colossal-AI": {
            "cp": DEGREES,
            "cp_kind": "ring",
            "zero": 0,
            "tp": DEGREES,
            "sequence_parallel": False,
        },
    }
)


def model() -> ModelSpec:
    """GPT of 6.7B parameters."""
    attention = AttentionSpec(n_heads=32, n_kv_heads=32, head_dim=128, qkv_bias=True, out_bias=True)
    return ModelSpec(
        name="gpt-7b",
        source="arXiv:2005.14165, table 2.1, 6.7B",
        n_layers=32,
        d_model=4096,
        attention=attention,
        mlp=MlpSpec(width=16384, n_matrices=2, bias=True),
        embedding=EmbeddingSpec(vocab_size=50_304, tied=True),
        norm=NormKind.LAYER,
    )


def job(length_k: int, *, n_sequences: int | None = None, fused: bool = True) -> Job:
    """The model at that length; 4M tokens a step unless told."""
    a100 = load_cluster("aws-p4d", N_DEVICES).device
    workload = Workload(
        seq_len=length_k * K,
        global_batch=n_sequences or BATCH_TOKENS // (length_k * K),
        memory_share=1.0,
        attention_flops=AttentionFlops.FULL,
        flash_attention=fused,
    )
    cluster = replace(load_cluster("dgx-a100", N_DEVICES), device=a100)
    return Job(model=model(), cluster=cluster, workload=workload)


def _space(system: str) -> SpaceSpec:
    return SpaceSpec.of({**FIXED, **SYSTEMS[system]})


@cache
def rate(system: str, length_k: int) -> float:
    """TFLOP/s a device of a system's best plan, the whole square of the scores counted; 0: nothing fits."""
    asked = job(length_k)
    try:
        best = rank(asked, _space(system), keep=1).candidates
    except NothingFits:
        return 0.0
    peak = asked.cluster.device.peak(asked.workload.precision)
    return float(asked.mfu(best.estimate.step_s)[0] * peak / TFLOPS)


@cache
def longest(system: str) -> float:
    """Tokens of the longest sequence that any plan of a system holds; Colossal-AI stores its scores."""
    asked = job(8, n_sequences=1, fused=system != "Colossal-AI")
    space = SpaceSpec.of({**FIXED, **SYSTEMS[system], "overlap_dp": False})
    return float(-rank(asked, space, metric=MAX_SEQ_LEN, keep=1).candidates.score[0])


def link_bytes(degree: int, length_k: int) -> tuple[float, float]:
    """Bytes of a layer's forward pass over a device's link: Megatron-LM's, and Ulysses'."""
    asked = job(length_k, n_sequences=N_DEVICES)
    split = Plans.of([Plan.parse(f"tp={degree} dp={N_DEVICES // degree} sequence_parallel=true")])
    exchanged = Plans.of([Plan.parse(f"cp={degree} dp={N_DEVICES // degree} cp_kind=ulysses")])
    return 4 * float(sequence_bytes(asked, split)[0]), float(ulysses_sent_bytes(asked, exchanged)[0])


def _volumes() -> list[Figure]:
    found = []
    for degree in (2, 8, 32):
        theirs, ours = link_bytes(degree, 64)
        found.append(
            Figure(
                system=NAME,
                what=f"Megatron-LM's bytes over Ulysses', {degree} ranks",
                unit="times",
                published=degree,
                ours=theirs / ours,
                kind=Kind.EXACT,
                provenance=Provenance.SOURCE,
                source=f"{SOURCE}, section 3.2",
            )
        )
    first, last = link_bytes(4, 32)[1], link_bytes(32, 256)[1]
    grown = Figure(
        system=NAME,
        what="Ulysses' bytes, 8 times the tokens on 8 times the ranks",
        unit="times",
        published=1.0,
        ours=last / first,
        kind=Kind.EXACT,
        provenance=Provenance.SOURCE,
        source=f"{SOURCE}, section 3.2",
    )
    return [*found, grown]


def _gains() -> list[Figure]:
    return [
        Figure(
            system=NAME,
            what=f"Ulysses over Megatron-LM, {length}K tokens",
            unit="times",
            published=ours / theirs,
            ours=rate("Ulysses", length) / rate("Megatron-LM", length),
            kind=Kind.RATIO,
            provenance=Provenance.SOURCE,
            source=f"{SOURCE}, figure of 7B on 32 A100",
            is_headline=length == 16,
        )
        for length, (ours, theirs) in MEASURED.items()
        if theirs
    ]


def _rates() -> list[Figure]:
    return [
        Figure(
            system=NAME,
            what=f"Ulysses, {length}K tokens",
            unit="TFLOP/s a device",
            published=published,
            ours=rate("Ulysses", length),
            kind=Kind.RATIO,
            provenance=Provenance.SOURCE,
            source=f"{SOURCE}, figure of 7B on 32 A100",
        )
        for length, (published, _) in MEASURED.items()
    ]


def _order() -> list[Figure]:
    ahead = [rate("Ulysses", k) > rate("Megatron-LM", k) for k, (_, theirs) in MEASURED.items() if theirs]
    held = [longest(name) for name in ("Ulysses", "Megatron-LM", "Colossal-AI")]
    return [
        _in_order(
            what="Ulysses is ahead of Megatron-LM",
            unit="lengths",
            published=len(ahead),
            ours=sum(ahead),
        ),
        _in_order(
            what="Colossal-AI runs out of memory first, then Megatron-LM, then Ulysses",
            unit="comparisons",
            published=2,
            ours=int(np.sum(np.diff(held) < 0)),
        ),
        _in_order(
            what="its advantage at 8K is larger than at 128K",
            unit="comparisons",
            published=1,
            ours=int(
                rate("Ulysses", 8) / rate("Megatron-LM", 8) > rate("Ulysses", 128) / rate("Megatron-LM", 128)
            ),
        ),
    ]


def figures() -> tuple[Figure, ...]:
    """Published figures beside ours."""
    return (*_volumes(), *_gains(), *_order(), *_rates())


PAPER = Paper(
    name=NAME,
    title="DeepSpeed-Ulysses: system optimizations for training of extreme long sequence transformers",
    source=SOURCE,
    figures=figures,
    presets=(NAME,),
)
