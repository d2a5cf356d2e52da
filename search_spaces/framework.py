"""What differs between trainers: which plans they can run, and how they hold and move state.

A profile never holds a speed of a device or a network.  Sources are the trainers' own documentation and
parsers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from search_spaces.errors import UnknownName
from search_spaces.plan import CpKind, RankOrder, Schedule
from search_spaces.state import MIXED_PRECISION_STATE, TrainingState

ALL_SCHEDULES = tuple(Schedule)
ALL_ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameworkProfile:
    """A trainer's abilities and habits.

    `zero_stages_with_pipeline` and `zero_stages_with_offload` are the ZeRO stages it runs beside pp > 1 and
    beside an offloaded optimizer.  `keeps_stage_input`: a stage's input travels and is kept split over tp,
    beside the first layer's own (DeepSpeed's pipeline engine).  `tp_overlap`, `cp_overlap` and `dp_overlap`
    are the shares of communication that can hide behind computation where it is overlapped; all three are
    assumed.
    """

    name: str
    source: str
    schedules: tuple[Schedule, ...] = ALL_SCHEDULES
    zero_stages: tuple[int, ...] = ALL_ZERO_STAGES
    zero_stages_with_pipeline: tuple[int, ...] = ALL_ZERO_STAGES
    zero_stages_with_offload: tuple[int, ...] = ALL_ZERO_STAGES
    cp_kinds: tuple[CpKind, ...] = tuple(CpKind)
    rank_orders: tuple[RankOrder, ...] = tuple(RankOrder)
    uneven_stages: bool = True
    recompute_every: bool = True
    expert_tensor_parallel: bool = True
    overlaps_tp: bool = True
    keeps_stage_input: bool = False
    dropout: bool = False
    tp_overlap: float = 0.8
    cp_overlap: float = 0.9
    dp_overlap: float = 0.9
    logits_bytes_per_entry: float = 6.0
    bucket_parameters: float = 40e6
    state: TrainingState = MIXED_PRECISION_STATE


FRAMEWORKS: Mapping[str, FrameworkProfile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            FrameworkProfile(
                name="any", source="every plan that the cost model knows, whichever trainer runs it"
            ),
            FrameworkProfile(
                name="megatron-lm",
                source="Megatron-LM core 0.19.2, megatron/training/arguments.py",
                schedules=(Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED),
                zero_stages_with_pipeline=(0, 1),
                zero_stages_with_offload=(1,),
            ),
            FrameworkProfile(
                name="deepspeed",
                source="DeepSpeed 0.19.8, runtime/config.py and runtime/pipe/engine.py",
                schedules=(Schedule.ONE_F_ONE_B,),
                zero_stages_with_pipeline=(0, 1),
                zero_stages_with_offload=(1, 2, 3),
                cp_kinds=(CpKind.ULYSSES,),
                rank_orders=(RankOrder.TP_CP_DP_PP,),
                uneven_stages=False,
                recompute_every=False,
                overlaps_tp=False,
                keeps_stage_input=True,
                bucket_parameters=500e6,
                state=TrainingState(gradient_bytes=2.0),
            ),
            FrameworkProfile(
                name="torchtitan",
                source="torchtitan 0.3.0, torchtitan/config and distributed/parallel_dims.py",
                schedules=(Schedule.GPIPE, Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED),
                recompute_every=False,
                expert_tensor_parallel=False,
                zero_stages=(0, 2, 3),
                zero_stages_with_pipeline=(0, 2, 3),
                zero_stages_with_offload=(),
                cp_kinds=(),
                rank_orders=(RankOrder.TP_CP_DP_PP,),
            ),
        )
    }
)


def framework_named(name: str) -> FrameworkProfile:
    """The profile of a trainer."""
    if name not in FRAMEWORKS:
        raise UnknownName("framework", name, FRAMEWORKS)
    return FRAMEWORKS[name]
