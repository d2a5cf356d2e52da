"""torchtitan 0.3.0: a plan as arguments of `torchtitan.train`, and a config function where it lacks one.

A schedule that it does not know by name goes with the plan as a file of passes; the name beside it then says
how chunks lie on ranks: one each, or two in a V.

Source: torchtitan/config/configs.py, distributed/parallel_dims.py, distributed/pipeline_parallel.py;
torch/distributed/pipelining/schedules.py.
"""

from typing import Literal

from objectives.cost.pipeline import warmups_beyond
from objectives.metrics import Job
from objectives.simulator.schedules import program
from objectives.simulator.schedules.csv_file import csv_of
from runners.launchers.base import (
    Arguments,
    Launch,
    Options,
    expert_exchange,
    expert_lacks,
    flag,
    n_microbatches,
    offload_lacks,
    order_lacks,
    pipeline_lacks,
    precision_lacks,
    sent_tokens,
    stage_layers,
    update_lacks,
    waiting_lacks,
    zero_plus_lacks,
)
from runners.launchers.torchtitan_model import CONFIG_FILE, config_module, config_name, model_lacks
from search_spaces.model import ModelSpec
from search_spaces.plan import (
    NO_MODULES,
    SPLIT_BACKWARD,
    V_SHAPED,
    CpKind,
    Plan,
    RankOrder,
    Recompute,
    Schedule,
)
from search_spaces.workload import Precision

SCHEDULES = {
    Schedule.GPIPE: "GPipe",
    Schedule.ONE_F_ONE_B: "1F1B",
    Schedule.INTERLEAVED: "Interleaved1F1B",
    Schedule.ZB_V: "ZBVZeroBubble",
    Schedule.DUALPIPE_V: "DualPipeV",
}
# Orders that it reads from a file, by the schedule that lays chunks as they do.
LAID_AS = {
    Schedule.ONE_F_ONE_B: "1F1B",
    Schedule.ZB_H1: "1F1B",
    Schedule.ZB_H2: "1F1B",
    Schedule.V_HALF: "ZBVZeroBubble",
    Schedule.V_MIN: "ZBVZeroBubble",
}
SCHEDULE_FILE = "schedule.csv"
SCHEDULE_ARGUMENT = f'--parallelism.pipeline_parallel_schedule_csv "$HERE/{SCHEDULE_FILE}"'
PRECISION = {Precision.BF16: "bfloat16", Precision.FP32: "float32"}
RESHARD = {2: "never", 3: "always"}


class Torchtitan:
    """The launcher `torchtitan`."""

    name: Literal["torchtitan"] = "torchtitan"

    def lacks(self, job: Job, plan: Plan) -> list[str]:
        """What torchtitan cannot express."""
        return [
            *model_lacks(job, plan),
            *expert_lacks(job.model, plan),
            *pipeline_lacks(job, plan),
            *order_lacks(plan, "torchtitan", longer_warmup=True),
            *zero_plus_lacks(plan, "torchtitan"),
            *offload_lacks(plan, "torchtitan"),
            *waiting_lacks(plan, "torchtitan"),
            *update_lacks(plan, "torchtitan"),
            *sent_tokens(plan, "torchtitan"),
            *_schedule_lacks(job.model, plan),
            *_sharding_lacks(plan),
            *_group_lacks(job.model, plan),
            *_step_lacks(job, plan),
        ]

    def launch(self, job: Job, plan: Plan, options: Options) -> Launch:
        """Arguments of `torchtitan.train`, and a module that describes a model it does not know."""
        module, function = config_name(job.model)
        files = {CONFIG_FILE: config_module(job), SCHEDULE_FILE: schedule_file(job, plan)}
        arguments = [
            flag("--module", module),
            flag("--config", function),
            *_batch(job, plan),
            *_mesh(plan),
            *_pipeline(job.model, plan),
            *_run(plan, options),
            (f"activation_checkpoint:{plan.recompute}",),  # a subcommand, after everything else
        ]
        return Launch(
            program="-m torchtitan.train",
            arguments=arguments,
            environment={"PYTORCH_ALLOC_CONF": "expandable_segments:True"},
            fixed_arguments=SCHEDULE_ARGUMENT if files[SCHEDULE_FILE] else "",
            files={name: text for name, text in files.items() if text},
            fill_in=_fill_in(options),
            notes=_notes(plan),
        )


