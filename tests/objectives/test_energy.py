"""Energy: joules by hand, powers and caps by their laws, the timeline beside the closed form."""

from dataclasses import replace

import numpy as np
import pytest

from objectives.cost.energy import STATES, energy_of, product_share, state_seconds, step_energy
from objectives.cost.step import estimate, stage_profile
from objectives.metrics import ENERGY_METRICS, METRICS
from objectives.outcome import Measured, OutcomeOrigin, outcome_from_dict, outcome_to_dict
from objectives.ranking import rank
from objectives.simulator.energy import rank_energy_j, simulated_devices_w
from objectives.simulator.step import StepSimulator
from objectives.valuing import metric_values, outcome_energy_j, outcome_value
from search_spaces.cluster_presets import load_cluster, load_device
from search_spaces.errors import InvalidSpec
from search_spaces.plan import Plan, Plans
from search_spaces.power import DevicePower, NodePower, clock_share
from search_spaces.rule import Context
from search_spaces.rules import broken_rules
from search_spaces.space import SearchSpace, SpaceSpec
from search_spaces.units import KWH_J, TFLOPS
from tests.objectives.jobs import job_of
from tests.objectives.test_processes import job_on, machine
from tests.search_spaces.test_rules import columns_of

JOB = job_of("qwen3-8b", "alps", 16, global_batch=128)
PLAN = Plan.parse("tp=2 pp=2 dp=4 micro_batch=2 zero=1 sequence_parallel=true overlap_dp=true")
CAPS = [0, 400, 500, 600]


def of(text, job=JOB):
    plans = Plans.of([Plan.parse(text)])
    return step_energy(job, plans, estimate(job, plans))


def legal_plans(n=400, caps=CAPS):
    space = SpaceSpec.of({"cp": 1, "power_cap_w": caps, "offload_optimizer": [False, True]})
    plans = next(SearchSpace(JOB.model, JOB.cluster, JOB.workload, space).chunks())
    return plans.take(np.linspace(0, len(plans) - 1, n).astype(np.int64))


def test_states_fill_the_step_of_every_device():
    plans = legal_plans()
    priced = estimate(JOB, plans)
    parts = {name: getattr(priced.time, name) for name in priced.time.__dataclass_fields__}
    seconds = state_seconds(
        parts, product_share(JOB, plans, priced.time.compute_s), priced.step_s, visited_s=priced.visited_s
    )
    np.testing.assert_allclose(sum(seconds[state] for state in STATES), priced.step_s)
    assert all((seconds[state] >= 0).all() for state in STATES)


def test_a_device_draws_between_idle_and_its_highest_state():
    plans = legal_plans()
    priced = estimate(JOB, plans)
    watts = step_energy(JOB, plans, priced).devices_j / priced.step_s / JOB.cluster.n_devices
    device = JOB.cluster.device
    assert (watts >= device.draw_w("idle") * (1 - 1e-9)).all()
    assert (watts <= device.draw_w("compute")).all()
    capped = plans.power_cap_w > 0
    assert (watts[capped] <= plans.power_cap_w[capped]).all()


def test_a_step_that_only_idles_takes_its_idle_watts():
    """Powers that do not depend on the state make energy the watts times the seconds, by hand."""
    flat = DevicePower(**{
        name: replace(getattr(DevicePower(), name), value=0.5)
        for name in ("idle_share", "memory_share", "compute_share", "communication_share", "lowest_cap_share")
    })  # fmt: skip
    beside = NodePower(**{
        name: replace(getattr(NodePower(), name), value=value)
        for name, value in (("host_idle_w", 100.0), ("host_busy_w", 100.0), ("nic_w", 10.0))
    })  # fmt: skip
    cluster = replace(JOB.cluster, device=replace(JOB.cluster.device, power=flat), power=beside)
    job = replace(JOB, cluster=cluster)
    plans = Plans.of([PLAN])
    priced = estimate(job, plans)
    # 16 devices at half of 900 W and 10 W of network each, and 4 hosts at 100 W.
    by_hand = (16 * (0.5 * 900 + 10) + 4 * 100) * priced.step_s[0]
    assert step_energy(job, plans, priced).total_j[0] == pytest.approx(by_hand)


