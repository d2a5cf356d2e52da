"""Closed forms of the schedules against their own orders, run pass by pass; and their limits.

Costs are those of a stage's whole share; a schedule with two chunks a stage runs each in half of them.
"""

from itertools import pairwise, product

import numpy as np
import pytest

from objectives.cost.passes import PassTable
from objectives.cost.pipeline import EXACT, bubble_s, in_flight, send_s, v_min_slope_s, warmups_beyond
from objectives.cost.step import estimate, stage_profile
from objectives.simulator.schedules import in_flight as peaks_of
from objectives.simulator.schedules import program
from objectives.simulator.timeline import PassTimes, simulate
from search_spaces.memory_habits import Release
from search_spaces.plan import V_SHAPED, OptimizerSync, Plan, Plans, Schedule
from tests.objectives.jobs import JOBS

EQUAL, LONG_INPUT = (10.0, 10.0, 10.0), (10.0, 12.0, 8.0)
BARRIER, INTERLOCKED = OptimizerSync


def plan_of(schedule, p, v=1, **knobs):
    chunks = 2 if schedule in V_SHAPED else v
    return Plan(pp=p, schedule=schedule, vpp=chunks, **knobs)


def equal_stages(plan, costs, send=0.0):
    """Passes of a pipeline whose stages are alike."""
    f, b, w = costs
    times = dict(
        worst_s=f + b + w, forward_s=f, backward_s=b + w, weight_s=w,
        all_stages_s=plan.pp * (f + b + w), others_forward_s=(plan.pp - 1) * f,
        fillable_s=(plan.pp - 1) * (w + min(f, w)),
        fillable_h2_s=(plan.pp - 1) * min(3 * w, 2 * f + w, f + b + w), send_s=send,
    )  # fmt: skip
    rest = {name: 0.0 for name in PassTable.__dataclass_fields__ if name not in times}
    return PassTable(**{name: np.array([value]) for name, value in (times | rest).items()})


def closed(plan, m, costs):
    return float(bubble_s(Plans.of([plan]), np.array([m]), equal_stages(plan, costs))[0])


def order_of(plan, m):
    if plan.schedule is Schedule.MESSAGE_DRIVEN:
        return program(plan.schedule, plan.pp, m, limit=plan.pipeline_limit)
    if plan.extra_warmup:
        return program(plan.schedule, plan.pp, m, extra_warmup=warmups_beyond(plan))
    return program(plan.schedule, plan.pp, m, plan.vpp)


def run(plan, m, costs, send=0.0):
    """The schedule's own order, run with these costs."""
    orders = order_of(plan, m)
    two_copies = plan.schedule is Schedule.DUALPIPE
    share = np.ones((plan.pp, orders.n_chunks)) / (1 if two_copies else orders.n_chunks)
    f, b, w = costs
    times = PassTimes(
        forward_s=f * share, backward_input_s=b * share, backward_weight_s=w * share,
        send_s=np.full(plan.pp, send),
    )  # fmt: skip
    return simulate(orders, times)


def idled(plan, m, costs):
    timeline = run(plan, m, costs)
    return timeline.makespan_bubble_s if plan.optimizer_sync is BARRIER else timeline.span_bubble_s


def flights(plan, m, release=Release.AT_WEIGHT):
    stages = np.arange(plan.pp)[:, None]
    return in_flight(Plans.of([plan]), np.array([m]), stages, release)[:, 0].tolist()


