"""Bash that starts a launch: `train.sh` holds its words, `run.sh` and `job.sbatch` start it on every device.

Text that a user gave is quoted by `shlex.quote`, or, where Slurm reads it and not bash, checked letter by
letter.
"""

import re
import shlex
from collections.abc import Mapping

from runners.launchers.base import Launch, Options
from runners.launchers.sites import Site, site_of
from search_spaces.cluster import ClusterSpec
from search_spaces.errors import InvalidSpec

WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]*")
TIME_LIMIT = re.compile(r"\d+(:\d\d){0,2}|\d+-\d\d(:\d\d){0,2}")
ACCOUNT_PLACEHOLDER = "FILL_IN_ACCOUNT"
PACKAGE = "package"  # the tier of dies that share one package, and its power limit

TRAIN = """\
# Sourced by run.sh and job.sbatch: the environment and the words of the training program.
HERE="$(cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")" && pwd)"
export PYTHONPATH="$HERE${{PYTHONPATH:+:$PYTHONPATH}}"
{setup}{environment}
TRAIN=(
  {program}
{arguments}
)
"""

RUN = """\
#!/usr/bin/env bash
# {title}
# One node: bash run.sh.  Several: the same on each, with MASTER_ADDR and the node's own NODE_RANK set.
set -euo pipefail
. "$(dirname -- "${{BASH_SOURCE[0]}}")/train.sh"

NNODES="${{NNODES:-{n_nodes}}}"
if [ "$NNODES" -gt 1 ]; then
  : "${{MASTER_ADDR:?set MASTER_ADDR to the first node of the job}}"
  : "${{NODE_RANK:?set NODE_RANK to the number of this node, from 0}}"
fi
exec torchrun \\
  --nnodes "$NNODES" \\
  --nproc-per-node {devices_per_node} \\
  --node-rank "${{NODE_RANK:-0}}" \\
  --master-addr "${{MASTER_ADDR:-127.0.0.1}}" \\
  --master-port "${{MASTER_PORT:-29500}}" \\
  "${{TRAIN[@]}}"
"""

JOB = """\
#!/usr/bin/env bash
{directives}
# {title}
set -euo pipefail

# Slurm runs a copy of this script: the files beside it are looked for where sbatch was called.
HERE="${{MESHTUNE_EXPORT:-$SLURM_SUBMIT_DIR}}"
if [ ! -r "$HERE/train.sh" ]; then
  echo "train.sh is not in $HERE: call sbatch in the folder of this script, or set MESHTUNE_EXPORT" >&2
  exit 2
fi
export HERE
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)"
MASTER_PORT="${{MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}}"
export MASTER_ADDR MASTER_PORT
{start}"""

START_NODES = """\

# One torchrun a node, which starts one process for each of its devices.
# shellcheck disable=SC2016  # expanded on the node, not here
srun --nodes={n_nodes} --ntasks={n_nodes} --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c '
  set -euo pipefail
  . "$HERE/train.sh"
  exec torchrun --nnodes {n_nodes} --nproc-per-node {devices_per_node} --node-rank "$SLURM_NODEID" \\
    --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" "${{TRAIN[@]}}"
'
"""

START_DEVICES = """\

# One task a device, on the cores next to it.  A task sees its own device only, hence LOCAL_RANK 0.
# shellcheck disable=SC2016  # expanded by the task, not here
srun --nodes={n_nodes} --ntasks={n_devices} --ntasks-per-node={devices_per_node} \\
  --cpus-per-task={cores} --gpus-per-task=1 --gpu-bind=closest --kill-on-bad-exit=1 bash -c '
  set -euo pipefail
  export RANK="$SLURM_PROCID" WORLD_SIZE="$SLURM_NTASKS" LOCAL_RANK=0
  . "$HERE/train.sh"
  exec python3 -u "${{TRAIN[@]}}"
'
"""

