"""How trials are placed on Slurm, as a study says it, and the words of srun and sbatch that follow.

allocation   inside a job: one step a trial, on nodes that no other trial has
sbatch       outside of one: one job a trial, submitted and watched
"""

import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from objectives.metrics import Job
from runners.launchers.scripts import TIME_LIMIT, WORD
from runners.protocol import RunnerRecipe
from runners.slurm.tools import host_names
from search_spaces.errors import InvalidSpec, check

COMMAND = "command"
START_S = 120.0  # for a process of ours on a node, beyond the trial's own limit
_TOOLS = {
    "allocation": ("srun", "scontrol", "squeue", "scancel", "sinfo"),
    "sbatch": ("sbatch", "squeue", "scancel"),
}
_OURS = (
    "--nodes", "-N", "--ntasks", "-n", "--ntasks-per-node", "--nodelist", "-w", "--job-name", "-J",
    "--output", "-o", "--error", "-e", "--overlap", "--parsable", "--wrap", "--array", "-a", "--export",
    "--chdir", "-D", "--wait", "-W", "--requeue", "--no-requeue", "--test-only", "--input", "-i", "--pty",
    "--multi-prog",
    "--kill-on-bad-exit", "-K", "--label", "-l", "--jobid", "--help", "--version", "-V", "--usage",
)  # fmt: skip
# What torch's env:// rendezvous and run.sh look for, from what Slurm tells each task.
_EXPORTS = (
    'export NODE_RANK="$SLURM_NODEID" RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" '
    'WORLD_SIZE="$SLURM_NTASKS"; exec "$@"'
)
_EXPORT_NODE = 'export NODE_RANK="$SLURM_NODEID"; exec "$@"'


class Mode(StrEnum):
    """Where trials run."""

    ALLOCATION = "allocation"
    SBATCH = "sbatch"


