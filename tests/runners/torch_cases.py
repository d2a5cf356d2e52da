"""Tiny models and the plans that must train them as one process does; run as a script it trains them.

One set of rank processes trains every case of a world size, one after the other, and each rank compares what
it holds with a reference that it trains by itself.
"""

import json
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from search_spaces.model import (
    AttentionSpec,
    EmbeddingSpec,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    NormKind,
    QkNorm,
)
from search_spaces.plan import Plan
from search_spaces.workload import Precision, Workload

N_STEPS = 2
SEQ_LEN = 16


def tiny(*, attention=(), embedding=(), mlp=(), **options):
    return ModelSpec(
        name="tiny",
        source="made up",
        n_layers=4,
        d_model=32,
        attention=AttentionSpec(**{"n_heads": 4, "n_kv_heads": 2, "head_dim": 8, **dict(attention)}),
        embedding=EmbeddingSpec(**{"vocab_size": 67, **dict(embedding)}),  # no number of ranks divides 67
        mlp=MlpSpec(**{"width": 48, **dict(mlp)}),
        **options,
    )


EXPERTS = dict(n_experts=4, top_k=2, expert_width=24, shared_width=16, shared_gate=True, router_bias=True)
MODELS = {
    "llama": tiny(),
    "gpt": tiny(
        norm=NormKind.LAYER,
        mlp=dict(n_matrices=2, bias=True),
        attention=dict(n_kv_heads=4, qkv_bias=True, out_bias=True),
        embedding=dict(n_positions=SEQ_LEN, tied=True, head_bias=True),
    ),
    "moe": tiny(moe=MoeSpec(n_dense_layers=1, **EXPERTS)),
    "grouped-moe": tiny(moe=MoeSpec(n_groups=2, top_groups=1, **{**EXPERTS, "shared_width": 0})),
    "one-kv-head": tiny(attention=dict(n_kv_heads=1, qk_norm=QkNorm.PER_HEAD, qkv_bias=True)),
    "window": tiny(attention=dict(window=5, global_every=2)),
    "parallel": tiny(norm=NormKind.LAYER_NO_BIAS, norms_per_layer=1, parallel_block=True),
    "sandwich": tiny(norms_per_layer=4, final_norm=False),
}


@dataclass(frozen=True)
class Case:
    """A model, a plan as its words, and what differs from the usual setting."""

    model: str
    plan: str
    precision: str = "fp32"
    options: tuple[tuple[str, Any], ...] = field(default=())

    @property
    def name(self):
        extra = [f"{key}={value}" for key, value in self.options]
        return " ".join(
            [self.model, *([] if self.precision == "fp32" else [self.precision]), self.plan, *extra]
        )

    @property
    def parsed(self):
        return Plan.parse(self.plan)


def cases(text):
    """A case a line: the model, its precision if that is not fp32, a colon, and the plan."""
    found = []
    for line in text.strip().splitlines():
        head, _, plan = line.partition(":")
        model, precision = [*head.split(), "fp32"][:2]
        found.append(Case(model=model, plan=" ".join(plan.split()), precision=precision))
    return found


