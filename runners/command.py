"""Plans tried by the user's own launch command, or by a launcher's files, and measured from the log.

    command     words with placeholders for the plan, never a shell string; started under a warden
    launcher    or: the files of `runners.launchers`, written into the trial's folder and started there
    reader      whose log it writes (`runners.logs`); the figures are held against the job and the plan
    folder      each trial has its own: the plan, the log, what the launcher wrote

A run ends by itself, or is ended after its last step, at its time limit, or when no step comes.
"""

import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from objectives.metrics import Job
from objectives.outcome import Cause, Failed, Outcome, OutcomeOrigin
from runners.command_outcome import outcome_of_run
from runners.command_process import BoundedLog, Command, run_command
from runners.launched import LAUNCHER_READERS, check_launcher, launched_files
from runners.logs import load_reader
from runners.logs.account import Account
from runners.logs.clues import Clues
from runners.logs.lines import Line
from runners.logs.verdict import EndedBy
from runners.logs.window import FEWEST_STEPS, WARMUP_STEPS
from runners.placeholders import KNOBS, NODES, STEP, check_placeholders, filled, plan_values
from runners.verdicts import why_illegal
from search_spaces.errors import CannotExport, InvalidSpec, UnknownName, check
from search_spaces.plan import Plan, Plans, parse_value
from search_spaces.units import MB

LOG_NAME, PLAN_NAME = "log.txt", "plan.json"
NOTHING: Mapping[str, Any] = MappingProxyType({})
# After the last step a program saves, or hangs in its teardown: none of it is measured.
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds after which a run is ended (0: never), and how it is ended."""

    time_s: float
    step_s: float
    start_s: float
    grace_s: float

    def __post_init__(self) -> None:
        for name in self.__slots__:
            must = f"the command runner's {name.replace('_s', '')} limit must be finite, not negative"
            check(0 <= getattr(self, name) < float("inf"), must, getattr(self, name))


@dataclass(slots=True, kw_only=True, eq=False)
class Watch:
    """A run while it goes on: what its log says, and whether a limit is reached."""

    account: Account
    clues: Clues
    limits: Limits
    n_steps: int
    began_s: float = field(default_factory=time.monotonic)
    last_step_s: float | None = None
    done_s: float | None = None
    first_step: int = 0

    def on_line(self, line: Line, now_s: float) -> None:
        """Take a line."""
        before = self.account.last_step
        self.account.feed(line, at_s=now_s)
        self.clues.feed(line, self.account.n_steps_seen)
        if self.account.last_step != before:
            self.first_step = self.first_step or self.account.last_step
            self.last_step_s = now_s
            if self.is_done and self.done_s is None:
                self.done_s = now_s

    @property
    def is_done(self) -> bool:
        """Whether all steps ran; a run that goes on from a checkpoint counts from its first step."""
        offset = self.first_step - 1 if self.first_step > self.n_steps else 0
        return self.account.last_step - offset >= self.n_steps

    def limit(self, now_s: float) -> tuple[EndedBy, float] | None:
        """The limit that is reached, with its seconds."""
        if self.done_s is not None and now_s > self.done_s + _PATIENCE_S:
            return EndedBy.ENOUGH, _PATIENCE_S
        if self.limits.time_s and now_s > self.began_s + self.limits.time_s:
            return EndedBy.TIME_LIMIT, self.limits.time_s
        since_s, limit_s = self.last_step_s, self.limits.step_s
        if since_s is None:
            since_s, limit_s = self.began_s, self.limits.start_s
        if limit_s and self.done_s is None and now_s > since_s + limit_s:
            return EndedBy.STEP_LIMIT, limit_s
        return None


class CommandRunner:
    """Runs a command for each plan and reads its log.

    `command` may have the placeholders of `runners.placeholders`; words of `when` are added where the plan
    has the value (`"sequence_parallel=true" = ["--sp"]`).  `launcher` writes the files of a launcher instead,
    with `launcher_options`.  `reader` names the trainer whose log it is.  `environment` values may have
    placeholders too.  `under` are words that start all this on the trial's nodes (`srun ...`); it then finds
    MASTER_ADDR and MASTER_PORT.  Relative paths in the command are looked up in `working_folder` (the trial's
    own folder if not given).  Trials' folders are kept in `trials_folder`, or removed if none is given.
    `step_limit_s` is how long a step may take, `start_limit_s` how long the first one; 0 is no limit.
    """

    origin = OutcomeOrigin.MEASURED

    def __init__(  # noqa: PLR0913 - the options of a recipe, flat because they are written in a study file
        self,
        job: Job,
        *,
        command: Sequence[str] = (),
        under: Sequence[str] = (),
        when: Mapping[str, Sequence[str]] = NOTHING,
        launcher: str = "",
        launcher_options: Mapping[str, Any] = NOTHING,
        reader: str = "",
        environment: Mapping[str, str] = NOTHING,
        working_folder: str = "",
        trials_folder: str = "",
        n_steps: int = 20,
        time_limit_s: float = 0.0,
        step_limit_s: float = 0.0,
        start_limit_s: float = 0.0,
        grace_s: float = 10.0,
        most_log_bytes: int = int(64 * MB),
    ) -> None:
        fewest = WARMUP_STEPS + FEWEST_STEPS
        must = f"the command runner's n_steps must be at least {fewest}, {WARMUP_STEPS} of them warm-up"
        check(n_steps >= fewest, must, n_steps)
        check(most_log_bytes >= 0, "the command runner's most_log_bytes must not be negative", most_log_bytes)
        _check_command(command, launcher)
        _check_texts([*command, *under], when, environment)
        if launcher:
            check_launcher(job, launcher, launcher_options, one_node=not under)
        self._job, self._n_steps, self._most_log_bytes = job, n_steps, most_log_bytes
        self._command, self._when, self._environment = tuple(command), when, environment
        self._under = tuple(under)
        self._launcher, self._launcher_options = launcher, launcher_options
        self._reader = load_reader(reader or LAUNCHER_READERS.get(launcher, reader)).name
        self._working_folder, self._trials_folder = working_folder, trials_folder
        self._limits = Limits(
            time_s=time_limit_s, step_s=step_limit_s, start_s=start_limit_s, grace_s=grace_s
        )

    def run(self, plans: Plans, *, attempt: int = 0) -> Sequence[Outcome]:
        """Run the command for every plan, one after the other."""
        return [self._try(plan, attempt) for plan in plans]

    def _try(self, plan: Plan, attempt: int) -> Outcome:
        if illegal := why_illegal(self._job, plan, self.origin):
            return illegal
        try:
            folder = self._make_folder(plan)
        except OSError as error:
            return self._failed_folder(error)
        try:
            return self._run_in(folder, plan, attempt)
        except OSError as error:
            return self._failed_folder(error)
        except (CannotExport, InvalidSpec) as error:
            return Failed(cause=Cause.INVALID, message=error.must, origin=self.origin)
        finally:
            if not self._trials_folder:
                shutil.rmtree(folder, ignore_errors=True)

    def _failed_folder(self, error: OSError) -> Failed:
        words = f"the trial's folder cannot be written: {error.strerror or error}: {error.filename}"
        return Failed(cause=Cause.LOST_MACHINE, message=words, origin=self.origin)

    def _make_folder(self, plan: Plan) -> Path:
        """A folder of the trial's own; its name begins with a digest of the plan."""
        digest = hashlib.sha256(plan.key.encode()).hexdigest()[:12]
        parent = Path(self._trials_folder).absolute() if self._trials_folder else None
        if parent is not None:
            parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f"{digest}-", dir=parent))

    def _run_in(self, folder: Path, plan: Plan, attempt: int) -> Outcome:
        values = plan_values(
            self._job,
            plan,
            n_steps=self._n_steps,
            attempt=attempt,
            folder=folder,
            plan_file=folder / PLAN_NAME,
            port=_free_port(),
            nodelist=os.environ.get(NODES, "localhost"),
            first_node=os.environ.get(NODES, "localhost").partition(",")[0],
            step_name=os.environ.get(STEP, folder.name),
        )
        (folder / PLAN_NAME).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        command = self._command_of(folder, plan, values)
        watch = Watch(
            account=Account(load_reader(self._reader)),
            clues=Clues(),
            limits=self._limits,
            n_steps=self._n_steps,
        )
        with BoundedLog(folder / LOG_NAME, self._most_log_bytes) as log:
            ending = run_command(command, log, on_line=watch.on_line, limit=watch.limit)
        return outcome_of_run(self._job, plan, command, watch, ending, log)

    def _command_of(self, folder: Path, plan: Plan, values: Mapping[str, str]) -> Command:
        environment = {
            "PYTHONUNBUFFERED": "1",  # a line that waits in a buffer says nothing about when it was written
            **(_meeting(values) if self._under else {}),
            **{name: filled(value, values) for name, value in self._environment.items()},
        }
        under = [filled(word, values) for word in self._under]
        if self._launcher:
            files = launched_files(self._job, plan, self._launcher, self._launcher_options, self._n_steps)
            for name, text in files.items():
                (folder / name).write_text(text, encoding="utf-8")
            environment = {"MASTER_PORT": values["port"], **environment}
            return Command(
                words=(*under, "bash", "run.sh"),
                folder=folder,
                environment=environment,
                grace_s=self._limits.grace_s,
            )
        words = [
            *self._command,
            *(word for key in self._when if _holds(plan, key) for word in self._when[key]),
        ]
        return Command(
            words=[*under, *(filled(word, values) for word in words)],
            folder=Path(self._working_folder) if self._working_folder else folder,
            environment=environment,
            grace_s=self._limits.grace_s,
        )


