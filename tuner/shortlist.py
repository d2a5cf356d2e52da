"""The candidate table of a study: the best predicted plans that fit and that the framework can launch."""

from collections.abc import Sequence

import numpy as np

from objectives.cost.step import join_estimates
from objectives.ranking import DEFAULT_KEEP, Candidates, Ranking, rank
from search_spaces.plan import Plans
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
    """
    rankings = [rank(inputs.job, inputs.space, metric=metric, keep=keep) for metric in inputs.objective]
    tables = [ranking.candidates for ranking in rankings]
    merged = tables[0] if len(tables) == 1 else merge(tables, inputs)
    return exportable(inputs.job, Ranking(ledger=rankings[0].ledger, candidates=merged))


def merge(tables: Sequence[Candidates], inputs: StudyInputs) -> Candidates:
    """Candidates of all tables, each plan once, in the order of the first metric."""
    plans = Plans.concatenate([table.plans for table in tables])
    estimate = join_estimates([table.estimate for table in tables])
    first = dict(reversed([(key, row) for row, key in enumerate(plans.keys())]))
    rows = np.array(sorted(first.values()), dtype=np.int64)
    value = inputs.job.values(inputs.objective[0], estimate.step_s, estimate.peak_memory_bytes)
    sign = np.sign(tables[0].score[0]) or 1.0
    order = rows[np.argsort(sign * value[rows], kind="stable")]
    return Candidates(plans=plans.take(order), estimate=estimate.take(order), score=sign * value[order])
