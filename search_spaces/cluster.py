"""What the machine is: a device, its node, and the tiers of network around it."""

from dataclasses import dataclass, replace
from itertools import pairwise

from search_spaces.constants import Constant, Origin, assumed
from search_spaces.errors import check
from search_spaces.power import DEVICE_POWER, NODE_POWER, DevicePower, NodePower, clock_share
from search_spaces.workload import Precision

__all__ = (
    "EFFICIENCIES", "MOST_DEVICES", "ClusterSpec", "Constant", "DeviceSpec", "Origin", "TierSpec", "assumed",
)  # fmt: skip
MOST_DEVICES = 10_000_000
EFFICIENCIES = (
    "gemm_efficiency", "sustained_efficiency", "attention_efficiency", "memory_efficiency",
    "fp8_gemm_efficiency", "fp4_gemm_efficiency",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSpec:
    """One accelerator (on MI250X: one GCD), with its peaks and how much of them programs reach.

    `gemm_efficiency` is the best matrix product alone over the dense peak; `sustained_efficiency` is what a
    large product keeps of that inside a training step (power, clocks, other streams).  `kernel_launch_s` is
    what its host takes to issue one operation.  `fp8_gemm_efficiency` and `fp4_gemm_efficiency` are the best
    products of 8 and 4 bits over their own peaks; None where nobody measured them: as the 16-bit one.
    `exponential_share` is the seconds that attention's exponentials take over those of its products at their
    peak, with heads of 128 entries.
    `power_w` is its rating, `power` what it draws of that in each state (None: the assumed shares).
    `processes_per_core` is 0 for an accelerator with a host beside it.  Above 0 a device is a process on a
    processor's cores, host and device in one, and so many such processes take turns on each core.
    """

    name: str
    source: str
    memory_bytes: float
    memory_bandwidth_bytes_per_s: float
    peak_flops_per_s: dict[Precision, float]
    host_bandwidth_bytes_per_s: float
    power_w: float
    n_multiprocessors: int = 132
    exponential_share: float = 0.0
    gemm_efficiency: Constant
    sustained_efficiency: Constant
    attention_efficiency: Constant
    memory_efficiency: Constant
    kernel_launch_s: Constant
    fp8_gemm_efficiency: Constant | None = None
    fp4_gemm_efficiency: Constant | None = None
    processes_per_core: float = 0.0
    power: DevicePower | None = None

    def __post_init__(self) -> None:
        positive = ("memory_bytes", "memory_bandwidth_bytes_per_s", "host_bandwidth_bytes_per_s", "power_w")
        for name in positive:
            value = getattr(self, name)
            check(0 < value < float("inf"), f"DeviceSpec.{name} must be positive and finite", value)
        peaks = self.peak_flops_per_s
        check(bool(peaks), "DeviceSpec.peak_flops_per_s must name at least one precision", "none")
        for precision, peak in peaks.items():
            check(0 < peak < float("inf"), f"the {precision} peak must be positive and finite", peak)
        check(
            self.n_multiprocessors > 0,
            "DeviceSpec.n_multiprocessors must be positive",
            self.n_multiprocessors,
        )
        share = self.exponential_share
        check(
            0 <= share < float("inf"), "DeviceSpec.exponential_share must be finite and not negative", share
        )
        for name in EFFICIENCIES:
            if getattr(self, name) is not None:
                _check_share(f"DeviceSpec.{name}", getattr(self, name))
        turns = self.processes_per_core
        must = "DeviceSpec.processes_per_core must be 0 for an accelerator, or at least 1 and finite"
        check(turns == 0 or 1 <= turns < float("inf"), must, turns)

    @property
    def is_host(self) -> bool:
        """Whether it issues its operations itself, one after the other, and carries its own messages."""
        return self.processes_per_core > 0

    @property
    def draws(self) -> DevicePower:
        """Shares of `power_w` by state."""
        return self.power or DEVICE_POWER

    def draw_w(self, state: str, cap_w: float = 0.0) -> float:
        """Watts in a state (idle, compute, memory, communication), at most the cap (0: none)."""
        watts: float = getattr(self.draws, f"{state}_share").value * self.power_w
        return min(watts, cap_w) if cap_w else watts

    def under_cap(self, cap_w: float) -> "DeviceSpec":
        """The same device with the clocks that a power cap leaves it (0: none).

        Its products run at `clock_share` of their peaks, its memory at that of a state that draws less.
        """
        idle, exponent = self.draw_w("idle"), self.draws.clock_exponent.value
        products = clock_share(cap_w, idle, self.draw_w("compute"), exponent)
        memory = clock_share(cap_w, idle, self.draw_w("memory"), exponent)
        return replace(
            self,
            peak_flops_per_s={name: peak * products for name, peak in self.peak_flops_per_s.items()},
            memory_bandwidth_bytes_per_s=self.memory_bandwidth_bytes_per_s * memory,
        )

    def best_product_share(self, precision: Precision) -> float:
        """The best product of that format alone over its dense peak."""
        fp8 = self.fp8_gemm_efficiency
        narrow = {Precision.FP8: fp8, Precision.MXFP8: fp8, Precision.NVFP4: self.fp4_gemm_efficiency}
        return (narrow.get(precision) or self.gemm_efficiency).value

    def peak(self, precision: Precision) -> float:
        """Dense peak FLOP/s of a precision; an absent one is an error that lists those that exist."""
        check(
            precision in self.peak_flops_per_s,
            f"the precision must be one that {self.name} has: {', '.join(self.peak_flops_per_s)}",
            precision,
        )
        return self.peak_flops_per_s[precision]


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpec:
    """One level of the network: all devices within `size` reach each other at its speed.

    `bandwidth_bytes_per_s` is one direction, per device, when every device of the domain sends at once (a
    link shared by several devices is already divided by them); `pair_bandwidth_bytes_per_s` is what one
    device gets towards one other (a mesh of links gives a pair less than the sum of a device's links).
    `size` is the number of devices in one domain; the outermost tier has `size` None: the whole cluster.
    A domain need not divide the cluster: 512 devices fill seven NVL72 racks and a part of the eighth.
    """

    name: str
    size: int | None
    bandwidth_bytes_per_s: float
    pair_bandwidth_bytes_per_s: float
    devices_per_link: int
    latency_s: Constant
    efficiency: Constant

    def __post_init__(self) -> None:
        check(self.size is None or self.size > 1, f"tier {self.name}: size must be above 1", self.size)
        for name in ("bandwidth_bytes_per_s", "pair_bandwidth_bytes_per_s"):
            value = getattr(self, name)
            check(0 < value < float("inf"), f"tier {self.name}: {name} must be positive and finite", value)
        must = f"tier {self.name}: devices_per_link must be at least 1"
        check(self.devices_per_link >= 1, must, self.devices_per_link)
        _check_share(f"tier {self.name}: efficiency", self.efficiency)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Devices, nodes and tiers, innermost tier first."""

    name: str
    source: str
    device: DeviceSpec
    n_devices: int
    devices_per_node: int
    tiers: tuple[TierSpec, ...]
    max_devices: int | None
    step_fixed_s: Constant
    straggler_per_log2: Constant
    memory_reserve_bytes: Constant
    device_hour_price: Constant | None = None
    power: NodePower | None = None

    def __post_init__(self) -> None:
        for name in ("n_devices", "devices_per_node"):
            given = getattr(self, name)
            check(0 < given <= MOST_DEVICES, f"ClusterSpec.{name} must be from 1 to {MOST_DEVICES:,}", given)
        check(
            self.max_devices is None or self.n_devices <= self.max_devices,
            f"cluster {self.name} has {self.max_devices} devices at most",
            self.n_devices,
            hint="ask for fewer with --devices",
        )
        self._check_tiers()
        whole = self.n_devices // self.devices_per_node * self.devices_per_node
        check(
            self.n_devices <= self.devices_per_node or self.n_devices == whole,
            f"cluster {self.name}: --devices must fill whole nodes of {self.devices_per_node}",
            self.n_devices,
            hint=f"{whole} or {whole + self.devices_per_node} would",
        )

    def _check_tiers(self) -> None:
        check(bool(self.tiers), "ClusterSpec.tiers must name at least one tier", "none")
        sizes = [tier.size for tier in self.tiers]
        inner = [size for size in sizes[:-1] if size is not None]
        check(
            sizes[-1] is None and len(inner) == len(sizes) - 1,
            f"cluster {self.name}: the outermost tier, and only it, must have no size",
            sizes,
        )
        check(
            all(b % a == 0 and b > a for a, b in pairwise(inner)),
            f"cluster {self.name}: every tier's size must be a multiple of the one inside it",
            sizes,
        )
        node = self.devices_per_node
        check(
            all(size % node == 0 or node % size == 0 for size in inner),
            f"cluster {self.name}: a tier's size must divide a node of {node}, or hold whole ones",
            sizes,
        )
        check(
            self.memory_reserve_bytes.value < self.device.memory_bytes,
            f"cluster {self.name}: memory_reserve_bytes must be below the device's memory",
            self.memory_reserve_bytes.value,
        )

    @property
    def n_nodes(self) -> int:
        """Nodes the devices fill."""
        return -(-self.n_devices // self.devices_per_node)

    @property
    def node_power(self) -> NodePower:
        """Watts of hosts and network cards."""
        return self.power or NODE_POWER

    def under_cap(self, cap_w: float) -> "ClusterSpec":
        """The same machine with every device under a power cap."""
        return replace(self, device=self.device.under_cap(cap_w))

    @property
    def turns(self) -> float:
        """Devices of the job that take turns on one core, where one leaves idle what others use; else 1."""
        busy = min(self.n_devices, self.devices_per_node) / self.devices_per_node
        return max(self.device.processes_per_core * busy, 1.0)

    def with_devices(self, n_devices: int) -> "ClusterSpec":
        """The same machine with another number of devices."""
        return replace(self, n_devices=n_devices)


def _check_share(name: str, constant: Constant) -> None:
    hint = "0.8 means 80 %" if constant.value > 1 else ""
    check(0 < constant.value <= 1, f"{name} must be above 0 and at most 1", constant.value, hint=hint)
