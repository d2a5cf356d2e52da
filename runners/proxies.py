"""A plan's proxies on the same machine: the model with few layers, or few of the devices.

    few-layers     all devices, all degrees, the whole batch; as many layers as asked, at least one a chunk,
                   and a whole round where every n-th layer is redone
    few-devices    degrees halved, dp first while two copies remain, then pp, cp and tp; micro-batches a step,
                   layers and experts of a device as before, so the batch and the model shrink with dp and pp;
                   fewer layers where what dp no longer shards would not fit

A proxy has widths and tokens of the job itself: what it costs is what parts of the job cost.
A trainer on a small machine shrinks those too (`runners.torch_trial.twin`), and says so in its outcomes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.outcome import OutcomeOrigin
from objectives.ranking import memory_limit_bytes
from runners.torch_trial.twin import Limits, Twin, differences, fewer_ranks, neutral, same, twin, with_layers
from runners.verdicts import why_illegal
from search_spaces.errors import check
from search_spaces.fidelity import Fidelities, Fidelity
from search_spaces.plan import Plan, Plans


def proxy(job: Job, plan: Plan, fidelity: Fidelity, settings: Fidelities) -> Twin:
    """What a trial of that fidelity runs in the plan's place.

    Raises
    ------
    InvalidSpec
        The plan has no such proxy: nothing would be smaller, or its degrees do not allow it.
    """
    if fidelity is Fidelity.FEW_LAYERS:
        found = _few_layers(job, plan, settings.layers)
    else:
        found = _few_devices(job, plan, settings.devices_of(job.cluster))
    illegal = why_illegal(found.job, found.plan, OutcomeOrigin.ANALYTIC)
    check(illegal is None, "a proxy must be a legal plan of its own job", illegal and illegal.message)
    return found


def twin_that_ran(job: Job, plan: Plan, effective: Mapping[str, Any], options: Mapping[str, Any]) -> Twin:
    """What a trainer with these options ran for an outcome: the plan itself, or its twin on so many devices.

    Raises
    ------
    InvalidSpec
        The plan has no such twin.
    """
    if not effective.get("proxy"):
        return same(job, plan)
    known = {"parameters": "proxy_parameters", "tokens": "proxy_tokens"}
    limits = {field: options[name] for field, name in known.items() if name in options}
    n_ranks = int(effective["machine"]["n_ranks"])
    found = twin(job.of_plan(plan), plan, Limits(n_ranks=n_ranks, **limits))
    cluster = job.cluster.with_devices(found.plan.world_size)
    return replace(found, job=replace(found.job, cluster=cluster))


def _few_layers(job: Job, plan: Plan, n_layers: int) -> Twin:
    chunks = plan.pp * plan.vpp
    n_layers = max(-(-n_layers // chunks), plan.recompute_every) * chunks
    must = "a proxy must have fewer layers than the model"
    given = f"{n_layers} of {job.model.n_layers}, {chunks} chunks"
    given += f", recompute_every={plan.recompute_every}" if plan.recompute_every > 1 else ""
    check(n_layers < job.model.n_layers, must, given)
    small = replace(plan, first_layers=0, last_layers=0)
    return _twin(job, plan, replace(job, model=with_layers(job.model, n_layers, plan, small)), small)


def _few_devices(job: Job, plan: Plan, n_devices: int) -> Twin:
    must = "a proxy must have fewer devices than the job"
    check(n_devices < plan.world_size, must, f"{n_devices} of {plan.world_size}")
    small = neutral(fewer_ranks(replace(plan, nodes=0), n_devices))
    if small.pp == plan.pp:
        small = replace(small, first_layers=plan.first_layers, last_layers=plan.last_layers)
    workload = replace(job.workload, global_batch=job.workload.global_batch * small.dp // plan.dp)
    cluster = job.cluster.with_devices(small.world_size)
    chunks, per_chunk = small.pp * small.vpp, max(job.model.n_layers // (plan.pp * plan.vpp), 1)
    whole = small.pp == plan.pp
    while True:
        n_layers = job.model.n_layers if whole else per_chunk * chunks
        model = with_layers(job.model, n_layers, plan, small)
        found = _twin(job, plan, replace(job, model=model, workload=workload, cluster=cluster), small)
        if _fits(found):
            return found
        if whole:
            small, whole = replace(small, first_layers=0, last_layers=0), False
        fewer, must = per_chunk // 2, "a proxy must fit its devices"
        check(fewer >= small.recompute_every, must, f"{small.key}, layers a chunk: {per_chunk}, does not")
        per_chunk = fewer


def _fits(found: Twin) -> bool:
    peak_bytes = estimate(found.job, Plans.of([found.plan])).peak_memory_bytes[0]
    return bool(peak_bytes <= memory_limit_bytes(found.job))


def _twin(job: Job, plan: Plan, small_job: Job, small: Plan) -> Twin:
    return Twin(job=small_job, plan=small, differs=differences(job, plan, small_job, small))