def schedule_file(job: Job, plan: Plan) -> str | None:
    """The passes of every rank, where torchtitan has no name for their order.

    Source
    ------
    torch.distributed.pipelining.schedules, `_PipelineScheduleRuntime._load_csv`, format compute_only.
    """
    if plan.pp == 1 or (plan.schedule in SCHEDULES and not plan.extra_warmup):
        return None
    m, beyond = n_microbatches(job, plan), warmups_beyond(plan)
    return csv_of(program(plan.schedule, plan.pp, m, plan.vpp, extra_warmup=beyond))


def _schedule_lacks(model: ModelSpec, plan: Plan) -> list[str]:
    found = []
    if plan.schedule not in SCHEDULES and plan.schedule not in LAID_AS:
        found.append(f"schedule={plan.schedule}: torchtitan has neither the schedule nor a file for its kind")
    if plan.vpp > 1 and not plan.overlap_pp:
        found.append("overlap_pp=false: torchtitan's pipeline posts transfers between chunks asynchronously")
    if plan.schedule in V_SHAPED and (plan.first_layers or plan.last_layers):
        knobs = f"first_layers={plan.first_layers} last_layers={plan.last_layers}"
        found.append(f"{knobs}: both ends of a V lie on its first rank")
    if plan.pp == 1 or pipeline_sizes(model, plan) is None:
        return found
    middle, first, last = pipeline_sizes(model, plan) or (0, 0, 0)
    for knob, size in (("first_layers", first), ("last_layers", last)):
        if not 0 <= middle - size <= middle // plan.vpp:
            found.append(
                f"{knob}={size}: torchtitan can only take layers off that stage's one chunk of "
                f"{middle // plan.vpp}"
            )
    return found


def pipeline_sizes(model: ModelSpec, plan: Plan) -> tuple[int, int, int] | None:
    """Layers of a middle, the first and the last stage; None where they do not divide."""
    try:
        sizes = stage_layers(model.n_layers, plan)
    except ValueError:
        return None
    middle = sizes[1] if plan.pp > 2 else max(sizes)
    return middle, sizes[0], sizes[-1]


def _sharding_lacks(plan: Plan) -> list[str]:
    found = []
    if plan.zero == 1 and plan.dp > 1:
        found.append(
            "zero=1: torchtitan replicates (zero=0) or shards gradients and weights too (zero=2 or 3)"
        )
    if plan.cp > 1 and plan.cp_kind is not CpKind.ALL_GATHER:
        found.append(
            f"cp_kind={plan.cp_kind}: torchtitan gathers keys and values; it has neither ring nor Ulysses"
        )
    if plan.offload_optimizer:
        found.append(
            "offload_optimizer=true: torchtitan offloads weights, gradients and optimizer only together"
        )
    return found


def _group_lacks(model: ModelSpec, plan: Plan) -> list[str]:
    found = []
    if plan.rank_order is not RankOrder.TP_CP_DP_PP:
        found.append(f"rank_order={plan.rank_order}: torchtitan's mesh is tp-cp-dp-pp")
    if model.moe is None:
        return found
    if plan.etp != (1 if plan.ep > 1 else plan.tp):
        found.append(
            f"etp={plan.etp}: torchtitan splits experts by tp={plan.tp} without ep, and not at all with it"
        )
    inner = plan.tp * plan.cp * _shards(plan)
    if inner % plan.ep:
        found.append(
            f"ep={plan.ep}: torchtitan's expert groups lie inside tp, cp and the sharded replicas, {inner}"
        )
    return found


