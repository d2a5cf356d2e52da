"""Trials as batch jobs of their own: submitted, watched by one squeue for all, cancelled at the end.

submit   the request into the trial's folder, a script beside it, sbatch
poll     job states every few seconds; the outcome as soon as it lies in the folder
ended    the outcome, or what Slurm's state, the exit status and the log say without one
"""

import contextlib
import os
import re
import secrets
import shlex
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from objectives.metrics import Job
from objectives.outcome import Failed, Measured, Outcome, tail
from runners.logs.verdict import Ending
from runners.protocol import MAX_LOST_RETRIES, RunnerRecipe, is_lost
from runners.slurm.account import clues_of, without_outcome
from runners.slurm.allocation import remove_session, session_folder
from runners.slurm.choice import Slurm, placed, sbatch_words
from runners.slurm.states import NEVER_STARTS, failed_in, is_final, settled
from runners.slurm.tools import Answer, accounted_state, call, cancel, job_states
from runners.slurm.trial import ALIVE, Request, read_outcome, write_request
from search_spaces.errors import RunnerError, check
from search_spaces.plan import Plan
from search_spaces.units import MB

LOG, SCRIPT = "log.txt", "job.sbatch"
SILENCE_S = 600.0  # how long Slurm may not answer, as in a restart of its controller
LAG_S = 15.0  # how long a file written on a node may take until it is seen here
CANCEL_S = 60.0
_FORGOTTEN = "FORGOTTEN"
_EXIT = re.compile(r"\bExitCode=(\d+):(\d+)\b")
_MOST_LOG_BYTES = int(MB)


@dataclass(slots=True, kw_only=True, eq=False)
class _Trial:
    """A plan with its ticket and recipe; `job` is its batch job's id once it has one."""

    ticket: int
    plan: Plan
    recipe: RunnerRecipe
    attempt: int
    folder: Path = field(default_factory=Path)
    job: str = ""
    submitted_s: float = 0.0
    ended_s: float | None = None


