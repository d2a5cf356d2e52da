"""Figures after calibration on a few rows of the same accelerator, where there is a calibration to ask."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from objectives.measurements import MeasuredRun

N_ROWS, SEEDS = 10, (0, 1, 2)
_MEASURES: Mapping[str, Callable[[Any], Any]] = MappingProxyType(
    {"median_ape": np.median, "mean_ape": np.mean}
)


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What `after_rows` answered: for each source and accelerator the figures of its rows held back."""

    groups: tuple[Any, ...] = ()

    def figure(self, source: str, measure: str) -> float | None:
        """Median or mean error (`median_ape`, `mean_ape`) of a source's rows held back, or of all rows."""
        own = [group.errors for group in self.groups if source in ("all", group.source)]
        return float(_MEASURES[measure](np.abs(np.concatenate(own)))) if own else None


def calibrated(runs: Sequence[MeasuredRun]) -> Calibrated:
    """Figures after `N_ROWS` rows; nothing where the model cannot be calibrated."""
    try:
        module = importlib.import_module("objectives.calibration")
    except ModuleNotFoundError:
        return Calibrated()
    return Calibrated(tuple(module.after_rows(runs, n_rows=N_ROWS, seeds=SEEDS)))
