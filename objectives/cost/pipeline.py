"""Closed forms of pipeline schedules: idle seconds and micro-batches in flight.

    p  pp     m  n_microbatches     v  vpp     i  stage
    F, B_i, W  forward, backward to the input, to the weights, of a stage's whole share; B = B_i + W

        GPipe, 1F1B     (p - 1) (F + B)            in flight  m ; min(m, p - i)
        interleaved     (p - 1) (F + B) / v        p + (p - 1 - 2 i) / v,  m where m = p
        ZB-H1           (p - 1) (B_i + max(F - W, 0))       min(m, p)
        ZB-H2           (p - 1) max(F + B_i - 2 W, 0)       min(m, 2 p - 1)

With unequal stages (p - 1) x becomes the sum of x over all stages but the worst, exact for a worst stage that
is never starved.  ZB-H2's is what interlocking steps idle: it needs an optimizer step that waits for no other
stage and is taken back where a check fails; with a barrier the ramp (p - 1) F stays.

Source: Narayanan et al. (2021), arXiv:2104.04473, section 2.2; Qi et al. (2023), arXiv:2401.10241, table 1.
"""

import numpy as np

from objectives.cost.passes import PassTable
from search_spaces.plan import Floats, Ints, Plans, Schedule


def bubble_s(plans: Plans, passes: PassTable) -> Floats:
    """Idle seconds of the worst stage; shape (n_plans,)."""
    others = passes.all_stages_s - passes.worst_s
    idle = np.where(plans.is_schedule(Schedule.ZB_H1), others - passes.fillable_s, others / plans.vpp)
    return np.where(plans.is_schedule(Schedule.ZB_H2), others - passes.fillable_h2_s, idle)


def in_flight(plans: Plans, n_microbatches: Ints, stage: Ints) -> Floats:
    """Micro-batches whose activations a stage holds at its peak; stage has shape (n_stages, n_plans)."""
    p, m, v = plans.pp, n_microbatches, plans.vpp
    one_f_one_b = p - stage
    interleaved = np.where(m == p, m, p + (p - 1 - 2 * stage) / v)
    depth = np.where(v > 1, interleaved, one_f_one_b)
    depth = np.where(plans.is_schedule(Schedule.ZB_H1), p, depth)
    depth = np.where(plans.is_schedule(Schedule.ZB_H2), 2 * p - 1, depth)
    depth = np.where(plans.is_schedule(Schedule.GPIPE), m, depth)
    return np.minimum(depth, m)


def send_s(plans: Plans, n_microbatches: Ints, passes: PassTable) -> Floats:
    """Exposed seconds of messages between stages.

        every micro-batch receives an activation and a gradient, v times: 2 m v x
        fill and drain pass every boundary once each way: 2 (p - 1) x

    Overlapped messages hide behind the chunk that runs meanwhile; those of fill and drain cannot.
    """
    x = passes.send_s
    chunk = passes.worst_s / (2 * plans.vpp)
    steady = np.where(plans.overlap_pp, np.maximum(x - chunk, 0), x) * (2 * n_microbatches * plans.vpp)
    return np.where(plans.pp > 1, steady + 2 * (plans.pp - 1) * x, 0.0)