def _meeting(values: Mapping[str, str]) -> dict[str, str]:
    """Where processes on several nodes find each other, as torch's env:// wants to know it."""
    return {"MASTER_ADDR": values["first_node"], "MASTER_PORT": values["port"]}


def _check_command(command: Sequence[str], launcher: str) -> None:
    must = "the command runner must have the option command or launcher"
    hint = 'command = ["torchrun", "train.py", "--tp", "{tp}"]'
    check(bool(command) != bool(launcher), must, "both" if command else "neither", hint=hint)
    is_list = not isinstance(command, str) and all(isinstance(word, str) for word in command)
    check(is_list, "the command must be a list of words, each a text", repr(command), hint=hint)


def _check_texts(
    command: Sequence[str], when: Mapping[str, Sequence[str]], environment: Mapping[str, str]
) -> None:
    check_placeholders(command, "the command")
    for key, words in when.items():
        name, equals, value = key.partition("=")
        check(bool(equals), "a key of the command runner's when must be knob=value", repr(key))
        if name not in KNOBS:
            raise UnknownName("a knob of the command runner's when", name, KNOBS)
        parse_value(name, value)  # what no plan can have would never be added
        is_list = isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)
        check(is_list, f"the words of {key!r} must be a list of texts", repr(words))
        check_placeholders(words, "the command")
    for name, value in environment.items():
        check(
            bool(name) and not set(name) & set("=\0"),
            "a variable's name must be a word without =",
            repr(name),
        )
        check(isinstance(value, str), f"the variable {name} must be a text", repr(value))
    check_placeholders(environment.values(), "the environment")


def _holds(plan: Plan, key: str) -> bool:
    name, _, value = key.partition("=")
    held: object = getattr(plan, name)
    return held == parse_value(name, value)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
