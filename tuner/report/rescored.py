"""What the engine says of a ranking's best plans, in words and as a document."""

from typing import Any

import numpy as np

from objectives.ranking import Ranking, SecondOpinion
from tuner.report.words import seconds, signed_percent

SLOW_LOAD_S = 2.0  # a load that takes longer compiled


def cost_words(second: SecondOpinion) -> str:
    """What the second opinion cost, for the story."""
    compiled = ", which was compiled for this machine" if second.load_s > SLOW_LOAD_S else ""
    took = f"{_plans(second.n_simulated)} in {seconds(second.seconds)}"
    return f"simulated {took}, after {seconds(second.load_s)} to load the engine{compiled}"


def _plans(n: int) -> str:
    return f"{n} plan" if n == 1 else f"{n} plans"


def simulated_cells(ranking: Ranking, i: int) -> list[str]:
    """Simulated step and its difference from the closed form's; nothing where a plan was not simulated."""
    second = ranking.second
    if second is None:
        return []
    step_s = float(second.step_s[i])
    if np.isnan(step_s):
        return ["", ""]
    return [seconds(step_s), signed_percent(step_s / float(ranking.candidates.estimate.step_s[i]) - 1)]


def simulated_lines(ranking: Ranking, n: int) -> list[tuple[str, str]]:
    """Which plans were simulated, and why they differ."""
    second = ranking.second
    if second is None:
        return []
    which = f"{_plans(second.n_close)} of {ranking.ledger.feasible:,}"
    words = f"the {which} that the engine could put first, in its order; then the others by the closed form"
    if second.n_simulated < second.n_close:
        words = f"{second.n_simulated} of {words}: more would take over {seconds(second.budget_s)}"
    lines = [("simulated", words)]
    for i, (reason, places) in enumerate(why(second, n)):
        lines.append(("they differ" if i == 0 else "", f"{reason} ({_listed(places)})"))
    return lines


def why(second: SecondOpinion, n: int) -> list[tuple[str, list[int]]]:
    """Every reason among the first n candidates, with their places counted from 1."""
    found: dict[str, list[int]] = {}
    for place, reasons in enumerate(second.reasons[:n], start=1):
        for reason in reasons:
            found.setdefault(reason, []).append(place)
    return list(found.items())


def _listed(places: list[int]) -> str:
    """`1-4, 6`."""
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def second_document(second: SecondOpinion | None) -> dict[str, Any] | None:
    """How many plans were close, how many simulated, and what it took."""
    if second is None:
        return None
    return {
        "close": second.n_close,
        "simulated": second.n_simulated,
        "budget_s": second.budget_s,
        "load_s": second.load_s,
        "seconds": second.seconds,
    }


def simulated_document(ranking: Ranking, i: int) -> dict[str, Any] | None:
    """One plan's simulated step beside its closed form; null where it was not simulated."""
    second = ranking.second
    if second is None or np.isnan(second.step_s[i]):
        return None
    step_s = float(second.step_s[i])
    difference = step_s / float(ranking.candidates.estimate.step_s[i]) - 1
    return {"step_time_s": step_s, "difference": difference, "reasons": list(second.reasons[i])}
