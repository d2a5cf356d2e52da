"""Figures after calibration on a few rows of the same accelerator, where there is a calibration to ask."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from objectives.measurements import MeasuredRun

N_ROWS, SEEDS = 10, (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What `after_rows` answered: for each source and accelerator the figures of its rows held back."""

    groups: tuple[Any, ...] = ()

    def figure(self, source: str, measure: str) -> float | None:
        """A figure of a source, or of all: the mean over its accelerators, each as heavy as its rows.

        The median of `all` is that of the groups' medians, each as heavy as its rows.
        """
        own = [group for group in self.groups if source in ("all", group.source)]
        values = np.array([getattr(group.after, measure) for group in own], dtype=np.float64)
        if not len(values):
            return None
        weights = np.array([group.n_held for group in own], dtype=np.float64)
        if source == "all" and measure.startswith("median"):
            return _weighted_median(values, weights)
        return float(np.average(values, weights=weights))


def _weighted_median(values: Any, weights: Any) -> float:
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / np.sum(weights)
    return float(values[order][np.searchsorted(reached, 0.5)])


def calibrated(runs: Sequence[MeasuredRun]) -> Calibrated:
    """Figures after `N_ROWS` rows; nothing where the model cannot be calibrated."""
    try:
        module = importlib.import_module("objectives.calibration")
    except ModuleNotFoundError:
        return Calibrated()
    return Calibrated(tuple(module.after_rows(runs, n_rows=N_ROWS, seeds=SEEDS)))
