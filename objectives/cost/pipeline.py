"""Closed forms of pipeline schedules: idle seconds, micro-batches in flight, messages.

    p  pp     m  n_microbatches     v  vpp     i  stage
    F, B_i, W  forward, backward to the input, to the weights, of a stage's whole share; B = B_i + W
    f, b, w    the same of half a share, where a stage holds two chunks; tau = (f + b + w) / 3

        GPipe, 1F1B     (p - 1) (F + B)                    in flight  m ; min(m, p - i)
        interleaved     (p - 1) (F + B) / v                p + (p - 1 - 2 i) / v,  m where m = p
        ZB-H1           (p - 1) (B_i + max(F - W, 0))      p
        ZB-H2           (p - 1) max(F + B_i - 2 W, B_i - F, 0)     2 p - 1;  with a barrier at least (p - 1) F
        ZB-V            0;  with a barrier (p - 1) tau     p
        V-Half          (3 p - 7) tau                      p / 2 + 1
        V-Min           (4 p - 5) tau, (4 p - 7) tau where 3 divides p         (p + 2) / 3, rounded up
        DualPipe        (p / 2 - 1) (F&B + B - 3 W)        p + 1
        DualPipeV       (p - 1) (f&b + b - 2 w)            p + 1 / 2
        message-driven  at least 1F1B's                    at most its limit

`EXACT` says of each where it is exact.  With unequal stages (p - 1) x becomes the sum of x over all stages
but the worst, or x of the worst stage in the proportion of those sums; exact for a worst stage that is never
starved.  Two measures of idleness: what a stage idles between its first pass and its last, where steps
interlock (post-validation), and between the first stage's start and the last one's end (a barrier).

Source: Narayanan et al. (2021), arXiv:2104.04473, section 2.2; Qi et al. (2023), arXiv:2401.10241, table 1;
Qi et al. (2024), arXiv:2405.15362; DeepSeek-AI (2024), arXiv:2412.19437, table 2; Singh and Bhatele (2021),
arXiv:2110.13005 (message-driven); Fan et al. (2020), arXiv:2007.01045, section 4.2 (longer warm-up).
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from objectives.cost.passes import PassTable
from search_spaces.memory_habits import Release
from search_spaces.plan import SPLIT_BACKWARD, Floats, Ints, OptimizerSync, Plan, Plans, Schedule

# Where a closed form is exact: what the schedule's own order takes then, on stages that are alike.
EXACT: Mapping[Schedule, str] = MappingProxyType({
    Schedule.GPIPE: "every m and every cost, with free messages",
    Schedule.ONE_F_ONE_B: "every m and every cost, with free messages",
    Schedule.INTERLEAVED: "m is a multiple of p, every cost, with free messages",
    Schedule.ZB_H1: "W <= F <= B_i and m >= p, with free messages",
    Schedule.ZB_H2: "m >= 2 p and B_i <= 2 W, with free messages, for the order drawn in the paper",
    Schedule.ZB_V: "F = B_i = W and m >= 2 p, with free messages; else an estimate",
    Schedule.V_HALF: "F = B_i = W, p = 2 or even, and m >= p, with free messages; else an estimate",
    Schedule.V_MIN: "F = B_i = W and m >= p, with free messages; else its slope per micro-batch",
    Schedule.DUALPIPE: "F&B = F + B and B = 2 W = 2 F, with free messages; else an upper bound",
    Schedule.DUALPIPE_V: "f&b = f + b and b = 2 w = 2 f, with free messages; else an upper bound",
    Schedule.MESSAGE_DRIVEN: "a limit of 2 p or more, with free messages; else a lower bound",
})  # fmt: skip
_NEWER = (
    Schedule.ZB_V, Schedule.V_HALF, Schedule.V_MIN, Schedule.DUALPIPE, Schedule.DUALPIPE_V,
    Schedule.MESSAGE_DRIVEN,
)  # fmt: skip


def bubble_s(plans: Plans, n_microbatches: Ints, passes: PassTable) -> Floats:
    """Idle seconds of the worst stage; shape (n_plans,)."""
    others = passes.all_stages_s - passes.worst_s
    barrier = plans.is_sync(OptimizerSync.BARRIER)
    h2 = np.maximum(others - passes.fillable_h2_s, np.where(barrier, passes.others_forward_s, 0.0))
    idle = np.where(plans.is_schedule(Schedule.ZB_H1), others - passes.fillable_s, others / plans.vpp)
    idle = np.where(plans.is_schedule(Schedule.ZB_H2), h2, idle)
    newer = plans.is_any_schedule(_NEWER)
    if newer.any():
        idle = np.where(newer, _newer_s(plans, n_microbatches, passes), idle)
    return _with_few_microbatches(plans, n_microbatches, passes, idle)


def _newer_s(plans: Plans, m: Ints, passes: PassTable) -> Floats:
    """The forms of `_NEWER`: those of the worst stage, in the proportion of all others to as many of it."""
    p, worst = plans.pp, np.maximum(passes.worst_s, np.finfo(np.float64).tiny)
    alike = (passes.all_stages_s - passes.worst_s) / (np.maximum(p - 1, 1) * worst)
    halves = (passes.forward_s / 2, (passes.backward_s - passes.weight_s) / 2, passes.weight_s / 2)
    forms = (
        (Schedule.ZB_V, _zb_v_s(plans, *halves)),
        (Schedule.V_HALF, _v_half_s(p, *halves)),
        (Schedule.V_MIN, _v_min_s(p, *halves)),
        (Schedule.DUALPIPE, (p / 2 - 1) * _paired_s(passes)),
        (Schedule.DUALPIPE_V, (p - 1) / 2 * _paired_s(passes)),
    )
    idle = np.zeros(len(plans))
    for schedule, form in forms:
        idle = np.where(plans.is_schedule(schedule), np.maximum(form, 0.0), idle)
    slope = m * v_min_slope_s(*halves) * plans.is_schedule(Schedule.V_MIN)
    driven = plans.is_schedule(Schedule.MESSAGE_DRIVEN)
    return np.where(driven, _message_driven_s(plans, m, passes), alike * idle + slope)


def _zb_v_s(plans: Plans, f: Floats, b: Floats, w: Floats) -> Floats:
    """ZB-V: nothing where f = b = w; else what its order, made for those, idles.

    span       (p - 1) max(2 (max(f, b) - w), |f - b|), or (p - 2) (w - max(f, b)) + (p - 1) |f - b|
    barrier    (p - 1) max(b + 2 max(f - b, 0), w) - what the last rank is ahead; at least the span
    """
    p, longest, apart = plans.pp, np.maximum(f, b), np.abs(f - b)
    span = (p - 1) * np.where(w > longest, apart, np.maximum(2 * (longest - w), apart))
    span += np.maximum(p - 2, 0) * np.maximum(w - longest, 0)
    ahead = np.where(w > longest, w - longest, np.maximum(f - b, 0))
    ramp = (p - 1) * np.maximum(b + 2 * np.maximum(f - b, 0), w) - ahead
    return np.where(plans.is_sync(OptimizerSync.BARRIER), np.maximum(ramp, span), span)


def _v_half_s(p: Ints, f: Floats, b: Floats, w: Floats) -> Floats:
    """V-Half: (3 p - 7) tau; an odd p idles as the next even one, p = 2 one tau.

    Unequal: each of the (p - 1) (f + b + w) grows by d = max(f, b) - w, and once more where d > 0.
    """
    tau, longer = (f + b + w) / 3, np.maximum(f, b) - w
    short = np.where(p % 2 == 1, 1, np.where(p == 2, 2, 4))
    idle: Floats = (p - 1) * (3 * tau + longer + np.maximum(longer, 0)) - short * tau
    return np.where(p > 1, idle, 0.0)


def _v_min_s(p: Ints, f: Floats, b: Floats, w: Floats) -> Floats:
    """V-Min: (4 p - 5) tau, two tau less where 3 divides p; its slope comes on top."""
    idle: Floats = (4 * p - np.where(p % 3 == 0, 7, 5)) * (f + b + w) / 3
    return np.where(p > 1, idle, 0.0)


def v_min_slope_s(f: Floats, b: Floats, w: Floats) -> Floats:
    """Idle seconds that every micro-batch adds to V-Min: 6 max(f, b) - 2 (f + b + w), none where w is more.

    Source
    ------
    The order of sail-sg/zero-bubble-pipeline-parallelism (v-min), run with unequal costs.
    """
    longest = np.maximum(f, b)
    return np.where(longest >= w, np.maximum(6 * longest - 2 * (f + b + w), 0.0), 0.0)


def _paired_s(passes: PassTable) -> Floats:
    """F&B + B - 3 W of a stage; what overlap_ep hides is left out of F and B, so that F&B is their sum."""
    return passes.forward_s + 2 * passes.backward_s - 3 * passes.weight_s


def _message_driven_s(plans: Plans, m: Ints, passes: PassTable) -> Floats:
    """1F1B's; or, where few micro-batches may be under way, so many round trips less the work.

    ceil(m / limit) sum(F + B) - m (F + B): a micro-batch starts only when an earlier one has come back.
    """
    limit = np.where(plans.pipeline_limit > 0, plans.pipeline_limit, plans.pp)
    trips = np.ceil(m / limit) * passes.all_stages_s - m * passes.worst_s
    return np.maximum(passes.all_stages_s - passes.worst_s, trips)


def _with_few_microbatches(plans: Plans, m: Ints, passes: PassTable, idle: Floats) -> Floats:
    """Idle seconds where too few micro-batches starve a split backward pass.

    One alone idles (p - 1) (F + B_i); from p on (ZB-H2 and ZB-V: 3 p / 2) one more changes nothing; between
    the two in proportion, as the orders themselves do.
    """
    split = plans.is_any_schedule(SPLIT_BACKWARD) & ~plans.is_any_schedule(
        (Schedule.DUALPIPE, Schedule.DUALPIPE_V)
    )
    starved = split & (2 * m < 3 * plans.pp)
    if not starved.any():
        return idle
    deep = plans.is_any_schedule((Schedule.ZB_H2, Schedule.ZB_V))
    enough = np.where(deep, 1.5 * plans.pp, plans.pp)
    starved &= m < enough
    others = passes.all_stages_s - passes.worst_s
    alone = others * (1 - passes.weight_s / np.maximum(passes.worst_s, np.finfo(np.float64).tiny))
    missing = np.maximum(alone - idle, 0.0) * (enough - m) / np.maximum(enough - 1, 0.5)
    return np.where(starved, idle + missing, idle)


def warmup_beyond(plans: Plans, stage: Ints) -> Ints:
    """Forward passes by which a stage's warm-up is longer than 1F1B's: min(extra_warmup, p - 1 - i).

    The last stage keeps none: only a stage that is more than one micro-batch ahead of the next has work left
    while a message travels.  extra_warmup = p - 1 is the 2 (p - i) - 1 of Fan et al. (2020).
    """
    beyond: Ints = np.minimum(plans.extra_warmup, plans.pp - 1 - stage)
    return beyond


def warmups_beyond(plan: Plan) -> Ints:
    """The same of every stage of one plan; shape (pp,)."""
    return warmup_beyond(Plans.of([plan]), np.arange(plan.pp)[:, None])[:, 0]


def in_flight(
    plans: Plans, n_microbatches: Ints, stage: Ints, release: Release = Release.AT_WEIGHT
) -> Floats:
    """Micro-batches whose activations a stage holds at its peak; stage has shape (n_stages, n_plans).

    ZB-H1 and ZB-H2 hold fewer on later stages where B_i frees activations: by i and 2 i, or half of that
    where half of them wait for W.  The V-shaped and two-way schedules hold the same with every policy.
    """
    p, m, v = plans.pp, n_microbatches, plans.vpp
    one_f_one_b = p - stage
    if plans.extra_warmup.any():
        one_f_one_b = one_f_one_b + warmup_beyond(plans, stage)
    interleaved = np.where(m == p, m, p + (p - 1 - 2 * stage) / v)
    freed = {Release.AT_BACKWARD_INPUT: 1.0, Release.HALF_AND_HALF: 0.5, Release.AT_WEIGHT: 0.0}[release]
    depth = np.where(v > 1, interleaved, one_f_one_b)
    early = freed * stage if freed else 0
    depth = np.where(plans.is_schedule(Schedule.ZB_H1), p - early, depth)
    depth = np.where(plans.is_schedule(Schedule.ZB_H2), 2 * p - 1 - 2 * early, depth)
    depth = np.where(plans.is_schedule(Schedule.GPIPE), m, depth)
    newer = plans.is_any_schedule(_NEWER)
    if newer.any():
        depth = np.where(newer, _newer_in_flight(plans, stage), depth)
    return np.minimum(depth, m)


def _newer_in_flight(plans: Plans, stage: Ints) -> Floats:
    """Those of `_NEWER`; a message-driven last stage runs each backward pass at once."""
    p = plans.pp
    limit = np.where(plans.pipeline_limit > 0, plans.pipeline_limit, p)
    forms = (
        (Schedule.V_HALF, p // 2 + 1),
        (Schedule.V_MIN, (p + 4) // 3),
        (Schedule.DUALPIPE, p + 1),
        (Schedule.DUALPIPE_V, p + 0.5),
    )
    depth = p.astype(np.float64)
    for schedule, form in forms:
        depth = np.where(plans.is_schedule(schedule), form, depth)
    driven = np.where(stage == p - 1, 1, limit)
    return np.where(plans.is_schedule(Schedule.MESSAGE_DRIVEN), driven, depth)


def send_s(plans: Plans, n_microbatches: Ints, passes: PassTable) -> Floats:
    """Exposed seconds of messages between stages.

        every micro-batch receives an activation and a gradient, v times: 2 m v x
        fill and drain pass every boundary once each way: 2 (p - 1) x

    Overlapped messages hide behind the chunk that runs meanwhile; those of fill and drain cannot.
    """
    x = passes.send_s
    chunk = passes.worst_s / (2 * plans.vpp)
    steady = np.where(plans.overlap_pp, np.maximum(x - chunk, 0), x) * (2 * n_microbatches * plans.vpp)
    if plans.extra_warmup.any():
        steady = np.where(plans.extra_warmup > 0, _sent_ahead_s(plans, n_microbatches, passes), steady)
    return np.where(plans.pp > 1, steady + 2 * (plans.pp - 1) * x, 0.0)


def _sent_ahead_s(plans: Plans, m: Ints, passes: PassTable) -> Floats:
    """What still shows of 2 m x where the last k of p stages are further ahead of the next: n = p - 1 - k.

        2 m x  n p / ((n + 1) (p - 1))  (m - 1 - 2 k) / (m - 1)  -  k B,     nothing where k >= p - 1

    The first stages still wait for each other, but not for the drain, where they are ahead by k B.  Within a
    tenth of 2 m x of the order's own time (p from 4 to 8, m from 32 to 64, x up to a tenth of F + B).
    """
    p, k = plans.pp, plans.extra_warmup
    n = np.maximum(p - 1 - k, 0)
    share = n * p / ((n + 1) * np.maximum(p - 1, 1)) * np.maximum(m - 1 - 2 * k, 0) / np.maximum(m - 1, 1)
    shown: Floats = np.maximum(2 * m * passes.send_s * share - k * passes.backward_s, 0.0)
    return shown