def test_an_offloaded_update_adds_what_busy_hosts_draw_and_idles_the_devices():
    words = "dp=16 micro_batch=2 zero=1 recompute=full overlap_dp=true"
    here, away = of(words), of(f"{words} offload_optimizer=true")
    plans = Plans.of([Plan.parse(f"{words} offload_optimizer=true")])
    priced = estimate(JOB, plans)
    power = JOB.cluster.node_power
    busy_j = 4 * (power.host_busy_w.value - power.host_idle_w.value) * priced.host_s[0]
    idle_j = 4 * power.host_idle_w.value * priced.step_s[0]
    assert away.host_j[0] == pytest.approx(busy_j + idle_j)
    assert away.idle_j[0] > here.idle_j[0]
    assert away.total_j[0] > here.total_j[0]


def test_an_overlapped_update_hides_and_keeps_hosts_busy_as_long():
    words = "dp=16 micro_batch=2 zero=3 recompute=full overlap_dp=true offload_optimizer=true"
    plans = Plans.of([Plan.parse(words), Plan.parse(f"{words} overlap_offload=true")])
    priced = estimate(JOB, plans)
    assert priced.host_s[0] == priced.host_s[1]
    profile = stage_profile(JOB, plans.row(0))
    passes_s = float((profile.forward_s + profile.backward_s)[0])
    hidden_s = min(priced.host_s[0], passes_s)
    assert priced.step_s[0] - priced.step_s[1] == pytest.approx(hidden_s)
    joules = step_energy(JOB, plans, priced).total_j
    assert joules[1] < joules[0]


@pytest.mark.parametrize(
    ("cap_w", "draw_w", "exponent", "share"),
    [(0, 700, 3, 1), (800, 700, 3, 1), (700, 700, 3, 1), (175, 700, 3, 0.25 ** (1 / 3)), (350, 700, 1, 0.5)],
)
def test_clocks_fall_with_the_root_of_what_a_cap_leaves(cap_w, draw_w, exponent, share):
    assert clock_share(cap_w, 0.0, draw_w, exponent) == pytest.approx(share)


def test_a_cap_slows_products_more_than_memory_and_never_gains_time():
    full = JOB.cluster.device
    last = (1.0, 1.0)
    for cap_w in (650, 550, 450, 400, 370):
        capped = full.under_cap(cap_w)
        products = capped.peak("bf16") / full.peak("bf16")
        memory = capped.memory_bandwidth_bytes_per_s / full.memory_bandwidth_bytes_per_s
        assert products < memory or memory == products == 1.0
        assert products <= last[0]
        assert memory <= last[1]
        last = (products, memory)


def test_plans_under_caps_are_priced_alone_as_in_a_batch_and_never_faster():
    plans = legal_plans(40)
    many = estimate(JOB, plans)
    for i in range(0, len(plans), 7):
        alone = estimate(JOB, plans.take(np.array([i])))
        assert alone.step_s[0] == pytest.approx(many.step_s[i], rel=1e-12)
    bare = estimate(JOB, replace(plans, power_cap_w=np.zeros_like(plans.power_cap_w)))
    assert (many.step_s >= bare.step_s * (1 - 1e-12)).all()
    assert many.peak_memory_bytes.tolist() == bare.peak_memory_bytes.tolist()


def test_the_clock_of_least_energy_is_a_middle_one():
    """Switching costs the clock's square, what is on anyway costs time: with hungry hosts a middle is best.

    Per unit of work: f² P_d + P_s / f, least at f³ = P_s / 2 P_d.
    """
    heavy = replace(NodePower().host_idle_w, value=3000.0)
    beside = replace(NodePower(), host_idle_w=heavy, host_busy_w=heavy)
    job = replace(JOB, cluster=replace(JOB.cluster, power=beside))
    caps = [0, *range(690, 360, -20)]
    joules = [of(f"{PLAN.key} power_cap_w={cap}", job).total_j[0] for cap in caps]
    assert 0 < int(np.argmin(joules)) < len(caps) - 1


@pytest.mark.parametrize(
    ("cap_w", "holds"), [(0, True), (359, False), (360, True), (701, True), (702, False)]
)
def test_caps_lie_between_the_drivers_lowest_and_what_products_draw(cap_w, holds):
    context = Context(model=JOB.model, cluster=JOB.cluster, workload=JOB.workload)
    rule = "power_cap_w is 0, or from the device's lowest cap to less than its products draw"
    assert (rule not in broken_rules(context, columns_of(replace(PLAN, power_cap_w=cap_w)))) is holds


