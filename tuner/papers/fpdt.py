"""FPDT (arXiv:2408.16978): the ladder of the longest sequence that an 8B model trains on 8 A100 of 80 GB.

Each row of the ladder turns on one more thing: tensor parallelism, activation checkpointing (AC), its offload
to the host (OC), Ulysses (UL) with a ZeRO stage, and the sequence in chunks.  Lengths were tried as powers of
two; one sequence is the batch.  MFU counts the whole square of the scores.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from objectives.cost import chunks
from objectives.cost.step import estimate
from objectives.longest import longest_sequence
from objectives.metrics import Job
from search_spaces.cluster_presets import load_cluster
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans
from search_spaces.units import gib
from search_spaces.workload import AttentionFlops, Workload
from tuner.papers.figure import Figure, Kind, Paper, Provenance, figure_of

NAME = "fpdt"
SOURCE = "arXiv:2408.16978"
_nearly = figure_of(NAME, SOURCE, Provenance.SOURCE, Kind.RATIO)
LADDER_SOURCE = f"{SOURCE}, table of strategies, Llama-3 8B on 8 devices"
K = 1024
CHUNK = 65_536
_HOSTED = "recompute=full offload_checkpoints=true"
_UL = "cp={n} cp_kind=ulysses"
_CHUNKED = f"{_UL} zero=3 {_HOSTED} sequence_chunk={CHUNK} offload_sequence=true"
SHORT_STEPS = (
    "published at a fifth to a half of what the same kernels reach in the other rows; a step of one short "
    "sequence has costs there that were not told"
)
GRADIENTS = "the rows of ZeRO-1 to 3 differ by less than their states do, so other bytes were at the peak"
BUFFERS = "eight tensors as long as the sequence are counted; the allocator's blocks are not"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One strategy: its longest sequence in K tokens, GiB at that length, MFU in percent, and its plan."""

    name: str
    length_k: int
    memory_gib: float
    mfu_percent: float
    plan: str
    memory_note: str = ""
    mfu_note: str = ""


LADDER = (
    Row(name="TP", length_k=32, memory_gib=64.3, mfu_percent=9.4, plan="tp={n}", mfu_note=SHORT_STEPS),
    Row(
        name="TP+AC",
        length_k=128,
        memory_gib=61.2,
        mfu_percent=19.4,
        plan="tp={n} recompute=full",
        mfu_note=SHORT_STEPS,
    ),
    Row(
        name="TP+AC+OC",
        length_k=512,
        memory_gib=78.7,
        mfu_percent=32.7,
        plan=f"tp={{n}} {_HOSTED}",
        mfu_note=SHORT_STEPS,
    ),
    Row(
        name="UL+ZeRO-1",
        length_k=64,
        memory_gib=58.9,
        mfu_percent=15.3,
        plan=f"{_UL} zero=1",
        mfu_note=SHORT_STEPS,
    ),
    Row(
        name="UL+ZeRO-2",
        length_k=64,
        memory_gib=54.5,
        mfu_percent=15.3,
        plan=f"{_UL} zero=2",
        memory_note=GRADIENTS,
        mfu_note=SHORT_STEPS,
    ),
    Row(
        name="UL+ZeRO-3",
        length_k=64,
        memory_gib=52.3,
        mfu_percent=21.0,
        plan=f"{_UL} zero=3",
        mfu_note=SHORT_STEPS,
    ),
    Row(
        name="AC+OC+UL+ZeRO-1",
        length_k=512,
        memory_gib=65.5,
        mfu_percent=46.8,
        plan=f"{_UL} zero=1 {_HOSTED}",
    ),
    Row(
        name="AC+OC+UL+ZeRO-3",
        length_k=512,
        memory_gib=60.1,
        mfu_percent=47.2,
        plan=f"{_UL} zero=3 {_HOSTED}",
    ),
    Row(name="FPDT", length_k=4096, memory_gib=68.0, mfu_percent=55.7, plan=_CHUNKED, memory_note=BUFFERS),
)


def job(length_k: int, n_devices: int = 8) -> Job:
    """Llama-3 8B, one sequence of that length; all of a device may be used."""
    workload = Workload(
        seq_len=length_k * K,
        global_batch=1,
        framework="deepspeed",
        memory_share=1.0,
        attention_flops=AttentionFlops.FULL,
    )
    cluster = load_cluster("dgx-a100", n_devices)
    return Job(model=load_model("llama-3-8b"), cluster=cluster, workload=workload)


