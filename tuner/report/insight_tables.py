"""A study's explanation as titled tables of words, for a screen and for a page."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tuner.insight.content import Insight, Step, Turn
from tuner.report.parts import MEMORY_PARTS, TIME_PARTS
from tuner.report.words import percent, plan_words, signed_percent, worth_words

SHOWN = 10
TELLING = 0.0005  # half a thousandth is as good as nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A title, a note, and a table whose columns are marked as `tables.table` reads them."""

    title: str
    note: str
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def head(insight: Insight) -> list[tuple[str, str]]:
    """The study in a few lines."""
    lines = [("study", insight.name), ("trials", f"{insight.n_measured} measured, {insight.n_failed} failed")]
    if insight.best is not None:
        lines.append(("best plan", f"{plan_words(insight.best)}, trial {insight.best_trial}"))
    if insight.worth is not None:
        lines.append(("more trials", worth_words(insight.worth)))
    if insight.missing:
        lines.append(("missing", insight.missing))
    return lines


def blocks(insight: Insight) -> Iterator[Block]:
    """Everything that the study can say, importance first."""
    yield from _importance(insight)
    if insight.missing:
        return
    yield _shap(insight)
    yield from _corrections(insight)
    yield _constants(insight)
    yield _steps(insight)
    yield _rivals(insight)
    yield _turns(insight)


def _importance(insight: Insight) -> Iterator[Block]:
    drawn = [each for each in insight.importance if each.shares]
    skipped = [f"{each.evaluator} skipped: {each.skipped}" for each in insight.importance if each.skipped]
    if not insight.importance:
        return
    knobs = list(drawn[0].shares) if drawn else []
    yield Block(
        title="knob importance",
        note="; ".join(["which knobs moved the first objective over the trials that ran", *skipped]),
        columns=("knob", *(f">{each.evaluator}" for each in drawn)) if drawn else (),
        rows=tuple(
            (knob, *(f"{each.shares.get(knob, 0.0):.2f}" for each in drawn)) for knob in knobs[:SHOWN]
        ),
    )


def _label(name: str) -> str:
    part = TIME_PARTS.get(name) or MEMORY_PARTS.get(name)
    return f"share of {part.label}" if part else name


def _shap(insight: Insight) -> Block:
    names = [name for name, value in insight.shap.items() if value > TELLING][:SHOWN]
    return Block(
        title=f"what the correction of the {insight.quantity} rests on",
        note=f"{_method(insight)} Shapley values of the surrogate's mean: per cent of the step or the peak,"
        " on average over the trials, and of the best plan"
        if names
        else "the trials corrected nothing that tells plans apart",
        columns=("share or knob", ">average", ">of the best plan"),
        rows=tuple(
            (_label(name), percent(insight.shap[name]), signed_percent(insight.shap_best.get(name, 0.0)))
            for name in names
        ),
    )


def _method(insight: Insight) -> str:
    return "exact" if insight.shap_is_exact else "sampled"


def _corrections(insight: Insight) -> Iterator[Block]:
    for name, found in insight.corrections.items():
        labels = TIME_PARTS if name == "time" else MEMORY_PARTS
        yield Block(
            title=f"what the model had wrong: {name}",
            note="factor on each part of the prediction with one spread; settled: how much of what was open"
            " before the trials they took away",
            columns=("part", ">factor", ">spread", ">settled", ">of the best plan"),
            rows=tuple(
                (labels[each.part].label, f"{each.factor:.2f}", f"× {np.exp(each.spread):.2f}",
                 percent(each.settled), percent(each.share))
                for each in found
            ),
        )  # fmt: skip


def _constants(insight: Insight) -> Block:
    known = insight.known_constants
    return Block(
        title="constants that were measured or fitted",
        note=f"{len(known)} of {insight.n_constants}; the others come from data sheets or are assumed",
        columns=("~constant", ">value", "origin", ">spread") if known else (),
        rows=tuple(
            (name, f"{each.value:.4g}", str(each.origin), percent(each.spread))
            for name, each in known.items()
        ),
    )


def _steps(insight: Insight) -> Block:
    legal = sorted((each for each in insight.steps if each.plan), key=lambda each: each.change or 0.0)
    barred = [each for each in insight.steps if each.plan is None]
    return Block(
        title="one step from the best plan",
        note="expected change with one spread; fits: probability",
        columns=("knob", "~to", ">change", ">spread", ">fits", "tried"),
        rows=(*(_step(each) for each in legal), *(_barred(each) for each in barred)),
    )


def _step(step: Step) -> tuple[str, ...]:
    also = f" ({', '.join(step.moved)})" if step.moved else ""
    tried = "" if step.trial is None else f"trial {step.trial}"
    change = signed_percent(float(np.expm1(step.change or 0.0)))
    return step.knob, step.value + also, change, percent(step.spread or 0.0), percent(step.fits or 0.0), tried


def _barred(step: Step) -> tuple[str, ...]:
    return step.knob, f"{step.value}: {step.why_not}", "", "", "", "not legal"


def _rivals(insight: Insight) -> Block:
    return Block(
        title="nearest rivals",
        note="probability that each is better than the best measured plan, memory and failures counted in"
        if insight.rivals else "no other candidate is likely to fit and run",
        columns=("~plan", ">overtakes", ">change", ">spread", ">fits", "tried"),
        rows=tuple(
            (plan_words(each.plan), percent(each.overtakes), signed_percent(float(np.expm1(each.change))),
             percent(each.spread), percent(each.fits), "" if each.trial is None else f"trial {each.trial}")
            for each in insight.rivals
        ),
    )  # fmt: skip


def _turns(insight: Insight) -> Block:
    note = "how much a constant must differ for another plan to be best, what the trials taught kept"
    return Block(
        title="constants that would change the answer",
        note=note if insight.turns else "none, from a quarter to four times its value",
        columns=("~constant", ">times", "within its spread", "~then best"),
        rows=tuple(_turn(each) for each in insight.turns),
    )


def _turn(turn: Turn) -> tuple[str, ...]:
    within = "yes" if turn.is_within_spread else "no"
    return turn.name, f"{turn.factor:.2f}", f"{within} ({turn.constant.origin})", plan_words(turn.plan)
