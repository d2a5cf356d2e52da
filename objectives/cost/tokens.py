"""Micro-batches of a step, tokens of one on a device, and how many ways sequence parallelism splits them."""

import numpy as np

from objectives.metrics import Job
from search_spaces.plan import Floats, Ints, Plans


def tokens_per_device(job: Job, plans: Plans) -> Floats:
    """Tokens of one micro-batch on one context-parallel rank: b s / c."""
    return plans.micro_batch * (job.workload.seq_len / plans.cp)


def sequence_shards(plans: Plans) -> Floats:
    """Ways in which sequence parallelism splits what tensor parallelism leaves whole: t, or 1 without it."""
    return np.where(plans.sequence_parallel, plans.tp, 1).astype(np.float64)


def microbatches(job: Job, plans: Plans) -> Ints:
    """Micro-batches of a step on one data-parallel replica: as many as a plan says, else B / (b D)."""
    asked: Ints = job.workload.global_batch // (plans.micro_batch * plans.dp)
    if not plans.n_microbatches.any():
        return asked
    return np.where(plans.n_microbatches > 0, plans.n_microbatches, asked)
