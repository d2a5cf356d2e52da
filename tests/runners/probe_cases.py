"""Synthetic probes for the tests: timings of a machine that is known, with noise and hiccups."""

from dataclasses import replace

import numpy as np

from runners.probes.cases import Case, Facts, cases_for
from runners.probes.layout import groups_of
from runners.probes.predictions import predicted_s
from runners.probes.record import Result
from search_spaces.cluster import Constant, Origin
from search_spaces.workload import Precision

CPU = Facts(
    kind="cpu", device="Some CPU", torch="2.13.0", formats=("fp32", "bf16"), memory_bytes=32e9,
    n_multiprocessors=1, n_devices=4, n_cores=4,
)  # fmt: skip
GPU = replace(
    CPU, kind="cuda", device="NVIDIA H200", formats=("bf16", "fp16", "fp32", "fp8"), memory_bytes=150.7e9,
    n_multiprocessors=132, n_devices=8, n_cores=64,
)  # fmt: skip
TRUE_LAUNCH_S, TRUE_SUSTAINED, TRUE_COPY = 6e-6, 0.85, 5e10


def known(value):
    return Constant(value=value, origin=Origin.MEASURED, source="made up")


def truth(cluster, formats):
    """A machine with other constants than the one it starts from."""
    device = replace(
        cluster.device,
        gemm_efficiency=known(0.62),
        fp8_gemm_efficiency=known(0.55) if "fp8" in formats else None,
        attention_efficiency=known(0.37),
        memory_efficiency=known(0.71),
        peak_flops_per_s={
            Precision(each): cluster.device.peak_flops_per_s.get(Precision(each), 1e11) for each in formats
        },
    )
    tiers = [
        replace(tier, latency_s=known(3 * tier.latency_s.value), efficiency=known(0.5))
        for tier in cluster.tiers
    ]
    return replace(cluster, device=device, tiers=tuple(tiers))


def probed(machine, facts, n_ranks, *, noise=0.05, seed=0):
    """Results of every probe on that machine: 15 repeats, a tenth of them hiccups of up to ten times."""
    rng = np.random.default_rng(seed)
    cases = cases_for(facts, groups_of(machine, n_ranks))
    found = [_result(case, machine, rng, noise) for case in cases]
    return {each.key: each for each in found}


def _result(case, machine, rng, noise):
    bare = Result(kind=case.kind, what=case.what, readings={"s": [1.0]})
    exact = predicted_s(machine, bare)
    readings = {"s": exact} if exact is not None else _unpriced(case)
    return replace(
        bare,
        readings={name: repeats(rng, value, noise) for name, value in readings.items()},
        date="2026-05-01",
    )


def _unpriced(case: Case):
    match case.kind:
        case "reserve":
            return {"bytes": 3e8}
        case "launch":
            return {"s": TRUE_LAUNCH_S, "operations": 30.0}
        case "sustained":
            return {"alone_s": 1e-3, "s": 1e-3 / TRUE_SUSTAINED}
        case "copy":
            return {"s": case.what["bytes"] / TRUE_COPY}
    names = ("compute_alone_s", "compute_beside_s", "collective_alone_s", "collective_beside_s")
    return dict(zip(names, (1e-3, 1.3e-3, 1e-2, 1.5e-2), strict=True))


def repeats(rng, value, noise, n=15):
    clean = value * np.exp(noise * rng.standard_normal(n))
    hiccups = np.where(rng.random(n) < 0.1, rng.uniform(2, 10, n), 1.0)
    return (clean * hiccups).tolist()
