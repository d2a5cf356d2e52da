"""The scripts are run, with stand-ins for torchrun, srun and scontrol that note how they were called."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from runners.launched import launched_files
from runners.launchers import load_launcher
from runners.launchers.base import Options, words
from runners.launchers.export import export, export_files
from search_spaces.errors import CannotExport, InvalidSpec
from search_spaces.plan import Plan
from tests.runners.launchers.cases import CASES, GPT_FRONTIER, LLAMA_8B, job

ALL = [(name, case) for name, cases in CASES.items() for case in cases]
HOSTILE = "a b'c\"d$(touch pwned)`touch pwned`;*\n\\e"
NODE = job("llama-3-8b", "dgx-h100", 8, 64, 8192)
LUMI = job("frontier-22b", "lumi", 64, 64, 2048)
RECORD = '#!/bin/sh\nprintf "%s\\0" "${0##*/}" "RANK=$RANK" "LOCAL_RANK=$LOCAL_RANK" "$@" >"$CALLED"\n'
SRUN = '#!/bin/bash\nprintf "%s " "${@:1:$#-3}" >"$CALLED.srun"\nexec "${@: -3}"\n'
every_case = pytest.mark.parametrize(("launcher", "case"), ALL, ids=[f"{n}-{c.name}" for n, c in ALL])


SHELLCHECK = Path(sys.executable).with_name("shellcheck")  # of the development extra


class Machine:
    """Runs a script where torchrun, python3, srun and scontrol only write down their arguments."""

    def __init__(self, folder):
        self.called, self.tools = folder / "called", folder / "tools"
        self.tools.mkdir()
        scripts = {
            "torchrun": RECORD,
            "python3": RECORD,
            "srun": SRUN,
            "scontrol": "#!/bin/sh\necho n1\necho n2\n",
        }
        for name, text in scripts.items():
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)

    def run(self, script, **environment):
        base = {
            "PATH": f"{self.tools}:/usr/bin:/bin",
            "CALLED": str(self.called),
            "RANK": "",
            "LOCAL_RANK": "",
        }
        done = subprocess.run(
            ["bash", script], env=base | environment, cwd=script.parent, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        return done, self.called.read_bytes().decode().split("\0")[:-1] if self.called.exists() else []

    def srun(self):
        return Path(f"{self.called}.srun").read_text()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@every_case
def test_every_script_is_bash(launcher, case, tmp_path):
    export(case.job, case.plan, launcher, "both", tmp_path / "out", Options())
    for script in ("train.sh", "run.sh", "job.sbatch"):
        subprocess.run(["bash", "-n", tmp_path / "out" / script], check=True, timeout=120)


@pytest.mark.parametrize("launcher", CASES)
def test_shellcheck_has_nothing_to_say(launcher, tmp_path):
    case = CASES[launcher][0]
    plan = replace(case.plan, power_cap_w=200)
    export(case.job, plan, launcher, "both", tmp_path / "out", Options(setup_script="/etc/profile"))
    scripts = [tmp_path / "out" / name for name in ("run.sh", "job.sbatch", "power.sh")]
    command = [SHELLCHECK, "--external-sources", "--exclude=SC1090,SC1091,SC2154", "--shell=bash", *scripts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout == ""


def node_plan(launcher):
    return Plan(dp=8, overlap_dp=launcher in ("torchtitan", "llm-foundry"))  # which always overlap


@pytest.mark.parametrize("launcher", CASES)
def test_hostile_text_reaches_the_program_as_it_was_given(launcher, tmp_path, machine):
    options = Options(program=HOSTILE, data_path=HOSTILE, tokenizer=HOSTILE, extra=(HOSTILE,))
    plan = node_plan(launcher)
    folder = tmp_path / "out of 'the' $(way)"
    export(NODE, plan, launcher, "torchrun", folder, options)
    done, called = machine.run(folder / "run.sh")
    assert done.returncode == 0, done.stderr
    inside = "".join(path.read_text() for path in folder.glob("train.yaml")).count(json.dumps(HOSTILE))
    assert called.count(HOSTILE) + inside == 4
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize("launcher", CASES)
def test_run_sh_starts_torchrun_with_every_argument(launcher, tmp_path, machine):
    options = Options(program="train.py")
    export(NODE, node_plan(launcher), launcher, "torchrun", tmp_path / "out", options)
    done, called = machine.run(tmp_path / "out" / "run.sh")
    assert done.returncode == 0, done.stderr
    assert called[0] == "torchrun"
    assert called[3:13] == [*torchrun_words(1, 0, "127.0.0.1"), "--master-port", "29500"]
    arguments = words(load_launcher(launcher).launch(NODE, node_plan(launcher), options).arguments)
    assert called[13] == "train.py"
    assert called[-len(arguments) :] == arguments


def test_run_sh_on_several_nodes_asks_for_what_it_needs(tmp_path, machine):
    export(LLAMA_8B, Plan(dp=64), "megatron-lm", "torchrun", tmp_path / "out", Options(program="train.py"))
    done, _ = machine.run(tmp_path / "out" / "run.sh")
    assert "set MASTER_ADDR to the first node" in done.stderr
    done, called = machine.run(tmp_path / "out" / "run.sh", MASTER_ADDR="n1", NODE_RANK="3")
    assert done.returncode == 0, done.stderr
    assert called[3:11] == torchrun_words(8, 3, "n1")


def test_a_program_that_nobody_named_is_asked_for(tmp_path, machine):
    export(NODE, Plan(dp=8), "megatron-lm", "torchrun", tmp_path / "out", Options())
    done, called = machine.run(tmp_path / "out" / "run.sh")
    assert "set MEGATRON_LM to a checkout" in done.stderr
    assert called == []


SLURM = {"SLURM_JOB_ID": "20001", "SLURM_JOB_NODELIST": "n[1-8]", "SLURM_NODEID": "2"}


def test_job_sbatch_starts_one_torchrun_a_node(tmp_path, machine):
    export(LLAMA_8B, Plan(dp=64), "megatron-lm", "slurm", tmp_path / "out", Options(program="train.py"))
    done, called = machine.run(
        tmp_path / "out" / "job.sbatch", SLURM_SUBMIT_DIR=str(tmp_path / "out"), **SLURM
    )
    assert done.returncode == 0, done.stderr
    assert machine.srun().startswith("--nodes=8 --ntasks=8 --ntasks-per-node=1 ")
    assert called[0] == "torchrun"
    assert called[3:13] == [*torchrun_words(8, 2, "n1"), "--master-port", "20001"]


def test_job_sbatch_on_frontier_starts_one_task_a_die(tmp_path, machine):
    case = CASES["deepspeed"][0]
    export(case.job, case.plan, "deepspeed", "slurm", tmp_path / "out", Options(program="train.py"))
    tasks = {"SLURM_PROCID": "9", "SLURM_NTASKS": "1024", "SLURM_SUBMIT_DIR": str(tmp_path / "out")}
    done, called = machine.run(tmp_path / "out" / "job.sbatch", **tasks, **SLURM)
    assert done.returncode == 0, done.stderr
    bound = "--cpus-per-task=7 --gpus-per-task=1 --gpu-bind=closest"
    assert f"--nodes=128 --ntasks=1024 --ntasks-per-node=8 {bound}" in machine.srun()
    assert called[:5] == ["python3", "RANK=9", "LOCAL_RANK=0", "-u", "train.py"]
    assert str(tmp_path / "out" / "ds_config.json") in called


def test_job_sbatch_away_from_its_folder_says_what_to_do(tmp_path, machine):
    export(LLAMA_8B, Plan(dp=64), "megatron-lm", "slurm", tmp_path / "out", Options())
    done, _ = machine.run(tmp_path / "out" / "job.sbatch", SLURM_SUBMIT_DIR="/nowhere", **SLURM)
    assert done.returncode == 2
    assert "call sbatch in the folder of this script" in done.stderr


def torchrun_words(n_nodes, node, address):
    words = {"nnodes": n_nodes, "nproc-per-node": 8, "node-rank": node, "master-addr": address}
    return [word for name, value in words.items() for word in (f"--{name}", str(value))]


def directives(text):
    return dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE))


@pytest.mark.parametrize(
    ("job", "plan", "expected"),
    [
        (LLAMA_8B, "dp=64", {"nodes": "8", "ntasks-per-node": "1", "gpus-per-node": "8", "exclusive": ""}),
        (job("llama-3-8b", "dgx-h100", 4, 64, 8192), "dp=4", {"nodes": "1", "gpus-per-node": "4"}),
        (GPT_FRONTIER, "tp=4 pp=16 dp=16", {"nodes": "128", "ntasks-per-node": "8", "gpus-per-node": "8",
                                            "cpus-per-task": "7", "account": "FILL_IN_ACCOUNT"}),
        (LUMI, "dp=64", {"nodes": "8", "ntasks-per-node": "8", "cpus-per-task": "7",
                         "account": "FILL_IN_ACCOUNT"}),
    ],
    ids=["dgx", "half a node", "frontier", "lumi"],
)  # fmt: skip
def test_slurm_is_asked_for_what_the_cluster_has(job, plan, expected):
    found = directives(export_files(job, Plan.parse(plan), "megatron-lm", "slurm", Options())["job.sbatch"])
    assert expected.items() <= found.items()
    assert found["time"] == "02:00:00"
    assert ("exclusive" in found) == ("exclusive" in expected)


def test_slurm_gets_the_users_account_partition_and_time():
    options = Options(account="proj_1", partition="gpu-long", time_limit="1-12:00:00", job_name="try.1")
    found = directives(export_files(LLAMA_8B, Plan(dp=64), "megatron-lm", "both", options)["job.sbatch"])
    given = {"account": "proj_1", "partition": "gpu-long", "time": "1-12:00:00", "job-name": "try.1"}
    assert given.items() <= found.items()


@pytest.mark.parametrize("field", ["account", "partition", "job_name", "time_limit"])
@pytest.mark.parametrize("value", ["a b", "a\n#SBATCH --wrap=x", "-x", "$(id)", "ä"])
def test_slurm_never_sees_a_word_it_could_misread(field, value):
    with pytest.raises(InvalidSpec, match=f"{field} must be"):
        export_files(LLAMA_8B, Plan(dp=64), "megatron-lm", "slurm", Options(**{field: value}))


@pytest.mark.skipif(shutil.which("sbatch") is None, reason="Slurm is not installed")
def test_slurm_itself_takes_the_directives(tmp_path):
    export(NODE, Plan(dp=8), "megatron-lm", "slurm", tmp_path / "out", Options())
    command = ["sbatch", "--test-only", "job.sbatch"]
    done = subprocess.run(
        command, cwd=tmp_path / "out", capture_output=True, text=True, timeout=240, check=False
    )
    assert not re.search("unrecognized option|invalid|Invalid", done.stderr), done.stderr


TOLD = """#!/bin/bash
printf '%s\\0' "$(basename "$0") $*" >> "$CALLED"
case "$1" in --query*) echo "0, 700.00"; echo "1, 650.00";; esac
"""
CAPPED = {
    "dgx-h100": ("llama-3-8b", "nvidia-smi", ["nvidia-smi -pl 400"],
                 ["nvidia-smi --query-gpu=index,power.default_limit --format=csv,noheader,nounits",
                  "nvidia-smi -i 0 -pl 700.00", "nvidia-smi -i 1 -pl 650.00"]),
    "frontier": ("llama-3-8b", "rocm-smi", ["rocm-smi --setpoweroverdrive 400"],
                 ["rocm-smi --resetpoweroverdrive"]),
}  # fmt: skip


@pytest.mark.parametrize("cluster", CAPPED)
def test_a_power_limit_is_set_and_undone_by_the_drivers_tool(cluster, tmp_path, machine):
    model, tool, sets, undoes = CAPPED[cluster]
    cap_w = 200 if cluster == "frontier" else 400  # two dies to a package, which has one limit
    plan = Plan(dp=8, power_cap_w=cap_w)
    export(job(model, cluster, 8, 64, 2048), plan, "megatron-lm", "both", tmp_path / "out", Options())
    (machine.tools / tool).write_text(TOLD)
    (machine.tools / tool).chmod(0o755)
    assert machine.run(tmp_path / "out" / "power.sh")[1] == sets
    machine.called.unlink()
    done = subprocess.run(
        ["bash", tmp_path / "out" / "power.sh", "reset"], check=True, timeout=30,
        env={"PATH": f"{machine.tools}:/usr/bin:/bin", "CALLED": str(machine.called)},
    )  # fmt: skip
    assert done.returncode == 0
    assert machine.called.read_bytes().decode().split("\0")[:-1] == undoes


def test_a_device_that_tells_no_limit_keeps_none_of_the_others_from_theirs(tmp_path, machine):
    export(NODE, Plan(dp=8, power_cap_w=400), "megatron-lm", "both", tmp_path / "out", Options())
    tool = machine.tools / "nvidia-smi"
    tool.write_text(TOLD.replace("0, 700.00", "0, [N/A]") + 'test "$4" != "[N/A]"\n')
    tool.chmod(0o755)
    done = subprocess.run(
        ["bash", tmp_path / "out" / "power.sh", "reset"], check=False, timeout=60,
        env={"PATH": f"{machine.tools}:/usr/bin:/bin", "CALLED": str(machine.called)},
    )  # fmt: skip
    assert done.returncode == 1
    assert "nvidia-smi -i 1 -pl 650.00" in machine.called.read_bytes().decode()


def test_a_node_without_either_tool_says_so(tmp_path, machine):
    export(NODE, Plan(dp=8, power_cap_w=400), "megatron-lm", "both", tmp_path / "out", Options())
    done, called = machine.run(tmp_path / "out" / "power.sh")
    assert (done.returncode, called) == (2, [])
    assert "neither nvidia-smi nor rocm-smi" in done.stderr


def test_a_plan_without_a_limit_has_no_script_for_it():
    assert "power.sh" not in export_files(NODE, Plan(dp=8), "megatron-lm", "both", Options())


def test_a_trial_never_runs_a_limited_plan_without_its_limit():
    with pytest.raises(CannotExport, match="power_cap_w=400: only root sets it"):
        launched_files(NODE, Plan(dp=8, power_cap_w=400), "megatron-lm", {}, 10)
