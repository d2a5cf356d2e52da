"""What is really trained in a plan's place: chosen, run, told from the whole plan, and judged by itself."""

import pytest

from objectives.outcome import OutcomeOrigin
from search_spaces.fidelity import Fidelity
from search_spaces.plan import Plan
from tests.runners.torch_study import tables
from tuner import study
from tuner.config import config_from_tables
from tuner.ran import what_ran
from tuner.recorded import study_rows
from tuner.report.from_study import study_report
from tuner.report.page import page
from tuner.samplers.cost_aware import CostAwareSampler
from tuner.view import State
from tuner.warm import past_proxies, past_study

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]


@pytest.fixture
def result(tmp_path, monkeypatch):
    """A study whose first trial is a proxy, whatever it would cost here, and whose second one is whole."""
    chosen = CostAwareSampler.pick

    def pick(self, study_, trial, untried, *, others):
        row, _ = chosen(self, study_, trial, untried, others=others)
        return row, Fidelity.FULL if others else Fidelity.FEW_LAYERS

    monkeypatch.setattr(CostAwareSampler, "pick", pick)
    config = tables(tmp_path, 2, n_steps=3)
    config["study"] |= {"sampler": "meshtune", "fidelities": ["few-layers", "full"], "proxy_layers": 2}
    return study.tune(config_from_tables(config, folder=tmp_path))


def test_a_real_proxy_runs_and_the_answer_is_whole(result):
    proxy, whole = result.view.trials
    assert (proxy.state, whole.state) == (State.PROXY, State.MEASURED)
    assert proxy.proxy["differs"] == {"layers": [2, 4]}
    assert proxy.outcome.origin is OutcomeOrigin.MEASURED
    assert proxy.outcome.effective["key"] != whole.outcome.effective["key"]
    assert proxy.outcome.peak_memory_bytes > 0
    assert result.view.best is whole
    assert proxy.device_s == pytest.approx(2 * proxy.outcome.effective["trial_s"])


@pytest.fixture
def twins(tmp_path):
    """A study whose plans have more ranks than may run here, so that twins are trained in their place."""
    config = tables(tmp_path, 1, n_steps=3, proxy=True, proxy_tokens=512)
    config["cluster"] = {"preset": "dgx-a100", "devices": 64}
    config["workload"] |= {"global_batch": 256}
    config["objective"] = {"metric": ["tokens_per_s_per_device", "mfu"]}
    return study.tune(config_from_tables(config, folder=tmp_path)).view


def test_a_twins_figures_are_of_the_job_that_it_ran(twins):
    (trial,) = twins.measured
    effective = trial.outcome.effective
    assert effective["proxy"]["devices"][1] == 64
    twin = Plan.parse(effective["plan"])
    assert trial.values["tokens_per_s_per_device"] == pytest.approx(
        effective["tokens_per_s"] / twin.world_size, rel=1e-3
    )
    job, plan = what_ran(twins, trial)
    assert (plan, job.cluster.n_devices) == (twin, twin.world_size)
    assert trial.values["mfu"] == pytest.approx(float(job.mfu(trial.outcome.step_s)))
    assert trial.predicted.step_s == effective["predicted"]["step_s"]
    assert trial.device_s == pytest.approx(twin.world_size * effective["trial_s"])


def test_reports_and_tables_of_twins_are_of_what_ran(twins):
    (trial,) = twins.measured
    report = study_report(twins, with_importance=False)
    assert report.best.tokens_per_s_per_device == trial.values["tokens_per_s_per_device"]
    assert report.best.mfu == trial.values["mfu"]
    devices, whole = trial.outcome.effective["proxy"]["devices"]
    assert f"devices {devices} of {whole}" in report.best.proxy_words
    assert report.best.proxy_words in page(report)
    (row,) = study_rows(twins, cluster="local")
    assert int(row["n_gpus"]) == devices
    tokens = int(row["global_batch"]) * int(row["seq_len"])
    assert tokens / trial.outcome.step_s == pytest.approx(trial.outcome.effective["tokens_per_s"], rel=1e-3)
    assert not past_study(twins).plans
    assert [past.plans for past in past_proxies(twins)] == [(trial.outcome.effective["plan"],)]