GRID = [(p, m) for p in (2, 3, 4, 6, 8) for m in (2 * p, 2 * p + 2, 5 * p)]
ANY_COSTS = [EQUAL, LONG_INPUT, (7.0, 15.0, 8.0), (12.0, 10.0, 9.0)]
# What each row of EXACT promises, as cases.
PROMISED = {
    Schedule.GPIPE: [(BARRIER, costs, GRID) for costs in ANY_COSTS],
    Schedule.ONE_F_ONE_B: [(BARRIER, costs, GRID) for costs in ANY_COSTS],
    Schedule.INTERLEAVED: [(BARRIER, costs, [(p, m) for p, m in GRID if m % p == 0]) for costs in ANY_COSTS],
    Schedule.ZB_H1: [(BARRIER, costs, [*GRID, (4, 4), (8, 9)]) for costs in (EQUAL, LONG_INPUT, (9, 16, 9))],
    Schedule.ZB_H2: [(sync, costs, GRID) for sync in OptimizerSync for costs in (EQUAL, LONG_INPUT)],
    Schedule.ZB_V: [(sync, EQUAL, GRID) for sync in OptimizerSync],
    Schedule.V_HALF: [(BARRIER, EQUAL, [(p, m) for p, m in [*GRID, (4, 4), (12, 24)] if p % 2 == 0])],
    Schedule.V_MIN: [(BARRIER, EQUAL, [*GRID, (4, 4), (10, 20), (12, 24), (16, 32)])],
    Schedule.DUALPIPE: [(BARRIER, EQUAL, [(p, m) for p, m in GRID if p % 2 == m % 2 == 0])],
    Schedule.DUALPIPE_V: [(BARRIER, EQUAL, GRID)],
    Schedule.MESSAGE_DRIVEN: [(BARRIER, costs, [(p, 5 * p) for p in (2, 4, 8)]) for costs in ANY_COSTS],
}


def test_every_schedule_says_where_its_form_is_exact():
    assert set(EXACT) == set(PROMISED) == set(Schedule)


@pytest.mark.parametrize("schedule", Schedule)
def test_a_form_is_what_the_order_itself_idles(schedule):
    for sync, costs, grid in PROMISED[schedule]:
        for p, m in grid:
            knobs = {"pipeline_limit": 2 * p} if schedule is Schedule.MESSAGE_DRIVEN else {}
            plan = plan_of(schedule, p, 2 if schedule is Schedule.INTERLEAVED else 1, **knobs)
            plan = Plan.parse(f"{plan.key} optimizer_sync={sync}")
            assert closed(plan, m, costs) == pytest.approx(idled(plan, m, costs), abs=1e-9), (
                plan.key,
                m,
                costs,
            )


@pytest.mark.parametrize(
    ("schedule", "p", "sync", "bubble"),
    [
        (Schedule.ZB_V, 8, INTERLOCKED, 0),
        (Schedule.ZB_V, 8, BARRIER, 7),
        (Schedule.V_HALF, 4, BARRIER, 5),
        (Schedule.V_HALF, 16, BARRIER, 41),
        (Schedule.V_MIN, 8, BARRIER, 27),
        (Schedule.V_MIN, 12, BARRIER, 41),
        (Schedule.DUALPIPE, 8, BARRIER, 12),
        (Schedule.ZB_H2, 8, INTERLOCKED, 0),
        (Schedule.ZB_H2, 8, BARRIER, 14),
    ],
)
def test_the_figures_of_the_papers_in_halves_of_a_pass(schedule, p, sync, bubble):
    """In tau, half of F = B_i = W: 3 p - 7, 4 p - 5, 4 p - 7, and DualPipe's (p / 2 - 1) (F + 2 B - 3 W)."""
    assert closed(plan_of(schedule, p, optimizer_sync=sync), 4 * p, (2.0, 2.0, 2.0)) == pytest.approx(bubble)


@pytest.mark.parametrize(("p", "m"), [(4, 8), (8, 20)])
def test_dualpipe_is_an_upper_bound_where_passes_are_not_alike(p, m):
    for costs in ((1.0, 1.2, 1.0), (1.0, 1.4, 0.8), (1.2, 1.5, 1.0)):
        for schedule in (Schedule.DUALPIPE, Schedule.DUALPIPE_V):
            plan = plan_of(schedule, p)
            assert idled(plan, m, costs) <= closed(plan, m, costs) + 1e-9, (schedule, costs)


