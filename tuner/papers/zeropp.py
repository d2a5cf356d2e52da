"""ZeRO++ (arXiv:2306.10209): what leaves a node, what a second shard takes, and the gain over ZeRO-3.

384 V100 in 24 nodes of 16, GPT models, 1,024 or 2,048 tokens a device, one to eight 100 Gb/s links a node.
The models' shapes were not read: hidden 6,144 for 18B, and for the others 8,192, the widest with which 138B
fits a V100 beside its second shard.  No overlap, whole layers redone, and TFLOP/s count the redone passes:
the published rates are those of the sum of communication and computation.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType

import numpy as np

from objectives.cost.flops import BACKWARD_OVER_FORWARD, model_flops_per_step
from objectives.cost.result import Estimate
from objectives.cost.step import estimate
from objectives.cost.zero_plus import crossing_bytes
from objectives.metrics import Job
from search_spaces.cluster import ClusterSpec
from search_spaces.cluster_presets import load_cluster
from search_spaces.model import AttentionSpec, EmbeddingSpec, MlpSpec, ModelSpec, NormKind
from search_spaces.parameters import total_parameters
from search_spaces.plan import Plan, Plans
from search_spaces.units import GB, TFLOPS
from search_spaces.workload import Precision, Workload
from tuner.papers.figure import Figure, Kind, Paper, Provenance, figure_of

NAME = "zeropp"
N_DEVICES, PER_NODE, TOKENS = 384, 16, 1024
LINK_BYTES_PER_S = 12.5 * GB  # 100 Gb/s
HEAD = 128
SHAPES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {"18B": (40, 6144), "49B": (61, 8192), "91B": (113, 8192), "138B": (171, 8192)}
)
PLAIN = "dp=384 zero=3 recompute=full"
FEATURES: Mapping[str, str] = MappingProxyType(
    {
        "ZeRO-3": "",
        "qwZ": "quantized_weights=true",
        "hpZ": "hpz=16",
        "qgZ": "quantized_gradients=true",
        "all": "quantized_weights=true hpz=16 quantized_gradients=true",
    }
)
# Bytes between nodes, in M: the 16-bit weights.  Read for ZeRO-3 and for all; the others follow.
CROSSING: Mapping[str, float] = MappingProxyType(
    {"ZeRO-3": 3.0, "qwZ": 2.0, "hpZ": 2.0, "qgZ": 2.25, "all": 0.75}
)
# TFLOP/s a device of ZeRO-3 and ZeRO++ at 1,024 tokens, by model and links of a node.
RATES: Mapping[tuple[str, int], tuple[float, float]] = MappingProxyType(
    {
        ("18B", 1): (14.0, 31.0),
        ("49B", 1): (11.0, 22.0),
        ("91B", 1): (11.0, 22.0),
        ("138B", 1): (11.0, 22.0),
        ("18B", 4): (25.0, 35.0),
        ("138B", 4): (23.0, 36.0),
    }
)
SOURCE = "arXiv:2306.10209"
_nearly, _in_order = (figure_of(NAME, SOURCE, Provenance.SOURCE, kind) for kind in (Kind.RATIO, Kind.ORDER))
SLOWER = "the V100s of the source reach less at 1,024 tokens, also where communication is a small part"


def model(name: str) -> ModelSpec:
    """A GPT of that many parameters."""
    n_layers, width = SHAPES[name]
    heads = width // HEAD
    attention = AttentionSpec(n_heads=heads, n_kv_heads=heads, head_dim=HEAD, qkv_bias=True, out_bias=True)
    return ModelSpec(
        name=f"gpt-{name}",
        source="layers and width chosen for the published number of parameters",
        n_layers=n_layers,
        d_model=width,
        attention=attention,
        mlp=MlpSpec(width=4 * width, n_matrices=2, bias=True),
        embedding=EmbeddingSpec(vocab_size=50_304, n_positions=TOKENS, tied=True),
        norm=NormKind.LAYER,
    )


def machine(n_links: int) -> ClusterSpec:
    """24 nodes of 16 V100, each node with so many links of 100 Gb/s."""
    cluster = load_cluster("dgx-2", N_DEVICES)
    rate = n_links * LINK_BYTES_PER_S / PER_NODE
    fabric = replace(cluster.tiers[-1], bandwidth_bytes_per_s=rate, pair_bandwidth_bytes_per_s=rate)
    return replace(cluster, tiers=(*cluster.tiers[:-1], fabric))


def job(name: str, n_links: int, micro_batch: int = 1) -> Job:
    """A model on the machine, one micro-batch a device."""
    workload = Workload(
        seq_len=TOKENS,
        global_batch=N_DEVICES * micro_batch,
        precision=Precision.FP16,
        framework="deepspeed",
        flash_attention=False,
    )
    return Job(model=model(name), cluster=machine(n_links), workload=workload)


def plans(*features: str, micro_batch: int = 1) -> Plans:
    """Plans with these features of ZeRO++."""
    return Plans.of([Plan.parse(f"{PLAIN} micro_batch={micro_batch} {FEATURES[each]}") for each in features])


@cache
def _priced(name: str, n_links: int, micro_batch: int = 1) -> Estimate:
    """ZeRO-3 and all of ZeRO++."""
    return estimate(job(name, n_links, micro_batch), plans("ZeRO-3", "all", micro_batch=micro_batch))


def gain(name: str, n_links: int, micro_batch: int = 1) -> float:
    """How many times as fast ZeRO++ is as ZeRO-3."""
    step_s = _priced(name, n_links, micro_batch).step_s
    return float(step_s[0] / step_s[1])


def rates(name: str, n_links: int) -> tuple[float, float]:
    """TFLOP/s a device of both, redone passes counted."""
    asked = job(name, n_links)
    passes = 1 + BACKWARD_OVER_FORWARD
    flops = model_flops_per_step(asked.model, asked.workload) * (passes + 1) / passes
    plain, plus = flops / _priced(name, n_links).step_s / N_DEVICES / TFLOPS
    return float(plain), float(plus)


def crossing_in_m(feature: str) -> float:
    """Bytes that leave a node in a step, in units of the 16-bit weights."""
    entries = np.array([float(total_parameters(model("18B")))])
    asked = job("18B", 1)
    between_nodes = crossing_bytes(asked, plans(feature), entries)[:, -1, 0]
    return float(between_nodes.sum() / (asked.workload.training_state.weight_bytes * entries[0]))


def _exact() -> list[Figure]:
    volumes = [
        Figure(
            system=NAME,
            what=f"bytes between nodes, {name}",
            unit="M",
            published=published,
            ours=crossing_in_m(name),
            kind=Kind.EXACT,
            is_headline=name == "all",
            source=f"{SOURCE}, table 1",
            provenance=Provenance.SOURCE if name in ("ZeRO-3", "all") else Provenance.DERIVED,
        )
        for name, published in CROSSING.items()
    ]
    held = estimate(job("18B", 1), plans("ZeRO-3", "hpZ")).memory.weights_bytes
    shard = Figure(
        system=NAME,
        what="bytes of the second shard, 18B, hpz 16",
        unit="bytes",
        published=2.0 * total_parameters(model("18B")) / PER_NODE,
        ours=float(held[1] - held[0]),
        kind=Kind.EXACT,
        provenance=Provenance.DERIVED,
        source="2 phi / Z: DeepSpeed's documentation of hpZ",
    )
    return [*volumes, shard]


def _gains() -> list[Figure]:
    return [
        Figure(
            system=NAME,
            what=f"gain over ZeRO-3, {name}, {n_links} x 100 Gb/s",
            unit="times",
            published=plus / plain,
            ours=gain(name, n_links),
            kind=Kind.RATIO,
            provenance=Provenance.SOURCE,
            source=f"{SOURCE}, evaluation at 1,024 tokens a device",
        )
        for (name, n_links), (plain, plus) in RATES.items()
    ]


def _rates() -> list[Figure]:
    found = []
    for n_links in (1, 4):
        pairs = zip(("ZeRO-3", "ZeRO++"), RATES["18B", n_links], rates("18B", n_links), strict=True)
        found += [
            _nearly(
                what=f"{who}, 18B, {n_links} x 100 Gb/s",
                unit="TFLOP/s a device",
                published=published,
                ours=ours,
                note=SLOWER if n_links > 1 else "",
            )
            for who, published, ours in pairs
        ]
    return found


def _same_with_a_quarter() -> list[Figure]:
    return [
        _nearly(
            what=f"ZeRO++ at 200 Gb/s over ZeRO-3 at 800 Gb/s, {name}",
            unit="times",
            published=1.0,
            ours=rates(name, 2)[1] / rates(name, 8)[0],
        )
        for name in ("18B", "138B")
    ]


def _order() -> list[Figure]:
    links = (1, 2, 4, 8)
    by_links = [gain(name, n) for name in SHAPES for n in links]
    falls = [by_links[i] > by_links[i + 1] for i in range(len(by_links) - 1) if (i + 1) % len(links)]
    fewer_tokens = [gain(name, n) > gain(name, n, 2) for name in SHAPES for n in links]
    return [
        _in_order(
            what="gain falls as the links grow",
            unit="comparisons",
            published=len(falls),
            ours=sum(falls),
        ),
        _in_order(
            what="gain falls as tokens a device grow",
            unit="comparisons",
            published=len(fewer_tokens),
            ours=sum(fewer_tokens),
        ),
    ]


def _limit() -> Figure:
    comm_s = _priced("18B", 1).time.dp_comm_s
    return _nearly(
        what="gain of the communication alone, 18B, 100 Gb/s",
        unit="times",
        published=4.0,
        ours=float(comm_s[0] / comm_s[1]),
        provenance=Provenance.ABSTRACT,
        note="inside the node the second hop and the nearer gathers take their time",
    )


def figures() -> tuple[Figure, ...]:
    """Published figures beside ours."""
    parts = (_exact(), _gains(), _same_with_a_quarter(), _order(), [_limit()], _rates())
    return tuple(figure for part in parts for figure in part)


PAPER = Paper(
    name=NAME,
    title="ZeRO++: extremely efficient collective communication for giant model training",
    source=SOURCE,
    figures=figures,
    presets=(NAME,),
)
