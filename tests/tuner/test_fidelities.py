"""Trials of smaller proxies: what they run, teach and cost, and that no answer rests on one."""

from dataclasses import fields, replace

import numpy as np
import optuna
import pytest
from rich.console import Console

from objectives.cost.result import StepTime
from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.outcome import Measured, outcome_to_dict
from objectives.ranking import Candidates, rank
from runners.proxies import proxy
from runners.simulated import SimulatedRunner
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec
from search_spaces.fidelity import Fidelities, Fidelity
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans
from search_spaces.space import SpaceSpec
from search_spaces.workload import Workload
from tests.tuner import studies
from tests.tuner.hidden_cluster import tell
from tuner import study
from tuner.budget import Budget, Stop
from tuner.prices import START_S, Prices, prices_of
from tuner.recorded import study_rows
from tuner.report import from_study, page, study_documents, study_screen
from tuner.samplers.candidates import fidelity_of_trial
from tuner.samplers.cost_aware import CostAwareSampler, Spending
from tuner.samplers.model_based import MeshtuneSampler
from tuner.view import State, load_study

FEW_LAYERS, FEW_DEVICES, FULL = Fidelity.FEW_LAYERS, Fidelity.FEW_DEVICES, Fidelity.FULL
EVERY = Fidelities(kinds=(FEW_LAYERS, FEW_DEVICES, FULL), devices=8)
PROXIED = {"sampler": "meshtune", "fidelities": ["few-layers", "few-devices", "full"], "proxy_devices": 8}
SPACE = {**studies.SPACE, "tp": [1, 2, 4], "micro_batch": [1, 2, 4], "zero": [1, 2, 3], "vpp": [1, 2],
         "schedule": ["1f1b", "interleaved"], "recompute": ["none", "selective"]}  # fmt: skip


def job(n_devices=64):
    workload = Workload(seq_len=8192, global_batch=128)
    return Job(model=load_model("llama-3-8b"), cluster=load_cluster("dgx-h100", n_devices), workload=workload)


@pytest.fixture(scope="module")
def table():
    return rank(job(), SpaceSpec()).candidates.take(slice(0, 120))


def sampler_of(table, *, trials=20, kinds=EVERY.kinds, device_hours=None, seed=0):
    budget = Budget(trials=trials, device_hours=device_hours)
    spending = Spending(fidelities=Fidelities(kinds=kinds, devices=8), budget=budget)
    return CostAwareSampler(table, metrics=("step_time",), seed=seed, job=job(), spending=spending)


def stored(trial, study_):
    return study_._storage.get_trial(trial._trial_id)


def run_one(sampler, study_, runner):
    """Ask, run whole or by proxy on the hidden machine, tell as a study does; what ran and its outcome."""
    trial = study_.ask(fixed_distributions=sampler.table.distributions)
    row, kind = sampler.table.row_of(trial.params), fidelity_of_trial(stored(trial, study_))
    plan = sampler.table.candidates.plans.row(row)
    trial.set_user_attr("plan", plan.key)
    if kind is FULL:
        (outcome,) = runner.run(Plans.of([plan]))
        tell(study_, trial, outcome)
        return row, kind, outcome
    twin = sampler.proxies.find(row, kind).twin
    (outcome,) = runner.of_job(twin.job).run(Plans.of([twin.plan]))
    trial.set_user_attr("fidelity", str(kind))
    trial.set_user_attr("proxy", {"plan": twin.plan.key})
    trial.set_user_attr("outcome", outcome_to_dict(outcome))
    study_.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return row, kind, outcome


