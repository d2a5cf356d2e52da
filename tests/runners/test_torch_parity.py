"""Every way to lay a model out trains it as one process does: the same loss, the same gradients."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from search_spaces.parameters import total_parameters
from tests.runners.torch_cases import BF16, FAST, HSDP, MODELS, PAIRS, SLOW, TORCH_CLASSES
from tests.runners.torch_pairs import WRITTEN, missing

pytestmark = [pytest.mark.torch, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]

# Sums in another order, in fp32; and products rounded to 8 bits of mantissa.
TOLERANCE = {"fp32": 2e-5, "bf16": 6e-2}
# A token whose second and third expert weigh alike goes to another one when its last bit changes.
MOE_BF16_TOLERANCE = 0.2
LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 2e-2}


class Findings:
    """Trains all cases of a world size that a run of the tests asks for when the first is asked."""

    def __init__(self, folder, chosen):
        self.folder, self.chosen, self.known = folder, chosen, {}

    def of(self, case):
        world = case.parsed.world_size
        if world not in self.known:
            names = [each.name for each in self.chosen if each.parsed.world_size == world]
            out = self.folder / f"{world}.json"
            command = [sys.executable, "-W", "ignore", "-m", "tests.runners.torch_cases", str(out), *names]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
            assert done.returncode == 0, done.stderr
            self.known[world] = json.loads(out.read_text())
        assert "broken" not in self.known[world], self.known[world]["broken"]
        return [rank[case.name] for rank in self.known[world]["ranks"]]


@pytest.fixture(scope="module")
def findings(request, tmp_path_factory):
    """For the cases that are really selected."""
    chosen = [
        item.callspec.params["case"]
        for item in request.session.items
        if item.path == request.path and hasattr(item, "callspec") and "case" in item.callspec.params
    ]
    return Findings(tmp_path_factory.mktemp("parity"), list(dict.fromkeys(chosen)))


def params():
    fast = [*FAST, *TORCH_CLASSES, *HSDP, *BF16]
    return [pytest.param(case, id=case.name) for case in fast] + [
        pytest.param(case, id=case.name, marks=pytest.mark.slow) for case in (*SLOW, *PAIRS)
    ]


@pytest.mark.parametrize("case", params())
def test_a_plan_trains_as_one_process_does(case, findings):
    ranks = findings.of(case)
    trained = {name for rank in ranks for name in rank["worst"]}
    worst = max((error, name) for rank in ranks for name, error in rank["worst"].items())
    assert trained == set(ranks[0]["names"])
    assert ranks[0]["n_parameters"] == total_parameters(MODELS[case.model])
    is_rounded = case.precision == "bf16" and MODELS[case.model].moe is not None
    assert worst[0] <= (MOE_BF16_TOLERANCE if is_rounded else TOLERANCE[case.precision]), worst
    for rank in ranks:
        assert rank["losses"] == pytest.approx(rank["wanted_losses"], rel=LOSS_TOLERANCE[case.precision])


@pytest.mark.slow
def test_every_pair_of_what_the_trainer_can_do_is_in_a_case():
    assert missing((*WRITTEN, *PAIRS)) == set()
