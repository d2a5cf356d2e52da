"""A wrapper that never tries the same plan twice."""

from collections.abc import Sequence

import numpy as np

from objectives.outcome import Outcome, OutcomeOrigin
from runners.protocol import Runner, is_lost
from search_spaces.plan import Plans


class Cached:
    """Remembers every plan's outcome; a plan that a machine lost is tried again when asked again."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._known: dict[str, Outcome] = {}

    @property
    def origin(self) -> OutcomeOrigin:
        """That of the runner inside."""
        return self._runner.origin

    def run(self, plans: Plans, *, attempt: int = 0) -> Sequence[Outcome]:
        """Try the plans that are new, each once, and answer for all."""
        keys = plans.keys()
        new = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._known}
        fresh = dict[str, Outcome]()
        if new:
            first = np.array(sorted(new.values()))
            outcomes = self._runner.run(plans.take(first), attempt=attempt)
            fresh = {keys[i]: outcome for i, outcome in zip(first, outcomes, strict=True)}
        self._known.update({key: outcome for key, outcome in fresh.items() if not is_lost(outcome)})
        return [self._known[key] if key in self._known else fresh[key] for key in keys]
