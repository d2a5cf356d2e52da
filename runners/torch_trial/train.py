"""One rank's training: the model as the plan lays it out, and its steps on made-up tokens.

    total = sum over all tokens of −log p(next token) / (global batch · sequence length)

Tokens follow from the seed and the step alone, so that every layout sees the same data.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from runners.torch_trial.collectives import all_reduce
from runners.torch_trial.data import Copies, local, shards_parameters
from runners.torch_trial.layout import Layout, local_positions, make_layout
from runners.torch_trial.mesh import chunk_stages, place_of, stage_layers
from runners.torch_trial.model import Build, Chunk
from runners.torch_trial.optimizer import ShardedAdam, make_optimizer
from runners.torch_trial.pipeline import Pipeline, shapes_of
from runners.torch_trial.tensor import cross_entropy_sum
from runners.torch_trial.weights import Maker
from search_spaces.model import ModelSpec
from search_spaces.plan import Plan
from search_spaces.workload import Precision, Workload

_DTYPES = {Precision.BF16: torch.bfloat16, Precision.FP32: torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What is trained, and how; `schedule_class` or `schedule_file` replace the plan's schedule.

    `hsdp` is how many replicas FSDP keeps of what it shards.
    """

    model: ModelSpec
    workload: Workload
    plan: Plan
    seed: int = 0
    device: str = "cpu"
    learning_rate: float = 1e-3
    compiles: bool = False
    schedule_class: str = ""
    schedule_file: str = ""
    hsdp: int = 1

    @property
    def n_microbatches(self) -> int:
        """Micro-batches of each data-parallel rank in a step."""
        return self.workload.global_batch // (self.plan.micro_batch * self.plan.dp)


class Trainer:
    """A rank's chunks, its optimizer and its data."""

    def __init__(self, setting: Setting, rank: int, *, scratch: Path) -> None:
        plan, model = setting.plan, setting.model
        self.setting, self.device = setting, torch.device(setting.device)
        self.layout: Layout = make_layout(plan, rank, model.attention.n_kv_heads)
        self.dtype = _DTYPES[setting.workload.precision]
        chunks = self._chunks()
        self.copies = Copies(
            chunks,
            self.layout,
            compute_dtype=self.dtype,
            is_tied=model.embedding.tied,
            n_replicas=setting.hsdp,
        )
        if setting.compiles:
            for chunk in chunks:
                for layer in chunk.layers:
                    layer.compile()
        self.optimizer = make_optimizer(self.copies, setting.learning_rate)
        self.pipeline = self._pipeline(scratch) if plan.pp > 1 else None

    def _chunks(self) -> list[Chunk]:
        plan, model = self.setting.plan, self.setting.model
        # FSDP keeps fp32 parameters and casts what it gathers.
        held = torch.float32 if shards_parameters(self.layout) else self.dtype
        maker = Maker(seed=self.setting.seed, device=self.device, dtype=held)
        build = Build(model=model, layout=self.layout, maker=maker, seq_len=self.setting.workload.seq_len)
        layers = stage_layers(plan, model.n_layers)
        return [
            Chunk(build, layers[chunk])
            for chunk, stage in enumerate(chunk_stages(plan))
            if stage == self.layout.pp.index
        ]

    def _pipeline(self, scratch: Path) -> Pipeline:
        setting, plan = self.setting, self.setting.plan
        n_tokens, model = setting.workload.seq_len // plan.cp, setting.model
        shapes = shapes_of(
            plan.micro_batch,
            n_tokens,
            hidden=(n_tokens // (plan.tp if self.layout.splits_sequence else 1), model.d_model),
            n_columns=-(-model.embedding.vocab_size // plan.tp),
            dtype=self.dtype,
        )
        return Pipeline(
            self.copies,
            n_microbatches=setting.n_microbatches,
            shapes=shapes,
            loss=self._loss,
            scratch=scratch,
            override=setting.schedule_class,
            schedule_file=setting.schedule_file,
        )

    def _loss(self, logits: Any, targets: Any) -> Any:
        """The share of the step's loss that these tokens have."""
        vocab_size = self.setting.model.embedding.vocab_size
        total = cross_entropy_sum(logits, targets, self.layout.tp, vocab_size)
        return total / self.setting.workload.tokens_per_step

    def data(self, step: int) -> tuple[Any, Any]:
        """The rank's tokens and what follows each of them; both (sequences, its part of the sequence)."""
        workload, plan = self.setting.workload, self.setting.plan
        generator = torch.Generator().manual_seed(self.setting.seed * 1_000_003 + step)
        shape = (workload.global_batch, workload.seq_len + 1)
        tokens = torch.randint(self.setting.model.embedding.vocab_size, shape, generator=generator)
        mine = tokens.chunk(plan.dp)[place_of(plan, self.layout.rank).dp]
        places = local_positions(self.layout, workload.seq_len)
        return mine[:, places].to(self.device), mine[:, places + 1].to(self.device)

    def gradients(self, tokens: Any, targets: Any) -> Any:
        """All passes of a step and what is reduced after them; this rank's share of the loss."""
        self.copies.zero_gradients()
        loss = self.pipeline.step(tokens, targets) if self.pipeline else self._accumulate(tokens, targets)
        self.copies.reduce()
        self.optimizer.collect()
        return loss

    def _accumulate(self, tokens: Any, targets: Any) -> Any:
        n = self.setting.n_microbatches
        (module,) = self.copies.modules
        total = torch.zeros((), device=self.device)
        pairs = zip(tokens.chunk(n), targets.chunk(n), strict=True)
        for i, (some_tokens, some_targets) in enumerate(pairs):
            with self.copies.accumulating(is_last=i + 1 == n):
                loss = self._loss(module(some_tokens), some_targets)
                loss.backward()
            total += loss.detach()
        return total

    def update(self) -> None:
        """The optimizer's step."""
        self.optimizer.step()

    def whole_loss(self, share: Any) -> float:
        """The step's loss from every rank's share; all ranks must ask."""
        total = share.clone().float() / self.layout.tp.size
        world = replace(self.layout.data, ranks=tuple(range(self.setting.plan.world_size)), handle=None)
        return float(all_reduce(total, world))

    def named_gradients(self) -> dict[str, Any]:
        """The rank's part of every gradient, under the parameter's name in the whole model (for tests)."""
        found: dict[str, Any] = {}
        if isinstance(self.optimizer, ShardedAdam):
            for part in self.optimizer.parts:
                if part.parameters:
                    for parameter, grad in zip(part.parameters, part.whole(part.master.grad), strict=True):
                        parameter.grad = grad
        for parameter, weight in self.copies.parameters():
            grad = parameter.grad
            found[weight.name] = (grad.full_tensor() if local(grad) is not grad else grad, weight)
        return found
