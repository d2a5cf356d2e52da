"""What differs between trainers: which plans they can run, and how they hold and move state.

A profile never holds a speed of a device or a network.  Sources are the trainers' own documentation and parsers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from search_spaces.errors import UnknownName
from search_spaces.plan import Schedule

ALL_SCHEDULES = tuple(Schedule)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameworkProfile:
    """A trainer's abilities and habits.

    `max_zero_with_pipeline` is the highest ZeRO stage beside pp > 1.  `keeps_stage_input`: a stage keeps its
    received input, split over tp, beside the first layer's (DeepSpeed's pipeline engine).  `tp_overlap`, `cp_overlap`
    and `dp_overlap` are the shares of communication that can hide behind computation where it is overlapped; all
    three are assumed.
    """

    name: str
    source: str
    schedules: tuple[Schedule, ...] = ALL_SCHEDULES
    max_zero: int = 3
    max_zero_with_pipeline: int = 3
    uneven_stages: bool = True
    recompute_every: bool = True
    context_parallel: bool = True
    expert_tensor_parallel: bool = True
    offload_optimizer: bool = True
    keeps_stage_input: bool = False
    dropout: bool = False
    tp_overlap: float = 0.8
    cp_overlap: float = 0.9
    dp_overlap: float = 0.9
    logits_bytes_per_entry: float = 6.0
    bucket_parameters: float = 40e6


FRAMEWORKS: Mapping[str, FrameworkProfile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            FrameworkProfile(name="any", source="every plan that the cost model knows, whichever trainer runs it"),
            FrameworkProfile(
                name="megatron-lm",
                source="Megatron-LM core 0.19.2, megatron/training/arguments.py",
                schedules=(Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED),
                max_zero_with_pipeline=1,
            ),
            FrameworkProfile(
                name="deepspeed",
                source="DeepSpeed 0.19.8, runtime/config.py and runtime/pipe/engine.py",
                schedules=(Schedule.ONE_F_ONE_B,),
                max_zero_with_pipeline=1,
                uneven_stages=False,
                keeps_stage_input=True,
                bucket_parameters=500e6,
            ),
            FrameworkProfile(
                name="torchtitan",
                source="torchtitan 0.3.0, torchtitan/config and distributed/parallel_dims.py",
                schedules=(Schedule.GPIPE, Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED),
                recompute_every=False,
                expert_tensor_parallel=False,
                offload_optimizer=False,
            ),
        )
    }
)


def framework_named(name: str) -> FrameworkProfile:
    """The profile of a trainer."""
    if name not in FRAMEWORKS:
        raise UnknownName("framework", name, FRAMEWORKS)
    return FRAMEWORKS[name]