@pytest.mark.parametrize(
    ("plan", "degrees", "n_layers"),
    [
        (Plan(tp=4, pp=1, dp=16, sequence_parallel=True), (4, 1, 2), 32),
        (Plan(tp=4, pp=4, dp=4, sequence_parallel=True), (2, 2, 2), 16),
        (Plan(tp=1, pp=8, dp=8), (1, 4, 2), 16),
    ],
    ids=["copies first", "then stages", "stages keep their layers"],
)
def test_few_devices_keep_inner_degrees_while_they_fit(plan, degrees, n_layers):
    twin = proxy(job(), plan, FEW_DEVICES, EVERY)
    assert (twin.plan.tp, twin.plan.pp, twin.plan.dp) == degrees
    assert twin.job.cluster.n_devices == twin.plan.world_size == 8
    assert twin.job.model.n_layers == n_layers
    n_micro = [each.workload.global_batch // at.dp for each, at in ((twin.job, twin.plan), (job(), plan))]
    assert n_micro[0] == n_micro[1]
    assert twin.differs["devices"] == (8, 64)


def test_few_layers_keep_everything_else():
    plan = Plan(tp=2, pp=4, dp=8, sequence_parallel=True)
    twin = proxy(job(), plan, FEW_LAYERS, EVERY)
    assert twin.plan == plan
    assert twin.differs == {"layers": (4, 32)}


@pytest.mark.parametrize(("every", "n_layers"), [(1, 4), (2, 8), (4, 16)])
def test_few_layers_redo_every_nth_as_the_job_does(every, n_layers):
    plan = Plan.parse(f"pp=4 dp=16 zero=1 recompute=full recompute_every={every}")
    twin = proxy(job(), plan, FEW_LAYERS, EVERY)
    assert (twin.job.model.n_layers, twin.plan) == (n_layers, plan)


def test_where_a_round_of_redone_layers_is_all_of_them_there_is_no_proxy_and_it_says_why():
    plan = Plan.parse("pp=8 dp=8 zero=1 recompute=full recompute_every=4")
    with pytest.raises(InvalidSpec, match=r"fewer layers than the model; got 32 of 32, .*recompute_every=4"):
        proxy(job(), plan, FEW_LAYERS, EVERY)


def test_a_plan_of_as_many_chunks_as_layers_has_no_proxy_of_few_layers():
    plan = Plan(tp=1, pp=32, dp=2)
    with pytest.raises(InvalidSpec, match="fewer layers than the model"):
        proxy(job(), plan, FEW_LAYERS, EVERY)


def test_an_optimizer_that_fewer_copies_no_longer_shard_costs_layers():
    twin = proxy(job(), Plan(tp=1, pp=1, dp=64, zero=2), FEW_DEVICES, EVERY)
    assert twin.job.model.n_layers < 32


@pytest.mark.parametrize("kind", [FEW_LAYERS, FEW_DEVICES])
def test_a_proxy_runs_on_the_same_hidden_machine(kind):
    runner = SimulatedRunner(job(), seed=5, hidden=0.3, noise=0.0, straggler_probability=0.0, n_steps=1)
    twin = proxy(job(), Plan(tp=4, pp=2, dp=8, sequence_parallel=True), kind, EVERY)
    (outcome,) = runner.of_job(twin.job).run(Plans.of([twin.plan]))
    alone = SimulatedRunner(twin.job, seed=5, hidden=0.3, noise=0.0, straggler_probability=0.0, n_steps=1)
    assert outcome == alone.run(Plans.of([twin.plan]))[0]
    assert isinstance(outcome, Measured)


def test_a_proxy_costs_less_and_prices_follow_what_starting_took(table):
    sampler = sampler_of(table)
    prices = [sampler.price_s(0, kind, Prices()) for kind in (FEW_DEVICES, FEW_LAYERS, FULL)]
    assert prices == sorted(prices)
    assert Prices().device_s(FULL, 8, 2.0) == 8 * (START_S + 5 * 2.0)
    assert Prices(n_steps=3, start_s={FEW_LAYERS: 10.0}).device_s(FULL, 4, 1.0) == 4 * 13.0


def test_what_starting_took_is_learned_by_fidelity(table):
    sampler, runner = sampler_of(table), SimulatedRunner(job(), start_s=200.0)
    study_ = optuna.create_study(sampler=sampler)
    kinds = {run_one(sampler, study_, runner)[1] for _ in range(6)}
    learned = prices_of(study_.trials, 5).start_s
    assert learned.keys() == kinds
    assert all(abs(value - 200.0) < 1.0 for value in learned.values())


def test_proxies_go_first_and_a_whole_plan_follows(table):
    sampler, runner = sampler_of(table), SimulatedRunner(job(), seed=1, hidden=0.4)
    study_ = optuna.create_study(sampler=sampler)
    ran = [run_one(sampler, study_, runner) for _ in range(16)]
    kinds = [kind for _, kind, _ in ran]
    assert kinds[0] is FEW_DEVICES
    assert FULL in kinds[1:]
    assert len({(row, kind) for row, kind, _ in ran}) == len(ran)  # none twice


def test_the_last_trial_of_a_budget_is_whole(table):
    sampler, runner = sampler_of(table, trials=2), SimulatedRunner(job(), seed=1, hidden=0.4)
    study_ = optuna.create_study(sampler=sampler)
    assert [run_one(sampler, study_, runner)[1] for _ in range(2)][-1] is FULL


def test_device_hours_that_pay_one_whole_run_are_kept_for_it(table):
    sampler = sampler_of(table, device_hours=1.5)  # a whole run costs 1.2
    study_ = optuna.create_study(sampler=sampler)
    assert run_one(sampler, study_, SimulatedRunner(job(), seed=1))[1] is FULL


def test_a_proxy_teaches_its_plans_terms_but_never_counts_as_the_plan(table):
    sampler, runner = sampler_of(table), SimulatedRunner(job(), seed=3, hidden=0.4, noise=0.0)
    study_ = optuna.create_study(sampler=sampler)
    before = sampler.posterior(study_).joint(np.arange(120), 0)
    ran = [run_one(sampler, study_, runner) for _ in range(3)]
    assert {kind for _, kind, _ in ran} == {FEW_DEVICES}
    posterior = sampler.posterior(study_)
    mean, covariance = posterior.joint(np.arange(120), 0)
    truth = [outcome.step_s for outcome in runner.run(table.plans)]
    assert np.median(np.abs(mean - np.log(truth))) < np.median(np.abs(before[0] - np.log(truth)))
    assert (covariance.diagonal() < before[1].diagonal()).all()
    row = ran[0][0]
    whole = sampler_of(table, kinds=(FULL,))
    lessons = optuna.create_study(sampler=whole)
    trial = lessons.ask(fixed_distributions=whole.table.distributions)
    tell(lessons, trial, runner.run(table.plans)[whole.table.row_of(trial.params)])
    own = whole.posterior(lessons)
    spread_whole = own.joint(np.array([whole.table.row_of(trial.params)]), 0)[1][0, 0]
    assert covariance[row, row] > spread_whole
    assert not len(posterior.measured)
    assert posterior.without_outcome.all()


def test_nothing_is_measured_while_only_proxies_ran(table):
    sampler, runner = sampler_of(table), SimulatedRunner(job(), seed=3)
    study_ = optuna.create_study(sampler=sampler)
    run_one(sampler, study_, runner)
    assert sampler.worth(study_, 0.02) is None


def alike():
    """Three plans that differ in a flag, alike in memory; the second one's step takes ten times as long."""
    plain = Plan(tp=2, pp=2, dp=16)
    plans = Plans.of([plain, replace(plain, overlap_dp=True), replace(plain, overlap_pp=True)])
    same = estimate(job(), plans.take(np.zeros(3, dtype=np.int64)))
    parts = {each.name: getattr(same.time, each.name) * [1.0, 10.0, 1.0] for each in fields(StepTime)}
    priced = replace(same, time=StepTime(**parts))
    return Candidates(plans=plans, estimate=priced, score=priced.peak_memory_bytes)


@pytest.mark.parametrize(("is_priced", "second"), [(False, 1), (True, 2)])
def test_of_plans_alike_in_promise_the_cheaper_is_tried(is_priced, second):
    kind = CostAwareSampler if is_priced else MeshtuneSampler
    sampler = kind(alike(), metrics=("peak_memory",), seed=0, job=job())
    study_, rows = optuna.create_study(sampler=sampler), []
    for _ in range(2):
        trial = study_.ask(fixed_distributions=sampler.table.distributions)
        rows.append(sampler.table.row_of(trial.params))
        (outcome,) = SimulatedRunner(job(), seed=3).run(Plans.of([Plan(tp=2, pp=2, dp=16)]))
        tell(study_, trial, outcome, metrics=("peak_memory",))
    assert rows == [0, second]


def test_the_same_seed_chooses_the_same(table):
    chosen = []
    for _ in range(2):
        sampler, runner = sampler_of(table, seed=4), SimulatedRunner(job(), seed=2, hidden=0.4)
        study_ = optuna.create_study(sampler=sampler)
        chosen.append([run_one(sampler, study_, runner)[:2] for _ in range(5)])
    assert chosen[0] == chosen[1]


def tuned(storage, **changes):
    merged = {
        "model": {"preset": "llama-3-8b"},
        "cluster": {"preset": "dgx-h100", "devices": 64},
        "workload": {"seq_len": 8192, "global_batch": 128},
        "study": PROXIED,
        "space": SPACE,
        "runner": {"options": {"hidden": 0.4, "seed": 1}},
        **changes,
    }
    return study.tune(studies.config(storage, **merged))


@pytest.mark.parametrize("kind", studies.STORAGES)
def test_a_study_with_fidelities_runs_resumes_and_answers_with_a_whole_plan(tmp_path, kind):
    storage = studies.storage_url(tmp_path, kind)
    first = tuned(storage, budget={"trials": 6})
    assert first.stop is Stop.TRIALS
    second = study.resume(studies.NAME, storage, budget=Budget(trials=12))
    view = second.view
    assert len(view.finished) == 12
    assert view.by_proxy
    assert view.best.fidelity is FULL
    tried = [(trial.plan.key, trial.fidelity) for trial in view.finished]
    assert len(set(tried)) == len(tried)
    one = view.by_proxy[0]
    assert one.state is State.PROXY
    assert one.values == {}
    assert one.proxy["differs"]["devices" if one.fidelity is FEW_DEVICES else "layers"][0] in (4, 8)
    assert one.device_s < view.measured[0].device_s
    trial = studies.optuna_trials(storage)[one.number]
    assert trial.user_attrs["fidelity"] == str(one.fidelity)


@pytest.fixture(scope="module")
def view(tmp_path_factory):
    storage = studies.storage_url(tmp_path_factory.mktemp("fidelities"), "sqlite")
    tuned(storage, budget={"trials": 8})
    return load_study(studies.NAME, storage)


def test_reports_tell_proxies_from_plans(view):
    content = from_study.study_report(view, with_importance=False)
    assert len(content.complete) + len(content.proxies) + len(content.failures) >= 8
    assert all(row.proxy_words for row in content.proxies)
    text = studies_text(study_screen.show_screen(content))
    for word in ("fidelity", "few-devices", "smaller in", "device-hours"):
        assert word in text
    assert "its own, not the plan" in page.page(content)


def studies_text(renderable):
    console = Console(width=200)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def test_documents_name_the_fidelity_of_each_trial(view):
    document = study_documents.study_document(view)
    proxies = [trial for trial in document["trials"] if trial["fidelity"] != "full"]
    assert proxies
    assert all(trial["proxy"]["differs"] and not trial["values"] for trial in proxies)
    assert document["best"]["fidelity"] == "full"


def test_a_proxys_row_of_measurements_is_of_its_own_job(view):
    rows = study_rows(view, cluster="dgx-a100")
    sizes = {trial.number: trial.fidelity for trial in view.finished}
    devices = [int(row["n_gpus"]) for row in rows if sizes[int(row["id"].rsplit("-", 1)[1])] is FEW_DEVICES]
    assert devices
    assert all(n == 8 for n in devices)


def test_a_study_that_ends_with_proxies_alone_says_so(view):
    only = replace(view, trials=view.by_proxy)
    content = from_study.study_report(only, with_importance=False)
    assert only.best is None
    assert "no plan has been measured whole" in studies_text(study_screen.report_screen(content))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"study": {**PROXIED, "sampler": "tpe"}}, "fidelities need the sampler meshtune"),
        ({"study": {**PROXIED, "fidelities": ["few-layers"]}}, "fidelities must have full"),
        ({"study": {**PROXIED, "proxy_layers": 99}}, "proxy_layers must be below"),
        ({"study": {**PROXIED, "proxy_devices": 64}}, "proxy_devices must be below"),
        ({"study": {**PROXIED, "fidelities": ["half", "full"]}}, "fidelities"),
        ({"study": PROXIED, "objective": {"metric": ["step_time", "peak_memory"]}}, "need one metric"),
        (
            {"study": PROXIED, "runner": {"kind": "command", "options": {"command": ["true"]}}},
            "runner that can run smaller jobs",
        ),
        (
            {"study": PROXIED, "runner": {"kind": "torch", "options": {"proxy": True}}},
            "take the place of the torch runner's option proxy",
        ),
        ({"budget": {"device_hours": 0.0}}, "device_hours must be positive"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, changes, words):
    with pytest.raises(InvalidSpec, match=words):
        studies.config(studies.storage_url(tmp_path, "sqlite"), **changes)


