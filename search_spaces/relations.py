"""What a user asks of knobs together: `pp * ep = devices`, `ep <= switch`, `etp = tp`.

A relation compares two products.  A factor is a whole number, a knob with whole numbers for values, or a
number of the job: `devices`, `devices_per_node`, `n_layers`, `n_experts`, `global_batch`, or a network tier's
name, which stands for the devices in one of its domains.
"""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from search_spaces.errors import InvalidSpec, UnknownName, check
from search_spaces.plan import ENUMS, FLAGS, KNOB_NAMES, MAX_DIGITS, Bools, Ints
from search_spaces.rule import Columns, Context, Rule

COUNTS = tuple(name for name in KNOB_NAMES if name not in ENUMS and name not in FLAGS)
FIGURES = ("devices", "devices_per_node", "n_layers", "n_experts", "global_batch")
COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = MappingProxyType(
    {"<=": operator.le, ">=": operator.ge, "=": operator.eq, "<": operator.lt, ">": operator.gt}
)
_RELATION = re.compile(r"([\w\s*-]+?)\s*(<=|>=|=|<|>)\s*([\w\s*-]+)")
FORM = '[space] where must be relations like "pp * ep = devices"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """Two products of factors and the comparison between them."""

    left: tuple[str, ...]
    comparison: str
    right: tuple[str, ...]

    def __str__(self) -> str:
        return f"{' * '.join(self.left)} {self.comparison} {' * '.join(self.right)}"

    @property
    def knobs(self) -> tuple[str, ...]:
        """The knobs it names."""
        return tuple(name for name in dict.fromkeys((*self.left, *self.right)) if name in COUNTS)

    def rule(self, context: Context) -> Rule:
        """The relation as a rule of one job.

        Raises
        ------
        UnknownName
            A factor is no knob and no figure of this job.
        """
        figures = job_figures(context)
        for factor in (*self.left, *self.right):
            if not factor.isdigit() and factor not in COUNTS and factor not in figures:
                raise UnknownName("a factor of [space] where", factor, [*COUNTS, *figures])

        def holds(_: Context, columns: Columns) -> Bools:
            left, right = (_product(side, columns, figures) for side in (self.left, self.right))
            held: Bools = np.asarray(COMPARISONS[self.comparison](left, right))
            return held

        return Rule(name=f"asked: {self}", knobs=self.knobs, holds=holds)


def parse_relations(given: object) -> tuple[Relation, ...]:
    """Relations from text, one or a list of them.

    Raises
    ------
    InvalidSpec
        Not text, not a comparison of two products, or one that names no knob.
    """
    texts = given if isinstance(given, list | tuple) else [given]
    return tuple(_relation(text) for text in texts)


def job_figures(context: Context) -> dict[str, int]:
    """The numbers of a job that a relation may name."""
    cluster, model = context.cluster, context.model
    tiers = {tier.name: tier.size or cluster.n_devices for tier in cluster.tiers}
    values = (
        cluster.n_devices,
        cluster.devices_per_node,
        model.n_layers,
        model.moe.n_experts if model.moe else 1,
        context.workload.global_batch,
    )
    return tiers | dict(zip(FIGURES, values, strict=True))


def _relation(text: object) -> Relation:
    if not isinstance(text, str):
        raise InvalidSpec(FORM, repr(text))
    match = _RELATION.fullmatch(text.strip())
    if match is None:
        raise InvalidSpec(FORM, repr(text), hint=f"the comparisons are {', '.join(COMPARISONS)}")
    left, right = (tuple(factor.strip() for factor in side.split("*")) for side in match.group(1, 3))
    for factor in (*left, *right):
        check(bool(re.fullmatch(r"[\w-]+", factor)), FORM, repr(text))
        must = f"a number of [space] where must have at most {MAX_DIGITS} digits"
        check(not factor.isdigit() or len(factor) <= MAX_DIGITS, must, len(factor))
    relation = Relation(left=left, comparison=match.group(2), right=right)
    check(
        bool(relation.knobs), "[space] where must name a knob", repr(text), hint=f"knobs: {', '.join(COUNTS)}"
    )
    return relation


def _product(factors: tuple[str, ...], columns: Columns, figures: Mapping[str, int]) -> Ints | int:
    product: Ints | int = 1
    for factor in factors:
        one = int(factor) if factor.isdigit() else columns[factor] if factor in COUNTS else figures[factor]
        product = product * one
    return product
