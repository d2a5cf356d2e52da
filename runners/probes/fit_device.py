"""A device's constants from its kernels: medians in the cost model's own convention, scatter as spread.

Where nobody rates a device, its peaks and bandwidth are what the fastest probe reached, so that an efficiency
still says how much of the best a typical kernel gets.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from objectives.cost.kernels import width_factor
from runners.probes.predictions import attention_flops, moved_bytes, product_flops
from runners.probes.record import Result, scatter
from search_spaces.cluster import Constant, DeviceSpec, Origin
from search_spaces.workload import Precision

NARROW = "fp8"
LEAST_SPREAD = 0.01  # repeats on one day say no more than that of another


@dataclass(slots=True, kw_only=True)
class DeviceFit:
    """A device as it is fitted, constant by constant, and the probes that each took.

    `rates` are plain numbers of the specification that probes replaced: peaks and bandwidths.
    """

    device: DeviceSpec
    source: str
    is_rated: bool
    n_probes: dict[str, int] = field(default_factory=dict)
    rates: dict[str, Constant] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def measured(self, value: float, spread: float) -> Constant:
        """A constant of these probes."""
        return Constant(
            value=value,
            origin=Origin.MEASURED,
            source=self.source,
            spread=round(max(spread, LEAST_SPREAD), 4),
        )

    def share(self, name: str, value: float, spread: float, n: int) -> None:
        """Set an efficiency; one above 1 means that the rated figure is too low, and is said."""
        if value > 1:
            self.remarks.append(
                f"{name} would be {value:.2f}: the rated peak is too low, or the clock too fast"
            )
        self.constant(name, min(value, 1.0), spread, n)

    def constant(self, name: str, value: float, spread: float, n: int) -> None:
        """Set a constant."""
        self.device = replace(self.device, **{name: self.measured(value, spread)})  # type: ignore[arg-type]
        self.n_probes[f"device.{name}"] = n

    def rate(self, name: str, value: float, spread: float, n: int) -> None:
        """Set a plain number, whose origin the device's source tells."""
        self.device = replace(self.device, **{name: value})  # type: ignore[arg-type]
        self.rates[f"device.{name}"] = self.measured(value, spread)
        self.n_probes[f"device.{name}"] = n


def fit_device(device: DeviceSpec, results: Iterable[Result], *, source: str, is_rated: bool) -> DeviceFit:
    """Every constant of the device that some probe determines; the others stay as they are."""
    found = list(results)
    fit = DeviceFit(device=device, source=source, is_rated=is_rated)
    _fit_memory(fit, _of(found, "memory"))
    _fit_products(fit, _of(found, "product"))
    _fit_sustained(fit, _of(found, "sustained"))
    _fit_attention(fit, _of(found, "attention"))
    _fit_launch(fit, _of(found, "launch"))
    _fit_copies(fit, _of(found, "copy"))
    return fit


def _of(results: Sequence[Result], kind: str) -> list[Result]:
    return [each for each in results if each.kind == kind]


def _fit_memory(fit: DeviceFit, results: Sequence[Result]) -> None:
    if not results:
        return
    rates = np.array([moved_bytes(each) / each.median() for each in results])
    if not fit.is_rated:
        sizes = np.array([each.number("bytes") for each in results])
        # The largest tensors alone lie outside the caches.
        best = int(np.argmax(rates * (sizes == sizes.max())))
        fit.rate("memory_bandwidth_bytes_per_s", float(rates[best]), results[best].spread(), len(results))
    share = float(np.median(rates)) / fit.device.memory_bandwidth_bytes_per_s
    share = share if fit.is_rated else min(share, 1.0)
    fit.share("memory_efficiency", share, scatter(rates), len(results))


def _fit_products(fit: DeviceFit, results: Sequence[Result]) -> None:
    """The rate at which the formula of products agrees with the middle one of a format's shapes."""
    rates = {
        precision: _rates(fit.device, [each for each in results if each.text("format") == precision])
        for precision in dict.fromkeys(each.text("format") for each in results)
    }
    if not rates:
        return
    middle = {precision: float(np.median(found)) for precision, found in rates.items()}
    if not fit.is_rated:
        _set_peaks(fit, rates, middle)
    wide = next((each for each in ("bf16", "fp16", "fp32") if each in rates), None)
    if wide is not None:
        given = rates if not fit.is_rated else {wide: rates[wide]}
        apart = scatter(np.concatenate([found / middle[each] for each, found in given.items()]))
        share = middle[wide] / fit.device.peak(Precision(wide))
        fit.share("gemm_efficiency", share, apart, sum(map(len, given.values())))
    if NARROW in rates and Precision.FP8 in fit.device.peak_flops_per_s:
        share = middle[NARROW] / fit.device.peak(Precision.FP8)
        fit.share("fp8_gemm_efficiency", share, scatter(rates[NARROW]), len(rates[NARROW]))


def _rates(device: DeviceSpec, results: Sequence[Result]) -> Any:
    return np.array([product_flops(device, each) / each.median() for each in results])


def _set_peaks(fit: DeviceFit, rates: Mapping[str, Any], middle: Mapping[str, float]) -> None:
    """One efficiency for all formats, and peaks that no probe exceeds."""
    share = min(middle[each] / float(np.max(found)) for each, found in rates.items() if each != NARROW)
    peaks = dict(fit.device.peak_flops_per_s)
    for each, found in rates.items():
        peaks[Precision(each)] = middle[each] / share
        name = f"device.peak_flops_per_s.{each}"
        fit.rates[name], fit.n_probes[name] = fit.measured(middle[each] / share, scatter(found)), len(found)
    fit.device = replace(fit.device, peak_flops_per_s=peaks)


def _fit_sustained(fit: DeviceFit, results: Sequence[Result]) -> None:
    if results:
        each = results[0]
        share = each.median("alone_s") / each.median()
        # Between other kernels a product can hardly be faster: what is above 1 is noise.
        spread = float(np.hypot(each.spread("alone_s"), each.spread()) / np.sqrt(len(each.readings["s"])))
        fit.constant("sustained_efficiency", min(share, 1.0), spread, 1)


def _fit_attention(fit: DeviceFit, results: Sequence[Result]) -> None:
    """Of the first format that training uses here: one number cannot serve formats that differ in peak."""
    if not results:
        return
    precision = results[0].text("format")
    same = [each for each in results if each.text("format") == precision]
    if Precision(precision) not in fit.device.peak_flops_per_s:
        return
    peak = fit.device.peak(Precision(precision))
    shares = [
        attention_flops(each) * width_factor(fit.device, each.number("width")) / (each.median() * peak)
        for each in same
    ]
    fit.share("attention_efficiency", float(np.median(shares)), scatter(shares), len(same))


def _fit_launch(fit: DeviceFit, results: Sequence[Result]) -> None:
    layers = [each for each in results if each.what["of"] == "layer"] or results
    if layers:
        fit.constant("kernel_launch_s", layers[0].median(), layers[0].spread(), 1)


def _fit_copies(fit: DeviceFit, results: Sequence[Result]) -> None:
    """The slower direction."""
    if results:
        rates = [each.number("bytes") / each.median() for each in results]
        slow = int(np.argmin(rates))
        fit.rate("host_bandwidth_bytes_per_s", rates[slow], results[slow].spread(), len(results))
