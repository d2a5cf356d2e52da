"""Which plan to write (a study's best, one of its trials, or a typed one), and the options of its launch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from objectives.metrics import Job
from runners.launchers.base import Options
from search_spaces.documents import build
from search_spaces.errors import InvalidSpec, check, suggest_keys
from search_spaces.plan import Plan, Plans
from tuner.api import estimate
from tuner.cli_flags import JobFlags
from tuner.cli_job import job_from, plan_from


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPlan:
    """A plan, its job, and where it comes from."""

    job: Job
    plan: Plan
    provenance: Mapping[str, Any]


def chosen_plan(
    flags: JobFlags, *, name: str | None, plan: str | None, trial: int | None, storage: str | None
) -> ChosenPlan:
    """The plan that the flags name.

    Raises
    ------
    InvalidSpec
        Neither a study nor a plan is named, or both; a study without a measured trial; no such trial.
    """
    if name is None:
        check(plan is not None, "export must be told a study's NAME, or a job with --plan", "neither")
        check(trial is None, "--trial needs a study's NAME", f"--trial {trial}")
        job = job_from(flags)
        typed = plan_from(flags, job, str(plan))
        return ChosenPlan(job=job, plan=typed, provenance={"origin": "typed by the user"})
    given = flags.given + (["--plan"] if plan is not None else [])
    check(not given, "a study's NAME must not be combined with a job's flags or --plan", ", ".join(given))
    return _from_study(name, trial, storage)


def _from_study(name: str, trial: int | None, storage: str | None) -> ChosenPlan:
    from tuner.cli_tables import storage_or_default
    from tuner.view import load_study

    view = load_study(name, storage_or_default(storage))
    by_number = {each.number: each for each in view.trials}
    if trial is not None and trial not in by_number:
        raise InvalidSpec(
            f"--trial must be a trial of study {name!r}", str(trial), hint=f"see meshtune show {name}"
        )
    record = view.best if trial is None else by_number[trial]
    if record is None or record.plan is None:
        hint = "let it go on with meshtune resume"
        raise InvalidSpec(f"study {name!r} must have a trial that ran well", "none", hint=hint)
    provenance = {
        "study": name,
        "trial": record.number,
        "state": str(record.state),
        "values": dict(record.values),
    }
    return ChosenPlan(job=view.inputs.job, plan=record.plan, provenance=provenance)


def launch_options(words: Sequence[str], chosen: ChosenPlan) -> Options:
    """`KEY=VALUE` words as the options of a launch, with what was predicted of the plan."""
    known = [field.name for field in fields(Options) if field.name not in ("predicted", "provenance")]
    table: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        check(bool(equals), "--option must be KEY=VALUE", repr(word))
        suggest_keys("--option", [key], known)
        table[key] = _typed(key, value)
    options = build(Options, table, "--option")
    return replace(options, predicted=_predicted(chosen), provenance=chosen.provenance)


def _typed(key: str, value: str) -> object:
    if key == "extra":
        return value.split()
    return int(value) if key == "train_steps" and value.isdecimal() else value


def _predicted(chosen: ChosenPlan) -> dict[str, float]:
    priced = estimate(chosen.job, Plans.of([chosen.plan]))
    return {"step_time_s": float(priced.step_s[0]), "peak_memory_bytes": float(priced.peak_memory_bytes[0])}
