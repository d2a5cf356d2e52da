"""Lines of Megatron-LM and of Megatron-DeepSpeed.

Megatron-LM 0.19.2: megatron/training/training.py, `training_log` (printed by the last rank) and
`evaluate_and_print_results`; megatron/training/utils/common_utils.py, `report_memory` (one rank of each data
parallel group); megatron/training/checkpointing.py, `save_checkpoint`; megatron/training/arguments.py,
`_print_args`.  Its TFLOP/s are model FLOPs: `num_floating_point_operations` counts one forward and two
backward passes, no recomputation, causal attention at half.

Megatron-DeepSpeed: megatron/training.py, `training_log`; megatron/utils.py, `throughput_calculator`, whose
factor is 4 passes instead of 3 where activations are recomputed: hardware FLOPs.  The line's "skipped
iterations" stay 0 when DeepSpeed's engine skips a step; the engine's own lines tell, so they are read too.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise

from runners.logs.deepspeed import engine_facts
from runners.logs.facts import (
    ClaimFact,
    Convention,
    Disturbance,
    DisturbanceFact,
    Fact,
    MemoryFact,
    StepFact,
    number,
)
from search_spaces.units import MIB

_STEP = re.compile(r"\biteration +(?P<step>\d+)/ *\d+ \|")
_WORDS = {
    "step_ms": "elapsed time per iteration (ms)",
    "tflops_per_device": "throughput per GPU (TFLOP/s/GPU)",
    "hardware_tflops_per_device": "TFLOPs",
    "samples_per_s": "samples per second",
    "tokens_per_s_per_device": "tokens per gpu per second (tgs)",
    "energy_j_per_device": "energy per GPU (J/iter/GPU)",
    "loss": "lm loss",
    "n_skipped": "number of skipped iterations",
    "n_nan": "number of nan iterations",
    "global_batch": "global batch size",
    "seq_len": "actual seqlen",
}

_MEMORY = re.compile(
    r"\[Rank (?P<rank>\d+)\] .*memory \(MB\) \| allocated: [\d.]+ \| max allocated: (?P<allocated>[\d.]+)"
    r" \| reserved: [\d.]+ \| max reserved: (?P<reserved>[\d.]+)"
)
_VALIDATION = re.compile(r"(?:validation loss at |Evaluating on \d+ samples|Evaluating iter \d+/\d+)")
_CHECKPOINT = "saving checkpoint at iteration "
# `_print_args`: two blanks, the name, dots up to column 48, the value.
_ARGUMENT = re.compile(
    r"\s*(?P<name>micro_batch_size|global_batch_size|seq_length|data_parallel_size|world_size"
    r"|tensor_model_parallel_size|pipeline_model_parallel_size) \.{3,} (?P<value>\d+)\s*$"
)
_NAMES = {
    "micro_batch_size": "micro_batch",
    "global_batch_size": "global_batch",
    "seq_length": "seq_len",
    "data_parallel_size": "dp",
    "world_size": "devices",
    "tensor_model_parallel_size": "tp",
    "pipeline_model_parallel_size": "pp",
}
# `validate_args`, the run's first line; both programs name what lies between in their own ways.
_SIZES = re.compile(
    r"using world size: (?P<devices>\d+), .*tensor-model-parallel size: (?P<tp>\d+),"
    r" pipeline-model-parallel size: (?P<pp>\d+)"
)


class MegatronLMLog:
    """The reader `megatron-lm`."""

    name = "megatron-lm"
    convention: Convention | None = Convention.MFU

    def read(self, text: str) -> Iterable[Fact]:
        """Facts of one line."""
        return _facts(text)


class MegatronDeepSpeedLog:
    """The reader `megatron-deepspeed`."""

    name = "megatron-deepspeed"
    convention: Convention | None = Convention.HFU

    def read(self, text: str) -> Iterable[Fact]:
        """Facts of one line: Megatron's own, and all of the engine's but its step lines."""
        yield from _facts(text)
        yield from (fact for fact in engine_facts(text) if not isinstance(fact, StepFact))


def _facts(text: str) -> Iterator[Fact]:
    if "elapsed time per iteration" in text:
        for part in _split(text):
            yield from _step(part)
    elif " memory (MB) | " in text and (match := _MEMORY.search(text)):
        # What the device really gave away: the allocator's cache is not free for others.
        yield MemoryFact(peak_bytes=float(match["reserved"]) * MIB, kind="reserved", rank=int(match["rank"]))
    elif claims := _claims(text):
        yield from (ClaimFact(source="launcher", name=name, value=int(value)) for name, value in claims)
    elif _VALIDATION.match(text.lstrip()):
        yield DisturbanceFact(kind=Disturbance.VALIDATION)
    elif _CHECKPOINT in text:
        yield DisturbanceFact(kind=Disturbance.CHECKPOINT)


def _claims(text: str) -> list[tuple[str, str]]:
    """What a line says was run."""
    if " ..." in text and (match := _ARGUMENT.match(text)):
        return [(_NAMES[match["name"]], match["value"])]
    if text.startswith("using world size: ") and (match := _SIZES.match(text)):
        return list(match.groupdict().items())
    return []


def _split(text: str) -> list[str]:
    """The step lines in a line: two ranks that write at once may leave no line end between them."""
    starts = [match.start() for match in _STEP.finditer(text)]
    return [text[start:end] for start, end in pairwise([*starts, len(text)])]


def _step(text: str) -> Iterator[Fact]:
    head, _, rest = text.partition("|")
    match = _STEP.match(head + "|")
    # What is not followed by a bar was cut off by another rank.
    pairs = (part.rpartition(": ") for part in rest.split(" |")[:-1])
    items = {name.strip(" |"): value.strip() for name, _, value in pairs}
    values = {name: number(items.get(words)) for name, words in _WORDS.items()}
    if match is None or values["step_ms"] is None:
        return
    yield StepFact(
        step=int(match["step"]),
        step_s=values["step_ms"] / 1000,
        samples_per_s=values["samples_per_s"],
        tokens_per_s_per_device=values["tokens_per_s_per_device"],
        tflops_per_device=values["tflops_per_device"],
        hardware_tflops_per_device=values["hardware_tflops_per_device"],
        energy_j_per_device=values["energy_j_per_device"],
        loss=values["loss"],
        n_skipped=int(values["n_skipped"] or 0),
        n_nan=int(values["n_nan"] or 0),
    )
    for name in ("global_batch", "seq_len"):
        if (value := values[name]) is not None:
            yield ClaimFact(source="step line", name=name, value=int(value))
