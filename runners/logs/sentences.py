"""Sentences that only a failure writes, and what each is evidence of.

Sources: torch 2.13, c10/cuda/CUDACachingAllocator.cpp, c10/core/impl/alloc_cpu.cpp,
torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp and socket.cpp, torch/distributed/elastic/multiprocessing;
gloo, transport/tcp/unbound_buffer.cc and pair.cc; NCCL, src/misc/socket.cc; Slurm, src/slurmd/slurmstepd and
src/srun; Python's traceback and argparse; Linux, mm/oom_kill.c; tyro's error boxes.
"""

import re
from enum import StrEnum

from search_spaces.units import GIB, KIB, MIB, TIB

_BYTES = {"bytes": 1.0, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}


class Kind(StrEnum):
    """What a clue is evidence of."""

    DEVICE_MEMORY = "device memory"
    HOST_MEMORY = "host memory"
    COLLECTIVE = "collective timeout"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    ABORTED = "step aborted"
    TIME_LIMIT = "time limit"
    NODE_LOST = "node lost"
    DEVICE_BROKEN = "device broken"
    DISK_FULL = "disk full"
    PORT_TAKEN = "port taken"
    PEER_LOST = "peer lost"
    MISSING = "launcher missing"
    REFUSED = "configuration refused"
    NAN = "nan loss"
    TERMINATED = "terminated"
    EXCEPTION = "exception"


_SIZE = r"(?P<{0}>[\d.]+) (?P<{0}_unit>bytes|[KMGT]iB)"
# The sentence of torch's caching allocator, of CUDA and of HIP.
_ALLOCATOR = (
    r"(?:CUDA|HIP|XPU) out of memory\. Tried to allocate " + _SIZE.format("asked") + r"\."
    r"(?: GPU \d+ has a total capacity of [\d.]+ [KMGT]iB of which " + _SIZE.format("free") + r" is free)?"
)
OUT_OF_MEMORY = re.compile(
    r"(?:torch\.(?:cuda\.)?OutOfMemoryError|RuntimeError|c10::OutOfMemoryError|\s*what\(\)): +" + _ALLOCATOR
)

