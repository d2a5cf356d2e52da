"""Published layouts priced by the cost model: what a paper's figures are compared with."""

from typing import Any

import numpy as np

from objectives.cost.step import estimate
from objectives.metrics import Job
from objectives.ranking import rank
from search_spaces.cluster import ClusterSpec
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import NoLegalPlan, NothingFits
from search_spaces.model import ModelSpec
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans
from search_spaces.space import SpaceSpec
from search_spaces.units import TFLOPS
from search_spaces.workload import Workload


def job_on(cluster: ClusterSpec | str, model: ModelSpec | str, n_devices: int, **workload: Any) -> Job:
    """A job from names or specs."""
    return Job(
        model=load_model(model) if isinstance(model, str) else model,
        cluster=load_cluster(cluster, n_devices) if isinstance(cluster, str) else cluster,
        workload=Workload(**workload),
    )


def tflops(job: Job, words: str) -> float:
    """Model TFLOP/s of one device under a plan, attention as the workload counts it."""
    step_s = estimate(job, Plans.of([Plan.parse(words)])).step_s
    return float(job.mfu(step_s)[0] * job.cluster.device.peak(job.workload.precision) / TFLOPS)


def best_tflops(job: Job, **space: object) -> float | None:
    """The same of the best plan of a space; None where no plan is legal or fits."""
    try:
        found = rank(job, SpaceSpec.of(space), keep=1).candidates
    except (NoLegalPlan, NothingFits):
        return None
    return tflops(job, found.plans.row(0).key)


def peak_bytes(job: Job, words: str) -> float:
    """Bytes on the fullest device under a plan."""
    return float(np.max(estimate(job, Plans.of([Plan.parse(words)])).peak_memory_bytes))