def plans(row: Row, n_devices: int = 8) -> Plans:
    """A row's plan as columns."""
    return Plans.of([Plan.parse(row.plan.format(n=n_devices))])


@cache
def longest_k(name: str, n_devices: int = 8) -> int:
    """K tokens of the longest power of two that a row of the ladder holds."""
    row = next(each for each in LADDER if each.name == name)
    tokens = float(longest_sequence(job(64, n_devices), plans(row, n_devices))[0])
    return 2 ** int(np.log2(tokens / K)) if tokens >= K else 0


def _lengths() -> list[Figure]:
    return [
        Figure(
            system=NAME,
            what=f"longest sequence, {row.name}",
            unit="K tokens",
            published=row.length_k,
            ours=longest_k(row.name),
            kind=Kind.RATIO,
            provenance=Provenance.SOURCE,
            source=LADDER_SOURCE,
            is_headline=row.name == "FPDT",
        )
        for row in LADDER
    ]


def _jumps() -> list[Figure]:
    jumps = (
        ("AC", "TP", "TP+AC", 4.0),
        ("OC", "TP+AC", "TP+AC+OC", 4.0),
        ("FPDT", "AC+OC+UL+ZeRO-3", "FPDT", 8.0),
    )
    return [
        Figure(
            system=NAME,
            what=f"how much longer with {what}",
            unit="times",
            published=published,
            ours=longest_k(after) / longest_k(before),
            kind=Kind.EXACT,
            provenance=Provenance.SOURCE,
            source=LADDER_SOURCE,
        )
        for what, before, after, published in jumps
    ]


def _order() -> Figure:
    published = np.array([row.length_k for row in LADDER])
    ours = np.array([longest_k(row.name) for row in LADDER])
    first, second = np.triu_indices(len(LADDER), 1)
    same = np.sign(published[first] - published[second]) == np.sign(ours[first] - ours[second])
    return Figure(
        system=NAME,
        what="pairs of rows in the order of their lengths",
        unit="comparisons",
        published=len(same),
        ours=int(same.sum()),
        kind=Kind.ORDER,
        provenance=Provenance.SOURCE,
        source=LADDER_SOURCE,
    )


def _on_four() -> Figure:
    return _nearly(
        what="longest sequence on 4 devices, FPDT",
        unit="K tokens",
        published=2048,
        ours=longest_k("FPDT", 4),
        provenance=Provenance.ABSTRACT,
    )


def _laws() -> list[Figure]:
    asked, row = job(4096), plans(LADDER[-1])
    u = float(chunks.n_chunks(asked, row)[0])
    whole = float(chunks.key_value_bytes(asked, row)[0])
    pairs = (
        ("keys and values on the device, of all", 2 / u, chunks.resident_key_value_bytes(asked, row)),
        (
            "keys and values over the host's link forward, of all",
            (u + 1) / 2,
            chunks.forward_traffic_bytes(asked, row),
        ),
    )
    return [
        Figure(
            system=NAME,
            what=f"{what}, {u:.0f} chunks",
            unit="times",
            published=published,
            ours=float(ours[0]) / whole,
            kind=Kind.EXACT,
            provenance=Provenance.DERIVED,
            source=f"{SOURCE}, section 4; deepspeed/sequence/fpdt_layer.py",
        )
        for what, published, ours in pairs
    ]


def _at_its_length(row: Row) -> list[Figure]:
    asked = job(row.length_k)
    priced = estimate(asked, plans(row))
    return [
        Figure(
            system=NAME,
            what=f"peak memory, {row.name}",
            unit="GiB",
            published=row.memory_gib,
            ours=gib(float(priced.memory.allocated_bytes[0])),
            kind=Kind.RATIO,
            provenance=Provenance.SOURCE,
            source=LADDER_SOURCE,
            note=row.memory_note,
        ),
        Figure(
            system=NAME,
            what=f"MFU, {row.name}",
            unit="%",
            published=row.mfu_percent,
            ours=100 * float(asked.mfu(priced.step_s)[0]),
            kind=Kind.RATIO,
            provenance=Provenance.SOURCE,
            source=LADDER_SOURCE,
            note=row.mfu_note,
        ),
    ]


def figures() -> tuple[Figure, ...]:
    """Published figures beside ours."""
    at_length = [figure for row in LADDER for figure in _at_its_length(row)]
    return (*_lengths(), *_jumps(), _order(), _on_four(), *_laws(), *at_length)


PAPER = Paper(
    name=NAME,
    title="FPDT: training ultra long context language models with a fully pipelined distributed transformer",
    source=SOURCE,
    figures=figures,
    presets=(NAME,),
)
