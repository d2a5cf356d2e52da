"""Pipelines: the chunks of a rank as stages of `torch.distributed.pipelining`, in the order of a schedule.

GPipe, 1F1B, interleaved 1F1B, ZBV and DualPipeV are torch's own classes; every other schedule is written out
by the simulator and run as a custom one, from the same rows of text that a user's file holds: a row a rank,
its passes as `<chunk of the model><F, B, I or W><micro-batch>` (I: gradient of the input, W: of the weights).
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    Schedule1F1B,
    ScheduleDualPipeV,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
    ScheduleZBVZeroBubble,
    _PipelineScheduleRuntime,
)

from objectives.simulator.program import Pass, Program
from objectives.simulator.schedules import program
from runners.torch_trial.data import Copies
from runners.torch_trial.mesh import chunk_stages
from search_spaces.plan import Plan, Schedule

# torch's classes that hold one stage a rank, and those that hold several.
_SINGLE = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}
_SEVERAL = {
    "Interleaved1F1B": ScheduleInterleaved1F1B,
    "LoopedBFS": ScheduleLoopedBFS,
    "InterleavedZeroBubble": ScheduleInterleavedZeroBubble,
    "ZBVZeroBubble": ScheduleZBVZeroBubble,
    "DualPipeV": ScheduleDualPipeV,
}
_CLASS_OF = MappingProxyType(
    {
        Schedule.GPIPE: "GPipe",
        Schedule.ONE_F_ONE_B: "1F1B",
        Schedule.INTERLEAVED: "Interleaved1F1B",
        Schedule.ZB_V: "ZBVZeroBubble",
        Schedule.DUALPIPE_V: "DualPipeV",
    }
)
_LETTERS = {Pass.FORWARD: "F", Pass.BACKWARD: "B", Pass.BACKWARD_INPUT: "I", Pass.BACKWARD_WEIGHT: "W"}


def class_name(plan: Plan, override: str) -> str:
    """The schedule that runs: a class of torch's by its name, or "custom"."""
    if override:
        return override
    if plan.extra_warmup:
        return "custom"
    return _CLASS_OF.get(plan.schedule, "custom")


def written_out(plan: Plan, n_microbatches: int) -> Program:
    """The plan's schedule from the simulator's own table."""
    return program(
        plan.schedule,
        plan.pp,
        n_microbatches,
        plan.vpp,
        extra_warmup=plan.extra_warmup,
        limit=plan.pipeline_limit,
    )


def rows_of(schedule: Program) -> list[list[str]]:
    """The passes of every rank as torch's schedule files have them."""
    return [
        [
            f"{int(schedule.stage[rank, op.chunk])}{_LETTERS[op.kind]}{op.microbatch}"
            for op in schedule.order(rank)
        ]
        for rank in range(schedule.n_ranks)
    ]


def write_rows(rows: Iterable[Sequence[str]], path: Path) -> Path:
    """A schedule file."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What goes into the first stage, between stages, and out of the last one, without values.

    Told in advance, because torch would else find out by a run on tensors that no exchange can carry.
    """

    tokens: Any
    hidden: Any
    logits: Any


def shapes_of(
    micro_batch: int, n_tokens: int, *, hidden: tuple[int, int], n_columns: int, dtype: Any
) -> Shapes:
    """`n_tokens` of each sequence lie on this rank; `hidden` is (sequence, width) between stages."""
    return Shapes(
        tokens=torch.empty(micro_batch, n_tokens, dtype=torch.int64, device="meta"),
        hidden=torch.empty(hidden[0], micro_batch, hidden[1], dtype=dtype, device="meta", requires_grad=True),
        logits=torch.empty(n_tokens, micro_batch, n_columns, dtype=dtype, device="meta", requires_grad=True),
    )


class Stage(PipelineStage):
    """A stage that tells when the last backward pass of a step is done, which torch does for FSDP alone."""

    def when_done(self, call: Callable[[], None]) -> None:
        """What to do then."""
        self._call = call

    def perform_reduce_grad(self, grad_scale_factor: int) -> None:
        """Called by every schedule, once a step."""
        super().perform_reduce_grad(grad_scale_factor)
        self._call()


class Pipeline:
    """The stages of one rank under a schedule."""

    def __init__(  # noqa: PLR0913 - what a schedule is made from
        self,
        copies: Copies,
        *,
        n_microbatches: int,
        shapes: "Shapes",
        loss: Callable[[Any, Any], Any],
        scratch: Path,
        override: str = "",
        schedule_file: str = "",
    ) -> None:
        layout = copies.layout
        plan, device = layout.plan, copies.chunks[0].places.device
        stages_of = chunk_stages(plan)
        mine = [chunk for chunk, stage in enumerate(stages_of) if stage == layout.pp.index]
        n_chunks = len(stages_of)
        self.stages = [
            Stage(
                module,
                chunk,
                n_chunks,
                device,
                input_args=shapes.tokens if chunk == 0 else shapes.hidden,
                output_args=shapes.logits if chunk + 1 == n_chunks else shapes.hidden,
                group=layout.pp.handle,
            )
            for chunk, module in zip(mine, copies.modules, strict=True)
        ]
        for i, stage in enumerate(self.stages):
            stage.when_done(partial(copies.start_reduction, i))
        self.has_last = len(stages_of) - 1 in mine
        self.has_first = 0 in mine
        name = "custom" if schedule_file else class_name(plan, override)
        options: dict[str, Any] = dict(n_microbatches=n_microbatches, loss_fn=loss, scale_grads=False)
        if name in _SINGLE:
            self.schedule: Any = _SINGLE[name](self.stages[0], **options)
        elif name in _SEVERAL:
            self.schedule = _SEVERAL[name](self.stages, **options)
        else:
            self.schedule = _PipelineScheduleRuntime(self.stages, **options)
            path = schedule_file or write_rows(
                rows_of(written_out(plan, n_microbatches)), scratch / f"schedule-{layout.rank}.csv"
            )
            self.schedule._load_csv(str(path))

    def step(self, tokens: Any, targets: Any) -> Any:
        """All passes of a step; this rank's share of the loss (zero where it has no last stage)."""
        losses: list[Any] = []
        inputs = (tokens,) if self.has_first else ()
        wanted = dict(target=targets, losses=losses) if self.has_last else {}
        self.schedule.step(*inputs, return_outputs=False, **wanted)
        return sum(loss.detach() for loss in losses) if losses else torch.zeros((), device=tokens.device)
