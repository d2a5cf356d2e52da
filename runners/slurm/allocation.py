"""Trials inside an allocation: each try is a step on nodes of its own, `srun --nodelist=...`.

command runner   its log is read here, and its words are started by srun on all nodes of the trial
other runners    the trial's server itself is started by srun, on the one node of the trial
"""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from objectives.metrics import Job
from objectives.outcome import Outcome, OutcomeOrigin
from runners.command_process import BoundedLog, Command, run_command
from runners.in_process import InProcessExecutor
from runners.logs.clues import Clues
from runners.logs.verdict import Ending
from runners.owned_folder import owned_folder
from runners.placeholders import NODES, STEP
from runners.protocol import RunnerRecipe
from runners.slurm.account import without_outcome
from runners.slurm.choice import COMMAND, START_S, Slurm, allocated, alone_words, placed, slots
from runners.slurm.nodes import NodeQueue
from runners.slurm.trial import ALIVE, Request, is_orphaned, read_outcome, write_request
from search_spaces.errors import RunnerError
from search_spaces.plan import Plan, Plans
from search_spaces.units import MB

_MOST_LOG_BYTES = int(MB)


class AllocationExecutor(InProcessExecutor):
    """Tries plans side by side on disjoint sets of an allocation's nodes (an `Executor`).

    Several executors, of trials with other numbers of nodes, may share one `queue`.

    Raises
    ------
    InvalidSpec
        This process is in no allocation.
    """

    def __init__(
        self,
        recipe: RunnerRecipe,
        slurm: Slurm,
        *,
        n_slots: int = 2,
        time_limit_s: float | None = None,
        environment: Mapping[str, str] = os.environ,
        queue: NodeQueue | None = None,
    ) -> None:
        per_trial = slurm.nodes_of(recipe.job)
        own = queue or NodeQueue(environment["SLURM_JOB_ID"], allocated(environment), per_trial)
        self._queue = own
        self._folder = session_folder(slurm)
        is_command = recipe.kind == COMMAND
        margin_s = 0.0 if is_command else START_S
        super().__init__(
            placed(recipe, slurm) if is_command else StepRunner(recipe, slurm, time_limit_s),
            n_slots=slots(slurm, recipe.job, n_slots, environment),
            time_limit_s=None if time_limit_s is None else time_limit_s + margin_s,
            lease=partial(own.lease, per_trial),
            scratch=self._folder,
        )

    def close(self) -> None:
        """End every step and process of ours; may be called twice."""
        self._queue.close()
        super().close()
        remove_session(self._folder)


class StepRunner:
    """A runner whose trials are started by srun on the node that the try was lent."""

    def __init__(self, recipe: RunnerRecipe, slurm: Slurm, time_limit_s: float | None) -> None:
        self._recipe, self._slurm, self._time_limit_s = recipe, slurm, time_limit_s

    @property
    def origin(self) -> OutcomeOrigin:
        """That of the runner on the node."""
        return self._recipe.origin

    def run(self, plans: Plans, *, attempt: int = 0) -> Sequence[Outcome]:
        """One step for each plan, one after the other."""
        return [self._try(plan, attempt) for plan in plans]

    def of_job(self, job: Job) -> "StepRunner":
        """The same nodes, for another job."""
        return StepRunner(replace(self._recipe, job=job), self._slurm, self._time_limit_s)

    def _try(self, plan: Plan, attempt: int) -> Outcome:
        # The server that forked this process made its folder where all nodes see it.
        with tempfile.TemporaryDirectory(prefix="step-") as name:
            folder, node = Path(name), os.environ[NODES].partition(",")[0]
            request = Request(
                recipe=self._recipe, plan=plan, attempt=attempt, time_limit_s=self._time_limit_s
            )
            write_request(folder, request)
            words = [
                *alone_words(self._slurm, node),
                f"--job-name={os.environ[STEP]}",
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "runners.slurm.trial",
                str(folder),
            ]
            return self._outcome(folder, words)

    def _outcome(self, folder: Path, words: Sequence[str]) -> Outcome:
        path = os.pathsep.join(each for each in sys.path if each)
        command = Command(words=words, folder=folder, environment={"PYTHONPATH": path}, grace_s=1.0)
        clues = Clues()
        with BoundedLog(folder / "log.txt", _MOST_LOG_BYTES) as log:
            ending = run_command(
                command, log, on_line=lambda line, _: clues.feed(line, 0), limit=lambda _: None
            )
        try:
            found = read_outcome(folder)
        except RunnerError as error:
            return without_outcome(
                clues, Ending(status=127), self.origin, log_tail=log.tail, words=str(error)
            )
        return found or without_outcome(clues, ending, self.origin, log_tail=log.tail)


def session_folder(slurm: Slurm) -> Path:
    """A fresh private folder for one executor's trials, where every node sees it.

    What killed executors of this host left is removed first, once no job of theirs may start any more.

    Raises
    ------
    RunnerError
        It cannot be made.
    """
    parent = Path(slurm.folder).absolute()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return owned_folder("study-", parent, remove=_remove_orphaned)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RunnerError("[runner.slurm] folder must be writable", f"{parent} ({reason})") from None


def _remove_orphaned(folder: Path) -> None:
    if not (folder / ALIVE).exists() or is_orphaned(folder):
        shutil.rmtree(folder, ignore_errors=True)


def remove_session(folder: Path) -> None:
    """Remove an executor's folder, and the one around it if no other study's lies there."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()