FAST = cases("""
    llama: dp=2
    llama: dp=2 overlap_dp=true micro_batch=2
    llama: dp=2 zero=1
    llama: dp=2 zero=2 recompute=full recompute_every=2
    llama: dp=2 zero=3 recompute=selective
    llama: tp=2 recompute=full
    llama: tp=2 sequence_parallel=true recompute_modules=layernorm+mlp
    llama: cp=2
    llama: cp=2 cp_kind=ulysses
    llama: cp=2 cp_kind=all-gather zero=1
    llama: pp=2 schedule=gpipe
    llama: pp=2 recompute=full
    llama: pp=2 first_layers=3
    llama: pp=2 extra_warmup=1
    llama: pp=2 vpp=2 schedule=interleaved
    llama: pp=2 schedule=zb-h1
    llama: pp=2 schedule=zb-h2
    llama: pp=2 vpp=2 schedule=zb-v
    llama: pp=2 vpp=2 schedule=v-half
    llama: pp=2 vpp=2 schedule=v-min
    llama: pp=2 vpp=2 schedule=dualpipe-v
    llama: pp=2 schedule=message-driven pipeline_limit=3
    gpt: dp=2 overlap_dp=true
    gpt: tp=2
    gpt: tp=2 sequence_parallel=true
    gpt: pp=2
    gpt: pp=2 vpp=2 schedule=zb-v
    gpt: dp=2 zero=3
    gpt: cp=2
    moe: dp=2 overlap_dp=true
    moe: dp=2 ep=2 overlap_dp=true
    moe: dp=2 ep=2 zero=1 recompute=full
    moe: dp=2 ep=2 zero=3
    moe: dp=2 zero=3 recompute=full
    moe: tp=2 sequence_parallel=true ep=2
    moe: tp=2 sequence_parallel=true etp=2 recompute_modules=moe
    moe: cp=2 ep=2
    moe: pp=2 schedule=zb-h1
    grouped-moe: dp=2 ep=2
    one-kv-head: tp=2
    one-kv-head: cp=2 cp_kind=ulysses
    window: cp=2 cp_kind=all-gather
    window: tp=2
    parallel: tp=2 sequence_parallel=true
    sandwich: tp=2 sequence_parallel=true
    llama: tp=2 dp=2 sequence_parallel=true zero=3
    llama: tp=2 cp=2 sequence_parallel=true
    llama: pp=2 dp=2 rank_order=tp-cp-pp-dp zero=1
    llama: pp=2 dp=2 overlap_dp=true
    moe: tp=2 dp=2 sequence_parallel=true ep=2 etp=2
    moe: pp=2 dp=2 ep=2 zero=3
    one-kv-head: tp=4 sequence_parallel=true
""")
SLOW = cases("""
    llama: dp=4 zero=1
    llama: dp=4 zero=3
    llama: dp=2 cp=2 zero=2
    llama: dp=2 cp=2 cp_kind=ulysses overlap_dp=true
    llama: tp=2 dp=2 zero=1
    llama: tp=2 dp=2 sequence_parallel=true overlap_dp=true recompute=selective
    llama: tp=2 cp=2 cp_kind=ulysses sequence_parallel=true
    llama: cp=4
    llama: cp=4 cp_kind=all-gather
    llama: tp=4
    llama: pp=4 schedule=gpipe
    llama: pp=4 schedule=zb-h1
    llama: pp=4 schedule=zb-h2
    llama: pp=4 schedule=message-driven
    llama: pp=2 tp=2 sequence_parallel=true vpp=2 schedule=interleaved
    llama: pp=2 tp=2 sequence_parallel=true vpp=2 schedule=zb-v
    llama: pp=2 cp=2 schedule=zb-h1
    llama: pp=2 cp=2 cp_kind=ulysses vpp=2 schedule=dualpipe-v
    llama: pp=2 dp=2 zero=2 vpp=2 schedule=interleaved
    llama: pp=2 dp=2 zero=3 vpp=2 schedule=interleaved
    llama: pp=2 dp=2 zero=2 vpp=2 schedule=zb-v
    llama: pp=2 dp=2 zero=2 schedule=zb-h1
    llama: pp=2 dp=2 overlap_dp=true schedule=zb-h1
    llama: pp=2 dp=2 overlap_dp=true vpp=2 schedule=v-half
    gpt: pp=2 tp=2 sequence_parallel=true
    gpt: pp=2 dp=2 zero=3
    gpt: pp=2 dp=2 zero=1 vpp=2 schedule=zb-v
    gpt: pp=4
    gpt: tp=4 sequence_parallel=true
    moe: dp=4 ep=2 zero=3
    moe: dp=4 ep=4 zero=1
    moe: dp=2 cp=2 ep=4
    moe: tp=2 dp=2 sequence_parallel=true ep=4 zero=1
    moe: tp=2 dp=2 sequence_parallel=true ep=2 zero=3 recompute=full
    moe: tp=2 cp=2 sequence_parallel=true etp=2 ep=2 cp_kind=ulysses
    moe: tp=2 pp=2 sequence_parallel=true ep=2 schedule=zb-h1
    moe: pp=2 dp=2 ep=2 overlap_dp=true
    moe: pp=2 dp=2 ep=2 zero=2 vpp=2 schedule=dualpipe-v
    moe: pp=2 dp=2 ep=2 schedule=zb-h2
    grouped-moe: dp=4 ep=2 overlap_dp=true
    one-kv-head: tp=4
    window: cp=4 cp_kind=ulysses
    parallel: tp=2 dp=2 sequence_parallel=true zero=3
""")
TORCH_CLASSES = [
    Case("llama", plan, options=(("schedule_class", name),))
    for name, plan in (
        ("LoopedBFS", "pp=2 vpp=2 schedule=interleaved"),
        ("InterleavedZeroBubble", "pp=2 vpp=2 schedule=interleaved"),
    )
]
HSDP = [
    Case(model, plan, options=(("hsdp", 2),))
    for model, plan in (
        ("llama", "dp=4 zero=3"),
        ("llama", "dp=2 cp=2 zero=2"),
        ("moe", "dp=4 ep=2 zero=3"),
    )
]
BF16 = [
    Case("llama", plan, precision="bf16")
    for plan in (
        "dp=2",
        "dp=2 zero=1",
        "dp=2 zero=3",
        "tp=2 sequence_parallel=true",
        "cp=2",
        "pp=2 schedule=zb-h1",
    )
]

