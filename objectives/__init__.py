"""What a plan is worth: time and memory by part, metrics, outcomes, and the ranking of a whole space."""

from objectives.cost.result import Estimate, StageProfile, StepMemory, StepTime
from objectives.cost.step import estimate, stage_profile
from objectives.metrics import METRICS, Goal, Job, Metric
from objectives.outcome import Cause, Failed, Measured, Outcome, OutcomeOrigin
from objectives.ranking import Candidates, Ledger, Ranking, rank

__all__ = [
    "METRICS",
    "Candidates",
    "Cause",
    "Estimate",
    "Failed",
    "Goal",
    "Job",
    "Ledger",
    "Measured",
    "Metric",
    "Outcome",
    "OutcomeOrigin",
    "Ranking",
    "StageProfile",
    "StepMemory",
    "StepTime",
    "estimate",
    "rank",
    "stage_profile",
]
