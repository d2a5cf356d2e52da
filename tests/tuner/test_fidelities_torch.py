"""A proxy with few layers is really trained: chosen, run, stored, and told from the whole plan."""

import pytest

from objectives.outcome import OutcomeOrigin
from search_spaces.fidelity import Fidelity
from tests.runners.torch_study import tables
from tuner import study
from tuner.config import config_from_tables
from tuner.samplers.cost_aware import CostAwareSampler
from tuner.view import State

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
