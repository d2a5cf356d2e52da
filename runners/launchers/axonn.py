"""AxoNN's grid, batch and optimizer as JSON: what a training program passes to AxoNN's own calls.

    G_inter = pp     G_data = dp     G_intra_r = tp     G_intra_c = 1     G_intra_d = dp where zero = 3

AxoNN is a library: the program is the user's, and gets the file by `--axonn`.  Its 2021 generation has the
pipeline and the offloaded optimizer, its later one the grid inside layers; a plan names what it needs.
A layer split by rows, the next by columns (G_intra_c = 1) is Megatron's tensor parallelism; grids of both are
in no plan.  Weights split along the depth (G_intra_d) are those of ZeRO-3; beside replicas they are not.

Source: github.com/axonn-ai/axonn, axonn/axonn.py (init, create_dataloader, run_batch), axonn/optim.py
(CPUAdam), axonn/communication.py (order of ranks), axonn/intra_layer/fully_connected.py (groups), and
axonn/intra_layer/__init__.py (optimize_communication).
"""

import json
from typing import Any, Literal

from objectives.metrics import Job
from runners.launchers.base import (
    Launch,
    Options,
    expert_lacks,
    flag,
    n_microbatches,
    offload_lacks,
    pipeline_lacks,
    precision_lacks,
    zero_plus_lacks,
)
from search_spaces.framework import framework_named
from search_spaces.plan import NO_MODULES, OptimizerSync, Plan, RankOrder, Recompute, Schedule
from search_spaces.workload import Precision

CONFIG = "axonn.json"
PROGRAM = '"${AXONN_PROGRAM:?set AXONN_PROGRAM to your training program, which reads --axonn}"'
NAME: Literal["axonn"] = "axonn"


class AxoNN:
    """The launcher `axonn`."""

    name: Literal["axonn"] = NAME

    def lacks(self, job: Job, plan: Plan) -> list[str]:
        """What AxoNN cannot express."""
        return [
            *pipeline_lacks(job, plan),
            *expert_lacks(job.model, plan, dense_only="AxoNN"),
            *_order_lacks(plan),
            *_group_lacks(job, plan),
            *_state_lacks(job, plan),
            *_update_lacks(plan),
            *zero_plus_lacks(plan, "AxoNN"),
            *offload_lacks(plan, "AxoNN"),
        ]

    def launch(self, job: Job, plan: Plan, options: Options) -> Launch:
        """The JSON, and the batch as arguments."""
        program = [] if options.program else ["AXONN_PROGRAM: your program, built on AxoNN"]
        return Launch(
            program=PROGRAM,
            fixed_arguments=f'--axonn "$HERE/{CONFIG}"',
            arguments=[
                flag("--global-batch-size", job.workload.global_batch),
                flag("--micro-batch-size", plan.micro_batch),
                flag("--seq-length", job.workload.seq_len),
                flag("--train-iters", options.train_steps),
                *((flag("--data-path", options.data_path),) if options.data_path else ()),
                *((flag("--tokenizer", options.tokenizer),) if options.tokenizer else ()),
                *((word,) for word in options.extra),
            ],
            files={CONFIG: json.dumps(calls(job, plan), indent=2) + "\n"},
            fill_in=program,
            notes=_notes(job, plan),
        )


def calls(job: Job, plan: Plan) -> dict[str, Any]:
    """Arguments of AxoNN's calls, by the call."""
    sharded = plan.zero == 3
    grid: dict[str, Any] = {"G_inter": plan.pp, "G_data": 1 if sharded else plan.dp}
    if plan.tp > 1 or sharded:
        grid |= {"G_intra_r": plan.tp, "G_intra_c": 1, "G_intra_d": plan.dp if sharded else 1}
    else:
        half = job.workload.precision is Precision.FP16
        offload = plan.offload_optimizer
        grid |= {"mixed_precision": half, "fp16_allreduce": half, "cpu_offload": offload}
    batch = plan.micro_batch * n_microbatches(job, plan) * plan.dp
    found: dict[str, Any] = {
        "axonn.init": grid,
        "axonn.create_dataloader": {"batch_size": batch, "micro_batch_size": plan.micro_batch},
        "checkpoint": plan.recompute is Recompute.FULL,
    }
    if sharded:
        found["axonn.intra_layer.optimize_communication"] = {
            "overlap_all_reduce": False,
            "overlap_reduce_scatter": plan.overlap_dp,
            "overlap_all_gather": plan.overlap_dp,
        }
    if plan.offload_optimizer:
        update = framework_named(NAME).update
        found["axonn.optim.CPUAdam"] = {
            "bucket_size": plan.offload_bucket or update.offload_bucket,
            "coalescing_factor": plan.coalesced_buckets,
        }
    return found