def test_an_overlapped_offload_needs_one_that_the_framework_overlaps():
    def broken(framework, text):
        workload = replace(JOB.workload, framework=framework)
        context = Context(model=JOB.model, cluster=JOB.cluster, workload=workload)
        return [rule for rule in broken_rules(context, columns_of(Plan.parse(text))) if "offload" in rule]

    assert broken("any", "dp=16 zero=1 overlap_offload=true") == ["overlap_offload needs offload_optimizer"]
    offloaded = "dp=16 offload_optimizer=true overlap_offload=true"
    assert broken("deepspeed", f"{offloaded} zero=3") == []
    assert broken("deepspeed", f"{offloaded} zero=2") != []
    assert broken("megatron-lm", f"{offloaded} zero=1") != []


def test_the_fastest_plan_and_the_thriftiest_differ():
    space = SpaceSpec.of({"cp": 1, "overlap_dp": True})
    fastest, thriftiest = (
        rank(JOB, space, metric=metric, keep=1).candidates for metric in ("step_time", "energy_per_token")
    )
    assert fastest.plans.row(0) != thriftiest.plans.row(0)
    joules = [
        metric_values(JOB, "energy_per_token", each.plans, each.estimate)[0] for each in (fastest, thriftiest)
    ]
    assert joules[1] < joules[0]
    assert thriftiest.estimate.step_s[0] > fastest.estimate.step_s[0]


def test_metrics_of_energy_are_one_figure_in_three_units():
    plans = legal_plans(50)
    priced = estimate(JOB, plans)
    joules = step_energy(JOB, plans, priced).total_j
    per_token, per_kj, per_step = (metric_values(JOB, name, plans, priced) for name in ENERGY_METRICS)
    np.testing.assert_allclose(per_token * JOB.workload.tokens_per_step, joules)
    np.testing.assert_allclose(per_step * KWH_J, joules)
    flops = JOB.mfu(priced.step_s) * priced.step_s * JOB.cluster.n_devices * JOB.cluster.device.peak("bf16")
    np.testing.assert_allclose(per_kj, flops / TFLOPS / (joules / 1000))
    assert [METRICS[name].unit for name in ENERGY_METRICS] == ["J/token", "model TFLOP/kJ", "kWh/step"]


@pytest.mark.parametrize(
    "words",
    [
        PLAN.key,
        f"{PLAN.key} power_cap_w=450",
        "dp=16 micro_batch=2 zero=1 overlap_dp=true",
        "pp=4 dp=4 vpp=3 micro_batch=2 schedule=interleaved",
        "dp=16 micro_batch=2 zero=1 recompute=full offload_optimizer=true offload_bucket=4000000",
    ],
)
def test_the_timeline_draws_what_the_closed_form_says(words):
    """Within 5 %: stragglers stretch passes on the timeline, and are fixed time in the closed form."""
    plan, plans = Plan.parse(words), Plans.of([Plan.parse(words)])
    parts = StepSimulator(JOB, plan).parts_s(0)
    priced = estimate(JOB, plans)
    watts = step_energy(JOB, plans, priced).devices_j[0] / priced.step_s[0]
    assert simulated_devices_w(JOB, plan, parts) == pytest.approx(watts, rel=0.05)


def test_a_rank_that_waits_draws_less():
    plan = Plan.parse("pp=2 dp=8 micro_batch=2 first_layers=10")
    joules = rank_energy_j(JOB, plan, StepSimulator(JOB, plan).parts_s(0))
    assert joules[0] < joules[1]


def outcome(**more):
    given = dict(step_s=5.0, step_spread_s=0.1, peak_memory_bytes=1e9, origin=OutcomeOrigin.MEASURED)
    return Measured(**given | more)


def test_a_measured_energy_replaces_the_models_of_the_devices_only():
    modelled, measured = outcome(), outcome(energy_j=50_000.0)
    energy = energy_of(JOB, Plans.of([PLAN]))
    step_s = estimate(JOB, Plans.of([PLAN])).step_s[0]
    beside = (energy.host_j + energy.nic_j)[0] * 5.0 / step_s
    assert outcome_energy_j(JOB, PLAN, measured) == pytest.approx(50_000 + beside)
    assert outcome_energy_j(JOB, PLAN, modelled) == pytest.approx(energy.total_j[0] * 5.0 / step_s)
    assert outcome_value(JOB, "energy_per_step", PLAN, measured) == pytest.approx((50_000 + beside) / KWH_J)


