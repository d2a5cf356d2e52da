"""A real Slurm on this machine: one controller and some nodes, each a daemon on its own port of loopback.

The daemons belong to a folder that is removed with them.  Needs Debian's slurm-wlm (or any other) and root.
"""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

N_NODES = 4
START_S = 20.0
TOOLS = ("slurmctld", "slurmd", "srun", "sbatch", "squeue", "scontrol", "scancel", "sinfo")

# A job on two nodes of the machine, as tables of a study file.
JOB_TABLES = """\
[model]
preset = "llama-3-8b"
[cluster]
preset = "dgx-h100"
devices = 16
[workload]
global_batch = 64
seq_len = 8192
"""

CONF = """\
ClusterName=tests
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
KillWait=2
MinJobAge=300
SlurmdTimeout=30
InactiveLimit=0
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/controller.pid
SlurmctldLogFile={folder}/controller.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
NodeName=node[1-{n}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 RealMemory=1000
PartitionName=all Nodes=node[1-{n}] Default=YES MaxTime=10 State=UP PriorityTier=1
PartitionName=urgent Nodes=node[1-{n}] MaxTime=10 State=UP PriorityTier=9
"""


def why_not() -> str:
    """What is missing for a Slurm here, or nothing."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if missing:
        return f"{missing[0]} is not installed; `make slurm` installs Debian's"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


@dataclass(frozen=True)
class SlurmMachine:
    """The running daemons; `conf` is what SLURM_CONF must name."""

    folder: Path

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that make Slurm's programs speak to this one."""
        kept = {name: text for name, text in os.environ.items() if not name.startswith("SLURM_")}
        return {**kept, "SLURM_CONF": str(self.conf), "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

    def call(self, *words: object) -> str:
        """What one of Slurm's programs prints."""
        done = subprocess.run(
            list(map(str, words)),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self) -> list[str]:
        """Ids of the jobs that wait, run or are being cleaned up."""
        return self.call("squeue", "--noheader", "--format=%i").split()

    def resume_nodes(self) -> None:
        """Make idle again what a test took down."""
        down = self._asked("sinfo", "--Node", "--states=down,drain", "--partition=all", "--format=%N").split()
        for node in down:
            self.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self.wait_until_idle()

    def step_ids(self) -> list[str]:
        """Ids of the steps that run, batch scripts left out."""
        rows = self.call("squeue", "--noheader", "--steps", "--format=%i").split()
        return [each for each in rows if each.rpartition(".")[2].isdecimal()]

    def jobs_of_ours(self) -> list[str]:
        """Names of the jobs that an executor submitted and that are not over."""
        names = self.call("squeue", "--noheader", "--format=%j").split()
        return [name for name in names if name.startswith("meshtune")]

    def states(self) -> list[str]:
        """States of the jobs that wait, run or are being cleaned up, sorted."""
        return sorted(self.call("squeue", "--noheader", "--format=%T").split())

    def steps(self) -> list[str]:
        """Names of the steps that run, batch scripts left out."""
        rows = self.call("squeue", "--noheader", "--steps", "--format=%j").split()
        return [name for name in rows if name not in ("batch", "extern", "interactive")]

    def wait_for(self, job: str, state: str, *, patience_s: float = START_S) -> None:
        """Wait until a job is in this state."""
        deadline = time.monotonic() + patience_s
        while (
            self.call("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").strip() != state
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def clear(self) -> None:
        """Cancel whatever a test left, and wait until it is gone."""
        deadline = time.monotonic() + START_S
        while (ids := self.jobs()) and time.monotonic() < deadline:
            self.call("scancel", *ids)
            time.sleep(0.1)
        assert not ids

    def start(self) -> list[subprocess.Popen]:
        """Start controller and nodes as children of this process, and wait until all are idle."""
        first = free_ports(N_NODES + 1)
        (self.folder / "state").mkdir()
        text = CONF.format(
            controller=first, first=first + 1, last=first + N_NODES, n=N_NODES, folder=self.folder,
            user=getpass.getuser(),
        )  # fmt: skip
        self.conf.write_text(text)
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        daemons = [self._daemon("slurmctld", "-D", "-c")]
        daemons += [self._daemon("slurmd", "-D", "-N", f"node{i}") for i in range(1, N_NODES + 1)]
        return daemons

    def wait_until_idle(self) -> None:
        """Wait until every node has told the controller of itself."""
        deadline = time.monotonic() + START_S
        while (said := self._asked("sinfo", "--partition=all", "--format=%D|%T")) != f"{N_NODES}|idle":
            log = (self.folder / "controller.log").read_text()[-2000:]
            assert time.monotonic() < deadline, f"{said}\n{log}"
            time.sleep(0.1)

    def _asked(self, *words: str) -> str:
        """What it says, or nothing while the controller does not answer yet."""
        asked = [*words, "--noheader"]
        done = subprocess.run(
            asked, env=self.environment, capture_output=True, text=True, timeout=240, check=False
        )
        return done.stdout.strip()

    def _daemon(self, *words: str) -> subprocess.Popen:
        return subprocess.Popen(
            words, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip


def stop(daemons: list[subprocess.Popen]) -> None:
    """End the daemons that `start` started."""
    for daemon in daemons:
        daemon.terminate()
    for daemon in daemons:
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def free_ports(n: int) -> int:
    """The first of so many neighbouring ports that are free."""
    for first in range(21000 + os.getpid() % 5000, 32000, n):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + n):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")
