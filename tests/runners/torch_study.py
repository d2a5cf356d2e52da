"""Small studies of real trials, what strikes at them, and what must not be left of them."""

import contextlib
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from tests.runners.misbehaving import gone
from tuner.config import StudyConfig, config_from_tables
from tuner.events import TrialStarted

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}
SPACE = {
    "tp": [1], "pp": [1], "cp": [1], "zero": [0], "recompute": ["none"], "micro_batch": [1, 2, 4],
    "overlap_dp": [False],
}  # fmt: skip
# Long enough for a fault to strike while ranks run, short enough for many tests.
QUICK = {"n_steps": 20, "n_warmup": 1, "device": "cpu", "n_threads": 1, "step_limit_s": 6.0}


def tables(folder: Path, n_trials: int = 2, **options) -> dict:
    """The tables of a study of two ranks, whose first trial a test may strike at."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return {
        "study": {"name": "faults", "storage": f"journal:///{folder / 'study.journal'}",
                  "sampler": "best_first"},
        "model": {"hf_config": str(folder / "config.json")},
        "cluster": {"preset": "local", "devices": 2},
        "workload": {"seq_len": 32, "global_batch": 8, "precision": "fp32", "framework": "meshtune"},
        "space": SPACE,
        "runner": {
            "kind": "torch", "executor": "in-process", "parallel": 1, "options": {**QUICK, **options},
        },
        "budget": {"trials": n_trials},
    }  # fmt: skip


def torch_config(folder: Path, n_trials: int = 2, **options) -> StudyConfig:
    return config_from_tables(tables(folder, n_trials, **options), folder=folder)


def trial_servers(root: int | None = None) -> list[psutil.Process]:
    """The processes below one that fork trials: the topmost of those that run the module."""
    found = []
    for process in psutil.Process(root).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            is_one = "runners.trial_server" in process.cmdline()
            if is_one and "runners.trial_server" not in process.parent().cmdline():
                found.append(process)
    return found


def ranks_below(root: int | None = None) -> list[psutil.Process]:
    """The ranks of the trials that run below a process: server, trial, ranks."""
    found = []
    with contextlib.suppress(psutil.Error):
        for server in trial_servers(root):
            for trial in server.children():
                found += trial.children()
    return found


def wait_for_ranks(
    n_ranks: int = 2, root: int | None = None, timeout_s: float = 90.0
) -> list[psutil.Process]:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        ranks = ranks_below(root)
        if len(ranks) >= n_ranks:
            return ranks
        time.sleep(0.01)
    raise AssertionError("no ranks were started")


class Strike:
    """Listens to a study, and does something to the ranks of its first trial once they run."""

    def __init__(self, blow, *, before=None):
        self.blow, self.before, self.trouble, self.thread = blow, before, None, None

    def __call__(self, event):
        if isinstance(event, TrialStarted) and self.thread is None:
            if self.before:
                self.before()
            self.thread = threading.Thread(target=self._strike, daemon=True)
            self.thread.start()

    def _strike(self):
        try:
            self.blow(wait_for_ranks())
        except Exception as error:  # noqa: BLE001 - the test's own thread has to fail
            self.trouble = error

    def done(self):
        """Whether it struck."""
        self.thread.join(timeout=400)
        if self.trouble:
            raise self.trouble
        return not self.thread.is_alive()


class Traces:
    """What trials may leave on a machine: processes, temporary files, shared memory, listening sockets."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", None)
        self.shared, self.processes = shared_memory(), processes_below()

    @property
    def scratch(self) -> list[str]:
        """What trials have left in the folders of their servers that still run, what torch keeps apart."""
        return [
            str(path)
            for folder in self.folder.glob("meshtune-trials-*")
            for path in folder.iterdir()
            if path.name != "compiled"
        ]

    def left(self) -> dict[str, list[str]]:
        """What is there now and was not before, by kind; empty if nothing is."""
        new = processes_below() - self.processes
        gone(new)
        found = {
            "processes": [str(pid) for pid in processes_below() - self.processes],
            "files": sorted(path.name for path in self.folder.iterdir()),
            "shared memory": sorted(shared_memory() - self.shared),
        }
        return {name: what for name, what in found.items() if what}


def processes_below() -> set[int]:
    """Zombies are not: they only wait to be read."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


def shared_memory() -> set[str]:
    folder = Path("/dev/shm")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def listening(pids) -> list[str]:
    """Addresses at which some processes listen."""
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found += [
                str(each.laddr) for each in psutil.Process(pid).net_connections() if each.status == "LISTEN"
            ]
    return found


def main(folder: str) -> int:
    """A driver to be interrupted: a study of long trials."""
    from tuner.study import tune

    config = torch_config(Path(folder), n_steps=100_000)
    print(tune(config).stop, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
