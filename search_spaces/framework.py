"""What differs between trainers: which plans they can run, and how they hold and move state.

A profile never holds a speed of a device or a network.  Sources: the trainers' documentation and parsers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from search_spaces.errors import UnknownName
from search_spaces.memory_habits import FRUGAL, MemoryHabits
from search_spaces.plan import CpKind, Dispatch, ExpertTokens, RankOrder, Recompute, Schedule
from search_spaces.state import MIXED_PRECISION_STATE, TrainingState

ALL_SCHEDULES = tuple(Schedule)
ALL_ZERO_STAGES = (0, 1, 2, 3)


class EndStages(StrEnum):
    """How many layers the first and the last pipeline stage may have."""

    EVEN = "even"  # as many as the others
    BALANCED = "balanced"  # dealt by compute, the output projection counted as layers
    LIGHTER = "lighter"  # fewer, by at most one chunk
    ANY = "any"


class ExpertTensor(StrEnum):
    """Into how many parts an expert's matrices may be split."""

    ANY = "any"
    TP_OR_WHOLE = "tp or whole"
    TP_WITHOUT_EP = "tp without ep, whole with it"


class ExpertRanks(StrEnum):
    """Over which ranks of a pipeline stage the experts may be spread."""

    ALL = "all"
    DP = "dp"
    SHARDED = "tp, cp and the replicas that shard gradients"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertAbilities:
    """Where and how a trainer lays experts.

    `in_pipeline`: beside pp > 1.  `split_beside_biases`: with etp > 1 where a linear layer has a bias.
    `own_replicas_in_any_order`: where the pipeline lies inside the replicas (rank_order=tp-cp-pp-dp), experts
    may have another number of them than the rest of the model.  `overlaps`: it can hide the exchange of
    tokens behind computation.  `deduplicates`: it can send a token once to a node; `copies_afterwards`:
    inside the node it is copied once all have come, not as they come.  `hierarchical`: one message to a node.
    `migrates`: experts change places while it trains.  `dispatches`: how it sends tokens where experts have
    a capacity; `tokens`: which ones its tensor-parallel ranks send.
    """

    in_pipeline: bool = True
    tensor: ExpertTensor = ExpertTensor.ANY
    ranks: ExpertRanks = ExpertRanks.ALL
    split_beside_biases: bool = True
    own_replicas_in_any_order: bool = True
    overlaps: bool = True
    deduplicates: bool = True
    copies_afterwards: bool = False
    hierarchical: bool = False
    migrates: bool = False
    dispatches: tuple[Dispatch, ...] = (Dispatch.PLAIN,)
    tokens: tuple[ExpertTokens, ...] = (ExpertTokens.SHARDED,)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateAbilities:
    """How a trainer runs the optimizer's step.

    `offload_bucket`: the parameters whose state visits the device at a time where the optimizer is offloaded;
    0: the host updates them.  `sets_offload_bucket`: it lets a user choose the size.  `coalesces`: gradients
    are reduced a few buckets at a time, and those that have arrived are updated; `always_coalesces` where the
    optimizer is offloaded.  `tiles`: it updates a few parameters at a time.  `offloads_in`: the precisions in
    which it offloads; none: in all.
    """

    offload_bucket: int = 0
    sets_offload_bucket: bool = False
    coalesces: bool = False
    always_coalesces: bool = False
    offloads_in: tuple[str, ...] = ()
    tiles: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameworkProfile:
    """A trainer's abilities and habits.

    `zero_stages_with_pipeline`, `zero_stages_with_offload` and `zero_stages_with_overlap` are the ZeRO stages
    that it runs beside pp > 1, an offloaded optimizer, and overlapped gradients;
    `zero_stages_with_overlapped_offload` those beside which it updates an offloaded optimizer while passes
    run.  `always_overlaps_dp`: it cannot leave gradients unoverlapped.  `cp_alone`: it splits sequences only
    without a pipeline and without sequence parallelism.  `waits_from_pp`: the shortest interleaved pipeline
    whose transfers it can leave unoverlapped.  `ties_over_stages`: tied embeddings may lie on two stages.
    `keeps_stage_input`: a stage's input travels and is kept split over tp, beside the first layer's own
    (DeepSpeed's pipeline engine).  `splits_messages`: each tensor-parallel rank sends its part of a message
    between stages, and the receivers gather them (Megatron-LM's scatter/gather).
    `state_in_fp16`: its state where it trains in fp16, if another (Megatron-LM sums gradients in fp32 for
    bf16 alone, unless told).
    `recompute_modules`: it redoes modules by name; `recompute_stages`: on some pipeline stages only.
    `fills_pipeline`: 1f1b needs pp - 1 micro-batches.
    `post_validates_in`: precisions in which its stages update before they agree, and take a bad step back.
    `warms_up_longer`: the warm-up of its 1f1b can be lengthened.  `overlaps_tp_beside_split`: also where the
    schedule splits the backward pass.  `splits_layers`: it has tensor parallelism.
    `shards_by_layer`: from ZeRO stage 2 on each layer's gradients and weights travel by themselves, weights
    also before every forward pass (FSDP2; in a pipeline all once a step).  `recomputes`: what it
    can redo.  `zero_stages_with_recompute`: the ZeRO stages beside which it redoes blocks.  `keeps_received`:
    it can keep what collectives brought, so that it redoes only computation.  `zero_plus`: it sends what
    ZeRO-3 moves in fewer bits, and keeps weights a second time nearby.  `chunks_sequences`: a sequence can
    pass a layer in chunks.  `offloads_checkpoints`: inputs of redone layers can wait on the host.
    """

    name: str
    source: str
    schedules: tuple[Schedule, ...] = ALL_SCHEDULES
    zero_stages: tuple[int, ...] = ALL_ZERO_STAGES
    zero_stages_with_pipeline: tuple[int, ...] = ALL_ZERO_STAGES
    zero_stages_with_offload: tuple[int, ...] = ALL_ZERO_STAGES
    zero_stages_with_overlap: tuple[int, ...] = ALL_ZERO_STAGES
    zero_stages_with_overlapped_offload: tuple[int, ...] = ()
    always_overlaps_dp: bool = False
    cp_kinds: tuple[CpKind, ...] = tuple(CpKind)
    cp_alone: bool = False
    rank_orders: tuple[RankOrder, ...] = tuple(RankOrder)
    end_stages: EndStages = EndStages.ANY
    waits_from_pp: int = 2
    ties_over_stages: bool = True
    recompute_every: bool = True
    recompute_modules: bool = True
    recompute_stages: bool = False
    experts: ExpertAbilities = ExpertAbilities()
    overlaps_tp: bool = True
    keeps_stage_input: bool = False
    fills_pipeline: bool = False
    post_validates_in: tuple[str, ...] = ()
    warms_up_longer: bool = False
    overlaps_tp_beside_split: bool = True
    splits_layers: bool = True
    recomputes: tuple[Recompute, ...] = tuple(Recompute)
    zero_stages_with_recompute: tuple[int, ...] = ALL_ZERO_STAGES
    zero_plus: bool = False
    chunks_sequences: bool = False
    offloads_checkpoints: bool = False
    splits_messages: bool = False
    shards_by_layer: bool = False
    dropout: bool = False
    logits_bytes_per_entry: float = 6.0
    bucket_parameters: float = 40e6
    update: UpdateAbilities = UpdateAbilities()
    keeps_received: bool = False
    memory: MemoryHabits = FRUGAL
    state: TrainingState = MIXED_PRECISION_STATE
    state_in_fp16: TrainingState | None = None