def _step_lacks(job: Job, plan: Plan) -> list[str]:
    found = []
    if plan.recompute_modules is not NO_MODULES:
        found.append(f"recompute_modules={plan.recompute_modules}: torchtitan redoes operations, not modules")
    if plan.recompute is Recompute.FULL and plan.recompute_every > 1:
        found.append(f"recompute_every={plan.recompute_every}: torchtitan recomputes every layer or none")
    found += precision_lacks(job, "torchtitan, as Meshtune writes it,", PRECISION)
    if asked := expert_exchange(plan):
        found.append(f"{asked}: Meshtune writes torchtitan's plain exchange of tokens only")
    if plan.overlap_tp and plan.tp == 1:
        found.append("overlap_tp=true: there is nothing to overlap with tp=1")
    if plan.overlap_tp and plan.schedule in SPLIT_BACKWARD:
        found.append("overlap_tp=true: torch.compile, which overlaps, refuses to split the backward pass")
    return found


def _shards(plan: Plan) -> int:
    return 1 if plan.zero == 0 else plan.dp


def _batch(job: Job, plan: Plan) -> Arguments:
    n_micro = n_microbatches(job, plan)
    # With a pipeline one local batch holds all its micro-batches; without one, gradients are accumulated.
    local = plan.micro_batch * (n_micro if plan.pp > 1 else 1)
    return [
        flag("--training.local_batch_size", local),
        flag("--training.global_batch_size", plan.micro_batch * n_micro * plan.dp),
        flag("--training.seq_len", job.workload.seq_len),
        flag("--training.mixed_precision_param", PRECISION[job.workload.precision]),
    ]


def _mesh(plan: Plan) -> Arguments:
    found = [
        flag("--parallelism.data_parallel_replicate_degree", plan.dp // _shards(plan)),
        flag("--parallelism.data_parallel_shard_degree", _shards(plan)),
        flag("--parallelism.fsdp_reshard_after_forward", RESHARD.get(plan.zero, "default")),
        flag("--parallelism.tensor_parallel_degree", plan.tp),
        flag("--parallelism.context_parallel_degree", plan.cp),
        flag("--parallelism.expert_parallel_degree", plan.ep),
        flag("--parallelism.pipeline_parallel_degree", plan.pp),
    ]
    no = "" if plan.sequence_parallel else "no_"
    return [*found, flag(f"--parallelism.{no}enable_sequence_parallel")]


def _pipeline(model: ModelSpec, plan: Plan) -> Arguments:
    graphs = [flag("--training.disable_cuda_graphs")] if plan.pp > 1 or plan.ep > 1 else []
    sizes = pipeline_sizes(model, plan)
    if plan.pp == 1 or sizes is None:
        return graphs
    middle, first, last = sizes
    return [
        *graphs,
        flag("--parallelism.pipeline_parallel_schedule", (SCHEDULES | LAID_AS)[plan.schedule]),
        flag("--parallelism.pipeline_parallel_microbatch_size", plan.micro_batch),
        flag("--parallelism.pipeline_parallel_layers_per_stage", middle // plan.vpp),
        flag("--parallelism.pipeline_parallel_first_stage_less_layers", middle - first),
        flag("--parallelism.pipeline_parallel_last_stage_less_layers", middle - last),
    ]


def _run(plan: Plan, options: Options) -> Arguments:
    found = [flag("--training.steps", options.train_steps)]
    if options.tokenizer:
        found.append(flag("--hf_assets_path", options.tokenizer))
    if options.data_path:
        found.append(flag("--dataloader.dataset_path", options.data_path))
    if plan.overlap_tp:
        found += [flag("--compile.enable"), flag("--compile.enable_async_tensor_parallel")]
    return [*found, *((word,) for word in options.extra)]


def _fill_in(options: Options) -> list[str]:
    found = [] if options.tokenizer else ["--hf_assets_path: the folder of the tokenizer"]
    return (
        found
        if options.data_path
        else [*found, "--dataloader.dataset_path: your data (default: C4 by download)"]
    )


def _notes(plan: Plan) -> list[str]:
    found = []
    if plan.recompute is Recompute.SELECTIVE:
        found.append(
            "torchtitan's selective policy saves matrix products and attention, and recomputes the rest."
        )
    return found
