"""Results of the race: one row a search, kept as CSV, and the tables printed from them."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from search_spaces.plan import Floats

NEAR = (1, 2, 5)  # per cent above the best
CHECKPOINTS = (5, 10, 20, 40)
NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One engine on one case: the trial that first came within so many per cent of the best (0: none did).

    Regrets are fractions above the best after so many trials (inf: nothing ran yet).  A search ends at the
    table's best or after `n_trials`; `n_failed` are the failures until then; `ask_s` is the median ask.
    """

    arena: str
    case: str
    held_out: bool
    seed: int
    engine: str
    n_plans: int
    n_trials: int
    n_failed: int
    ask_s: float
    within_1: int
    within_2: int
    within_5: int
    regret_5: float
    regret_10: float
    regret_20: float
    regret_40: float


def measures(regret: Floats) -> dict[str, float]:
    """Trials until near the best, and regret after some trials, from the regret after every trial."""
    near = {f"within_{per_cent}": first_within(regret, per_cent / 100) for per_cent in NEAR}
    after = {f"regret_{n}": float(regret[min(n, len(regret)) - 1]) for n in CHECKPOINTS}
    return {**near, **after}


def first_within(regret: Floats, share: float) -> int:
    """Number of the first trial with at most this regret, from 1; 0: none."""
    near = regret <= share
    return int(np.argmax(near)) + 1 if near.any() else 0


def write(searches: Iterable[Search], path: Path) -> None:
    """As CSV, sorted, so that the same race makes the same file but for the seconds of an ask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Search)], lineterminator="\n")
        writer.writeheader()
        for each in sorted(searches, key=lambda s: (s.arena, s.case, s.seed, s.engine)):
            row = asdict(each)
            cells = {
                name: f"{value:.5g}" if isinstance(value, float) else value for name, value in row.items()
            }
            writer.writerow({**cells, "held_out": int(each.held_out)})


def read(path: Path) -> list[Search]:
    """The searches of a file."""
    kinds = {"str": str, "int": int, "float": float, "bool": lambda text: bool(int(text))}
    how = {field.name: kinds[getattr(field.type, "__name__", str(field.type))] for field in fields(Search)}
    with path.open(newline="") as file:
        return [
            Search(**{name: how[name](text) for name, text in row.items()}) for row in csv.DictReader(file)
        ]


def quantile(trials: Sequence[int], share: float) -> str:
    """A quantile of numbers of trials, not interpolated; a search that never came so near is the longest."""
    value = int(np.quantile([each or NEVER for each in trials], share, method="higher"))
    return "never" if value == NEVER else str(value)


def spread(trials: Sequence[int]) -> str:
    """Median, quartiles and 90th percentile."""
    low, middle, high, most = (quantile(trials, share) for share in (0.25, 0.5, 0.75, 0.9))
    return f"{middle} ({low} to {high}), {most}"


def per_cent(regrets: Sequence[float]) -> str:
    """Median and 90th percentile of regrets."""
    cells = [float(np.quantile(regrets, share, method="higher")) for share in (0.5, 0.9)]
    return " / ".join("none ran" if np.isinf(each) else f"{100 * each:.1f}" for each in cells)


def table(searches: Sequence[Search], engines: Sequence[str]) -> str:
    """One arena's table, in Markdown: an engine a line."""
    head = ["engine", "searches", *(f"within {each} %" for each in NEAR[::-1])]
    head += [f"regret after {n}, %" for n in CHECKPOINTS] + ["failed", "ms an ask"]
    lines = [head, ["---"] * len(head)]
    for engine in engines:
        own = [each for each in searches if each.engine == engine]
        if own:
            lines.append([engine, str(len(own)), *_cells(own)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cells(own: Sequence[Search]) -> list[str]:
    trials = [spread([getattr(each, f"within_{near}") for each in own]) for near in NEAR[::-1]]
    regrets = [per_cent([getattr(each, f"regret_{n}") for each in own]) for n in CHECKPOINTS]
    failed = sum(each.n_failed for each in own) / sum(each.n_trials for each in own)
    return [*trials, *regrets, f"{100 * failed:.0f} %", f"{1000 * np.median([s.ask_s for s in own]):.0f}"]


def report(searches: Sequence[Search], engines: Sequence[str]) -> str:
    """All arenas, each also without the cases that methods were chosen on, and the total."""
    parts = []
    arenas = list(dict.fromkeys(each.arena for each in searches))
    for arena in arenas:
        own = [each for each in searches if each.arena == arena]
        parts.append(f"{_title(arena, own)}\n\n{table(own, engines)}")
        held = [each for each in own if each.held_out]
        if 0 < len(held) < len(own):
            parts.append(f"{_title(arena, held)}, held out\n\n{table(held, engines)}")
    if len(arenas) > 1:
        parts.append(f"{_title('all arenas', searches)}\n\n{table(searches, engines)}")
    return "\n\n".join(parts)


def _title(arena: str, searches: Sequence[Search]) -> str:
    cases = {(each.arena, each.case, each.seed if each.arena == "hidden" else 0) for each in searches}
    return f"{arena}: {len(cases)} tables; trials as median (quartiles), 90th percentile"
