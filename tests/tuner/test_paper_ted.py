"""DeepSpeed-TED: groups, state, dropped tokens, kept exchanges, the tiled update."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.cost.layers import layer_cost, routed_tokens, sent_tokens
from objectives.cost.stages import rank_parameters, stages_of
from objectives.cost.states import state_bytes
from objectives.cost.step import estimate
from objectives.simulator.step import StepSimulator
from search_spaces.parameters import total_parameters
from search_spaces.plan import ExpertTokens, Plan, Plans
from search_spaces.rule import Context
from search_spaces.rules import broken_rules
from tuner.config import read_config
from tuner.papers import ted
from tuner.papers.ted import BOTH, DROPPED, KEPT, LAYOUT, PLAIN, TILE
from tuner.presets import preset_path
from tuner.shortlist import shortlist

JOB = ted.study_job()
HIDDEN_BYTES = 2 * JOB.model.d_model


def plans(*texts):
    return Plans.of([ted.plan(text) for text in texts])


def broken(text, job=JOB):
    one = Plans.of([Plan.parse(text)])
    context = Context(model=job.model, cluster=job.cluster, workload=job.workload)
    return broken_rules(context, {name: getattr(one, name) for name in Plans.__slots__})


@pytest.mark.parametrize(("tp", "ep", "dp"), [(4, 16, 32), (2, 8, 64), (1, 16, 128), (4, 4, 32)])
def test_the_world_is_both_meshes_and_the_rest_has_ep_times_the_replicas(tp, ep, dp):
    one = Plans.of([Plan(tp=tp, ep=ep, etp=tp, dp=dp, zero=1, expert_tokens=ExpertTokens.DUPLICATED)])
    assert tp * dp == tp * ep * one.edp[0] == JOB.cluster.n_devices
    assert dp == ep * one.edp[0]


@pytest.mark.parametrize("more", [PLAIN, DROPPED, BOTH])
def test_state_on_a_device_is_the_published_law(more):
    ours, law = ted.state_bytes_of(ted.plan(more))
    assert ours == pytest.approx(law, rel=1e-12)


def held(job, plan):
    one = Plans.of([plan])
    stages = stages_of(job, one, np.zeros((1, 1), np.int64))
    parameters = rank_parameters(job, one, stages)
    return parameters, state_bytes(job, one, parameters, stages)


def test_optimizer_state_is_12_bytes_of_all_parameters_over_all_devices():
    _, state = held(JOB, ted.plan(PLAIN))
    everywhere = JOB.cluster.n_devices * float(state.optimizer_bytes[0, 0])
    # Norms and some biases are on every tensor-parallel rank.
    assert everywhere == pytest.approx(12 * total_parameters(JOB.model), rel=1e-3)


def test_dropping_divides_what_is_sent_by_tp_and_leaves_what_is_computed():
    both = plans(PLAIN, DROPPED)
    sent, computed = sent_tokens(JOB, both), routed_tokens(JOB, both)
    assert sent[0] == 4 * sent[1]
    assert computed[0] == computed[1]


def test_dropping_saves_the_exchange_and_costs_gathers_in_the_node():
    cost = layer_cost(JOB, plans(PLAIN, DROPPED), "moe")
    assert cost.ep_forward_s[1] < cost.ep_forward_s[0]
    # In a group of one node per layer there is nothing slow to save: the gathers cost more.
    near = Plans.of([Plan.parse(f"tp=2 dp=64 ep=2 etp=2 zero=1 {each}") for each in (PLAIN, DROPPED)])
    within = layer_cost(JOB, near, "moe").ep_forward_s
    assert within[1] / within[0] > cost.ep_forward_s[1] / cost.ep_forward_s[0]


@pytest.mark.parametrize("more", [PLAIN, DROPPED])
def test_kept_exchanges_leave_only_computation_to_redo(more):
    time = estimate(JOB, plans(more, f"{more} keep_received=true")).time
    layers = layer_cost(JOB, plans(more), "moe"), layer_cost(JOB, plans(more), "dense")
    m = 1024 // 32
    repeated = m * 16 * sum(float(each.tp_forward_s[0] + each.ep_forward_s[0]) for each in layers)
    assert time.recompute_s[0] - time.recompute_s[1] == pytest.approx(repeated, rel=1e-9)
    # Of three rounds (forward, again, backward) two remain: 6 to 4 exchanges a layer.
    comm = [time.tp_comm_s[i] + time.ep_comm_s[i] for i in (0, 1)]
    assert comm[0] == pytest.approx(comm[1])


def test_each_kept_output_is_2_b_s_h_bytes():
    memory = estimate(JOB, plans(PLAIN, KEPT)).memory
    one = 2048 * HIDDEN_BYTES
    # 16 dense layers keep 2 all-reduces; 16 expert layers 1, 2 all-to-alls and the experts' reduction.
    dense, expert = 2, 1 + 2 + 2 * 1 - 1
    stashed = memory.activations_bytes[1] - memory.activations_bytes[0]
    assert stashed == 16 * (dense + expert) * one


@pytest.mark.parametrize(("tile", "most"), [(TILE, 4 * TILE), (10**8, 4e8)])
def test_a_tile_bounds_the_updates_gradients(tile, most):
    whole, tiled = (ted.update_bytes(ted.plan(each)) for each in (BOTH, f"{BOTH} optimizer_tile={tile}"))
    assert tiled == min(whole, most) < whole


def test_a_whole_update_does_not_shrink_where_devices_come_with_experts():
    """4 phi_exp / (t e D_exp): as many devices more as experts leave each its share."""

    def of_experts(n_experts):
        moe = replace(JOB.model.moe, n_experts=n_experts)
        cluster = JOB.cluster.with_devices(8 * n_experts)
        job = replace(JOB, model=replace(JOB.model, moe=moe), cluster=cluster)
        plan = replace(ted.plan(PLAIN), dp=2 * n_experts, ep=n_experts)
        parameters, state = held(job, plan)
        return float(state.update_bytes[0, 0] - 4 * parameters.dense[0, 0] / plan.dp)

    assert of_experts(16) == pytest.approx(of_experts(32)) == pytest.approx(of_experts(64))


def test_tiles_cost_launches_and_nothing_else():
    time = estimate(JOB, plans(BOTH, f"{BOTH} optimizer_tile={TILE}")).time
    assert 0 < time.optimizer_s[1] - time.optimizer_s[0] < 0.01 * time.total_s[0]


def test_the_published_gain_is_reached_in_the_published_order():
    gain = ted.speed_up(BOTH)
    assert 1 < ted.speed_up(KEPT) < gain
    assert 1 < ted.speed_up(DROPPED) < gain
    assert gain == pytest.approx(1.26, rel=0.25)


def test_the_simulator_agrees_on_the_gain():
    seconds = [StepSimulator(JOB, ted.plan(each)).seconds(0) for each in (PLAIN, DROPPED, KEPT, BOTH)]
    assert seconds[0] > max(seconds[1:3])
    assert seconds[3] < min(seconds[1:3])
    assert seconds[0] / seconds[3] == pytest.approx(ted.speed_up(BOTH), rel=0.05)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (f"{LAYOUT} {PLAIN} sequence_parallel=true", "expert_tokens=duplicated and dropped need experts"),
        (
            "tp=1 dp=128 ep=16 zero=1 expert_tokens=dropped",
            "expert_tokens=duplicated and dropped need experts",
        ),
        (
            f"{LAYOUT.replace('etp=4', 'etp=2')} {DROPPED}",
            "expert_tokens=duplicated and dropped need experts",
        ),
        (LAYOUT, "experts with tp above 1 need sequence_parallel"),
        (f"{LAYOUT.replace('full', 'none')} {BOTH}", "keep_received needs recompute=full"),
        (f"{LAYOUT.replace('zero=1', 'zero=2')} {PLAIN}", "the framework runs the zero stage"),
        (f"{LAYOUT.replace('ep=16', 'ep=32')} {PLAIN}", "ep divides n_experts"),
    ],
)
def test_what_the_groups_do_not_allow_is_named(text, rule):
    assert any(each.startswith(rule) for each in broken(text)), broken(text)


def test_the_published_layout_breaks_no_rule():
    assert [broken(f"{LAYOUT} {each}") for each in (PLAIN, DROPPED, KEPT, BOTH)] == [[]] * 4


def test_the_presets_best_plan_drops_tokens_where_it_splits_layers():
    candidates = shortlist(read_config(preset_path("ted")).inputs).candidates
    split = candidates.take(np.flatnonzero(candidates.plans.tp > 1))
    assert split.plans.row(0).expert_tokens is ExpertTokens.DROPPED
    assert split.plans.row(0).keep_received or str(split.plans.row(0).recompute) == "none"
