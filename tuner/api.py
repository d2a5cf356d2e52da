"""The Python API: the same calls as the command line's verbs.

from tuner import describe_job, rank

job = describe_job(model="llama-3-70b", cluster="dgx-h100", devices=512, global_batch=1024, seq_len=8192)
rank(job).candidates.plans.row(0)
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from objectives import ranking
from objectives.cost import step
from objectives.cost.result import Estimate
from objectives.longest import BY_MEMORY
from objectives.metrics import Job
from objectives.uncertainty import step_interval_s
from runners.launchers.base import Options
from runners.launchers.export import export as write_export
from search_spaces.cluster import ClusterSpec
from search_spaces.cluster_presets import load_cluster
from search_spaces.documents import build
from search_spaces.errors import InvalidSpec
from search_spaces.first_names import first_name
from search_spaces.hf_config import load_hf_config
from search_spaces.model import ModelSpec
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan, Plans
from search_spaces.space import SearchSpace, SpaceSpec
from search_spaces.workload import Workload

__all__ = ["describe_job", "estimate", "export", "rank", "read_plan", "step_interval_s"]


def describe_job(
    *,
    model: str | Path | ModelSpec,
    cluster: str | Path | ClusterSpec,
    devices: int | None = None,
    **workload: Any,
) -> Job:
    """A job from names, files or specs.

    `model` is a preset's name, the path of a Hugging Face `config.json` (or its folder), or a spec; `cluster`
    a preset's name, a TOML file, or a spec; the other keywords are the fields of `Workload`.
    """
    if isinstance(cluster, ClusterSpec):
        machine = cluster if devices is None else cluster.with_devices(devices)
    elif devices is None:
        raise InvalidSpec("a cluster needs a number of devices", "none", hint="say how many with --devices")
    else:
        machine = load_cluster(str(cluster), devices)
    return Job(model=_model(model), cluster=machine, workload=build(Workload, workload, "the workload"))


def _model(model: str | Path | ModelSpec) -> ModelSpec:
    if isinstance(model, ModelSpec):
        return model
    if isinstance(model, str) and "/" not in model and not model.endswith(".json"):
        return load_model(model)
    path = Path(model)
    return load_hf_config(path / "config.json" if path.is_dir() else path)


def read_plan(job: Job, text: str) -> Plan:
    """A legal plan from `knob=value` words, under its first name (`search_spaces.first_names`).

    Where dp is left out, it is what the devices leave.

    Raises
    ------
    InvalidSpec
        A knob or value that does not exist, or the first rule that the plan breaks.
    """
    plan = Plan.parse(text)
    rest, remainder = divmod(job.of_plan(plan).cluster.n_devices, plan.tp * plan.cp * plan.pp)
    if not remainder and not any(word.startswith("dp=") for word in text.replace(",", " ").split()):
        plan = replace(plan, dp=rest)
    space = SearchSpace(job.model, job.cluster, job.workload, SpaceSpec())
    space.check(plan)
    return first_name(space.context, plan)


def rank(
    job: Job,
    space: SpaceSpec | None = None,
    *,
    metric: str = "step_time",
    keep: int = 100,
    simulate: bool = False,
) -> ranking.Ranking:
    """Every legal plan priced; the ledger, and the `keep` best that fit in memory.

    With `simulate` the engine times those again that it could put first, and orders them (`tuner.rescore`);
    not where the metric is decided by memory.

    Raises
    ------
    NoLegalPlan
        The rules leave nothing.
    NothingFits
        No legal plan fits in memory.
    CannotExport
        The framework's launcher refuses all that were kept.
    """
    from tuner.exportable import exportable  # noqa: PLC0415 - loads the launchers

    space = space or SpaceSpec()
    if not simulate or metric in BY_MEMORY:
        return exportable(job, ranking.rank(job, space, metric=metric, keep=keep))
    from tuner.rescore import MOST_CLOSE, rescored  # noqa: PLC0415 - loads the engine

    found = exportable(job, ranking.rank(job, space, metric=metric, keep=max(keep, MOST_CLOSE)))
    return rescored(job, found).first(keep)


def estimate(job: Job, plans: str | Plan | Plans) -> Estimate:
    """Seconds and bytes of plans; one plan may be written as `tp=8 pp=4 dp=16`."""
    if isinstance(plans, str):
        plans = Plan.parse(plans)
    return step.estimate(job, Plans.of([plans]) if isinstance(plans, Plan) else plans)


def export(
    job: Job,
    plan: Plan | str,
    launcher: str,
    *,
    out_dir: str | Path,
    scheduler: str = "both",
    options: Options | None = None,
) -> list[Path]:
    """Write what it takes to launch a plan; returns the files.

    Raises
    ------
    CannotExport
        The launcher lacks a knob that the plan uses.
    """
    plan = Plan.parse(plan) if isinstance(plan, str) else plan
    return write_export(job, plan, launcher, scheduler, Path(out_dir), options or Options())
