"""The cluster `local`: this machine's CPUs, described when asked for."""

import os

from search_spaces.cluster import ClusterSpec, DeviceSpec, TierSpec, assumed
from search_spaces.units import GB, TFLOPS, US
from search_spaces.workload import Precision

LOCAL = "local"
MIN_DEVICES = 8


def local_cluster() -> ClusterSpec:
    """The CPUs of this machine, each process an equal share of it; every constant is assumed.

    At least eight processes may run, also on fewer cores: plans of eight devices can be tried anywhere.
    """
    n_cores = os.cpu_count() or 1
    n_devices = max(n_cores, MIN_DEVICES)
    share = n_cores / n_devices
    guess = "no measurement of this machine"
    device = DeviceSpec(
        name="cpu",
        source="cores and memory as the operating system reports them at run time; speeds assumed",
        memory_bytes=_physical_memory_bytes() / n_devices,
        memory_bandwidth_bytes_per_s=10 * GB * share,
        peak_flops_per_s={Precision.FP32: 0.05 * TFLOPS * share, Precision.BF16: 0.05 * TFLOPS * share},
        host_bandwidth_bytes_per_s=10 * GB * share,
        power_w=10.0 * share,
        n_multiprocessors=1,
        gemm_efficiency=assumed(0.6, guess, spread=0.5),
        sustained_efficiency=assumed(0.9, guess, spread=0.2),
        attention_efficiency=assumed(0.3, guess, spread=0.5),
        memory_efficiency=assumed(0.7, guess, spread=0.5),
        kernel_launch_s=assumed(20 * US, guess, spread=1.0),
        processes_per_core=n_devices / n_cores,
    )
    tier = TierSpec(
        name="machine",
        size=None,
        bandwidth_bytes_per_s=2 * GB * share,
        pair_bandwidth_bytes_per_s=2 * GB * share,
        devices_per_link=1,
        latency_s=assumed(50 * US, guess, spread=1.0),
        efficiency=assumed(0.7, guess, spread=0.5),
    )
    return ClusterSpec(
        name=LOCAL,
        source="this machine at run time",
        device=device,
        n_devices=1,
        devices_per_node=n_devices,
        tiers=(tier,),
        max_devices=n_devices,
        step_fixed_s=assumed(0.01, guess, spread=1.0),
        straggler_per_log2=assumed(0.0, "one machine has no second node", spread=0.0),
        memory_reserve_bytes=assumed(0.3 * GB, "a Python process with torch loaded", spread=0.5),
    )


def _physical_memory_bytes() -> float:
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