@pytest.mark.parametrize("limit", [2, 3, 4, 6, 8, 16])
def test_message_driven_is_never_better_than_its_bound(limit):
    for costs in (EQUAL, LONG_INPUT):
        plan = plan_of(Schedule.MESSAGE_DRIVEN, 4, pipeline_limit=limit)
        assert idled(plan, 24, costs) >= closed(plan, 24, costs) - 1e-9
        one_f_one_b = closed(plan_of(Schedule.ONE_F_ONE_B, 4), 24, costs)
        assert closed(plan, 24, costs) >= one_f_one_b


@pytest.mark.parametrize(
    ("costs", "slope"),
    [((10, 12, 8), 12), ((10, 14, 8), 20), ((10, 11, 9), 6), ((12, 10, 10), 8), ((10, 10, 10), 0),
     ((8, 9, 13), 0)],
)  # fmt: skip
def test_v_min_idles_so_much_more_with_every_micro_batch(costs, slope):
    halves = tuple(map(float, costs))
    assert v_min_slope_s(*(np.array([cost]) for cost in halves)) == pytest.approx(slope)
    plan, whole = plan_of(Schedule.V_MIN, 4), tuple(2 * cost for cost in halves)
    few, many = (closed(plan, m, whole) for m in (16, 48))
    assert many - few == pytest.approx(32 * slope)
    few, many = (idled(plan, m, whole) for m in (16, 48))
    assert many - few == pytest.approx(32 * slope, abs=1e-6)


@pytest.mark.parametrize("schedule", Schedule)
def test_idleness_fades_with_more_micro_batches_but_for_v_min(schedule):
    plan = plan_of(schedule, 8, 2 if schedule is Schedule.INTERLEAVED else 1)
    shares = [closed(plan, m, LONG_INPUT) / (m * sum(LONG_INPUT)) for m in (16, 16_000)]
    if schedule is Schedule.V_MIN:
        assert shares[1] > 0.1
    else:
        assert shares[1] < max(1e-2 * shares[0], 1e-9)


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("sync", OptimizerSync)
def test_a_device_twice_as_slow_idles_twice_as_long(schedule, sync):
    plan = plan_of(schedule, 6, 2 if schedule is Schedule.INTERLEAVED else 1, optimizer_sync=sync)
    for m in (3, 12, 48):
        slower = closed(plan, m, tuple(2 * cost for cost in LONG_INPUT))
        assert slower == pytest.approx(2 * closed(plan, m, LONG_INPUT))


@pytest.mark.parametrize("schedule", Schedule)
def test_an_update_that_waits_is_never_faster(schedule):
    for m, costs in product((2, 8, 32), (EQUAL, LONG_INPUT, (7.0, 16.0, 7.0), (6.0, 6.0, 18.0))):
        both = [closed(plan_of(schedule, 8, optimizer_sync=sync), m, costs) for sync in OptimizerSync]
        assert both[0] >= both[1]


@pytest.mark.parametrize("schedule", [Schedule.ZB_H1, Schedule.ZB_H2, Schedule.ZB_V, Schedule.V_HALF])
@pytest.mark.parametrize("p", [4, 8])
def test_few_micro_batches_starve_a_split_backward_pass_in_proportion(schedule, p):
    plan = plan_of(schedule, p)
    assert closed(plan, 1, EQUAL) == pytest.approx(idled(plan, 1, EQUAL))
    for m in range(2, 2 * p):
        assert closed(plan, m, EQUAL) == pytest.approx(idled(plan, m, EQUAL), abs=0.25 * (p - 1) * 20)


HELD = [
    *((s, p, r) for s in (Schedule.ZB_H1, Schedule.ZB_H2) for p in (2, 5, 8) for r in Release),
    *((s, p, Release.AT_WEIGHT) for s in V_SHAPED for p in (4, 6, 8, 12)),
    *((Schedule.DUALPIPE, p, r) for p in (4, 8) for r in Release),
    *((Schedule.ONE_F_ONE_B, p, Release.AT_WEIGHT) for p in (2, 5)),
]


