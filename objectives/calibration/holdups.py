"""Runs that something held up: each message between pipeline stages waited, far longer than a link takes.

    ln t_i = ln t(c)_i + noise                    a regular run
    ln t_i = ln( t(c)_i + w m_i ) + noise         a run held up, with chance P_i

    m_i   messages in a row that a step waits for: the first micro-batch through the pipeline and the last one
          back, and between them those of a stage with all its neighbours, in and out, for every other one
    w     seconds that each waits: one number for a machine
    P_i   1 / (1 + exp(-b' z_i)),  z = [1, log2 nodes, log2 nodes that one tensor-parallel group spans]

One slow node (memory nearly full, a link that retries) holds up all others, so the chance grows with the
nodes: of n nodes that are slow one by one it is n times that of one, slope ln 2, which is the prior of b.
Which runs were held up is found along with w and b; where too few agree on a wait, nothing is.  Without this
a handful of such runs drags the constants, and no small run would tell how often large ones wait.

Source: Dempster, Laird and Rubin (1977), J. R. Stat. Soc. B 39 (expectation maximisation).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit
from scipy.stats import norm, t

from objectives.calibration.parameters import TimedStep, together
from objectives.cost.tokens import microbatches
from objectives.metrics import Job
from search_spaces.plan import Bools, Floats, Plans

# All assumed, but for the slope of the nodes: what is believed of b before any run, and how firmly.
BELIEVED, FIRMNESS = np.array([-5.0, float(np.log(2.0)), 0.0]), np.array([1.5, 0.2, 0.5])
WAIT_S, WAIT_FACTOR = 0.01, 12.0  # a wait is believed to be 10 ms, give or take a factor of twelve: assumed
WAIT_SPREAD = 0.2  # of the logarithm of a held-up step around t + w m: assumed
TAILS = 4.0  # degrees of freedom of a regular run's noise: odd runs exist without any wait
FEWEST, MOST_SHARE = 3, 0.5  # runs that must agree on a wait, and the share beyond which they are the rule
ROUNDS, NEWTON_STEPS, LARGEST_STEP = 4, 20, 2.0
LEAST_NOISE, FAR, GRID = 0.05, 3.0, 0.1
WORTH = 3.0  # what explaining runs so must add to the log likelihood: a factor of twenty


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Exposure:
    """What decides whether, and for how long, a run is held up; `messages` (n,), `traits` (n, 3)."""

    messages: Floats
    traits: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldUps:
    """Seconds a message waits in a run that is held up, and the weights of the traits in the chance of it.

    `n_runs` were found held up; `spread` is that of the logarithm of their seconds.
    """

    wait_s: float
    weights: tuple[float, ...]
    n_runs: int
    spread: float = WAIT_SPREAD

    def chance(self, exposed: Exposure) -> Floats:
        """Chance that a run is held up; 0 where no message travels; shape (n,)."""
        return np.where(exposed.messages > 0, expit(exposed.traits @ np.array(self.weights)), 0.0)

    def held_up_log_s(self, log_s: Floats, exposed: Exposure) -> Floats:
        """Logarithm of the seconds of a run that is held up, from those of a regular one; shape (n,)."""
        return _held_up(log_s, exposed, self.wait_s)


def exposure(job: Job, plans: Plans) -> Exposure:
    """How exposed plans of one job are.

    m = 2 (p v - 1) + 2 (k - 1) v min(p v - 1, 2)       p pp, v vpp, k micro-batches; 0 without a pipeline
    """
    nodes = np.full(len(plans), float(job.cluster.n_nodes))
    spanned = np.maximum(plans.tp / job.cluster.devices_per_node, 1.0)
    hops = plans.pp * plans.vpp - 1
    steady = (microbatches(job, plans) - 1) * plans.vpp * np.minimum(hops, 2)
    messages = np.where(plans.pp > 1, 2.0 * (hops + steady), 0.0)
    traits = np.column_stack([np.ones(len(plans)), np.log2(nodes), np.log2(spanned)])
    return Exposure(messages=messages, traits=traits)


def exposure_of(steps: Sequence[TimedStep]) -> Exposure:
    """The same of measured steps."""
    messages, traits = np.zeros(len(steps)), np.zeros((len(steps), len(BELIEVED)))
    for places in together([id(step.job) for step in steps]):
        found = exposure(steps[places[0]].job, Plans.of(steps[i].plan for i in places))
        messages[places], traits[places] = found.messages, found.traits
    return Exposure(messages=messages, traits=traits)


def find_hold_ups(measured: Floats, log_s: Floats, exposed: Exposure) -> tuple[HoldUps | None, Bools]:
    """What held up some of the runs, if anything did, and which.

    Parameters
    ----------
    measured, log_s : shape (n,), logarithms of measured seconds and of those of regular runs

    Returns
    -------
    the waits, or None; shape (n,), true where a run was held up
    """
    none = np.zeros(len(measured), dtype=bool)
    left = measured - log_s
    noise = max(1.4826 * float(np.median(np.abs(left - np.median(left)))), LEAST_NOISE)
    wait_s = _likely_wait_s(measured, log_s, exposed, noise)
    if wait_s is None:
        return None, none
    weights, share = BELIEVED, none.astype(np.float64)
    for _ in range(ROUNDS):
        regular, delayed = _densities(measured, log_s, exposed, noise, wait_s, weights)
        share = expit(delayed - regular)
        if np.sum(share > MOST_SHARE) < FEWEST:
            return None, none
        able = exposed.messages > 0
        weights = _weights(exposed.traits[able], share[able])
        excess = np.log(np.maximum(np.exp(left) - 1, 1e-6)) + log_s - np.log(np.maximum(exposed.messages, 1))
        wait_s = float(np.exp(np.average(excess, weights=share)))
    held = share > MOST_SHARE
    if held.mean() > MOST_SHARE:
        return None, none
    return HoldUps(wait_s=wait_s, weights=tuple(map(float, weights)), n_runs=int(held.sum())), held


def _likely_wait_s(measured: Floats, log_s: Floats, exposed: Exposure, noise: float) -> float | None:
    """The wait that explains the runs best, of those that single far runs suggest; None if none pays."""
    far = (measured - log_s > FAR * noise) & (exposed.messages > 0)
    if far.sum() < FEWEST:
        return None
    waits = (np.exp(measured[far]) - np.exp(log_s[far])) / exposed.messages[far]
    tried = np.exp(np.unique(np.round(np.log(waits) / GRID)) * GRID)

    def gain(wait_s: float) -> float:
        regular, delayed = _densities(measured, log_s, exposed, noise, wait_s, BELIEVED)
        away = np.log(wait_s / WAIT_S) / np.log(WAIT_FACTOR)
        alone = t.logpdf((measured - log_s) / noise, TAILS) - np.log(noise)
        return float(np.sum(np.logaddexp(regular, delayed) - alone) - 0.5 * away**2)

    gains = [gain(float(wait_s)) for wait_s in tried]
    return float(tried[int(np.argmax(gains))]) if max(gains) > WORTH else None


def _densities(
    measured: Floats, log_s: Floats, exposed: Exposure, noise: float, wait_s: float, weights: Floats
) -> tuple[Floats, Floats]:
    """Log density of each run with the chance of its kind, as a regular run and as one held up; (n,) each."""
    odds = exposed.traits @ weights
    able = exposed.messages > 0
    regular = (
        t.logpdf((measured - log_s) / noise, TAILS) - np.log(noise) - np.where(able, np.logaddexp(0, odds), 0)
    )
    waiting = _held_up(log_s, exposed, wait_s)
    spread = np.hypot(WAIT_SPREAD, noise * np.exp(log_s - waiting))
    delayed = norm.logpdf(measured, waiting, spread) - np.logaddexp(0, -odds)
    return regular, np.where(able, delayed, -np.inf)


def _held_up(log_s: Floats, exposed: Exposure, wait_s: float) -> Floats:
    answer: Floats = np.log(np.exp(log_s) + wait_s * exposed.messages)
    return answer


def _weights(traits: Floats, share: Floats) -> Floats:
    """The most probable weights of a logistic regression with a normal prior, by Newton's method."""
    weights = BELIEVED
    for _ in range(NEWTON_STEPS):
        chance = expit(traits @ weights)
        curvature = traits.T @ (traits * (chance * (1 - chance))[:, None]) + np.diag(FIRMNESS**-2)
        pull = traits.T @ (share - chance) - (weights - BELIEVED) / FIRMNESS**2
        weights = weights + np.clip(np.linalg.solve(curvature, pull), -LARGEST_STEP, LARGEST_STEP)
    return weights