# Made by `python -m tests.runners.torch_pairs`: what the cases above lack of all pairs that a plan may have.
PAIRS = cases("""
    moe bf16: cp=2 cp_kind=all-gather pp=2 schedule=message-driven ep=2 micro_batch=2 recompute_modules=layernorm+mlp
    gpt bf16: cp=2 cp_kind=ulysses pp=2 schedule=gpipe recompute=selective micro_batch=2
    moe bf16: dp=2 zero=2 tp=2 sequence_parallel=true ep=2 etp=2 recompute_modules=moe micro_batch=2
    gpt bf16: tp=2 cp=2 recompute=full micro_batch=2
    gpt bf16: dp=2 zero=2 pp=2 schedule=zb-h2 recompute_modules=layernorm+mlp micro_batch=2
    moe: dp=2 zero=1 pp=2 schedule=gpipe ep=2 recompute=selective micro_batch=2
    moe bf16: cp=2 pp=2 schedule=1f1b recompute_modules=moe micro_batch=2
    gpt: cp=2 cp_kind=all-gather pp=2 schedule=zb-h1 recompute=selective micro_batch=2
    gpt bf16: dp=2 overlap_dp=true pp=2 schedule=message-driven recompute=full micro_batch=2
    moe: dp=2 zero=3 cp=2 cp_kind=all-gather recompute_modules=moe micro_batch=2
    moe: tp=2 sequence_parallel=true pp=2 schedule=zb-h2 etp=2 recompute=selective micro_batch=2
    moe: tp=2 sequence_parallel=true pp=2 schedule=gpipe etp=2 recompute_modules=layernorm+mlp micro_batch=2
    moe: tp=2 sequence_parallel=true cp=2 cp_kind=all-gather etp=2 recompute=full micro_batch=2
    moe: tp=2 sequence_parallel=true pp=2 schedule=message-driven etp=2 recompute_modules=moe micro_batch=2
    moe: dp=2 zero=3 cp=2 recompute_modules=layernorm+mlp micro_batch=2
    moe: dp=2 zero=2 pp=2 schedule=message-driven recompute=selective micro_batch=2
    moe: dp=2 zero=1 pp=2 schedule=zb-h2 recompute_modules=moe micro_batch=2
    moe: dp=2 zero=1 pp=2 schedule=zb-h1 recompute_modules=layernorm+mlp micro_batch=2
    moe: dp=2 overlap_dp=true pp=2 schedule=gpipe recompute_modules=moe micro_batch=2
    moe: cp=2 cp_kind=ulysses pp=2 schedule=zb-h1 recompute_modules=moe micro_batch=2
    moe: cp=2 cp_kind=ulysses pp=2 schedule=1f1b recompute_modules=layernorm+mlp micro_batch=2
    llama: tp=2 pp=2 schedule=1f1b recompute=selective micro_batch=2
    llama: dp=2 overlap_dp=true tp=2 recompute_modules=layernorm+mlp micro_batch=2
    moe: tp=2 sequence_parallel=true cp=2 etp=2 recompute=selective micro_batch=2
    moe: dp=2 zero=3 cp=2 cp_kind=ulysses recompute=full micro_batch=2
    moe: dp=2 zero=2 pp=2 schedule=gpipe recompute=full micro_batch=2
    moe: tp=2 sequence_parallel=true pp=2 schedule=zb-h1 etp=2 recompute_modules=moe micro_batch=2
    moe: tp=2 sequence_parallel=true pp=2 schedule=1f1b etp=2 recompute_modules=moe micro_batch=2
    moe: dp=2 zero=3 tp=2 sequence_parallel=true etp=2 recompute_modules=moe micro_batch=2
    moe: dp=2 zero=2 pp=2 schedule=1f1b recompute_modules=moe micro_batch=2
    moe: dp=2 zero=2 cp=2 cp_kind=ulysses recompute_modules=moe micro_batch=2
    moe: dp=2 zero=2 cp=2 cp_kind=all-gather recompute_modules=moe micro_batch=2
    moe: dp=2 zero=1 tp=2 sequence_parallel=true etp=2 recompute_modules=moe micro_batch=2
    moe: dp=2 zero=1 pp=2 schedule=message-driven recompute_modules=moe micro_batch=2
    moe: dp=2 zero=1 cp=2 recompute_modules=moe micro_batch=2
    moe: dp=2 zero=1 cp=2 cp_kind=ulysses recompute_modules=moe micro_batch=2
    moe: dp=2 overlap_dp=true tp=2 sequence_parallel=true etp=2 recompute_modules=moe micro_batch=2
    moe: dp=2 overlap_dp=true pp=2 schedule=zb-h2 recompute_modules=moe micro_batch=2
    moe: dp=2 overlap_dp=true cp=2 recompute_modules=moe micro_batch=2
    moe: dp=2 overlap_dp=true cp=2 cp_kind=all-gather recompute_modules=moe micro_batch=2
    moe: cp=2 pp=2 schedule=zb-h2 recompute_modules=moe micro_batch=2
    moe: cp=2 pp=2 schedule=message-driven recompute_modules=moe micro_batch=2
    moe: cp=2 pp=2 schedule=gpipe recompute_modules=moe micro_batch=2
    moe: cp=2 cp_kind=ulysses pp=2 schedule=zb-h2 recompute_modules=moe micro_batch=2
    moe: cp=2 cp_kind=ulysses pp=2 schedule=message-driven recompute_modules=moe micro_batch=2
    moe: cp=2 cp_kind=all-gather pp=2 schedule=zb-h2 recompute_modules=moe micro_batch=2
    moe: cp=2 cp_kind=all-gather pp=2 schedule=gpipe recompute_modules=moe micro_batch=2
    moe: cp=2 cp_kind=all-gather pp=2 schedule=1f1b recompute_modules=moe micro_batch=2
    llama: tp=2 pp=2 schedule=zb-h2 recompute_modules=layernorm+mlp micro_batch=2
    llama: tp=2 pp=2 schedule=zb-h1 recompute_modules=layernorm+mlp micro_batch=2
    llama: tp=2 pp=2 schedule=message-driven recompute_modules=layernorm+mlp micro_batch=2
    llama: tp=2 pp=2 schedule=gpipe recompute_modules=layernorm+mlp micro_batch=2
    llama: tp=2 cp=2 cp_kind=ulysses recompute_modules=layernorm+mlp micro_batch=2
    llama: tp=2 cp=2 cp_kind=all-gather recompute_modules=layernorm+mlp micro_batch=2
    llama: dp=2 zero=3 tp=2 recompute_modules=layernorm+mlp micro_batch=2
    llama: dp=2 zero=2 tp=2 recompute_modules=layernorm+mlp micro_batch=2
""")  # noqa: E501