MEGATRON_LM = FrameworkProfile(
    name="megatron-lm",
    source="Megatron-LM core 0.19.2, megatron/training/arguments.py",
    schedules=(Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED),
    zero_stages_with_pipeline=(0, 1),
    zero_stages_with_offload=(1,),
    waits_from_pp=3,
    logits_bytes_per_entry=4.0,  # fused cross entropy: 16-bit logits and their gradient
    # Transformer Engine caches a 16-bit gradient of every weight's shape beside the fp32 ones it adds into.
    memory=MemoryHabits(layer_gradient_bytes=2.0, keeps_cast_operands=True),
    splits_messages=True,
    state_in_fp16=TrainingState(gradient_bytes=2.0),
    experts=ExpertAbilities(
        split_beside_biases=False,
        own_replicas_in_any_order=False,
        dispatches=(Dispatch.PLAIN, Dispatch.PADDING_FREE),  # combined in 16 bits, padded or not
    ),
)
MEGATRON_DEEPSPEED = FrameworkProfile(
    name="megatron-deepspeed",
    source="Megatron-DeepSpeed of 2022: Megatron-LM's layers in DeepSpeed's pipeline engine",
    schedules=(Schedule.ONE_F_ONE_B,),
    zero_stages_with_pipeline=(0, 1),
    cp_kinds=(),
    rank_orders=(RankOrder.TP_CP_DP_PP,),
    end_stages=EndStages.EVEN,
    overlaps_tp=False,
    recompute_modules=False,
    offloads_checkpoints=True,
    keeps_stage_input=True,
    splits_messages=True,
    dropout=True,
    bucket_parameters=500e6,  # DeepSpeed's reduce_bucket_size
    memory=MemoryHabits(fixed_bucket=True),
    state=TrainingState(gradient_bytes=2.0),
)
FRAMEWORKS: Mapping[str, FrameworkProfile] = MappingProxyType(
    {
        profile.name: profile
        for profile in (
            FrameworkProfile(
                name="any",
                source="every plan that the cost model knows, whichever trainer runs it",
                experts=ExpertAbilities(
                    hierarchical=True,
                    migrates=True,
                    dispatches=tuple(Dispatch),
                    tokens=tuple(ExpertTokens),
                ),
                recompute_stages=True,
                zero_stages_with_overlapped_offload=ALL_ZERO_STAGES,
                post_validates_in=("bf16", "fp16", "fp8", "mxfp8", "nvfp4", "fp32"),
                warms_up_longer=True,
                zero_plus=True,
                chunks_sequences=True,
                offloads_checkpoints=True,
                update=UpdateAbilities(sets_offload_bucket=True, coalesces=True),
                keeps_received=True,
            ),
            MEGATRON_LM,
            FrameworkProfile(
                name="deepspeed",
                source="DeepSpeed 0.19.8, runtime/config.py and runtime/pipe/engine.py",
                schedules=(Schedule.ONE_F_ONE_B,),
                zero_stages_with_pipeline=(0, 1),
                zero_stages_with_offload=(1, 2, 3),
                zero_stages_with_overlap=(1, 2, 3),
                zero_stages_with_overlapped_offload=(3,),  # super_offload: zero/superoffload_stage3.py
                cp_kinds=(CpKind.ULYSSES,),
                cp_alone=True,
                rank_orders=(RankOrder.TP_CP_DP_PP,),
                end_stages=EndStages.EVEN,
                recompute_every=False,
                recompute_modules=False,
                experts=ExpertAbilities(
                    in_pipeline=False,
                    tensor=ExpertTensor.TP_OR_WHOLE,
                    ranks=ExpertRanks.DP,
                    overlaps=False,
                    deduplicates=False,
                    dispatches=(Dispatch.EINSUM, Dispatch.PADDED),
                    tokens=(ExpertTokens.SHARDED, ExpertTokens.DROPPED),
                ),
                overlaps_tp=False,
                zero_plus=True,
                chunks_sequences=True,  # deepspeed/sequence/fpdt_layer.py
                offloads_checkpoints=True,  # --checkpoint-in-cpu
                keeps_stage_input=True,
                splits_messages=True,
                bucket_parameters=500e6,  # reduce_bucket_size
                # runtime/zero/stage_1_and_2.py and stage3.py: zero_grad(set_to_none=True)
                memory=MemoryHabits(fixed_bucket=True, gradients_on_demand=True),
                state=TrainingState(gradient_bytes=2.0),
            ),
            FrameworkProfile(
                name="x-moe",
                source="X-MoE (2025), arXiv:2508.13337: a fork of Megatron-DeepSpeed; --use-pft, --use-rbd; "
                "no pipeline",
                schedules=(Schedule.ONE_F_ONE_B,),
                zero_stages=(0, 1, 2),
                zero_stages_with_pipeline=(),
                zero_stages_with_offload=(1, 2),
                zero_stages_with_overlap=(1, 2),
                cp_kinds=(),
                rank_orders=(RankOrder.TP_CP_DP_PP,),
                end_stages=EndStages.EVEN,
                recompute_every=False,
                recompute_modules=False,
                experts=ExpertAbilities(
                    in_pipeline=False,
                    tensor=ExpertTensor.TP_OR_WHOLE,
                    overlaps=False,
                    copies_afterwards=True,
                    dispatches=(Dispatch.EINSUM, Dispatch.PADDED, Dispatch.PADDING_FREE),
                    tokens=tuple(ExpertTokens),
                ),
                overlaps_tp=False,
                bucket_parameters=500e6,  # DeepSpeed's reduce_bucket_size
                memory=MemoryHabits(fixed_bucket=True),
                state=TrainingState(gradient_bytes=2.0),
            ),
            FrameworkProfile(
                name="torchtitan",
                source="torchtitan 0.3.0, torchtitan/config and distributed/parallel_dims.py",
                # Five by name; ZB-H1, ZB-H2, V-Half, V-Min and a longer warm-up as a file of passes.
                schedules=tuple(
                    schedule
                    for schedule in Schedule
                    if schedule not in (Schedule.DUALPIPE, Schedule.MESSAGE_DRIVEN)
                ),
                warms_up_longer=True,
                overlaps_tp_beside_split=False,  # torch.compile, which overlaps, refuses the split
                waits_from_pp=10_000,  # transfers between chunks never wait
                recompute_every=False,
                recompute_modules=False,
                end_stages=EndStages.LIGHTER,
                ties_over_stages=False,
                experts=ExpertAbilities(
                    tensor=ExpertTensor.TP_WITHOUT_EP,
                    ranks=ExpertRanks.SHARDED,
                    overlaps=False,
                    deduplicates=False,
                ),
                zero_stages=(0, 2, 3),
                zero_stages_with_pipeline=(0, 2, 3),
                always_overlaps_dp=True,
                zero_stages_with_offload=(),
                cp_kinds=(CpKind.ALL_GATHER,),
                rank_orders=(RankOrder.TP_CP_DP_PP,),
            ),
            replace(
                MEGATRON_LM,
                name="nemo",
                source="NVIDIA NeMo and Megatron-Bridge, which train through Megatron-LM core; their recipes "
                "reduce gradients in 16 bits (grad_reduce_in_fp32 = false)",
                state=TrainingState(gradient_bytes=2.0),
            ),
            replace(
                MEGATRON_LM,
                name="zero-bubble",
                source="github.com/sail-sg/zero-bubble-pipeline-parallelism, a fork of Megatron-LM, README: "
                "--zero-bubble-max-pending-backward p (ZB-H1) or 2 p (ZB-H2), --zero-bubble-v-schedule with "
                "--zero-bubble-v-schedule-mem-setup zb, half or min; in fp16 "
                "--enable-optimizer-post-validation",
                schedules=(
                    Schedule.ONE_F_ONE_B,
                    Schedule.INTERLEAVED,
                    Schedule.ZB_H1,
                    Schedule.ZB_H2,
                    Schedule.ZB_V,
                    Schedule.V_HALF,
                    Schedule.V_MIN,
                ),
                post_validates_in=("fp16",),
                zero_stages_with_overlap=(),  # asserted off beside its schedules
            ),
            FrameworkProfile(
                name="axonn",
                source="Singh and Bhatele (2021), arXiv:2110.13005; github.com/axonn-ai/axonn, run_batch",
                schedules=(Schedule.MESSAGE_DRIVEN,),
                splits_layers=False,
                rank_orders=(RankOrder.TP_CP_PP_DP,),
                zero_stages_with_overlap=(),
                recomputes=(Recompute.NONE, Recompute.FULL),
                end_stages=EndStages.EVEN,
                zero_stages=(0,),
                zero_stages_with_pipeline=(0,),
                zero_stages_with_offload=(0,),
                cp_kinds=(),
                recompute_every=False,
                recompute_modules=False,
                overlaps_tp=False,
                experts=ExpertAbilities(
                    in_pipeline=False, ranks=ExpertRanks.DP, overlaps=False, deduplicates=False
                ),
                # CPUAdam of axonn/optim.py: bucket_size and coalescing_factor.
                update=UpdateAbilities(
                    offload_bucket=16_000_000,
                    sets_offload_bucket=True,
                    coalesces=True,
                    always_coalesces=True,
                    offloads_in=("fp16",),
                ),
                # fp32 gradients lie beside the 16-bit ones: model_grads_fp32 of axonn/axonn.py.
                state=TrainingState(gradient_bytes=2.0, update_gradient_bytes=4.0),
            ),
            FrameworkProfile(
                name="deepspeed-ted",
                source="Singh et al. (2023), arXiv:2303.06318: Megatron-LM's tensor parallelism, "
                "DeepSpeed-MoE's experts, ZeRO-1; groups and dropped tokens: DeepSpeed, utils/groups.py and "
                "moe/mappings.py",
                zero_stages=(1,),
                zero_stages_with_pipeline=(),
                zero_stages_with_offload=(),
                zero_stages_with_overlap=(1,),
                cp_kinds=(),
                rank_orders=(RankOrder.TP_CP_DP_PP,),
                recompute_every=False,
                recompute_modules=False,
                recomputes=(Recompute.NONE, Recompute.FULL),
                experts=ExpertAbilities(
                    in_pipeline=False,
                    tensor=ExpertTensor.TP_OR_WHOLE,
                    ranks=ExpertRanks.DP,
                    overlaps=False,
                    deduplicates=False,
                    dispatches=(Dispatch.PLAIN, Dispatch.EINSUM, Dispatch.PADDED),
                    tokens=tuple(ExpertTokens),
                ),
                overlaps_tp=False,
                bucket_parameters=500e6,  # DeepSpeed's reduce_bucket_size
                update=UpdateAbilities(tiles=True),
                keeps_received=True,
                # The update reads its share of the gradients in fp32.
                memory=MemoryHabits(step_bytes=4.0),
                state=TrainingState(gradient_bytes=2.0),
            ),
            MEGATRON_DEEPSPEED,
            replace(
                MEGATRON_DEEPSPEED,
                name="megatron-deepspeed-zb",
                source="github.com/deepspeedai/Megatron-DeepSpeed of today: ZB-H1 beside 1F1B "
                "(--enable-zbh1-pipeline), no dropout",
                schedules=(Schedule.ONE_F_ONE_B, Schedule.ZB_H1),
                dropout=False,
            ),
            FrameworkProfile(
                name="nanotron",
                source="huggingface/nanotron, parallel, models/llama.py, optim/gradient_accumulator.py",
                schedules=(Schedule.GPIPE, Schedule.ONE_F_ONE_B),
                zero_stages=(0, 1),
                zero_stages_with_pipeline=(0, 1),
                zero_stages_with_offload=(),
                # DistributedDataParallel; with a sharded optimizer it goes without
                zero_stages_with_overlap=(0,),
                cp_kinds=(),
                rank_orders=(RankOrder.TP_CP_DP_PP,),
                end_stages=EndStages.BALANCED,
                bucket_parameters=12.5e6,  # DistributedDataParallel: 25 MB of bf16
                recompute_every=False,
                recompute_modules=False,
                fills_pipeline=True,  # asserted in parallel/pipeline_parallel/engine.py
                logits_bytes_per_entry=12.0,  # fp32 logits, their softmax, its gradient in 16 bits and more
                # kept_share: fitted to published peaks of first stages (benchmarks/data).  Whole: what column
                # and row products gather and keep (MemoryBuffer), and what a reduce-scatter reads.
                memory=MemoryHabits(
                    keeps_gate=True, kept_share=1.2, whole_sequences=3.0, passing_gradient_bytes=2.0
                ),
            ),
            FrameworkProfile(
                name="fsdp",
                source="PyTorch FSDP as llm-foundry and Composer drive it: no tensor or pipeline parallelism",
                schedules=(Schedule.ONE_F_ONE_B,),
                zero_stages=(2, 3),
                zero_stages_with_pipeline=(),
                zero_stages_with_offload=(2, 3),
                cp_kinds=(),
                recompute_every=False,
                recompute_modules=False,
                overlaps_tp=False,
            ),
            FrameworkProfile(
                name="llm-foundry",
                source="llm-foundry 0.22 on Composer 0.32: DistributedDataParallel or FSDP, and nothing else",
                schedules=(Schedule.ONE_F_ONE_B,),
                splits_layers=False,
                zero_stages=(0, 2, 3),
                zero_stages_with_pipeline=(),
                always_overlaps_dp=True,
                zero_stages_with_offload=(),
                cp_kinds=(),
                rank_orders=(RankOrder.TP_CP_DP_PP,),
                recompute_every=False,
                recompute_modules=False,
                recomputes=(Recompute.NONE, Recompute.FULL),
                zero_stages_with_recompute=(2, 3),
                overlaps_tp=False,
                experts=ExpertAbilities(overlaps=False, deduplicates=False),
            ),
            FrameworkProfile(
                name="meshtune",
                source="the built-in trainer, runners/torch_trial/supported.py, on torch 2.13.0",
                # DualPipe holds the model twice, which torch's pipelines do not.
                schedules=tuple(schedule for schedule in Schedule if schedule is not Schedule.DUALPIPE),
                # From zero=2 on FSDP decides when it reduces; with zero=3 it splits no backward pass rightly.
                zero_stages_with_pipeline=(0, 1, 2),
                zero_stages_with_overlap=(0,),
                zero_stages_with_offload=(),
                waits_from_pp=10_000,  # transfers between chunks never wait
                experts=ExpertAbilities(overlaps=False, deduplicates=False),
                overlaps_tp=False,
                warms_up_longer=True,
                shards_by_layer=True,
                bucket_parameters=12.5e6,  # DistributedDataParallel: 25 MB of bf16
                logits_bytes_per_entry=12.0,  # 16-bit logits, their fp32 copy and its softmax, a gradient
                state=TrainingState(gradient_bytes=2.0),
            ),
            FrameworkProfile(
                name="internevo",
                recompute_modules=False,
                source="github.com/InternLM/InternEvo, doc/en/train_performance.md and "
                "internlm/solver/optimizer/hybrid_zero_optim.py",
                # The update flattens the gradients into fp32 and unscales them there.
                memory=MemoryHabits(step_bytes=8.0),
                schedules=(Schedule.ONE_F_ONE_B, Schedule.INTERLEAVED, Schedule.ZB_H1),
                zero_stages=(0, 1),
                zero_stages_with_pipeline=(0, 1),
                zero_stages_with_offload=(),
            ),
        )
    }
)


def framework_named(name: str) -> FrameworkProfile:
    """The profile of a trainer."""
    if name not in FRAMEWORKS:
        raise UnknownName("framework", name, FRAMEWORKS)
    return FRAMEWORKS[name]