class SbatchExecutor:
    """Tries plans side by side, each in a batch job of its own (an `Executor`).

    `max_lost_retries` is how often a plan is submitted again after its job was lost or cancelled.
    """

    def __init__(
        self,
        recipe: RunnerRecipe,
        slurm: Slurm,
        *,
        n_slots: int = 2,
        time_limit_s: float | None = None,
        max_lost_retries: int = MAX_LOST_RETRIES,
    ) -> None:
        check(n_slots >= 1, "an executor needs at least one slot", n_slots)
        self.n_slots = n_slots
        self._recipe = placed(recipe, slurm)
        self._slurm, self._time_limit_s, self._max_lost_retries = slurm, time_limit_s, max_lost_retries
        self._name = f"meshtune-{secrets.token_hex(4)}"
        self._words = (*sbatch_words(slurm, recipe.job, time_limit_s), f"--job-name={self._name}")
        self._queue: deque[_Trial] = deque()
        self._running: dict[str, _Trial] = {}
        self._leaving: set[str] = set()  # jobs whose outcome is known, and which Slurm still cleans up
        self._arrived: list[tuple[int, Outcome]] = []
        self._folder: Path | None = None
        self._n_folders = 0
        self._polled_s = self._answered_s = time.monotonic()
        self._next_submit_s, self._refused_s = 0.0, None  # type: float, float | None

    @property
    def jobs(self) -> tuple[str, ...]:
        """Ids of the batch jobs that wait or run."""
        return tuple(self._running)

    def submit(self, ticket: int, plan: Plan, job: Job | None = None) -> None:
        """Start a plan, or queue it behind those that run; `job` takes the place of the runner's own.

        Raises
        ------
        RunnerError
            Slurm refuses such jobs.
        """
        recipe = self._recipe if job is None else replace(self._recipe, job=job)
        self._queue.append(_Trial(ticket=ticket, plan=plan, recipe=recipe, attempt=0))
        self._feed()

    def wait(self, timeout_s: float) -> list[tuple[int, Outcome]]:
        """Outcomes that arrived, at once if there are any, else after at most `timeout_s` (maybe none).

        Raises
        ------
        RunnerError
            Slurm did not answer for long, refuses such jobs, or the nodes cannot run trials at all.
        """
        deadline = time.monotonic() + timeout_s
        while not self._arrived:
            now_s = time.monotonic()
            if now_s - self._polled_s >= self._slurm.poll_s:
                self._poll()
                continue
            if now_s >= deadline:
                break
            time.sleep(max(0.0, min(deadline, self._polled_s + self._slurm.poll_s) - now_s))
        arrived, self._arrived = self._arrived, []
        return arrived

    def close(self) -> None:
        """Cancel every job of ours and wait until none is left; may be called twice."""
        self._queue.clear()
        jobs, self._running = {*self._running, *self._leaving}, {}
        self._leaving.clear()
        folder, self._folder = self._folder, None
        if folder is not None:
            # By name too: a submission that was cut short may have left a job whose id nobody read.
            cancel(f"--name={self._name}", f"--user={os.getuid()}")
            self._cancel(jobs)
            remove_session(folder)

    def _cancel(self, jobs: Iterable[str]) -> None:
        left, deadline = set(jobs), time.monotonic() + CANCEL_S
        while left and time.monotonic() < deadline:
            cancel(*sorted(left))
            states = job_states(sorted(left))
            if states is not None:
                left = {job for job in left if job in states and not is_final(states[job][0])}
            if left:
                time.sleep(0.2)

    def _feed(self) -> None:
        while self._queue and len(self._running) < self.n_slots and time.monotonic() >= self._next_submit_s:
            trial = self._queue.popleft()
            answer = self._sbatch(trial)
            if not answer.is_well:
                self._queue.appendleft(trial)
                self._refused(answer)
                return
            # ID, or ID;CLUSTER where several are known.
            self._refused_s = None
            trial.job = answer.out.strip().partition(";")[0]
            trial.submitted_s = time.monotonic()
            self._running[trial.job] = trial

    def _sbatch(self, trial: _Trial) -> Answer:
        try:
            trial.folder = self._make_folder()
            request = Request(
                recipe=trial.recipe,
                plan=trial.plan,
                attempt=trial.attempt,
                time_limit_s=self._time_limit_s,
            )
            write_request(trial.folder, request)
            script = trial.folder / SCRIPT
            script.write_text(script_text(trial.folder, self._slurm), encoding="utf-8")
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise RunnerError(
                "[runner.slurm] folder must be writable", f"{self._slurm.folder} ({reason})"
            ) from None
        places = (
            f"--output={_unexpanded(trial.folder / LOG)}",
            f"--chdir={trial.folder}",
            "--open-mode=append",
        )
        return call("sbatch", "--parsable", *self._words, *places, str(script))

    def _refused(self, answer: Answer) -> None:
        """No job came of it: later, if that may help."""
        now_s = time.monotonic()
        self._refused_s = self._refused_s or now_s
        is_passing = answer.may_pass and now_s - self._refused_s < SILENCE_S
        if is_passing or (answer.is_full and self._running):
            self._next_submit_s = now_s + self._slurm.poll_s
            return
        hint = "see partition, account, time_limit and sbatch_flags of [runner.slurm]"
        raise RunnerError("Slurm must accept the trial's job", answer.sentence, hint=hint)

    def _make_folder(self) -> Path:
        if self._folder is None:
            self._folder = session_folder(self._slurm)
            (self._folder / ALIVE).touch()
        self._n_folders += 1
        folder = self._folder / f"trial-{self._n_folders:04}"
        folder.mkdir()
        return folder

    def _poll(self) -> None:
        self._polled_s = time.monotonic()
        if self._folder is not None:
            with contextlib.suppress(OSError):
                (self._folder / ALIVE).touch()
        watched = [*self._running, *self._leaving]
        states = job_states(watched) if watched else {}
        if states is None:
            silent_s = time.monotonic() - self._answered_s
            if silent_s > SILENCE_S:
                raise RunnerError("Slurm must answer", f"no answer of squeue for {silent_s:.0f} s")
            return
        self._answered_s = time.monotonic()
        self._leaving = {job for job in self._leaving if job in states and not is_final(states[job][0])}
        for job, trial in list(self._running.items()):
            self._look_at(trial, *states.get(job, (_FORGOTTEN, "")))
        self._feed()

    def _look_at(self, trial: _Trial, state: str, reason: str) -> None:
        outcome = read_outcome(trial.folder)
        if isinstance(outcome, Measured):
            self._end(trial, outcome)
        elif is_final(state):
            self._look_at_ended(trial, state, outcome)
        elif state == "PENDING":
            self._check_wait(trial, reason)

    def _look_at_ended(self, trial: _Trial, state: str, outcome: Outcome | None) -> None:
        trial.ended_s = trial.ended_s or time.monotonic()
        if state == _FORGOTTEN:
            state = accounted_state(trial.job) or state
        if outcome is not None:
            self._end(trial, settled(outcome, state))
            return
        log = _log_of(trial.folder)
        found = failed_in(state, self._recipe.origin, log_tail=tail(log))
        # An outcome may still be on its way through a shared file system; where Slurm ended it, none is.
        if found is None and time.monotonic() - trial.ended_s < LAG_S and state == "COMPLETED":
            return
        ending = Ending(status=_exit_status(trial.job))
        self._end(
            trial,
            found or without_outcome(clues_of(log), ending, self._recipe.origin, log_tail=tail(log)),
        )

    def _check_wait(self, trial: _Trial, reason: str) -> None:
        if reason in NEVER_STARTS:
            hint = "see partition, account, time_limit and sbatch_flags of [runner.slurm]"
            raise RunnerError("the trial's job must be able to start", f"Slurm's reason {reason}", hint=hint)
        limit_s = self._slurm.queue_limit_s
        if limit_s and time.monotonic() - trial.submitted_s > limit_s:
            must = f"the trial's job must start within queue_limit_s = {limit_s:g}"
            hint = "the study is kept; resume it when nodes are free"
            raise RunnerError(must, f"it still waits: {reason}", hint=hint)

    def _end(self, trial: _Trial, outcome: Outcome) -> None:
        del self._running[trial.job]
        self._leaving.add(trial.job)
        shutil.rmtree(trial.folder, ignore_errors=True)
        if is_lost(outcome) and trial.attempt < self._max_lost_retries:
            self._queue.append(
                replace(trial, attempt=trial.attempt + 1, job="", ended_s=None, submitted_s=0.0)
            )
        elif is_lost(outcome):
            assert isinstance(outcome, Failed)
            words = f"{outcome.message} ({trial.attempt + 1} attempts)"
            self._arrived.append((trial.ticket, replace(outcome, message=words)))
        else:
            self._arrived.append((trial.ticket, outcome))


def script_text(folder: Path, slurm: Slurm) -> str:
    """The batch script; what it asks of Slurm are words of sbatch, which need no quoting."""
    path = os.pathsep.join(each for each in sys.path if each)
    setup = f". {shlex.quote(slurm.setup_script)}\n" if slurm.setup_script else ""
    program = shlex.join([sys.executable, "-W", "ignore", "-m", "runners.slurm.trial", str(folder)])
    return (
        "#!/usr/bin/env bash\n"
        "# One trial of a Meshtune study, on the nodes of this job.\n"
        f"{setup}"
        f"export PYTHONPATH={shlex.quote(path)}\n"
        f"exec {program}\n"
    )


def _unexpanded(path: Path) -> str:
    """A path in which sbatch finds nothing to replace."""
    return str(path).replace("%", "%%")


def _log_of(folder: Path) -> str:
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(max(0, (folder / LOG).stat().st_size - _MOST_LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _exit_status(job: str) -> int | None:
    """How the job's script ended (negative: the signal); None where Slurm does not know any more."""
    match = _EXIT.search(call("scontrol", "show", "job", "--oneliner", job).out)
    if match is None:
        return None
    status, number = int(match[1]), int(match[2])
    return -number if number else status
