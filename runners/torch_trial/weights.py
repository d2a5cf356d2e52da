"""Each rank's part of every parameter: how it is cut, how it begins, who else sees a share of its gradient.

A parameter's first values follow from its name and the seed alone, so that every layout starts from the same
model.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Along `dim` the parameter is cut into `parts`, of which this rank holds number `index`.

    Parts are as large as the largest one: what is missing from the last is padding.
    """

    dim: int
    index: int
    parts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One parameter: its name in the whole model, its whole shape, and how this rank's part is cut from it.

    `mean` and `spread` are those of its first values.  `summed_over` names the group whose ranks each see a
    part of its gradient, beside the copies along data parallelism: "tp", "kv" or "".  `is_expert`: its
    copies are along the expert mesh.
    """

    name: str
    shape: tuple[int, ...]
    cuts: tuple[Cut, ...] = ()
    mean: float = 0.0
    spread: float = 0.02
    summed_over: str = ""
    is_expert: bool = False

    def part(self, whole: Any) -> Any:
        """The rank's part of a tensor of the whole shape."""
        for cut in self.cuts:
            size = -(-whole.shape[cut.dim] // cut.parts)
            missing = size * cut.parts - whole.shape[cut.dim]
            if missing:
                padding = list(whole.shape)
                padding[cut.dim] = missing
                whole = torch.cat([whole, whole.new_zeros(padding)], dim=cut.dim)
            whole = whole.narrow(cut.dim, cut.index * size, size)
        return whole

    def first_values(self, seed: int, *, device: Any, dtype: Any) -> Any:
        """The rank's part of what training starts from."""
        digest = hashlib.sha256(f"{seed}|{self.name}".encode()).digest()
        generator = torch.Generator(device=device).manual_seed(int.from_bytes(digest[:7], "little"))
        whole = torch.randn(self.shape, generator=generator, device=device)
        return self.part(whole.mul_(self.spread).add_(self.mean)).to(dtype, copy=True).contiguous()


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Gives modules their parameters."""

    seed: int
    device: Any
    dtype: Any

    def give(self, module: nn.Module, attribute: str, weight: Weight) -> None:
        """Register a parameter, and remember what it is."""
        values = weight.first_values(self.seed, device=self.device, dtype=self.dtype)
        module.register_parameter(attribute, nn.Parameter(values))
        module.__dict__.setdefault("weights", {})[attribute] = weight


def named_weights(module: nn.Module) -> dict[str, Weight]:
    """What each parameter of a module is, under torch's own name for it."""
    found = {}
    for place, part in module.named_modules():
        for attribute, weight in part.__dict__.get("weights", {}).items():
            found[f"{place}.{attribute}".lstrip(".")] = weight
    return found
