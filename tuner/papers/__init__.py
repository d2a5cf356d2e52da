"""The systems of the founding papers: what each published, beside what Meshtune computes for the same.

Each row of `PAPERS` is a module with `PAPER` (its title, source and preset studies) and `figures()`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from search_spaces.rows import load_row
from tuner.papers.figure import Paper

# name: module:attribute
PAPERS: Mapping[str, str] = MappingProxyType({
    "frontier": "tuner.papers.frontier:PAPER",
    "piper": "tuner.papers.piper:PAPER",
    "x-moe": "tuner.papers.xmoe:PAPER",
    "axonn": "tuner.papers.axonn:PAPER",
    "ted": "tuner.papers.ted:PAPER",
    "zeropp": "tuner.papers.zeropp:PAPER",
    "ulysses": "tuner.papers.ulysses:PAPER",
    "fpdt": "tuner.papers.fpdt:PAPER",
    "campaign": "tuner.papers.campaign:PAPER",
    "energy": "tuner.papers.energy:PAPER",
})  # fmt: skip


def load_paper(name: str) -> Paper:
    """One system's paper.

    Raises
    ------
    UnknownName
        No paper of this name; the nearest is suggested.
    """
    return cast("Paper", load_row("paper", name, PAPERS))


def load_papers() -> tuple[Paper, ...]:
    """Every paper, in the order of the table."""
    return tuple(load_paper(name) for name in PAPERS)


def paper_of_preset(preset: str) -> Paper | None:
    """The paper that a preset study belongs to, if any."""
    return next((paper for paper in load_papers() if preset in paper.presets), None)
