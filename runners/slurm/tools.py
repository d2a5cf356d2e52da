"""Slurm's own programs: called with words, answered with lines, never waited for without end.

They run in sessions of their own: Ctrl-C must not end an sbatch that has submitted and not yet said what.
"""

import os
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from search_spaces.errors import RunnerError

ANSWER_S = 60.0
# A user's own habits would change what the programs print.
_HABITS = ("SQUEUE_", "SINFO_", "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN")
# Sentences of slurm_strerror and of the socket layer that another try may not meet (slurm/slurm_errno.c).
_PASSING = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Connection timed out",
    "Resource temporarily unavailable",
    "Zero Bytes were transmitted",
    "temporarily unable to accept job",
    "Slurm controller not responding",
    "SlurmDBD connection",
    "no answer within",
)
# The user has as many jobs as the centre allows: one that ends makes room.
_FULL = ("MaxSubmitJob", "Job violates accounting/QOS policy", "maximum number of jobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a program said; status None: it did not end in time."""

    status: int | None
    out: str = ""
    err: str = ""

    @property
    def is_well(self) -> bool:
        """Whether it did what it was asked."""
        return self.status == 0

    @property
    def may_pass(self) -> bool:
        """Whether the trouble is Slurm's own and may be over at the next try."""
        return any(words in self.err for words in _PASSING)

    @property
    def is_full(self) -> bool:
        """Whether the centre takes no further job of this user now."""
        return any(words in self.err for words in _FULL)

    @property
    def sentence(self) -> str:
        """The trouble in one line, without the name of the program before it."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return lines[0].partition("error: ")[2] or lines[0] if lines else f"exit status {self.status}"


def call(*words: str, timeout_s: float = ANSWER_S) -> Answer:
    """Run one of Slurm's programs to its end.

    Raises
    ------
    RunnerError
        It is not on PATH.
    """
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            env=_environment(os.environ),
            start_new_session=True,
            check=False,
        )
    except FileNotFoundError:
        raise RunnerError(f"Slurm's program {words[0]} must be on PATH", "none") from None
    except subprocess.TimeoutExpired:
        return Answer(status=None, err=f"no answer within {timeout_s:g} s")
    return Answer(status=done.returncode, out=done.stdout, err=done.stderr)


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_HABITS)}


def host_names(nodelist: str) -> tuple[str, ...]:
    """The names that `node[1-4]` stands for.

    Raises
    ------
    RunnerError
        Slurm cannot read it.
    """
    answer = call("scontrol", "show", "hostnames", nodelist)
    if not answer.is_well:
        raise RunnerError("Slurm must be able to read its list of nodes", f"{nodelist!r}: {answer.sentence}")
    return tuple(answer.out.split())


def steps_named(job: str, name: str) -> list[str] | None:
    """Ids of the steps of a job that have this name; None if Slurm did not answer."""
    answer = call("squeue", "--noheader", "--steps", f"--jobs={job}", "--format=%i|%j")
    if not answer.is_well:
        return [] if "Invalid job id" in answer.err else None
    return [line.partition("|")[0].strip() for line in answer.out.splitlines() if line.endswith(f"|{name}")]


def lost_nodes(job: str, nodes: Sequence[str]) -> set[str]:
    """Those that Slurm took out of the job, or calls down or not responding; none if it did not answer."""
    answer = call("squeue", "--noheader", f"--jobs={job}", "--format=%N")
    kept = host_names(answer.out.strip()) if answer.is_well and answer.out.strip() else nodes
    return _broken(nodes) | (set(nodes) - set(kept))


def _broken(nodes: Sequence[str]) -> set[str]:
    words = ("--noheader", "--Node", f"--nodes={','.join(nodes)}", "--format=%N|%T")
    states = [line.split("|") for line in call("sinfo", *words).out.splitlines() if "|" in line]
    return {
        name
        for name, state in states
        if state.endswith("*") or any(word in state for word in ("down", "fail", "unknown"))
    }


def job_states(ids: Iterable[str]) -> dict[str, tuple[str, str]] | None:
    """State and reason of jobs by id, without those that Slurm has forgotten; None if it did not answer."""
    wanted = f"--jobs={','.join(ids)}"
    answer = call("squeue", "--noheader", "--states=all", wanted, "--format=%i|%T|%r")
    if not answer.is_well and "Invalid job id" not in answer.err:
        return None
    rows = [line.strip().split("|", 2) for line in answer.out.splitlines() if line.count("|") >= 2]
    return {job: (state, reason) for job, state, reason in rows}


def accounted_state(job: str) -> str | None:
    """A forgotten job's state from the accounting, where there is any."""
    try:
        answer = call(
            "sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State"
        )
    except RunnerError:
        return None
    words = answer.out.split()
    return words[0] if answer.is_well and words else None


def cancel(*ids: str) -> None:
    """End jobs or steps; those that are over already do not matter."""
    if ids:
        call("scancel", *ids)
