"""What trials cost: device-seconds, predicted for those to come and counted for those that ran.

    price = devices (start-up + steps × step seconds)

The start-up is assumed until trials have run, and then the median of what theirs took, by fidelity where that
fidelity has run.  Steps that warm up count: the devices are held for them.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from objectives.outcome import Measured
from search_spaces.fidelity import Fidelity, fidelity_of
from search_spaces.plan import Plan
from tuner.ledger import COUNTED
from tuner.tell import outcome_of

START_S = 60.0  # assumed: from a trial's request to its first step on a large cluster
N_STEPS = 5  # of a runner that does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Seconds that trials take beside their steps, by fidelity, and how many steps they run."""

    n_steps: int = N_STEPS
    start_s: Mapping[Fidelity, float] = field(default_factory=dict)

    def device_s(self, fidelity: Fidelity, n_devices: Any, step_s: Any) -> Any:
        """Device-seconds of trials; shapes (n,) or numbers alike."""
        known = statistics.median(self.start_s.values()) if self.start_s else START_S
        return n_devices * (self.start_s.get(fidelity, known) + self.n_steps * step_s)


def steps_of(options: Mapping[str, Any]) -> int:
    """Steps that a trial runs by its runner's options, those that warm up included."""
    return int(options.get("n_steps", N_STEPS)) + int(options.get("n_warmup", 0))


def prices_of(trials: Iterable[FrozenTrial], n_steps: int) -> Prices:
    """Prices as the finished trials taught them."""
    found: dict[Fidelity, list[float]] = {}
    for trial in trials:
        took_s, outcome = trial_s(trial), _outcome(trial)
        if took_s is not None and isinstance(outcome, Measured):
            start_s = max(took_s - n_steps * outcome.step_s, 0.0)
            found.setdefault(fidelity_of(trial.user_attrs), []).append(start_s)
    return Prices(n_steps=n_steps, start_s={each: statistics.median(found[each]) for each in found})


def trial_s(trial: FrozenTrial) -> float | None:
    """Seconds that a finished trial held its devices: as its runner counted, else on the clock.

    None of a trial that held none: one that is not finished, or was answered from another's outcome.
    """
    if trial.state not in COUNTED:
        return None
    effective = (trial.user_attrs.get("outcome") or {}).get("effective", {})
    if effective.get("taken_over"):
        return None
    if "trial_s" in effective:
        return float(effective["trial_s"])
    if trial.datetime_start is None or trial.datetime_complete is None:
        return None
    return float((trial.datetime_complete - trial.datetime_start).total_seconds())


def n_devices_of(trial: FrozenTrial) -> int:
    """Devices that a trial held: its proxy's, or its twin's, if it had one."""
    effective = (trial.user_attrs.get("outcome") or {}).get("effective", {})
    twin = effective.get("plan") if effective.get("proxy") else None
    run = twin or (trial.user_attrs.get("proxy") or {}).get("plan") or trial.user_attrs.get("plan")
    return Plan.parse(run).world_size if run else 0


def spent_device_s(trials: Iterable[FrozenTrial]) -> float:
    """Device-seconds of the finished trials."""
    return sum(took_s * n_devices_of(trial) for trial in trials if (took_s := trial_s(trial)) is not None)


def under_way_device_s(trials: Iterable[FrozenTrial], prices: Prices) -> float:
    """Device-seconds that the trials under way will hold, by what was predicted of them."""
    running = [trial for trial in trials if trial.state is TrialState.RUNNING]
    return sum(
        float(prices.device_s(fidelity_of(trial.user_attrs), n_devices_of(trial), predicted["step_s"]))
        for trial in running
        if (predicted := trial.user_attrs.get("predicted"))
    )


def _outcome(trial: FrozenTrial) -> Any:
    return outcome_of(trial.user_attrs)
