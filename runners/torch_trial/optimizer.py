"""AdamW in fp32: on whole parameters, on those that FSDP shards, or cut over the model's copies (zero 1)."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from runners.torch_trial.collectives import Group, all_gather, reduce_scatter
from runners.torch_trial.data import Copies, local


class Optimizer(Protocol):
    """One update; `adam` is torch's optimizer inside."""

    adam: torch.optim.Optimizer

    def collect(self) -> None:
        """Bring together the gradients that the update needs."""
        ...

    def step(self) -> None:
        """Update every parameter."""
        ...


def make_optimizer(copies: Copies, learning_rate: float) -> Optimizer:
    """The one that the plan asks for."""
    kind = ShardedAdam if copies.layout.plan.zero == 1 else WholeAdam
    return kind(copies, learning_rate)


def _adam(parameters: Sequence[Any], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=learning_rate, fused=True)


class WholeAdam:
    """Every rank updates what it holds; 16-bit parameters have a copy in fp32."""

    def __init__(self, copies: Copies, learning_rate: float) -> None:
        self.parameters = [parameter for parameter, _ in copies.parameters()]
        self.masters = [
            p if p.dtype == torch.float32 else p.detach().float().requires_grad_() for p in self.parameters
        ]
        self.adam = _adam(self.masters, learning_rate)

    def collect(self) -> None:
        """Nothing is left to do."""

    def step(self) -> None:
        """Update, through the fp32 copies where there are any."""
        pairs = [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]
        for parameter, master in pairs:
            master.grad = parameter.grad.float()
        self.adam.step()
        with torch.no_grad():
            for parameter, master in pairs:
                parameter.copy_(master)
                master.grad = None


class ShardedAdam:
    """Each copy of the model updates its part of all parameters, laid end to end."""

    def __init__(self, copies: Copies, learning_rate: float) -> None:
        layout = copies.layout
        self.parts = [
            _Part([p for p, w in copies.parameters() if w.is_expert is is_expert], group)
            for is_expert, group in ((False, layout.data), (True, layout.expert_data))
        ]
        self.adam = _adam([part.master for part in self.parts if part.parameters], learning_rate)

    def collect(self) -> None:
        """Reduce-scatter the gradients."""
        for part in self.parts:
            part.collect()

    def step(self) -> None:
        """Update the own part, then gather everyone's."""
        self.adam.step()
        for part in self.parts:
            part.spread()


class _Part:
    """The parameters of one group of copies, and this rank's stretch of them in fp32."""

    def __init__(self, parameters: Sequence[Any], group: Group) -> None:
        self.parameters, self.group = list(parameters), group
        if self.parameters:
            self.master = self._stretch(self._laid_out([p.detach() for p in self.parameters])).float().clone()
            self.master.requires_grad_()

    def _laid_out(self, tensors: Sequence[Any]) -> Any:
        """End to end, padded so that every rank's stretch is as long."""
        flat = torch.cat([local(x).flatten() for x in tensors])
        missing = -len(flat) % self.group.size
        return torch.cat([flat, flat.new_zeros(missing)]) if missing else flat

    def _stretch(self, flat: Any) -> Any:
        return flat.chunk(self.group.size)[self.group.index]

    def collect(self) -> None:
        if not self.parameters:
            return
        flat = self._laid_out([p.grad for p in self.parameters])
        mine = reduce_scatter(flat, self.group) if self.group.size > 1 else flat
        self.master.grad = mine.float()
        for parameter in self.parameters:
            parameter.grad = None

    def spread(self) -> None:
        if not self.parameters:
            return
        for parameter, values in zip(self.parameters, self.whole(self.master.detach()), strict=True):
            with torch.no_grad():
                parameter.copy_(values)

    def whole(self, stretch: Any) -> list[Any]:
        """Everyone's stretches as tensors of the parameters' shapes."""
        mine = stretch.to(self.parameters[0].dtype)
        flat = all_gather(mine, self.group) if self.group.size > 1 else mine
        sizes = [p.numel() for p in self.parameters]
        return [
            part.view_as(p) for p, part in zip(self.parameters, flat[: sum(sizes)].split(sizes), strict=True)
        ]
