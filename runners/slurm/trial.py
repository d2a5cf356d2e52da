"""One trial on a node of Slurm, as a program: `python -m runners.slurm.trial FOLDER`.

    request.json   the recipe, the plan, which try it is and its limit    written by the executor
    alive          touched by the executor as long as it lives
    outcome.json   what came of it, or why nothing can                    written here, whole or not at all

The folder must be one that this node and the executor's see.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from objectives.metrics import Job
from objectives.outcome import Outcome, OutcomeOrigin, outcome_from_dict, outcome_to_dict
from runners.in_process import lost_outcome
from runners.placeholders import NODES
from runners.protocol import RunnerRecipe
from runners.slurm.tools import host_names
from runners.trial_process import ProcessLost, TrialProcess
from search_spaces.documents import build, read_json
from search_spaces.errors import MeshtuneError, RunnerError
from search_spaces.plan import Plan

REQUEST, OUTCOME, ALIVE, SCRATCH_FOLDER = "request.json", "outcome.json", "alive", "scratch"
ORPHAN_S = 900.0  # a study whose driver was silent for so long has nobody to hear of a trial that starts
ORPHANED = 75  # EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A trial as its folder says it."""

    recipe: RunnerRecipe
    plan: Plan
    attempt: int
    time_limit_s: float | None


def write_request(folder: Path, request: Request) -> None:
    """Write what the program needs into the trial's folder."""
    recipe = request.recipe
    document = {
        "kind": recipe.kind,
        "job": asdict(recipe.job),
        "options": dict(recipe.options),
        "plan": request.plan.key,
        "attempt": request.attempt,
        "time_limit_s": request.time_limit_s,
    }
    (folder / REQUEST).write_text(json.dumps(document), encoding="utf-8")


def read_request(folder: Path) -> Request:
    """What `write_request` wrote."""
    found = read_json(folder / REQUEST)
    job = build(Job, found["job"], "the trial's job")
    return Request(
        recipe=RunnerRecipe(kind=found["kind"], job=job, options=found["options"]),
        plan=Plan.parse(found["plan"]),
        attempt=found["attempt"],
        time_limit_s=found["time_limit_s"],
    )


def read_outcome(folder: Path) -> Outcome | None:
    """The outcome, if it is there.

    Raises
    ------
    RunnerError
        The node cannot try anything: what the trial's program said, in its own words.
    """
    try:
        found = json.loads((folder / OUTCOME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if "error" in found:
        must, given, hint = found["error"]
        raise RunnerError(must, given, hint=hint)
    return outcome_from_dict(found["outcome"])


def try_in(folder: Path, environment: Mapping[str, str]) -> Outcome:
    """The outcome of the folder's request, tried in a process of its own that ends with it."""
    request = read_request(folder)
    limit_s, recipe = request.time_limit_s, request.recipe
    process = TrialProcess(recipe, scratch=folder / SCRATCH_FOLDER)
    try:
        return process.run(
            request.plan, attempt=request.attempt, time_limit_s=limit_s, environment=_places(environment)
        )
    except ProcessLost as lost:
        return lost_outcome(str(lost), OutcomeOrigin(recipe.origin), n_attempts=request.attempt + 1)
    finally:
        process.close()


def _places(environment: Mapping[str, str]) -> dict[str, str]:
    """The job's nodes by name, where nobody has named those of the trial."""
    nodelist = environment.get("SLURM_JOB_NODELIST", "")
    if NODES in environment or not nodelist:
        return {}
    return {NODES: ",".join(host_names(nodelist))}


def _write(folder: Path, document: Mapping[str, Any]) -> None:
    fresh = folder / f"{OUTCOME}.{os.getpid()}"
    fresh.write_text(json.dumps(document), encoding="utf-8")
    fresh.replace(folder / OUTCOME)


def is_orphaned(session: Path) -> bool:
    """Whether an executor is gone, or its folder is; without the file nobody has promised to touch it."""
    alive = session / ALIVE
    return not session.exists() or (alive.exists() and time.time() - alive.stat().st_mtime > ORPHAN_S)


def _stop(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def main() -> None:
    """Entry point: the trial's folder is the only argument."""
    folder = Path(sys.argv[1])
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _stop)
    if is_orphaned(folder.parent):
        sys.exit(ORPHANED)
    try:
        document: dict[str, Any] = {"outcome": outcome_to_dict(try_in(folder, os.environ))}
    except MeshtuneError as error:
        document = {"error": [error.must, error.given, error.hint]}
    _write(folder, document)


if __name__ == "__main__":
    main()