# Anchored at a line's start, but for the launcher's rank before it.
_STARTS: tuple[tuple[Kind, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (
            Kind.DEVICE_MEMORY,
            r"(?:\w+\.)*(?:Runtime|Accelerator|DistBackend)Error: (?:CUDA|HIP) error: out of memory",
        ),
        (Kind.DEVICE_MEMORY, r"(?:\w+\.)*(?:RuntimeError): CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
        (Kind.DEVICE_MEMORY, r".*\bNCCL WARN (?:Cuda|HIP) failure (?:\d+ )?'out of memory'"),
        (Kind.HOST_MEMORY, r"slurmstepd: error: Detected \d+ oom[-_]kill events?(?:\(s\))? in "),
        (Kind.HOST_MEMORY, r"srun: error: \S+: tasks? [\d,-]+: Out Of Memory"),
        (Kind.HOST_MEMORY, r"(?:\[[ \d.]+\] )?(?:Memory cgroup )?[Oo]ut of memory: Kill(?:ed)? process \d+ "),
        (Kind.HOST_MEMORY, r"terminate called after throwing an instance of 'std::bad_alloc'"),
        (Kind.HOST_MEMORY, r"RuntimeError: DataLoader worker \(pid[^)]*\) is killed by signal: Killed\."),
        (Kind.NODE_LOST, r"srun: error: Node failure on \S+"),
        (Kind.NODE_LOST, r"srun: error: \S+: tasks? [\d,-]+: .*(?:node failure|NODE_FAIL)"),
        (Kind.NODE_LOST, r"srun: error: Task launch for StepId=\S+ failed on node \S+: "),
        (
            Kind.NODE_LOST,
            r"srun: error: Unable to create step for job \d+: Requested node configuration is not available",
        ),
        (Kind.NODE_LOST, r"srun: error: Slurm job \d+ has expired"),
        (Kind.ABORTED, r"srun: Job step aborted: Waiting up to \d+ seconds"),
        # The job was ending when its trial began: no word about the plan.
        (
            Kind.ABORTED,
            r"srun: error: Unable to create step for job \d+: Job/step already completing or completed",
        ),
        (Kind.DEVICE_BROKEN, r"(?:\w+\.)*\w*Error: CUDA error: uncorrectable ECC error encountered"),
        (
            Kind.DEVICE_BROKEN,
            r"(?:\[[ \d.]+\] )?NVRM: (?:Xid \([^)]*\): (?:48|63|74|79|94|95)\b|GPU at .* fallen off)",
        ),
        (Kind.DISK_FULL, r"(?:OSError|IOError): \[Errno 28\] No space left on device"),
        (
            Kind.PORT_TAKEN,
            r"(?:\w+\.)*(?:DistNetworkError|RuntimeError): The server socket has failed to listen on any ",
        ),
        (
            Kind.MISSING,
            r"(?:\S*sh: (?:line )?(?:\d+: )?|\S+: line \d+: )(?:exec: )?\S+: (?:command )?not found$",
        ),
        (Kind.MISSING, r"\S+: line \d+: \w+: set \w+ to "),
        (
            Kind.MISSING,
            r"\S*python[\d.]*: (?:can't open file '|No module named |Error while finding module )",
        ),
        (Kind.REFUSED, r"[╭│┌] ?─* ?(?:Parsing error|Unrecognized options|Required options|Invalid choice)"),
        (Kind.TERMINATED, r"(?:\w+\.)*SignalException: Process \d+ got signal: (?:15|2|10|12)\b"),
        (Kind.TERMINATED, r"\[exiting program after receiving SIGTERM\.?\] datetime: "),
    )
)
# Sentences so much their own that they are looked for anywhere in a line.
ANYWHERE: tuple[tuple[Kind, re.Pattern[str]], ...] = tuple(
    (kind, re.compile(pattern))
    for kind, pattern in (
        (Kind.COLLECTIVE, r"\[Rank (?P<rank>\d+)\] Watchdog caught collective operation timeout: Work\w+\("),
        (
            Kind.COLLECTIVE,
            r"unbound_buffer\.cc:\d+\] Timed out waiting \d+ms for (?:send|recv) operation to complete",
        ),
        (Kind.COLLECTIVE, r"\bRank (?P<rank>\d+) failed to pass monitoredBarrier in \d+ ms"),
        (
            Kind.PEER_LOST,
            r"NCCL WARN .*Connection closed by remote peer|ncclRemoteError: A call failed possibly due",
        ),
        (Kind.PEER_LOST, r"pair\.cc:\d+\] Connection (?:closed|reset) by peer"),
    )
)
_SLURM = re.compile(
    r"(?:slurmstepd|srun): error: \*\*\* (?P<what>JOB|STEP) \S+ ON \S+ CANCELLED AT \S+(?P<why>.*?) \*\*\*"
)
_SLURM_WHY = (
    ("PREEMPTION", Kind.PREEMPTED),
    ("REQUEUE", Kind.PREEMPTED),
    ("TIME LIMIT", Kind.TIME_LIMIT),
    ("NODE", Kind.NODE_LOST),
)

# Every sentence above and below has one of these words.
TRIGGERS = (
    "rror", "xception", "emory", "oom", "CANCELLED", "timeout", "Timed out", "monitoredBarrier",
    "Traceback", "Connection", "remote", "terminate", "NVRM", "not found", ": set ", "python",
    "exiting program", "usage: ", "Root Cause", "what():", "Node failure", "NODE_FAIL", "NCCL WARN",
    "Unrecognized", "Required options", "Invalid choice", "step aborted",
)  # fmt: skip

TRACEBACK = re.compile(r"Traceback \(most recent call last\):")
EXCEPTION = re.compile(r"(?P<name>(?:\w+\.)*_?[A-Z]\w*)(?:: (?P<words>.*))?$")
_EXCEPTION_NAME = re.compile(r"(?:Error|Exception|Exit|Interrupt|Timeout|Failed)$")
# Raised because another process failed: what that one wrote says more.
_ECHOES = ("ChildFailedError", "CalledProcessError", "ProcessExitedException", "ProcessRaisedException")
_HOST_NAMES = ("MemoryError", "_ArrayMemoryError")
_HOST_WORDS = re.compile(
    r"DefaultCPUAllocator: can't allocate memory: you tried to allocate \d+ bytes"
    r"|\[Errno 12\] Cannot allocate memory"
)
_NAN_WORDS = re.compile(
    r"found NaN in |\bloss (?:is|became|was) (?:nan|not finite)\b|\bnan loss\b"
    r"|Current loss scale already at minimum - cannot decrease scale anymore",
    re.IGNORECASE,
)
_REFUSING_NAMES = re.compile(r"(?:^Assertion|^Value|^NotImplemented|Validation|Config\w*)Error$")
_MISSING_NAMES = ("ModuleNotFoundError",)
USAGE = re.compile(r"usage: \S+")
ARGPARSE = re.compile(r"(?P<program>[\w./-]+): error: .+")


def kind_at_start(text: str) -> Kind | None:
    """What a line is evidence of by its first words."""
    if match := _SLURM.match(text):
        for words, kind in _SLURM_WHY:
            if words in match["why"]:
                return kind
        # A step is cancelled whenever one of its tasks fails; a job only by its user or its centre.
        return Kind.CANCELLED if match["what"] == "JOB" else None
    return next((kind for kind, pattern in _STARTS if pattern.match(text)), None)


def is_exception(name: str) -> bool:
    """Whether this is an exception's name, and not one raised because another process failed."""
    last = name.rpartition(".")[2]
    return bool(_EXCEPTION_NAME.search(last)) and last not in _ECHOES


def kind_named(name: str, text: str) -> Kind:
    """What an exception is evidence of."""
    if name in _HOST_NAMES or _HOST_WORDS.search(text):
        return Kind.HOST_MEMORY
    if _NAN_WORDS.search(text):
        return Kind.NAN
    if name in _MISSING_NAMES:
        return Kind.MISSING
    return Kind.REFUSED if _REFUSING_NAMES.search(name) else Kind.EXCEPTION


def short_bytes(match: re.Match[str]) -> float:
    """By how much the device fell short: what was asked less what was free."""
    if match["free"] is None:
        return 0.0
    asked, free = (float(match[name]) * _BYTES[match[f"{name}_unit"]] for name in ("asked", "free"))
    return max(asked - free, 0.0)
