"""The cost model alone: what learning has to beat."""

import numpy as np
from optuna.study import Study
from optuna.trial import FrozenTrial

from search_spaces.plan import Bools
from tuner.samplers.candidates import CandidateSampler, Tried


class BestFirstSampler(CandidateSampler):
    """Candidates in the order of their prediction."""

    def choose(self, study: Study, trial: FrozenTrial, untried: Bools, *, others: Tried) -> int:
        """First untried row."""
        return int(np.argmax(untried))