# The same plans without 8-bit mantissas, whose rounding would hide a small mistake.
PAIRS += [replace(case, precision="fp32") for case in PAIRS if case.precision == "bf16"]


def work_for(case):
    return Workload(seq_len=SEQ_LEN, global_batch=8, precision=Precision(case.precision))


def compare(case, rank, folder):
    """Worst difference of a rank's gradients from the reference's, relative to their size; and the losses."""
    from runners.torch_trial.train import Setting, Trainer

    def trained(plan, **options):
        model = MODELS[case.model]
        setting = Setting(model=model, workload=work_for(case), plan=plan, **options)
        trainer = Trainer(setting, rank if plan.world_size > 1 else 0, scratch=folder)
        losses, gradients = [], {}
        for step in range(N_STEPS):
            losses.append(trainer.whole_loss(trainer.gradients(*trainer.data(step))))
            if step == 0:
                gradients = {
                    name: (g.detach().clone(), w) for name, (g, w) in trainer.named_gradients().items()
                }
            trainer.update()
        return losses, gradients

    losses, gradients = trained(case.parsed, **dict(case.options))
    wanted_losses, wanted = trained(Plan(micro_batch=case.parsed.micro_batch))
    # Some gradients are zero in theory (a bias on the keys, without rotation) and noise in practice.
    floor = {"fp32": 1e-3, "bf16": 1e-2}[case.precision] * max(
        float(g.abs().max()) for g, _ in wanted.values()
    )
    worst = {
        name: float((gradient - weight.part(wanted[name][0])).abs().max())
        / max(float(wanted[name][0].abs().max()), floor)
        for name, (gradient, weight) in gradients.items()
    }
    return {
        "worst": worst,
        "losses": losses,
        "wanted_losses": wanted_losses,
        "names": sorted(wanted),
        "n_parameters": sum(g.numel() for g, _ in wanted.values()),
    }


