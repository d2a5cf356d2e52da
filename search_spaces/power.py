"""What devices and nodes draw, by what they do, and how clocks fall under a power cap.

    P(state)    watts of a device that idles, multiplies matrices, moves its memory, or communicates
    C           a cap;  P_0 the idle draw

        f(state) = ((C - P_0) / (P(state) - P_0))^(1/n)    where the cap is below what the state draws, else 1

f is the clock's share of its full rate.  Switching power is proportional to V² f, and V to f: n = 3.  A state
that draws less than the cap keeps its clock, so a cap slows what is bound by memory less than products.

Source
------
Chandrakasan et al. (1992), doi:10.1109/4.126534, equation 1 (P = a C V² f).
"""

from dataclasses import dataclass, fields

from search_spaces.constants import Constant, assumed
from search_spaces.errors import check


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePower:
    """Draw of one accelerator by state, as shares of its rated `power_w`.

    `lowest_cap_share` is the lowest cap that the driver takes; `clock_exponent` is n above.
    """

    idle_share: Constant = assumed(0.13, "an H200 draws 80 of 600 to 700 W without work", spread=0.3)
    compute_share: Constant = assumed(0.95, "large products reach the rated power", spread=0.1)
    memory_share: Constant = assumed(
        0.65, "kernels bound by memory: between products and communication", spread=0.2
    )
    communication_share: Constant = assumed(
        0.35, "collectives draw far less than products, more than nothing: arXiv:2508.14318", spread=0.3
    )
    lowest_cap_share: Constant = assumed(0.4, "drivers take caps down to 0.25 to 0.5 of the rating")
    clock_exponent: Constant = assumed(3.0, "V² f with V proportional to f", spread=0.2)

    def __post_init__(self) -> None:
        for each in fields(self):
            share = getattr(self, each.name).value
            check(share > 0, f"[device.power] {each.name} must be positive", share)
        shares = [getattr(self, name).value for name in ("idle_share", "communication_share", "memory_share")]
        shares.append(self.compute_share.value)
        must = "[device.power] must not draw more while idle than in communication, memory and compute"
        check(shares[0] <= min(shares[1:]), must, shares)
        check(max(shares) <= 2, "[device.power] shares are of power_w and must be at most 2", max(shares))
        exponent = self.clock_exponent.value
        check(exponent >= 1, "[device.power] clock_exponent must be at least 1", exponent)
        lowest = self.lowest_cap_share.value
        floor = max(shares[0], shares[1])
        must = "[device.power] lowest_cap_share must be above what idling and communication draw, at most 1"
        check(floor <= lowest <= 1, must, lowest)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePower:
    """Watts of what is beside the accelerators.

    A node's host idles along, or its cores run an offloaded optimizer; a network card of one device draws the
    same with and without traffic.
    """

    host_idle_w: Constant = assumed(300.0, "two server processors and their memory, waiting", spread=0.3)
    host_busy_w: Constant = assumed(800.0, "two server processors at their rating, memory busy", spread=0.3)
    nic_w: Constant = assumed(25.0, "one 200 or 400 Gb/s card with its optics", spread=0.3)

    def __post_init__(self) -> None:
        busy, idle = self.host_busy_w.value, self.host_idle_w.value
        check(busy >= idle, "[power] host_busy_w must be at least host_idle_w", f"{busy:g} and {idle:g}")


DEVICE_POWER = DevicePower()
NODE_POWER = NodePower()


def clock_share(cap_w: float, idle_w: float, draw_w: float, exponent: float) -> float:
    """The clock's share of its full rate in a state that draws so much without a cap (0: none)."""
    if not 0 < cap_w < draw_w:
        return 1.0
    return float(((cap_w - idle_w) / (draw_w - idle_w)) ** (1 / exponent))