POWER = """\
#!/usr/bin/env bash
# The plan's power limit, {device_w} W a device.  As root, on every node: bash power.sh before the start, and
# bash power.sh reset afterwards, which brings back the limit that the device came with.
set -euo pipefail

if [ "${{1:-set}}" != set ] && [ "$1" != reset ]; then
  echo "power.sh takes nothing, or reset; got $1" >&2
  exit 2
fi
if command -v nvidia-smi >/dev/null; then
  if [ "${{1:-set}}" = set ]; then
    nvidia-smi -pl {device_w}
  else
    nvidia-smi --query-gpu=index,power.default_limit --format=csv,noheader,nounits | {{
      failed=0
      while IFS=', ' read -r index watts; do
        nvidia-smi -i "$index" -pl "$watts" || failed=1  # and the others all the same
      done
      exit "$failed"
    }}
  fi
elif command -v rocm-smi >/dev/null; then
  if [ "${{1:-set}}" = set ]; then
    rocm-smi --setpoweroverdrive {package_w}  # its limit is that of a package, of {per_package} devices here
  else
    rocm-smi --resetpoweroverdrive
  fi
else
  echo "neither nvidia-smi nor rocm-smi is on this node: set {device_w} W a device as its maker says" >&2
  exit 2
fi
"""


def power_script(device_w: int, cluster: ClusterSpec) -> str:
    """`power.sh`: each device's power limit by the driver's own tool, and back again.

    Source: nvidia-smi(1), --power-limit; ROCm SMI CLI, --setpoweroverdrive and --resetpoweroverdrive.
    """
    per_package = next((tier.size for tier in cluster.tiers if tier.name == PACKAGE and tier.size), 1)
    return POWER.format(device_w=device_w, package_w=device_w * per_package, per_package=per_package)


def train_script(launch: Launch, options: Options, cluster: ClusterSpec) -> str:
    """`train.sh`: environment, and every word of the program, each argument on its own line."""
    environment = {**site_of(cluster.name).environment, **launch.environment}
    setup = f". {shlex.quote(options.setup_script)}\n" if options.setup_script else ""
    return TRAIN.format(
        setup=setup,
        environment=_exports(environment),
        program=_program(launch, options),
        arguments="\n".join("  " + shlex.join(words) for words in launch.arguments),
    )


def run_script(title: str, cluster: ClusterSpec) -> str:
    """`run.sh`: torchrun on one node, or on each of several."""
    return RUN.format(
        title=_comment(title), n_nodes=cluster.n_nodes, devices_per_node=devices_on_node(cluster)
    )


def job_script(title: str, options: Options, cluster: ClusterSpec) -> str:
    """`job.sbatch`: the same under Slurm, in the form that the cluster's centre asks for."""
    site = site_of(cluster.name)
    start = START_DEVICES if site.cores_per_device else START_NODES
    return JOB.format(
        directives="\n".join(f"#SBATCH {word}" for word in _directives(options, cluster, site)),
        title=_comment(title),
        start=start.format(
            n_nodes=cluster.n_nodes,
            n_devices=cluster.n_devices,
            devices_per_node=devices_on_node(cluster),
            cores=site.cores_per_device,
        ),
    )


def devices_on_node(cluster: ClusterSpec) -> int:
    """Devices used on each node: all, or fewer when the job fits into one."""
    return min(cluster.n_devices, cluster.devices_per_node)


def _program(launch: Launch, options: Options) -> str:
    program = launch.program if options.program is None else shlex.quote(options.program)
    return f"{program}\n  {launch.fixed_arguments}" if launch.fixed_arguments else program


def _exports(environment: Mapping[str, str]) -> str:
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in sorted(environment.items()))


def _directives(options: Options, cluster: ClusterSpec, site: Site) -> list[str]:
    per_node = devices_on_node(cluster)
    account = options.account or (ACCOUNT_PLACEHOLDER if site.needs_account else None)
    found = [
        f"--job-name={_word('job_name', options.job_name or 'meshtune')}",
        f"--nodes={cluster.n_nodes}",
        f"--ntasks-per-node={per_node if site.cores_per_device else 1}",
        f"--gpus-per-node={per_node}",
        f"--time={_time_limit(options.time_limit)}",
        "--output=%x-%j.out",
    ]
    if site.cores_per_device:
        found.append(f"--cpus-per-task={site.cores_per_device}")
    elif per_node == cluster.devices_per_node:
        found.append("--exclusive")
    found += [f"--account={_word('account', account)}"] if account else []
    return [*found, f"--partition={_word('partition', options.partition)}"] if options.partition else found


def _word(option: str, value: str) -> str:
    if WORD.fullmatch(value):
        return value
    must = f"{option} must be a word of letters, digits and _ . @ + - for Slurm"
    raise InvalidSpec(must, repr(value))


def _time_limit(value: str) -> str:
    if TIME_LIMIT.fullmatch(value):
        return value
    raise InvalidSpec("time_limit must be written as Slurm does, HH:MM:SS or days-HH:MM:SS", repr(value))


def _comment(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)
