"""Runs that somebody measured, read from the public measurements file."""

from objectives.measurements.runs import (
    MeasuredRun,
    Measurements,
    RejectedRow,
    RunOutcome,
    read_measurements,
)

__all__ = ["MeasuredRun", "Measurements", "RejectedRow", "RunOutcome", "read_measurements"]