@pytest.mark.parametrize(("schedule", "p", "release"), HELD)
def test_a_stage_holds_what_its_order_holds(schedule, p, release):
    plan, m = plan_of(schedule, p), 4 * p
    during, _ = peaks_of(order_of(plan, m), release)
    first = order_of(plan, m).first
    held = [during[a:b].max() for a, b in pairwise(first)]
    assert max(flights(plan, m, release)) == max(held)
    if schedule not in (Schedule.V_MIN, Schedule.V_HALF):  # these say the most of all stages
        assert flights(plan, m, release) == held


@pytest.mark.parametrize("extra", [1, 2, 4, 7, 20])
def test_a_longer_warmup_holds_more_and_idles_as_long(extra):
    plan, m = plan_of(Schedule.ONE_F_ONE_B, 8, extra_warmup=extra), 32
    during, _ = peaks_of(order_of(plan, m))
    first = order_of(plan, m).first
    assert flights(plan, m) == [during[a:b].max() for a, b in pairwise(first)]
    assert closed(plan, m, LONG_INPUT) == idled(plan, m, LONG_INPUT)


@pytest.mark.parametrize(
    ("p", "m", "send"), [(4, 32, 1.0), (4, 32, 3.0), (8, 64, 1.0), (8, 64, 3.0), (8, 32, 2.0)]
)
def test_a_longer_warmup_hides_messages(p, m, send):
    def shown(plan):
        return float(send_s(Plans.of([plan]), np.array([m]), equal_stages(plan, EQUAL, send))[0])

    plans = [plan_of(Schedule.ONE_F_ONE_B, p, extra_warmup=k) for k in range(p + 1)]
    sent = [shown(plan) for plan in plans]
    assert all(later <= earlier for earlier, later in pairwise(sent))
    assert sent[p - 1] == sent[p] == 2 * (p - 1) * send  # fill and drain
    plain = 3 * 10.0 * (p - 1 + m)
    for plan, model_s in zip(plans, sent, strict=True):
        assert run(plan, m, EQUAL, send).makespan_s - plain == pytest.approx(model_s, abs=0.3 * sent[0])


DENSE = JOBS["dense"]


def profile_of(plan):
    layers = {"first_layers": 0, "last_layers": 0}
    return stage_profile(DENSE, Plan(**{**FITTING, **layers, **plan}))


FITTING = {"tp": 2, "pp": 4, "dp": DENSE.cluster.n_devices // 8}


@pytest.mark.parametrize("zero", [0, 1])
def test_two_copies_weigh_twice_and_share_their_optimizer_state(zero):
    alone = profile_of({"zero": zero}).memory
    both = profile_of({"zero": zero, "schedule": Schedule.DUALPIPE}).memory
    for name in ("weights_bytes", "gradients_bytes", "optimizer_bytes"):
        own = getattr(alone, name)
        shared = 2 if zero and name == "optimizer_bytes" else 1
        assert getattr(both, name) == pytest.approx((own + own[::-1]) / shared), name


def test_one_copy_in_a_v_has_both_ends_on_the_first_stage():
    plain = profile_of({})
    for schedule in V_SHAPED:
        v = profile_of({"schedule": schedule, "vpp": 2})
        assert (v.memory.logits_bytes > 0).tolist() == [True, False, False, False]
        assert (plain.memory.logits_bytes > 0).tolist() == [False, False, False, True]
        # Tied weights need no copy on another stage.
        tied = (
            DENSE.model.embedding.vocab_size * DENSE.model.d_model / 2 * 2
        )  # tp=2, two bytes: no copy of it
        assert plain.memory.weights_bytes.sum() - v.memory.weights_bytes.sum() == pytest.approx(
            tied, rel=1e-3
        )
        assert v.forward_s.sum() == pytest.approx(plain.forward_s.sum())


def test_a_device_with_two_copies_works_for_the_mean_of_its_stages():
    """The head's stage and the first one share what both of them cost."""
    plans = Plans.of([Plan(**FITTING), Plan(**FITTING, schedule=Schedule.DUALPIPE)])
    alone, both = estimate(DENSE, plans).time.compute_s
    stages = profile_of({})
    passes = stages.forward_s + stages.backward_s
    assert both < alone
    assert both / alone == pytest.approx(max(passes + passes[::-1]) / 2 / max(passes), rel=0.02)
