"""Where the closed forms of a step are exact, so that the engine must agree with them; and where not, why.

    i  stage   p  stages   m  micro-batches   x  a message   T = F + B, of a stage with its messages:
    F_i + x where a stage follows, B_i + x where one is in front (a blocking sender sends and then goes on)

    GPipe    sum T_i + (m - 1) (max F_i + max B_i)
    1F1B     max over w of  sum_{i<w} T_i + (m - k) T_w + max(sum_{i>w} T_i, k F_w) + max(sum_{i>w} T_i, k B_w),
             k = min(p - 1 - w, m - 1): stage w waits for, or fills, the way down and up again behind it

Both are exact for any stages and m >= p (a test compares them with the engine); the closed forms of
`objectives.cost.pipeline` count sum T_i + (m - 1) max T_i and 2 (m + p - 1) x.
"""

from dataclasses import dataclass

import numpy as np

from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.simulator.engine import NOTHING
from objectives.simulator.schedules import Release
from objectives.simulator.step import PLAIN, Sync, StepOptions, plain_input
from objectives.simulator.step_build import StepInput, hideable
from search_spaces.plan import Floats, Plan, Plans, Schedule

AGREES_TO = 1e-3
_BUDGET = 8e-4  # of a step: what the listed assumptions may be off by together


def gpipe_s(forward_s: Floats, backward_s: Floats, n_microbatches: int) -> float:
    """Makespan of GPipe with uneven stages."""
    most = float(forward_s.max() + backward_s.max())
    return float(forward_s.sum() + backward_s.sum()) + (n_microbatches - 1) * most


def one_f_one_b_s(forward_s: Floats, backward_s: Floats, n_microbatches: int) -> float:
    """Makespan of 1F1B with uneven stages, m >= p."""
    both_s, longest_s = forward_s + backward_s, 0.0
    for w, (f, b) in enumerate(zip(forward_s, backward_s, strict=True)):
        k = min(len(both_s) - 1 - w, n_microbatches - 1)
        behind_s = both_s[w + 1 :].sum()
        ends_s = max(behind_s, k * f) + max(behind_s, k * b)
        longest_s = max(longest_s, both_s[:w].sum() + (n_microbatches - k) * (f + b) + ends_s)
    return float(longest_s)