def _order_lacks(plan: Plan) -> list[str]:
    found = []
    if plan.pp > 1 and plan.schedule is not Schedule.MESSAGE_DRIVEN:
        found.append(f"schedule={plan.schedule}: AxoNN runs what has arrived (message-driven)")
    if plan.pipeline_limit:
        found.append(
            f"pipeline_limit={plan.pipeline_limit}: axonn.run_batch has G_inter micro-batches under way"
        )
    if plan.recompute_stages:
        found.append(f"recompute_stages={plan.recompute_stages}: AxoNN checkpoints on every stage alike")
    if plan.extra_warmup or plan.optimizer_sync is not OptimizerSync.BARRIER:
        found.append(
            f"extra_warmup={plan.extra_warmup}, optimizer_sync={plan.optimizer_sync}: AxoNN has neither"
        )
    if plan.pp > 1 and plan.dp > 1 and plan.rank_order is not RankOrder.TP_CP_PP_DP:
        found.append(f"rank_order={plan.rank_order}: AxoNN lays a pipeline inside its replica (tp-cp-pp-dp)")
    return found


def _group_lacks(job: Job, plan: Plan) -> list[str]:
    found = [f"cp={plan.cp}: AxoNN splits no sequences"] if plan.cp > 1 else []
    if plan.vpp > 1:
        found.append(f"vpp={plan.vpp}: a stage of AxoNN is one piece of the model")
    if plan.sequence_parallel or plan.overlap_tp:
        found.append("sequence_parallel=true or overlap_tp=true: AxoNN splits layers, not what lies between")
    if job.model.moe is not None:
        found.append("moe: AxoNN spreads no experts")
    if plan.zero not in (0, 3):
        found.append(f"zero={plan.zero}: AxoNN replicates (zero=0) or splits weights in depth (zero=3)")
    if plan.zero == 3 and plan.pp > 1:
        found.append("zero=3: AxoNN's pipeline replicates its stages")
    return found


def _state_lacks(job: Job, plan: Plan) -> list[str]:
    found = []
    precision, splits = job.workload.precision, plan.tp > 1 or plan.zero == 3
    if plan.offload_optimizer and (splits or precision is not Precision.FP16):
        found.append(
            f"offload_optimizer=true: axonn.optim.CPUAdam takes fp16 and no split layers, not {precision}"
        )
    found += precision_lacks(job, "AxoNN")
    if plan.recompute is Recompute.SELECTIVE or plan.recompute_modules is not NO_MODULES:
        words = f"recompute={plan.recompute}, recompute_modules={plan.recompute_modules}"
        found.append(f"{words}: a program on AxoNN redoes whole layers or none")
    if plan.recompute_every > 1:
        found.append(f"recompute_every={plan.recompute_every}: a program on AxoNN redoes every layer or none")
    if plan.first_layers or plan.last_layers:
        words = f"first_layers={plan.first_layers}, last_layers={plan.last_layers}"
        found.append(f"{words}: AxoNN's stages are what the program gives each rank, here equal shares")
    if plan.overlap_dp and plan.zero == 0:
        found.append(
            "overlap_dp=true: AxoNN reduces after the batch, beside the offloaded optimizer's buckets"
        )
    return found


def _update_lacks(plan: Plan) -> list[str]:
    found = []
    if plan.keep_received:
        found.append("keep_received=true: AxoNN repeats communication where it recomputes")
    if plan.optimizer_tile:
        found.append(
            f"optimizer_tile={plan.optimizer_tile}: AxoNN updates in buckets of an offloaded optimizer"
        )
    if plan.offload_optimizer and not plan.coalesced_buckets and plan.dp > 1:
        found.append("coalesced_buckets=0: axonn.optim.CPUAdam always reduces by buckets")
    return found


def _notes(job: Job, plan: Plan) -> list[str]:
    found = ["AxoNN is a library: your program must pass each table of axonn.json to the call of its name."]
    if job.workload.precision is Precision.BF16:
        found.append("AxoNN's mixed precision is fp16; bf16 is up to your program.")
    if plan.zero == 3 and plan.overlap_dp:
        found.append("optimize_communication, around forward and backward passes, needs the model as well.")
    if plan.tp > 1 or plan.zero == 3:
        found.append("G_intra_r and G_intra_d need AxoNN's later generation, which names them.")
    return found