class Tasks(StrEnum):
    """What srun starts of the command."""

    NODE = "node"
    DEVICE = "device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """The table [runner.slurm].

    `mode` left out is `allocation` inside a job, else `sbatch`.  `nodes` is how many each trial gets (0: as
    many as the cluster's devices fill).  `tasks` starts the command once a node or once a device.
    `gpus_per_node` left out is the devices of a node, none of CPUs.  `folder` must be one that every node
    sees.  `queue_limit_s` is how long a job may wait for its nodes (0: for ever).
    """

    mode: Mode | None = None
    nodes: int = 0
    tasks: Tasks = Tasks.NODE
    partition: str = ""
    account: str = ""
    qos: str = ""
    time_limit: str = ""
    gpus_per_node: int | None = None
    cpus_per_task: int = 0
    srun_flags: tuple[str, ...] = ()
    sbatch_flags: tuple[str, ...] = ()
    setup_script: str = ""
    folder: str = "meshtune-slurm"
    poll_s: float = 5.0
    queue_limit_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("nodes", "cpus_per_task", "gpus_per_node", "queue_limit_s"):
            value = getattr(self, name) or 0
            check(0 <= value < math.inf, f"[runner.slurm] {name} must be finite, not negative", value)
        check(0 < self.poll_s < math.inf, "[runner.slurm] poll_s must be positive and finite", self.poll_s)
        for name in ("partition", "account", "qos"):
            value = getattr(self, name)
            must = f"[runner.slurm] {name} must be a word of letters, digits and _ . @ + -"
            # A list of partitions is one word with commas.
            words = value.split(",") if name == "partition" and value else [value] if value else []
            check(all(WORD.fullmatch(word) for word in words), must, repr(value))
        is_time = not self.time_limit or bool(TIME_LIMIT.fullmatch(self.time_limit))
        check(is_time, "[runner.slurm] time_limit must be HH:MM:SS or days-HH:MM:SS", repr(self.time_limit))
        check(bool(self.folder), "[runner.slurm] folder must not be empty", repr(self.folder))
        for name in ("srun_flags", "sbatch_flags"):
            _check_flags(name, getattr(self, name))

    def mode_in(self, environment: Mapping[str, str]) -> Mode:
        """The mode, chosen by whether this is a job if it was left out."""
        return self.mode or (Mode.ALLOCATION if environment.get("SLURM_JOB_ID") else Mode.SBATCH)

    def nodes_of(self, job: Job) -> int:
        """Nodes of one trial."""
        return self.nodes or job.cluster.n_nodes

    def devices_of(self, job: Job) -> int:
        """Devices of one trial on each of its nodes."""
        return job.cluster.n_devices // self.nodes_of(job)


def check_slurm(slurm: Slurm, recipe: RunnerRecipe, environment: Mapping[str, str] = os.environ) -> None:
    """Refuse what no trial could run on, before anything is written.

    Raises
    ------
    InvalidSpec
        Slurm's programs are not there, the allocation is too small, or nodes and devices do not agree.
    """
    mode = slurm.mode_in(environment)
    for tool in _TOOLS[mode]:
        hint = "use --executor in-process or ray where there is no Slurm"
        check(
            shutil.which(tool) is not None,
            f"executor = slurm needs {tool} on PATH",
            "no such program",
            hint=hint,
        )
    job = recipe.job
    nodes, devices = slurm.nodes_of(job), job.cluster.n_devices
    must = "[runner.slurm] nodes must share the cluster's devices evenly"
    check(devices % nodes == 0, must, f"{devices} devices over {nodes} nodes")
    by_device = slurm.tasks is Tasks.DEVICE
    must = "[runner.slurm] tasks = device needs a command: a launcher's script starts the devices itself"
    check(not (by_device and "launcher" in recipe.options), must, recipe.options.get("launcher"))
    if recipe.kind == "torch":
        hint = "use fewer devices, or proxy=true with nodes = 1"
        check(nodes == 1, "the torch runner must have a trial on one node", f"{nodes} nodes", hint=hint)
    if mode is Mode.ALLOCATION:
        _check_allocation(nodes, environment)


def _check_allocation(nodes: int, environment: Mapping[str, str]) -> None:
    hint = "start it by salloc or sbatch, or set mode = 'sbatch'"
    inside = bool(environment.get("SLURM_JOB_ID"))
    must = "[runner.slurm] mode = allocation needs a Slurm job around it"
    check(inside, must, "no SLURM_JOB_ID", hint=hint)
    there = len(allocated(environment))
    must = "a trial's nodes must be in the allocation"
    check(nodes <= there, must, f"{nodes} nodes a trial, {there} allocated", hint="ask for more nodes")


def allocated(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the nodes of the job that this process is in.

    Raises
    ------
    InvalidSpec
        Slurm's variables do not say.
    """
    nodelist = environment.get("SLURM_JOB_NODELIST", "")
    if not nodelist:
        raise InvalidSpec("Slurm must tell the nodes of the job in SLURM_JOB_NODELIST", "nothing")
    return host_names(nodelist)


def slots(slurm: Slurm, job: Job, parallel: int, environment: Mapping[str, str] = os.environ) -> int:
    """Trials side by side: as many as were asked for, in an allocation at most as many as have nodes."""
    if slurm.mode_in(environment) is Mode.SBATCH:
        return parallel
    return max(1, min(parallel, len(allocated(environment)) // slurm.nodes_of(job)))


def placed(recipe: RunnerRecipe, slurm: Slurm) -> RunnerRecipe:
    """A command's recipe with the words that start it on the trial's nodes; any other as it is."""
    if recipe.kind != COMMAND:
        return recipe
    return replace(recipe, options={**recipe.options, "under": list(srun_words(slurm, recipe.job))})


def srun_words(slurm: Slurm, job: Job) -> tuple[str, ...]:
    """What starts a command on a trial's nodes; `{nodelist}` is filled in when they are known."""
    nodes, devices = slurm.nodes_of(job), slurm.devices_of(job)
    per_node = devices if slurm.tasks is Tasks.DEVICE else 1
    by_node = slurm.tasks is Tasks.NODE
    return (
        "srun",
        "--overlap",  # whoever started us may hold a step on the same node; the queue keeps trials apart
        "--job-name={step_name}",
        f"--nodes={nodes}",
        f"--ntasks={nodes * per_node}",
        f"--ntasks-per-node={per_node}",
        "--nodelist={nodelist}",
        "--kill-on-bad-exit=1",
        "--export=ALL",
        *_cpus(slurm),
        *(("--cpu-bind=none",) if by_node else ()),  # a launcher's own processes need all the cores
        *(word.replace("{", "{{").replace("}", "}}") for word in slurm.srun_flags),
        "bash",
        "-c",
        _EXPORT_NODE if by_node else _EXPORTS,
        "meshtune",
    )


def alone_words(slurm: Slurm, node: str) -> tuple[str, ...]:
    """What starts one process on one node."""
    one = ("--nodes=1", "--ntasks=1", "--ntasks-per-node=1", f"--nodelist={node}")
    ours = ("--overlap", *one, "--export=ALL", "--cpu-bind=none", *_cpus(slurm))
    return ("srun", *ours, *slurm.srun_flags)


def sbatch_words(slurm: Slurm, job: Job, time_limit_s: float | None) -> tuple[str, ...]:
    """What a trial's job asks for."""
    devices = slurm.devices_of(job)
    is_cpu = job.cluster.device.name == "cpu"
    gpus = (0 if is_cpu else devices) if slurm.gpus_per_node is None else slurm.gpus_per_node
    by_device = slurm.tasks is Tasks.DEVICE
    given = {
        "nodes": slurm.nodes_of(job),
        "ntasks-per-node": devices if by_device else 1,
        "gpus-per-node": gpus,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "time": slurm.time_limit or _minutes(time_limit_s),
    }
    whole = devices >= job.cluster.devices_per_node
    return (
        *(f"--{name}={value}" for name, value in given.items() if value),
        *_cpus(slurm),
        *(("--exclusive",) if whole else ()),
        "--no-requeue",  # a try that is lost is counted here
        *slurm.sbatch_flags,
    )


def _cpus(slurm: Slurm) -> tuple[str, ...]:
    return (f"--cpus-per-task={slurm.cpus_per_task}",) if slurm.cpus_per_task else ()


def _minutes(time_limit_s: float | None) -> str:
    return "" if time_limit_s is None else str(math.ceil((time_limit_s + START_S) / 60))


def _check_flags(name: str, flags: tuple[str, ...]) -> None:
    hint = f'{name} = ["--constraint=h100", "--mem=0"]'
    for flag in flags:
        must = f"[runner.slurm] {name} must be one flag a word, with its value behind ="
        check(flag.startswith("-") and flag.isprintable(), must, repr(flag), hint=hint)
        must = f"[runner.slurm] {name} must leave to Meshtune what places a trial"
        # A short flag may have its value at once: -N4.
        ours = flag.partition("=")[0] in _OURS or (flag[1:2] != "-" and flag[:2] in _OURS)
        check(not ours, must, repr(flag))
