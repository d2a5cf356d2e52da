"""The longest sequence that a plan still holds in memory: an objective of its own.

    s*    the largest s with  c M(s) <= limit         M   predicted peak bytes at that length
    c     measured over predicted peak at the job's own length; 1 without a measurement

Lengths double until the plan no longer fits; between the last two M is taken as a line, which it is but
for the scores of unfused attention, that bend it so that the line is safe.  The plan, its chunks and the
sequences of a batch stay as they are; s* is a whole number of what the plan splits a sequence into.
"""

from dataclasses import replace

import numpy as np

from objectives.cost.step import estimate
from objectives.metrics import Job
from search_spaces.plan import Floats, Ints, Plans

MAX_SEQ_LEN = "max_seq_len"
MOST_DOUBLINGS = 40
SHORTEST_TOKENS = 512
# What is decided by memory alone, so that no simulation changes it.
BY_MEMORY = ("peak_memory", MAX_SEQ_LEN)


def longest_sequence(job: Job, plans: Plans, *, peak_bytes: Floats | None = None) -> Floats:
    """Tokens of the longest sequence that each plan holds; 0 where not even the shortest fits.

    `peak_bytes` are measured peaks at the job's own length.  Learned positions bound a sequence as well.

    Returns
    -------
    shape (n_plans,), tokens
    """
    limit = job.cluster.device.memory_bytes * job.workload.memory_share
    own = _peak_bytes(job, plans, job.workload.seq_len)
    growth = np.ones(len(plans)) if peak_bytes is None else peak_bytes / own
    piece = _piece_tokens(plans)
    fits, above = np.zeros(len(plans)), np.full(len(plans), np.nan)
    bytes_of_fit, bytes_above = np.zeros(len(plans)), np.full(len(plans), np.nan)
    for tokens in _lengths(job):
        rows = np.flatnonzero(np.isnan(above))
        if not len(rows):
            break
        needed = growth[rows] * _peak_bytes(job, plans.take(rows), tokens)
        held = needed <= limit
        fits[rows[held]], bytes_of_fit[rows[held]] = tokens, needed[held]
        above[rows[~held]], bytes_above[rows[~held]] = tokens, needed[~held]
    share = np.where(fits > 0, (limit - bytes_of_fit) / np.maximum(bytes_above - bytes_of_fit, 1.0), 0.0)
    longest = np.where(np.isnan(above), fits, fits + np.nan_to_num(share * (above - fits)))
    positions = job.model.embedding.n_positions
    longest = np.minimum(longest, positions) if positions else longest
    whole: Floats = np.floor(longest / piece) * piece
    return whole


def _lengths(job: Job) -> list[int]:
    """Lengths to try, doubling, from the least that is a sequence through the job's own."""
    shortest = job.workload.seq_len
    while shortest % 2 == 0 and shortest > SHORTEST_TOKENS:
        shortest //= 2
    return [shortest << i for i in range(MOST_DOUBLINGS)]


def _peak_bytes(job: Job, plans: Plans, tokens: int) -> Floats:
    longer = replace(job, workload=replace(job.workload, seq_len=tokens))
    return estimate(longer, plans).peak_memory_bytes


def _piece_tokens(plans: Plans) -> Ints:
    """What a sequence must be a multiple of: two parts a cp rank, shares of tp, and whole chunks."""
    pieces: Ints = np.lcm(2 * plans.cp * plans.tp, np.maximum(plans.sequence_chunk, 1))
    return pieces
