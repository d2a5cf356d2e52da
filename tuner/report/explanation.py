"""Why one plan's estimate is what it is: every part with formula, numbers, source and constants."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from objectives.cost.parts import LEGEND, PARTS
from objectives.explain import FORMULAS, Effect, ExplainedPart, Explanation
from search_spaces.cluster import Origin
from search_spaces.units import GIB, KIB, MIB, TB
from tuner.report.parts import MEMORY_PARTS, TIME_PARTS, Part
from tuner.report.tables import facts, table
from tuner.report.words import count, percent, seconds, signed_percent

MORE = 1.1  # what a constant is raised by in the table
STRONGEST = 4  # constants named beside a part
FELT = 0.005  # the least elasticity that a screen shows
EFFECTS = "behind a constant: per cent by which the part grows where the constant grows by one"


def term_words(name: str, value: float) -> str:
    """A term with its unit, which its name ends with."""
    if name.endswith("_bytes_per_s"):
        return f"{value / TB:.3g} TB/s"
    if name.endswith("_s"):
        return seconds(value)
    if name.endswith("_bytes"):
        return size(value)
    if name.endswith("_bytes_per_token"):
        return f"{size(value)} a token"
    if name.endswith("_parameters"):
        return f"{count(value)} parameters"
    return f"{value:,.4g}" if value != int(value) else f"{int(value):,}"


def size(n_bytes: float) -> str:
    """`12.3 GiB`, `4.0 MiB`, `2.5 KiB` or `12 bytes`."""
    for unit, word in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.2f} {word}"
    return f"{n_bytes:g} bytes"


def explanation_screen(explanation: Explanation) -> RenderableType:
    """Every part's formula with this plan's numbers, its source, its constants; then the constants."""
    return Group(
        Text("how the seconds are made", style="bold"),
        *_blocks(explanation, explanation.time, TIME_PARTS),
        Text("how the bytes are made", style="bold"),
        *_blocks(explanation, explanation.memory, MEMORY_PARTS),
        Text(f"{LEGEND}; {EFFECTS}", style="dim"),
        "",
        Text("what 10 % more of a constant does to the step, and its part of the interval", style="bold"),
        constants_table(explanation),
        "",
        Text("where the constants come from", style="bold"),
        facts([(effect.name, _origin(effect)) for effect in _felt(explanation)]),
    )


def _blocks(
    explanation: Explanation, parts: Sequence[ExplainedPart], labels: Mapping[str, Part]
) -> list[RenderableType]:
    blocks: list[RenderableType] = []
    for part in parts:
        label = labels[part.name]
        value = seconds(part.value) if part.name in TIME_PARTS else size(part.value)
        title = Text.assemble((label.label, label.colour), f"  {value}, {percent(part.share)}")
        blocks += [title, facts([(f"  {name}", words) for name, words in _lines(explanation, part)]), ""]
    return blocks


def _lines(explanation: Explanation, part: ExplainedPart) -> list[tuple[str, str]]:
    entry, here = PARTS[part.name], part.worked(term_words)
    effects = [each for each in explanation.rests_on(part.name) if abs(each.of_part[part.name]) > FELT]
    lines = [("formula", entry.formula)]
    lines += [("here", here)] if here else []
    lines += [("source", entry.source)]
    if effects:
        named = [_effect_words(effect, part.name) for effect in effects[:STRONGEST]]
        rest = [f"and {len(effects) - STRONGEST} more"] if len(effects) > STRONGEST else []
        lines += [("rests on", ", ".join([*named, *rest]))]
    return lines


def _effect_words(effect: Effect, part: str) -> str:
    return f"{effect.name} ({effect.constant.origin}, {effect.of_part[part]:+.2g})"


def _felt(explanation: Explanation) -> list[Effect]:
    return [effect for effect in explanation.effects if abs(effect.elasticity) > FELT]


def _origin(effect: Effect) -> str:
    return f"{effect.constant.origin}: {effect.constant.source or 'no source given'}"


def constants_table(explanation: Explanation) -> RenderableType:
    """Each constant that the step's time rests on, the one that makes it least sure first."""
    whole = explanation.variance
    rows = [
        [
            effect.name,
            _value(effect),
            str(effect.constant.origin),
            f"{effect.constant.spread:.0%}".replace("%", " %"),
            signed_percent(MORE**effect.elasticity - 1),
            percent(effect.variance / whole),
        ]
        for effect in _felt(explanation)
    ]
    return table(["~constant", ">value", "origin", ">spread", ">10 % more", ">of interval"], rows)


def _value(effect: Effect) -> str:
    name, value = effect.name, effect.constant.value
    if name.endswith("_s"):
        return seconds(value)
    return size(value) if name.endswith("reserve_bytes") else f"{value:.4g}"


def variance_line(explanation: Explanation) -> tuple[str, str]:
    """How much of the interval comes from which kind of knowledge."""
    shares = uncertainty_document(explanation)
    kinds = [f"{percent(share)} {name}" for name, share in shares.items() if share and name != FORMULAS]
    return (
        "unsure",
        f"the interval's variance comes from constants ({', '.join(kinds)}) and from the formulas themselves"
        f" ({percent(shares[FORMULAS])})",
    )


def uncertainty_document(explanation: Explanation) -> dict[str, float]:
    """Shares of the interval's variance by what they come from; they add up to 1."""
    shares = explanation.variance_shares
    return {name: shares.get(name, 0.0) for name in [*map(str, Origin), FORMULAS]}


def explanation_document(explanation: Explanation) -> dict[str, Any]:
    """Parts with formula, numbers, source and constants; and every constant."""
    return {
        "time": [_part_document(explanation, part, "seconds") for part in explanation.time],
        "memory": [_part_document(explanation, part, "bytes") for part in explanation.memory],
        "constants": [
            {
                "name": effect.name,
                "value": effect.constant.value,
                "origin": str(effect.constant.origin),
                "spread": effect.constant.spread,
                "source": effect.constant.source,
                "elasticity": effect.elasticity,
                "variance": effect.variance,
            }
            for effect in explanation.effects
        ],
    }


def _part_document(explanation: Explanation, part: ExplainedPart, unit: str) -> dict[str, Any]:
    return {
        "part": part.name.removesuffix("_s").removesuffix("_bytes"),
        unit: part.value,
        "share": part.share,
        "formula": PARTS[part.name].formula,
        "here": part.worked(term_words),
        "source": PARTS[part.name].source,
        "rests_on": [
            {
                "constant": effect.name,
                "origin": str(effect.constant.origin),
                "elasticity": effect.of_part[part.name],
            }
            for effect in explanation.rests_on(part.name)
        ],
    }
