"""Small studies for tests, and a driver to be killed: `python -m tests.tuner.studies STUDY.json`.

The driver prints a line for each trial it starts and finishes, so that a test knows when to strike.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import optuna

from search_spaces.documents import read_toml
from search_spaces.plan import Plan
from tuner import study
from tuner.book import Book
from tuner.campaign import Campaign, study_from_tables
from tuner.config import StudyConfig, config_from_tables
from tuner.events import TrialFinished, TrialsReaped, TrialStarted
from tuner.leases import Owner, this_host
from tuner.samplers import make_sampler
from tuner.samplers.candidates import CandidateTable, plan_from_params
from tuner.shortlist import shortlist
from tuner.storage import open_storage
from tuner.view import State, StudyView, load_study

ROOT = Path(__file__).parents[2]
NAME = "study"
STORAGES = ["sqlite", "journal"]
# 72 plans: small enough to price at once, large enough that a sampler has a choice.
SPACE = {
    "tp": [1, 2], "pp": [1, 2, 4], "cp": [1], "vpp": [1], "micro_batch": [1, 2], "zero": [0, 1, 2],
    "schedule": ["1f1b"], "recompute": ["none"], "recompute_every": [1], "first_layers": [0],
    "last_layers": [0], "sequence_parallel": [False], "offload_optimizer": [False],
    "rank_order": ["tp-cp-dp-pp"], "overlap_dp": [False, True], "overlap_tp": [False], "overlap_pp": [False],
}  # fmt: skip


def read_study(path: Path) -> StudyConfig | Campaign:
    """The study, or the campaign, of a file, as the command line reads it."""
    return study_from_tables(read_toml(path), folder=path.parent, where=str(path))


def storage_url(folder: Path, kind: str) -> str:
    return f"{kind}:///{folder / ('study.' + kind)}"


def tables(storage: str, **changes: dict) -> dict:
    """The tables of a small study; `runner={...}` and so on change single keys."""
    base = {
        "study": {"name": NAME, "storage": storage, "sampler": "random"},
        "model": {"preset": "gpt2"},
        "cluster": {"preset": "dgx-a100", "devices": 16},
        "workload": {"seq_len": 1024, "global_batch": 64},
        "space": SPACE,
        "objective": {"metric": "step_time"},
        "runner": {"executor": "in-process", "parallel": 2, "options": {}},
        "budget": {"trials": 6},
    }
    return {name: {**table, **changes.get(name, {})} for name, table in base.items()}


def config(storage: str, **changes: dict) -> StudyConfig:
    return config_from_tables(tables(storage, **changes), folder=ROOT)


def start_driver(folder: Path, storage: str, **changes: dict) -> subprocess.Popen:
    """A driver in a process of its own."""
    return start_study(folder, tables(storage, **changes))


def start_study(folder: Path, given: dict) -> subprocess.Popen:
    """The same for the tables of any study."""
    path = folder / "study.json"
    path.write_text(json.dumps(given))
    command = [sys.executable, "-m", "tests.tuner.studies", str(path)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(driver: subprocess.Popen, word: str, count: int) -> None:
    """Return when the driver has printed that many lines that begin with the word."""
    for line in driver.stdout:
        count -= line.startswith(word)
        if count == 0:
            return
    raise AssertionError(driver.stderr.read())


def view(storage: str) -> StudyView:
    return load_study(NAME, storage)


def optuna_trials(storage: str) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=NAME, storage=open_storage(storage)).trials


def finished_plans(study: StudyView) -> list[str]:
    return [trial.plan.key for trial in study.finished]


def tried_plans(study: StudyView) -> list[str]:
    """Plans by trial that was really started, those of dead drivers left out."""
    return [t.plan.key for t in study.trials if t.state in (State.RUNNING, State.MEASURED, State.FAILED)]


def twice(plans: list[str]) -> list[str]:
    return [plan for plan, count in Counter(plans).items() if count > 1]


def running_plans(study: StudyView) -> set[str]:
    return {t.plan.key for t in study.trials if t.state is State.RUNNING and isinstance(t.plan, Plan)}


def ended_process() -> int:
    """Number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def open_book(storage: str, *, owner: Owner | None = None, **changes: dict) -> tuple[Book, CandidateTable]:
    """The book of a small study, made if need be, and its candidates; a dead driver's unless owned."""
    dead = Owner(driver="dead", host=this_host(), pid=ended_process(), started=0.0)
    chosen = config(storage, **changes)
    inputs = chosen.inputs
    book = study.open_book(chosen, open_storage(storage), owner or dead)
    candidates = shortlist(inputs).candidates
    book.study.sampler = make_sampler(
        inputs.sampler, candidates=candidates, metrics=inputs.objective, seed=inputs.seed, job=inputs.job
    )
    return book, book.study.sampler.table


def declared_trial(book: Book, table: CandidateTable) -> int:
    """Number of a new trial that has declared its plan."""
    number, params, _ = book.ask(table.distributions)
    book.declare(number, plan_from_params(params).key, {"step_s": 0.4, "peak_memory_bytes": 100.0})
    return number


def _tell(event: object) -> None:
    match event:
        case TrialStarted(number=number):
            print("started", number, flush=True)
        case TrialFinished(trial=trial):
            print("finished", trial.number, flush=True)
        case TrialsReaped(numbers=numbers):
            print("reaped", *numbers, flush=True)


def main(path: str) -> int:
    result = study.tune(config_from_tables(json.loads(Path(path).read_text()), folder=ROOT), on_event=_tell)
    print(result.stop.name, flush=True)
    return 130 if result.stop.name == "INTERRUPTED" else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
