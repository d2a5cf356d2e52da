"""The executor that a study's [runner.slurm] asks for."""

import os
from collections.abc import Mapping

from runners.protocol import Executor, RunnerRecipe
from runners.slurm.allocation import AllocationExecutor
from runners.slurm.batch import SbatchExecutor
from runners.slurm.choice import Mode, Slurm


def slurm_executor(
    recipe: RunnerRecipe,
    slurm: Slurm,
    *,
    n_slots: int = 2,
    time_limit_s: float | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Executor:
    """Steps of this allocation, or jobs of their own."""
    if slurm.mode_in(environment) is Mode.ALLOCATION:
        return AllocationExecutor(
            recipe, slurm, n_slots=n_slots, time_limit_s=time_limit_s, environment=environment
        )
    return SbatchExecutor(recipe, slurm, n_slots=n_slots, time_limit_s=time_limit_s)
