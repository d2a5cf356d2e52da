"""Which steps of a log tell how fast the plan is, and what they tell.

    stretch   consecutive step lines with nothing between them but training
    warm-up   the first steps of a stretch, at least WARMUP_STEPS of them: left out
    window    the longest stretch without its warm-up; the latest, if two are as long
    step_s    the median of the window's lines
    spike     a line above SPIKE times the median: kept, and named
    spread_s  the standard deviation of the lines that are no spikes

A stretch ends where a step was skipped by loss scaling, or where validation or a checkpoint came between.
Ranks write at the same time, so that nobody can say which step a line of another rank belongs to: that is why
the steps after a disturbance are warm-up again.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from runners.logs.facts import Disturbance

# Measured on two CPU cores, three runs of 20 steps: medians 493, 496 and 493 ms, single steps up to 1,280.
WARMUP_STEPS = 2
FEWEST_STEPS = 5
FEWEST_LINES = 3
SPIKE = 1.5  # assumed: slower than any throttled device makes a step, faster than a paused one
TICKS_A_LINE = 20  # a clock that ticks in whole seconds is read over so many, for an error of 5 %


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedStep:
    """A step line with its seconds a step: the mean of the `n_steps` up to number `step`."""

    step: int
    n_steps: int
    step_s: float
    disturbed_by: frozenset[Disturbance] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Steps `first` to `last`: median and standard deviation of their seconds, and which are spikes."""

    first: int
    last: int
    n_steps: int
    n_lines: int
    step_s: float
    spread_s: float
    spikes: tuple[int, ...]


def window_of(steps: Sequence[TimedStep], *, warmup_steps: int = WARMUP_STEPS) -> Window | None:
    """The window of these step lines; None if no stretch is long enough."""
    best: list[TimedStep] = []
    for stretch in _stretches(steps):
        kept = _without_warmup(stretch, warmup_steps)
        if _n_steps(kept) >= _n_steps(best):
            best = kept
    if len(best) < FEWEST_LINES or _n_steps(best) < FEWEST_STEPS:
        return None
    seconds = [each.step_s for each in best]
    median_s = statistics.median(seconds)
    usual = [step_s for step_s in seconds if step_s <= SPIKE * median_s]
    return Window(
        first=best[0].step - best[0].n_steps + 1,
        last=best[-1].step,
        n_steps=_n_steps(best),
        n_lines=len(best),
        step_s=median_s,
        spread_s=statistics.stdev(usual),
        spikes=tuple(each.step for each in best if each.step_s > SPIKE * median_s),
    )


def coarse_joined(steps: Sequence[TimedStep], tick_s: float) -> list[TimedStep]:
    """Step lines joined until each covers so many ticks of the clock that the tick does not matter."""
    joined: list[TimedStep] = []
    held: list[TimedStep] = []
    for each in steps:
        held.append(each)
        if sum(one.step_s * one.n_steps for one in held) >= TICKS_A_LINE * tick_s:
            joined.append(_join(held))
            held = []
    return joined


def _join(steps: Sequence[TimedStep]) -> TimedStep:
    n_steps = _n_steps(steps)
    return TimedStep(
        step=steps[-1].step,
        n_steps=n_steps,
        step_s=sum(each.step_s * each.n_steps for each in steps) / n_steps,
        disturbed_by=frozenset[Disturbance]().union(*(each.disturbed_by for each in steps)),
    )


def _stretches(steps: Sequence[TimedStep]) -> list[list[TimedStep]]:
    stretches: list[list[TimedStep]] = [[]]
    for each in steps:
        if each.disturbed_by:
            stretches.append([])
        else:
            stretches[-1].append(each)
    return stretches


def _without_warmup(stretch: list[TimedStep], warmup_steps: int) -> list[TimedStep]:
    n_left_out = 0
    for i, each in enumerate(stretch):
        if n_left_out >= warmup_steps:
            return stretch[i:]
        n_left_out += each.n_steps
    return []


def _n_steps(steps: Sequence[TimedStep]) -> int:
    return sum(each.n_steps for each in steps)
