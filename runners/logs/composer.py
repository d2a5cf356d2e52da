"""Lines of Composer 0.32, which llm-foundry trains through, with `log_to_console` and the speed monitor.

A batch is a block of lines: its number, then one figure a line.  Its seconds follow from `samples_per_sec`,
which has more digits than `batches_per_sec`; with a `window_size` above 1 it is a rolling mean.
Memory is that of rank 0's allocator, in GB of 1e9 bytes.

Source: composer/loggers/console_logger.py, callbacks/speed_monitor.py and memory_monitor.py;
llmfoundry/utils/config_utils.py (the settings it prints before it trains).
"""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from runners.logs.facts import (
    ClaimFact,
    Convention,
    Disturbance,
    DisturbanceFact,
    Fact,
    MemoryFact,
    ProgressFact,
    StepFact,
    number,
)
from search_spaces.units import GB

_BATCH = re.compile(r"(?:\[epoch=1\])?\[batch=(?P<step>\d+)(?:/\d+)?\]:?\s*$")
_FIGURE = re.compile(r"\s*Train (?P<name>[\w/]+): (?P<value>[-\d.naif]+)$")
_SETTING = re.compile(r"(?P<name>global_train_batch_size|max_seq_len): (?P<value>\d+)$")
_SETTINGS: Mapping[str, str] = MappingProxyType(
    {"global_train_batch_size": "global_batch", "max_seq_len": "seq_len"}
)
_PEAKS: Mapping[str, str] = MappingProxyType(
    {"memory/peak_reserved_mem": "reserved", "memory/peak_allocated_mem": "allocated"}
)


class ComposerLog:
    """The reader `composer`."""

    name = "composer"
    convention: Convention | None = None

    def read(self, text: str) -> Iterable[Fact]:
        """Facts of one line."""
        if "Train " in text and (match := _FIGURE.match(text)):
            yield from _figure(match["name"], number(match["value"]))
        elif "[batch=" in text and (match := _BATCH.match(text)):
            yield ProgressFact(step=int(match["step"]))
        elif text.startswith("[Eval batch="):
            yield DisturbanceFact(kind=Disturbance.VALIDATION)
        elif match := _SETTING.match(text):
            yield ClaimFact(source="launcher", name=_SETTINGS[match["name"]], value=int(match["value"]))


def _figure(name: str, value: float | None) -> Iterable[Fact]:
    if value is None:
        return
    if name == "throughput/samples_per_sec":
        # The block's number came before; its other figures have a lower grade, or each would be a step.
        yield StepFact(samples_per_s=value, grade=1)
    elif name == "loss/train/total":
        yield StepFact(loss=value)
    elif name in _PEAKS:
        yield MemoryFact(peak_bytes=value * GB, kind=_PEAKS[name])
    elif name == "trainer/device_train_microbatch_size":
        yield ClaimFact(source="trainer", name="micro_batch", value=int(value))
