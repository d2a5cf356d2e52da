"""The measurements: every case of a processor really runs, every case of an accelerator on `meta`."""

import itertools
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from runners.probes import kernels  # noqa: E402
from runners.probes.cases import Case, cases_for  # noqa: E402
from runners.probes.device import Device, accelerator_formats, facts, open_device  # noqa: E402
from runners.probes.rank import merged  # noqa: E402
from runners.probes.timing import Stopwatch  # noqa: E402
from tests.runners.probe_cases import CPU, GPU  # noqa: E402

pytestmark = pytest.mark.torch
SMALL = {"rows": 64, "columns": 96, "depth": 32, "seq_len": 32, "batch": 2, "heads": 2, "bytes": 2**16}


def shrunk(case):
    return replace(case, what={name: SMALL.get(name, value) for name, value in case.what.items()})


def variants(facts, small=shrunk):
    """One case of each kind and choice of words."""
    found = {small(case).key: small(case) for case in cases_for(facts, [])}
    return list(found.values())


def whole(case):
    return case


def measured(case, device):
    ticks = itertools.count()
    clock = device.clock if device.kind == "cpu" else lambda: next(ticks) * 1e-3
    watch = Stopwatch(clock=clock, synchronize=device.synchronize, window_s=0.0)
    return kernels.prepare(case.kind, case.what, device)(watch)


def imaginary_accelerator():
    """An accelerator that does no arithmetic: torch's meta device, and a clock that ticks when it is read."""
    ticks = itertools.count()
    return Device(
        kind="cuda",
        where=torch.device("meta"),
        synchronize=lambda: None,
        clock=lambda: next(ticks) * 1e-3,
    )


@pytest.mark.parametrize("case", variants(CPU), ids=lambda case: case.key)
def test_every_case_of_a_processor_gives_positive_readings(case):
    readings = measured(case, open_device("cpu", 0))
    assert readings
    assert all(value > 0 for values in readings.values() for value in values)


@pytest.mark.parametrize(
    "case",
    # Nothing can be copied out of an imaginary device, and it has no memory.
    [case for case in variants(GPU, small=whole) if case.kind not in ("reserve", "copy")],
    ids=lambda case: case.key,
)
def test_every_case_of_an_accelerator_runs_at_its_own_shape(case):
    readings = measured(case, imaginary_accelerator())
    assert all(values for values in readings.values())


def test_a_layer_s_operations_are_counted():
    layer = kernels.tiny_layer(open_device("cpu", 0))
    n = kernels.count_operations(layer)
    assert n == kernels.count_operations(layer)
    assert 20 <= n <= 60
    assert kernels.count_operations(lambda: None) == 0


def test_a_product_is_that_of_a_linear_layer():
    device = open_device("cpu", 0)
    torch.manual_seed(0)
    case = Case(kind="product", what={"format": "fp32", "rows": 4, "columns": 3, "depth": 5})
    out = kernels.product(case.what, device)()
    torch.manual_seed(0)
    x, w = torch.randn(4, 5), torch.randn(3, 5)
    torch.testing.assert_close(out, torch.nn.functional.linear(x, w))


@pytest.mark.parametrize(
    ("capability", "formats"),
    [
        ((7, 0), ("fp16", "fp32")),
        ((8, 0), ("bf16", "fp16", "fp32")),
        ((9, 0), ("bf16", "fp16", "fp32", "fp8")),
    ],
)
def test_an_accelerator_s_generation_says_its_formats(capability, formats):
    assert accelerator_formats(capability) == formats


def test_facts_of_a_machine_without_the_device_asked_for():
    assert facts("cpu")["kind"] == "cpu"
    if not torch.cuda.is_available():
        assert facts("cuda") == {"error": "torch finds no accelerator"}
        assert facts(None)["kind"] == "cpu"


def test_a_collective_takes_as_long_as_its_last_rank_and_kernels_are_pooled():
    answers = [{"readings": {"s": [1.0, 5.0]}}, {"readings": {"s": [2.0, 4.0]}}, {"readings": {}}]
    assert merged("collective", answers) == {"readings": {"s": [2.0, 5.0]}}
    assert merged("product", answers) == {"readings": {"s": [1.0, 5.0, 2.0, 4.0]}}


def test_one_rank_s_trouble_is_the_case_s():
    assert merged("product", [{"readings": {}}, {"error": "out of memory"}]) == {"error": "out of memory"}