def test_an_outcome_keeps_its_energy_and_older_ones_have_none():
    document = outcome_to_dict(outcome(energy_j=12.5))
    assert outcome_from_dict(document).energy_j == 12.5
    del document["energy_j"]
    assert outcome_from_dict(document).energy_j is None
    with pytest.raises(InvalidSpec, match=r"Measured.energy_j must be positive and finite"):
        outcome(energy_j=0.0)


def test_powers_of_a_file_are_read_and_wrong_ones_refused(tmp_path):
    file = tmp_path / "mine.toml"
    lines = ['device = "h100-80"', "devices_per_node = 8", "[power]", "host_idle_w = 1", "host_busy_w = 2"]
    tiers = ["[[tiers]]", 'name = "fabric"', "bandwidth_bytes_per_s = 25e9"]
    file.write_text("\n".join([*lines, *tiers]))
    power = load_cluster(str(file), 8).node_power
    assert (power.host_idle_w.value, power.host_busy_w.value, power.nic_w.value) == (1, 2, 25)
    file.write_text("\n".join([*lines[:2], "[power]", "host_busy_w = 2", *tiers]))
    with pytest.raises(InvalidSpec, match="host_busy_w must be at least host_idle_w"):
        load_cluster(str(file), 8)
    file.write_text("\n".join([*lines[:2], "[power]", "host_idel_w = 2", *tiers]))
    with pytest.raises(InvalidSpec, match="did you mean 'host_idle_w'"):
        load_cluster(str(file), 8)


def test_a_device_without_powers_of_its_own_takes_the_assumed_shares():
    device = load_device("h100-80")
    assert device.power is None
    assert device.draw_w("compute") == pytest.approx(0.95 * 700)
    assert device.draw_w("compute", 300) == 300


def test_hosts_idle_while_the_device_updates_an_offloaded_optimizer_bucket_by_bucket():
    words = "tp=2 pp=2 dp=4 micro_batch=2 zero=1 sequence_parallel=true offload_optimizer=true"
    plans = Plans.of([Plan.parse(words), Plan.parse(f"{words} offload_bucket=4000000")])
    priced = estimate(JOB, plans)
    assert (priced.time.offload_s > 0).all()
    assert priced.host_s[0] == priced.time.offload_s[0]
    assert priced.host_s[1] == 0


def test_devices_that_share_a_core_compute_as_long_as_their_step_says():
    """Where products and memory draw alike: those watts times the step's own seconds, by hand."""
    job = job_on(machine(2.0))
    power = replace(DevicePower(), memory_share=DevicePower().compute_share)
    device = replace(job.cluster.device, power=power)
    job, plans = replace(job, cluster=replace(job.cluster, device=device)), Plans.of([Plan(pp=4)])
    priced = estimate(job, plans)
    by_hand = 4 * device.draw_w("compute") * (priced.time.compute_s + priced.time.optimizer_s)[0]
    energy = step_energy(job, plans, priced)
    assert (energy.compute_j + energy.memory_j)[0] == pytest.approx(by_hand)


VISITED = "dp=16 micro_batch=2 zero=1 recompute=full offload_optimizer=true offload_bucket=4000000"


def test_a_device_that_updates_what_visits_it_draws_as_its_memory_does_and_idles_while_it_moves():
    at_home = VISITED.replace(" offload_optimizer=true offload_bucket=4000000", "")
    here, plans = estimate(JOB, Plans.of([Plan.parse(at_home)])), Plans.of([Plan.parse(VISITED)])
    priced = estimate(JOB, plans)
    assert priced.visited_s[0] == pytest.approx(here.time.optimizer_s[0])  # the same update, elsewhere kept
    assert priced.time.offload_s[0] > priced.visited_s[0]
    update_j = 16 * JOB.cluster.device.draw_w("memory") * priced.visited_s[0]
    without = step_energy(JOB, plans, replace(priced, visited_s=np.zeros(1)))
    with_it = step_energy(JOB, plans, priced)
    assert with_it.memory_j[0] - without.memory_j[0] == pytest.approx(update_j)
    assert with_it.idle_j[0] < without.idle_j[0]
