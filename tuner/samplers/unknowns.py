"""How the predictions of all plans move together if the machine is not as it is described.

    d_w(x) = ln t_w(x) - ln t(x)        t_w: the cost model with its constants and parts drawn anew

A hundred plans that wait for the same slow link are wrong by the same reason, and a plan whose messages hide
behind arithmetic is not, until the link is slow enough: no share of the step says that, the model itself
does.  Draws of d over the candidates are reduced to their few leading directions; a surrogate learns how far
the machine lies along each.

Source: ensembles as a prior: Evensen (2003), Ocean Dynamics 53, section 4; leading directions: Jolliffe
(2002), Principal Component Analysis, section 2.1.
"""

from dataclasses import dataclass, replace

import numpy as np

from objectives.cost.result import Estimate
from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.uncertainty import PART_SPREADS, TIMELESS, constants, with_constants
from search_spaces.cluster import Constant
from search_spaces.plan import Floats, Plans
from tuner.features import time_shares

N_PAIRS = 16  # of draws, each with its opposite; 32 raced alike and take twice as long
N_DIRECTIONS = 8  # they hold nearly all of the draws' variance; 16 raced alike on half of the arenas
# Standard deviations of logarithms.  A machine may differ from its preset by more than the preset says.
LEAST_SPREAD, MOST_SPREAD = 0.15, 0.4  # assumed
IMBALANCE, IMBALANCE_SPREAD = 0.3, 0.7  # assumed: hottest over mean load of experts less one, and its spread
AT_MOST_ONE = ("efficiency", "overlap", "wave_exponent")
TRAINERS = ("trainer.", "nature.")  # constants that are not the machine's: their own spreads hold
CHUNK = 16_384


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class World:
    """One draw: the job there, and factors of the parts that the formulas miss."""

    job: Job
    part_factors: dict[str, float]

    def log_step_s(self, plans: Plans) -> Floats:
        """Logarithm of step seconds there; shape (n_plans,)."""
        priced = estimate(self.job, plans)
        more = sum((factor - 1.0) * getattr(priced.time, part) for part, factor in self.part_factors.items())
        return np.asarray(np.log(priced.step_s + more))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Unknowns:
    """The leading directions over one table.

    `shift` (n_worlds,) is what a world does to all plans alike, which an offset holds; `directions` has shape
    (n_worlds, n_directions); `as_parts` (n_directions, n_parts) is each direction as factors of the parts of
    the step, by least squares.
    """

    worlds: tuple[World, ...]
    shift: Floats
    directions: Floats
    as_parts: Floats

    @classmethod
    def of(cls, job: Job, plans: Plans, priced: Estimate) -> "Unknowns":
        """The directions of a candidate table."""
        worlds = drawn_worlds(job)
        deviations = _deviations(worlds, plans)
        shift = deviations.mean(axis=0)
        deviations -= shift
        _, vectors = np.linalg.eigh(deviations.T @ deviations)
        directions = _signed(vectors[:, ::-1][:, :N_DIRECTIONS]) / np.sqrt(len(worlds))
        shares = time_shares(priced.time)
        rows = slice(None, None, -(-len(plans) // CHUNK))
        as_parts = np.linalg.lstsq(shares[rows], deviations[rows] @ directions, rcond=1e-6)[0].T
        return cls(worlds=worlds, shift=shift, directions=directions, as_parts=as_parts)

    def features(self, plans: Plans) -> Floats:
        """Each plan along each direction, in log units of one standard deviation; (n_plans, n_directions)."""
        answer: Floats = (_deviations(self.worlds, plans) - self.shift) @ self.directions
        return answer


def drawn_worlds(job: Job) -> tuple[World, ...]:
    """Draws in pairs about what is known, the same in every process."""
    rng = np.random.default_rng(0)
    known = {
        name: each
        for name, each in constants(job).items()
        if each.spread and each.value and name not in TIMELESS
    }
    worlds = []
    for _ in range(N_PAIRS):
        z, parts, load = rng.standard_normal(len(known)), rng.standard_normal(len(PART_SPREADS)), rng.normal()
        worlds += [_world(job, known, sign * z, sign * parts, sign * load) for sign in (1.0, -1.0)]
    return tuple(worlds)


def _world(job: Job, known: dict[str, Constant], z: Floats, parts: Floats, load: float) -> World:
    moved = {name: _moved(name, known[name], float(each)) for name, each in zip(known, z, strict=True)}
    there = with_constants(job, moved)
    if job.model.moe:
        excess = (job.workload.expert_imbalance - 1.0 + IMBALANCE) * np.exp(IMBALANCE_SPREAD * load)
        there = replace(there, workload=replace(job.workload, expert_imbalance=float(1.0 + excess)))
    spreads = zip(PART_SPREADS.items(), parts, strict=True)
    return World(
        job=there, part_factors={part: float(np.exp(spread * each)) for (part, spread), each in spreads}
    )


def _moved(name: str, constant: Constant, z: float) -> Constant:
    least = 0.0 if name.startswith(TRAINERS) else LEAST_SPREAD
    value = constant.value * float(np.exp(z * np.clip(np.log1p(constant.spread), least, MOST_SPREAD)))
    return replace(constant, value=min(value, 1.0) if name.endswith(AT_MOST_ONE) else value)


def _deviations(worlds: tuple[World, ...], plans: Plans) -> Floats:
    """Log seconds of every plan in every world, less its mean over the worlds; shape (n_plans, n_worlds)."""
    logs = np.column_stack([world.log_step_s(plans) for world in worlds])
    answer: Floats = logs - logs.mean(axis=1, keepdims=True)
    return answer


def _signed(vectors: Floats) -> Floats:
    """Eigenvectors have no sign of their own: the largest entry is made positive."""
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return vectors * np.where(largest < 0, -1.0, 1.0)
