"""Experts that change places: what moving them costs, what unevenness it leaves, and when it pays.

Experts are swapped between the hottest device of an expert-parallel group and another one until no swap
lowers the hottest load.  How tokens choose is known by one number, the hottest device's load over the
mean where experts lie at random; their popularity is taken to follow Zipf's law with the exponent that gives
this number.

Source: Piper (2026), arXiv:2605.05049, expert migration (hill climbing, its cost spread over the steps
between two migrations).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from objectives.cost import mesh
from objectives.cost.collectives import all_to_all_line
from objectives.metrics import Job
from search_spaces.parameters import expert_rank_parameters
from search_spaces.plan import Floats, Ints, Plans

PLACEMENTS = 64  # at random, whose mean stands for one not known
MOST_EXPONENT = 4.0  # nearly all tokens to one expert
HALVINGS = 24
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Placement:
    """Experts dealt to devices: `order` lists them device after device; of these `n_moved` were swapped."""

    order: Ints
    n_moved: int
    imbalance: float


def balanced(shares: Floats, ep: int) -> Placement:
    """Swap experts of the hottest of ep devices and another one while that lowers the hotter one's load.

    `shares` are the experts' loads in the order in which they lie now, E / ep to a device.

    Returns
    -------
    Placement; its imbalance is the hottest device's load over the mean
    """
    devices = np.arange(len(shares)).reshape(ep, -1)
    n_moved = 0
    for _ in range(len(shares) * ep):
        loads = shares[devices].sum(axis=1)
        hot = int(np.argmax(loads))
        given = shares[devices[hot]][:, None, None] - shares[devices]
        hotter = np.maximum(loads[hot] - given, loads[:, None] + given)
        hotter[:, hot] = np.inf
        best = np.unravel_index(np.argmin(hotter), hotter.shape)
        if hotter[best] >= loads[hot] * (1 - ROUNDING):
            break
        mine, other, theirs = (int(at) for at in best)
        pair = devices[hot, mine], devices[other, theirs]
        devices[other, theirs], devices[hot, mine] = pair
        n_moved += 2
    hottest = float(shares[devices].sum(axis=1).max() * ep / shares.sum())
    return Placement(order=devices.ravel(), n_moved=n_moved, imbalance=hottest)


def zipf_shares(n_experts: int, exponent: float) -> Floats:
    """Shares of tokens of the first, second, ... most popular expert: k^-s, together 1."""
    popularity = np.arange(1, n_experts + 1, dtype=np.float64) ** -exponent
    shares: Floats = popularity / popularity.sum()
    return shares


@cache
def exponent_of(n_experts: int, ep: int, imbalance: float) -> float:
    """The exponent of Zipf's law with which random placements are that uneven in the mean."""
    low, high = 0.0, MOST_EXPONENT
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        uneven = _random_imbalance(zipf_shares(n_experts, middle), ep)
        low, high = (middle, high) if uneven < imbalance else (low, middle)
    return (low + high) / 2


@cache
def left_imbalance(n_experts: int, ep: int, imbalance: float) -> float:
    """The hottest device's load over the mean once experts have changed places; at most what it was."""
    if imbalance == 1.0 or ep == 1:
        return imbalance
    shares = zipf_shares(n_experts, exponent_of(n_experts, ep, imbalance))
    return float(np.clip(balanced(shares, ep).imbalance, 1.0, imbalance))


def imbalance_of(job: Job, plans: Plans) -> Floats | float:
    """Load of the hottest device's experts over the mean: as the workload says, or what migration leaves."""
    given = job.workload.expert_imbalance
    if not plans.migrate_every.any() or job.model.moe is None:
        return given
    n_experts = job.model.moe.n_experts
    degrees, which = np.unique(plans.ep, return_inverse=True)
    left = np.array([left_imbalance(n_experts, int(ep), given) for ep in degrees])
    return np.where(plans.migrate_every > 0, left[which], given)


def migration_s(job: Job, plans: Plans) -> Floats:
    """Seconds in which every expert of every device changes its place: the worst case.

        16 m d f E / (e t_e) bytes a layer and device, with 16-bit weight and gradient and an fp32 state

    The fullest stage sets the pace; the bytes travel as an all-to-all over ep.

    Source
    ------
    Piper (2026), arXiv:2605.05049: 48 d f bytes an expert of three matrices.
    """
    moe = job.model.moe
    assert moe is not None
    state = job.workload.training_state
    per_parameter = state.weight_bytes + state.gradient_bytes + state.master_bytes + state.moment_bytes
    layers = np.minimum(-(-job.model.n_layers // plans.pp), job.model.n_moe_layers)
    held = layers * expert_rank_parameters(job.model, plans.ep, plans.etp) * per_parameter
    line = all_to_all_line(job.cluster, plans.ep, mesh.ep_members(job.cluster, plans))
    return line.seconds(held.astype(np.float64))


def migration_share_s(job: Job, plans: Plans) -> Floats:
    """What migrations take of one step, of those plans that migrate."""
    if not plans.migrate_every.any():
        return np.zeros(len(plans))
    every = np.maximum(plans.migrate_every, 1)
    return np.where(plans.migrate_every > 0, migration_s(job, plans) / every, 0.0)


def _random_imbalance(shares: Floats, ep: int) -> float:
    """Mean over random placements of the hottest device's load over the mean one; the same every time."""
    rng = np.random.default_rng(0)
    order = np.argsort(rng.random((PLACEMENTS, len(shares))), axis=1)
    loads = shares[order].reshape(PLACEMENTS, ep, -1).sum(axis=2)
    return float(loads.max(axis=1).mean() * ep)
