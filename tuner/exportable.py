"""The last safety before a plan is recommended: what the framework's own launcher refuses is no candidate.

The rules of the search space know what each trainer runs; the launchers know it to the last argument.  Where
the two still differ, the launcher is right: a winner that cannot be exported is no winner.
"""

import logging
from dataclasses import replace

import numpy as np

from objectives.metrics import Job
from objectives.ranking import Ranking
from runners.launchers import LAUNCHERS, load_launcher
from search_spaces.errors import CannotExport

RULE = "the framework's launcher expresses the plan"
MOST_REASONS = 4
logger = logging.getLogger(__name__)


def exportable(job: Job, ranking: Ranking) -> Ranking:
    """The ranking without the candidates that the framework's launcher refuses.

    The ledger counts them under `RULE`; plans that were not kept are not asked about.  A framework without a
    launcher (`any`) refuses nothing.

    Raises
    ------
    CannotExport
        The launcher refuses every candidate: with the reasons that all of them share, else the best one's.
    """
    framework = job.workload.framework
    if framework not in LAUNCHERS:
        return ranking
    launcher = load_launcher(framework)
    reasons = [launcher.lacks(job.of_plan(plan), plan) for plan in ranking.candidates.plans]
    accepted = np.array([not each for each in reasons], dtype=np.bool_)
    if not accepted.any():
        raise _nothing_left(framework, reasons)
    n_refused = int((~accepted).sum())
    if not n_refused:
        return ranking
    logger.warning("%s cannot express %d of %d candidates", framework, n_refused, len(accepted))
    removed = {**ranking.ledger.removed, RULE: n_refused}
    ledger = replace(ranking.ledger, removed=removed, feasible=ranking.ledger.feasible - n_refused)
    return replace(ranking, ledger=ledger, candidates=ranking.candidates.take(np.flatnonzero(accepted)))


def _nothing_left(framework: str, reasons: list[list[str]]) -> CannotExport:
    shared = [reason for reason in reasons[0] if all(reason in each for each in reasons)]
    named = (shared or reasons[0])[:MOST_REASONS]
    return CannotExport(
        f"{framework} must be able to express at least one of the plans that fit",
        "; ".join(named),
        hint="choose another framework, or 'any' to price plans that no launcher has to express",
    )
