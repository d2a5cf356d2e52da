"""X-MoE: the arguments of DeepSpeed's launcher, and those of X-MoE's own fork of Megatron-DeepSpeed.

Padding-free buffers, a token once to each node, and expert blocks that shard the sequence over tensor
parallelism wherever experts are whole.

Source: github.com/Supercomputing-System-AI-Lab/X-MoE, README.md, and deepspeed/moe/moe_v2.py.
"""

from dataclasses import replace
from typing import Literal

from objectives.metrics import Job
from runners.launchers.base import Arguments, Launch, Options, flag
from runners.launchers.deepspeed import DeepSpeed
from search_spaces.plan import Dispatch, Plan

HOME = "github.com/Supercomputing-System-AI-Lab/X-MoE"
PROGRAM = (
    f'"${{X_MOE:?set X_MOE to the Megatron-DeepSpeed-X-MoE folder of {HOME}}}/pretrain_gpt_deepspeed.py"'
)
PADDING_FREE = [flag("--use-uneven-all-to-all"), flag("--use-pft")]


class XMoE:
    """The launcher `x-moe`."""

    name: Literal["x-moe"] = "x-moe"

    def lacks(self, job: Job, plan: Plan) -> list[str]:
        """What X-MoE cannot express: what DeepSpeed cannot, beside its own ways of sending tokens."""
        whole = replace(_for_deepspeed(plan), ep=1) if plan.etp == 1 else _for_deepspeed(plan)
        if job.model.moe is None:
            return DeepSpeed().lacks(job, plan)
        return [*DeepSpeed().lacks(job, whole), *_own_lacks(plan)]

    def launch(self, job: Job, plan: Plan, options: Options) -> Launch:
        """DeepSpeed's JSON and arguments, with X-MoE's."""
        base = DeepSpeed().launch(job, _for_deepspeed(plan), options)
        arguments = [argument for argument in base.arguments if argument != flag("--sequence-parallel")]
        fill_in = [line for line in base.fill_in if not line.startswith("MEGATRON_DEEPSPEED")]
        fill_in += (
            [] if options.program else ["X_MOE: the Megatron-DeepSpeed-X-MoE folder of an X-MoE checkout"]
        )
        return replace(
            base,
            program=PROGRAM,
            arguments=[*arguments, *_tokens(plan)],
            fill_in=fill_in,
            notes=[*base.notes, *_notes(plan)],
        )


def _for_deepspeed(plan: Plan) -> Plan:
    """The plan without what only X-MoE knows: its buffers take the place of DeepSpeed's masks."""
    known = Dispatch.EINSUM if plan.dispatch is Dispatch.PADDING_FREE else plan.dispatch
    return replace(plan, dispatch=known, deduplicate_ep=False)


def _own_lacks(plan: Plan) -> list[str]:
    found = []
    if plan.deduplicate_ep and plan.dispatch is not Dispatch.PADDING_FREE:
        found.append("deduplicate_ep=true: X-MoE sends a token once to a node from padding-free buffers only")
    if (plan.tp * plan.dp) % plan.ep:
        found.append(f"ep={plan.ep}: X-MoE's expert groups divide all {plan.tp * plan.dp} ranks")
    return found


def _tokens(plan: Plan) -> Arguments:
    found = list(PADDING_FREE) if plan.dispatch is Dispatch.PADDING_FREE else []
    return [*found, flag("--use-rbd")] if plan.deduplicate_ep else found


def _notes(plan: Plan) -> list[str]:
    if plan.tp > 1 and plan.sequence_parallel:
        return ["X-MoE shards sequences inside expert blocks only: attention keeps more than was modelled."]
    return []