def test_device_hours_end_a_study(tmp_path):
    storage = studies.storage_url(tmp_path, "sqlite")
    result = tuned(storage, study={"sampler": "meshtune"}, budget={"trials": 40, "device_hours": 2.0})
    assert result.stop is Stop.DEVICE_HOURS
    assert 1 <= len(result.view.finished) < 10
    assert result.view.device_s >= 2.0 * 3600


def test_a_plan_on_some_nodes_has_a_proxy_of_fewer_devices_and_its_own_price():
    plan = Plan(tp=2, dp=8, pp=2, nodes=4, sequence_parallel=True, n_microbatches=4)
    twin = proxy(job(), plan, FEW_DEVICES, EVERY)
    assert (twin.plan.world_size, twin.job.cluster.n_devices, twin.plan.nodes) == (8, 8, 0)
    plans = Plans.of([plan, replace(plan, nodes=0, dp=16)])
    priced = estimate(job(), plans)
    sampler = sampler_of(Candidates(plans=plans, estimate=priced, score=priced.step_s))
    prices = Prices(start_s={FULL: 0.0})
    for row, n_devices in ((0, 32), (1, 64)):
        expected = n_devices * prices.n_steps * priced.step_s[row]
        assert sampler.price_s(row, FULL, prices) == pytest.approx(expected)
