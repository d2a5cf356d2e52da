"""Closed forms of pipeline schedules where all stages are equal, and against sums where they are not."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from objectives.cost.passes import PassTable
from objectives.cost.pipeline import bubble_s, in_flight, send_s
from objectives.cost.stages import stages_of
from objectives.cost.step import estimate, stage_profile
from objectives.cost.tokens import microbatches
from search_spaces.cluster import assumed
from search_spaces.model import AttentionSpec, EmbeddingSpec, MlpSpec
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans, Schedule
from tests.objectives.jobs import JOBS, job_of, legal_plans

F, B_I, W = 10.0, 12.0, 8.0
SEND = 0.5
SIXTEEN_LAYERS = replace(
    load_model("llama-2-7b"),
    n_layers=16,
    d_model=2048,
    attention=AttentionSpec(n_heads=32, n_kv_heads=32, head_dim=64),
    mlp=MlpSpec(width=8192),
    embedding=EmbeddingSpec(vocab_size=131_072, tied=True),
)


def equal_stages(plan):
    """Passes of a pipeline whose stages all take F, B_i and W."""
    times = dict(
        worst_s=F + B_I + W,
        forward_s=F,
        backward_s=B_I + W,
        weight_s=W,
        others_forward_s=(plan.pp - 1) * F,
        all_stages_s=plan.pp * (F + B_I + W),
        fillable_s=(plan.pp - 1) * (W + min(F, W)),
        fillable_h2_s=(plan.pp - 1) * min(3 * W, 2 * F + W, F + B_I + W),
        send_s=SEND,
    )
    rest = {name: 0.0 for name in PassTable.__dataclass_fields__ if name not in times}
    return PassTable(**{name: np.array([value]) for name, value in (times | rest).items()})


def plan_of(schedule, p, v=1, **knobs):
    return Plan(pp=p, schedule=schedule, vpp=v, **knobs)


def flights(plan, m):
    stages = np.arange(plan.pp)[:, None]
    return in_flight(Plans.of([plan]), np.array([m]), stages)[:, 0].tolist()


@pytest.mark.parametrize(
    ("schedule", "v", "bubble"),
    [
        (Schedule.GPIPE, 1, F + B_I + W),
        (Schedule.ONE_F_ONE_B, 1, F + B_I + W),
        (Schedule.INTERLEAVED, 2, (F + B_I + W) / 2),
        (Schedule.INTERLEAVED, 4, (F + B_I + W) / 4),
        (Schedule.ZB_H1, 1, F + B_I - W),
        (Schedule.ZB_H2, 1, F),
    ],
)
@pytest.mark.parametrize("p", [2, 3, 8, 16])
def test_the_bubble_of_equal_stages_is_the_closed_form(schedule, v, bubble, p):
    plan = plan_of(schedule, p, v)
    assert bubble_s(Plans.of([plan]), np.array([64]), equal_stages(plan))[0] == pytest.approx(
        (p - 1) * bubble
    )


def test_one_stage_has_no_bubble_and_sends_nothing():
    plan = Plan()
    assert bubble_s(Plans.of([plan]), np.array([64]), equal_stages(plan)) == 0
    assert send_s(Plans.of([plan]), np.array([4]), equal_stages(plan)) == 0


@pytest.mark.parametrize(("p", "m"), list(product([2, 4, 7], [1, 2, 4, 32])))
def test_gpipe_holds_all_micro_batches_and_1f1b_as_many_as_stages_follow(p, m):
    assert flights(plan_of(Schedule.GPIPE, p), m) == [m] * p
    assert flights(plan_of(Schedule.ONE_F_ONE_B, p), m) == [min(m, p - i) for i in range(p)]
    assert flights(plan_of(Schedule.ZB_H1, p), m) == [min(m, p)] * p
    assert flights(plan_of(Schedule.ZB_H2, p), m) == [min(m, 2 * p - 1)] * p


@pytest.mark.parametrize(("p", "v"), list(product([2, 4, 8], [2, 3, 4])))
def test_interleaving_holds_more_than_1f1b_on_every_stage(p, v):
    plan = plan_of(Schedule.INTERLEAVED, p, v)
    assert flights(plan, 2 * p) == [p + (p - 1 - 2 * i) / v for i in range(p)]
    # With as many micro-batches as stages Megatron warms up all of them.
    assert flights(plan, p) == [p] * p


def test_interleaving_on_four_stages_holds_what_megatron_does():
    assert flights(plan_of(Schedule.INTERLEAVED, 4, 2), 8) == [5.5, 4.5, 3.5, 2.5]


@pytest.mark.parametrize("v", [1, 2, 4])
def test_messages_multiply_with_chunks(v):
    plan, m = plan_of(Schedule.INTERLEAVED, 4, v), 8
    assert send_s(Plans.of([plan]), np.array([m]), equal_stages(plan))[0] == SEND * (2 * m * v + 2 * 3)


def test_overlapped_messages_show_only_while_the_pipeline_fills_and_drains():
    plan = plan_of(Schedule.INTERLEAVED, 4, 2, overlap_pp=True)
    assert send_s(Plans.of([plan]), np.array([8]), equal_stages(plan))[0] == SEND * 2 * 3


@pytest.mark.parametrize("name", JOBS)
def test_unequal_stages_idle_for_the_sum_of_the_others(name):
    job, plans = JOBS[name], legal_plans(name, 60)
    plans = plans.take((plans.schedule < 2) & (plans.pp > 1))
    bubbles = estimate(job, plans).time.bubble_s
    for i, plan in enumerate(plans):
        profile = stage_profile(job, plan)
        stages = profile.forward_s + profile.backward_s
        assert bubbles[i] == pytest.approx(stages.sum() - stages.max(), rel=1e-9, abs=1e-9), plan.key


@pytest.mark.parametrize("name", JOBS)
def test_zero_bubble_fills_with_weight_passes(name):
    job, plans = JOBS[name], legal_plans(name, 200)
    plans = plans.take(plans.is_schedule(Schedule.ZB_H1) & (microbatches(job, plans) >= plans.pp))
    bubbles = estimate(job, plans).time.bubble_s
    for i, plan in enumerate(list(plans)[:20]):
        profile = stage_profile(job, plan)
        idle = profile.backward_input_s + np.maximum(profile.forward_s - profile.backward_weight_s, 0)
        stages = profile.forward_s + profile.backward_s
        worst = np.argmax(stages >= stages.max() * (1 - 1e-9))
        assert bubbles[i] == pytest.approx(idle.sum() - idle[worst], rel=1e-9, abs=1e-9), plan.key


@pytest.mark.parametrize(
    ("pp", "layers"), [(2, [10, 6]), (4, [5, 5, 5, 1]), (8, [2, 3, 2, 3, 2, 3, 1, 0]), (1, [16])]
)
def test_layers_dealt_by_compute_leave_the_last_stage_room_for_the_projection(pp, layers):
    """The projection is worth four layers: 131,072 x 2,048 beside 4 x 2,048^2 + 3 x 2,048 x 8,192 entries."""
    plans = Plans.of([Plan(pp=pp, micro_batch=1)])
    job = job_of(SIXTEEN_LAYERS, "aws-p5", 8, framework="nanotron")
    assert stages_of(job, plans, np.arange(pp)[:, None]).n_layers[:, 0].tolist() == layers


@pytest.mark.parametrize(("tp", "dp", "n_nodes"), [(4, 1, 1), (4, 2, 2), (8, 1, 2), (1, 8, 2)])
def test_hosts_wait_for_their_peers_only_where_the_pipeline_leaves_the_node(tp, dp, n_nodes):
    job = job_of(SIXTEEN_LAYERS, "aws-p5", 8 * n_nodes, framework="nanotron")
    alone = replace(job, habits=replace(job.trainer, peer_operations=assumed(0.0)))
    plans = Plans.of([Plan(tp=tp, pp=2, dp=dp, micro_batch=1)])
    waited_s = estimate(job, plans).step_s[0] - estimate(alone, plans).step_s[0]
    assert (waited_s > 0) == (n_nodes > 1 and tp > 1)