def run_all(world, chosen, folder):
    """Every case on every rank: its findings, or what broke."""
    from functools import partial

    from runners.torch_trial import worker
    from runners.torch_trial.ranks import run_ranks

    worker.prepare()
    fate = run_ranks(
        world, partial(_body, world, chosen, folder), explain=worker.explain, folder=folder, silence_s=60
    )
    if fate.culprit:
        words = [f"rank {rank.number} at {rank.at.place}: {rank.broken}" for rank in fate.ranks]
        return {"broken": "\n".join([*words, fate.culprit.last_lines])}
    return {"ranks": [rank.done.value for rank in fate.ranks]}


def _body(world, chosen, folder, rank, tell):
    import torch
    import torch.distributed as dist

    from runners.torch_trial.ranks import At

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / "store"), world), rank=rank, world_size=world
    )
    found = {}
    for i, case in enumerate(chosen):
        tell(At(place=case.name, step=i))
        found[case.name] = compare(case, rank, folder)
    return found


def main(out, *names):
    """Train the cases of these names, which have one world size, and write what was found."""
    every = {case.name: case for case in [*FAST, *SLOW, *TORCH_CLASSES, *HSDP, *BF16, *PAIRS]}
    chosen = [every[name] for name in names]
    (world,) = {case.parsed.world_size for case in chosen}
    with tempfile.TemporaryDirectory() as folder:
        Path(out).write_text(json.dumps(run_all(world, chosen, Path(folder))))


if __name__ == "__main__":
    main(*sys.argv[1:])
