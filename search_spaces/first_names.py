"""One name for one plan, where a knob's 0 stands for a number that the job itself says.

    nodes             0    all of the cluster's
    offload_bucket    0    the trainer's own, where it has one
    n_microbatches    0    global_batch / (micro_batch * dp)

A space in which a user names that number alone keeps it; beside 0 it would be the same plan twice.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from types import MappingProxyType

import numpy as np

from search_spaces.plan import Plan
from search_spaces.rule import Context, Rule, rule

NAMED_ONCE: Mapping[str, Rule] = MappingProxyType({
    "nodes": rule("beside 0, nodes are fewer than all of the cluster's", "nodes",
                  lambda c, p: p["nodes"] * c.cluster.devices_per_node != c.cluster.n_devices),
    "n_microbatches": rule(
        "beside 0, n_microbatches are fewer than the global batch asks", "dp micro_batch n_microbatches",
        lambda c, p: p["n_microbatches"] * p["micro_batch"] * p["dp"] != c.workload.global_batch),
    "offload_bucket": rule(
        "beside 0, offload_bucket is another than the trainer's own", "offload_bucket",
        lambda c, p: (p["offload_bucket"] == 0) | (p["offload_bucket"] != c.framework.update.offload_bucket)),
})  # fmt: skip


def first_name(context: Context, plan: Plan) -> Plan:
    """The plan with 0 for every knob that says what the job says anyway."""
    return replace(plan, **dict.fromkeys(_said_twice(context, plan), 0))  # type: ignore[arg-type]


def all_names(context: Context, plan: Plan) -> list[Plan]:
    """The plan under its first name and every other one."""
    first = first_name(context, plan)
    whole, rest = divmod(context.cluster.n_devices, context.cluster.devices_per_node)
    counted, left = divmod(context.workload.global_batch, plan.micro_batch * plan.dp)
    nodes = {first.nodes, whole} if first.nodes == 0 and not rest else {first.nodes}
    batches = (
        {first.n_microbatches, counted} if not (first.n_microbatches or left) else {first.n_microbatches}
    )
    sizes = {first.offload_bucket, first.offload_bucket or context.framework.update.offload_bucket}
    return [
        replace(plan, nodes=n, n_microbatches=m, offload_bucket=size)
        for n, m, size in product(sorted(nodes), sorted(batches), sorted(sizes))
    ]


def _said_twice(context: Context, plan: Plan) -> list[str]:
    names = ("nodes", "n_microbatches", "micro_batch", "dp", "offload_bucket")
    columns = {name: np.array(getattr(plan, name)) for name in names}
    return [name for name, each in NAMED_ONCE.items() if not each.holds(context, columns)]
