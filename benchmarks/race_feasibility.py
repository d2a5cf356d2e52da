"""Which plans work: the sampler's probabilities after some trials, against the cost model alone.

On the groups of published runs with failures: so many random plans are tried, and every other plan is given a
probability to work.  Brier: the mean squared error of it; area: the chance that a plan that works is given
more than one that does not.
"""

from collections.abc import Sequence

import numpy as np
import optuna

from benchmarks.race_arenas import Case
from benchmarks.race_engines import METRICS, tell
from objectives.validation import area_under_curve
from search_spaces.plan import Floats
from tuner.samplers.model_based import MeshtuneSampler
from tuner.samplers.runs import PRIOR_CHANCE

FEWEST_FAILED = 5
AFTER = (10, 20, 40)


def after_trials(case: Case, n_trials: int, seed: int) -> tuple[Floats, Floats, Floats]:
    """Of the plans not tried: probability before any trial and after them, and whether each works."""
    tried = np.random.default_rng(seed).permutation(len(case.table))[:n_trials].tolist()
    sampler = MeshtuneSampler(case.table, metrics=METRICS, seed=seed, job=case.job)
    study = optuna.create_study(sampler=sampler)
    before = sampler.posterior(study).log_feasible + np.log(PRIOR_CHANCE)
    for row in tried:
        study.enqueue_trial(sampler.table.params(row))
        tell(study, study.ask(sampler.table.distributions), case.outcomes[row], case.job)
    rest = np.setdiff1d(np.arange(len(case.table)), tried)
    after = sampler.posterior(study).log_feasible
    return np.exp(before[rest]), np.exp(after[rest]), np.isfinite(case.step_s[rest]).astype(np.float64)


def figures(cases: Sequence[Case], n_trials: int, n_seeds: int) -> list[float]:
    """Brier of the model alone and after trials, then the areas; means over groups and draws."""
    rows = []
    for case in cases:
        for seed in range(n_seeds):
            before, after, works = after_trials(case, n_trials, seed)
            briers = [float(((each - works) ** 2).mean()) for each in (before, after)]
            areas = [area_under_curve(each[works > 0], each[works == 0]) for each in (before, after)]
            rows.append([*briers, *(np.nan if area is None else area for area in areas)])
    return np.nanmean(np.array(rows), axis=0).tolist()


def feasibility_report(cases: Sequence[Case], n_seeds: int = 5) -> str:
    """A Markdown table: the cost model alone / after so many trials, on all groups and on those held out."""
    failing = [each for each in cases if np.isinf(each.step_s).sum() >= FEWEST_FAILED]
    lines = [
        "| after | groups | Brier, model alone | Brier | area, model alone | area |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    held = [case for case in failing if case.held_out]
    for name, group in (("all", failing), ("held out", held)):
        for n_trials in AFTER:
            brier, learned, area, learned_area = figures(group, n_trials, n_seeds)
            cells = f"{brier:.3f} | {learned:.3f} | {area:.2f} | {learned_area:.2f}"
            lines.append(f"| {n_trials} trials | {name} ({len(group)}) | {cells} |")
    return "Which plans work, of those not tried\n\n" + "\n".join(lines)
