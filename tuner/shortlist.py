"""The candidate table of a study: the best predicted plans that fit and that the framework can launch."""

from collections.abc import Sequence

import numpy as np

from objectives.cost.step import estimate, join_estimates
from objectives.metrics import Goal, metric_named
from objectives.ranking import DEFAULT_KEEP, Candidates, Ledger, Ranking, rank
from objectives.valuing import metric_values
from runners.replay import replay_plans
from search_spaces.errors import check
from search_spaces.plan import Plans
from search_spaces.space import SearchSpace
from tuner.exportable import exportable
from tuner.inputs import StudyInputs


def shortlist(inputs: StudyInputs, *, keep: int = DEFAULT_KEEP) -> Ranking:
    """The best `keep` plans of each metric, each plan once, in the order of the first metric.

    Raises
    ------
    NoLegalPlan
        The rules leave no plan.
    NothingFits
        Legal plans exist, and the leanest is too large for the devices.
    CannotExport
        The framework's launcher refuses all of them.
    InvalidSpec
        A recording to replay that holds no plan of the space.
    """
    if inputs.runner.kind == "replay":
        return recorded(inputs)
    rankings = [rank(inputs.job, inputs.space, metric=metric, keep=keep) for metric in inputs.objective]
    tables = [ranking.candidates for ranking in rankings]
    merged = tables[0] if len(tables) == 1 else merge(tables, inputs)
    return exportable(inputs.job, Ranking(ledger=rankings[0].ledger, candidates=merged))


def recorded(inputs: StudyInputs) -> Ranking:
    """The plans of the recording that is replayed, those of the space: nothing else has an outcome.

    Whether one fits is what its outcome says, so the prediction prunes none.
    """
    job, path = inputs.job, inputs.runner.options["path"]
    plans = replay_plans(path, job)
    space = SearchSpace(job.model, job.cluster, job.workload, inputs.space)
    kept = plans.take(np.array([space.holds(plan) for plan in plans], dtype=np.bool_))
    given = f"none of {len(plans)} plans in {path}"
    check(len(kept) > 0, "the recording must hold a plan of the space", given)
    priced = estimate(job, kept)
    metric = metric_named(inputs.objective[0])
    sign = 1.0 if metric.goal is Goal.MINIMIZE else -1.0
    score = sign * metric_values(job, metric.name, kept, priced)
    order = np.argsort(score, kind="stable")
    candidates = Candidates(plans=kept, estimate=priced, score=score).take(order)
    outside = {"the space holds the recorded plan": len(plans) - len(kept)}
    removed = {rule: n for rule, n in outside.items() if n}
    ledger = Ledger(enumerated=len(plans), removed=removed, too_large=0, feasible=len(kept), priced=len(kept))
    return Ranking(ledger=ledger, candidates=candidates)


def merge(tables: Sequence[Candidates], inputs: StudyInputs) -> Candidates:
    """Candidates of all tables, each plan once, in the order of the first metric."""
    plans = Plans.concatenate([table.plans for table in tables])
    priced = join_estimates([table.estimate for table in tables])
    first = dict(reversed([(key, row) for row, key in enumerate(plans.keys())]))
    rows = np.array(sorted(first.values()), dtype=np.int64)
    value = metric_values(inputs.job, inputs.objective[0], plans, priced)
    sign = np.sign(tables[0].score[0]) or 1.0
    order = rows[np.argsort(sign * value[rows], kind="stable")]
    return Candidates(plans=plans.take(order), estimate=priced.take(order), score=sign * value[order])
