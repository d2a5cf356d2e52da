"""Every plan of a folder of study files, really trained once on this machine: a table of measured runs.

    python benchmarks/real_runs.py                      the studies of docs/examples/real, about ten minutes
    python benchmarks/real_runs.py FOLDER -o RUNS.csv   studies of one's own

Runs one trial at a time through Ray.  Stopped at any moment, the same command goes on: finished trials are
kept in the storage.  The table is written after each study.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from rich.console import Console

from search_spaces.errors import MeshtuneError, check
from tuner.budget import Stop
from tuner.config import StudyConfig, read_config
from tuner.progress import showing
from tuner.recorded import study_rows, write_rows
from tuner.storage import list_studies, open_storage
from tuner.study import tune
from tuner.view import StudyView, load_study

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "docs" / "examples" / "real"
TABLE = ROOT / "benchmarks" / "data" / "local" / "runs.csv"
STORAGE = "sqlite:///real-runs.db"
BUSY_LOAD = 0.5  # processes that want to run beside ours: above it the seconds are not this machine's
BAD_INPUT, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the studies, write the table; 130 where it was interrupted."""
    asked = _arguments().parse_args(argv)
    console = Console(stderr=True)
    try:
        configs = studies(asked.folder, asked.storage, asked.trials)
        return _run(configs, asked.out, asked.cluster, console)
    except MeshtuneError as error:
        console.print(str(error), style="red")
        return BAD_INPUT


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=STUDIES, help="study files, one space each")
    parser.add_argument("-o", "--out", type=Path, default=TABLE, help="the table to write")
    parser.add_argument("--storage", default=STORAGE, help="where trials are kept")
    parser.add_argument(
        "--cluster",
        default="local-{devices}.toml",
        help="cluster files beside the table, as its rows name them",
    )
    parser.add_argument("--trials", type=int, help="most trials of each study; all, if not given")
    return parser


def studies(folder: Path, storage: str, trials: int | None = None) -> list[StudyConfig]:
    """The studies of a folder, by file name, in one storage.

    Raises
    ------
    InvalidSpec
        There is none, or a file that describes none.
    """
    files = sorted(folder.glob("*.toml"))
    check(bool(files), f"{folder} must hold study files", "none")
    configs = [replace(read_config(path), storage=storage) for path in files]
    if trials is None:
        return configs
    return [replace(config, budget=replace(config.budget, trials=trials)) for config in configs]


def _run(configs: Sequence[StudyConfig], out: Path, cluster: str, console: Console) -> int:
    out.parent.mkdir(parents=True, exist_ok=True)
    if os.getloadavg()[0] > BUSY_LOAD:
        console.print(
            f"others use this machine (load {os.getloadavg()[0]:.1f}): the seconds will be theirs too"
        )
    began = time.monotonic()
    for i, config in enumerate(configs):
        elapsed = time.monotonic() - began
        console.print(f"study {i + 1} of {len(configs)}: {config.name}, after {elapsed / 60:.1f} min")
        with showing(console) as on_event:
            result = tune(config, on_event=on_event)
        views = stored(configs)
        write_rows(_rows(views, cluster), out)
        if result.stop is Stop.INTERRUPTED:
            console.print("the same command goes on")
            return INTERRUPTED
    console.print(f"{sum(len(view.finished) for view in views)} runs in {out}")
    return 0


def stored(configs: Sequence[StudyConfig]) -> list[StudyView]:
    """The studies that have begun, those of an earlier call too."""
    storage = open_storage(configs[0].storage)
    known = list_studies(storage)
    return [load_study(config.name, storage) for config in configs if config.name in known]


def _rows(views: Sequence[StudyView], cluster: str) -> list[dict[str, str]]:
    facts = {"machine": machine_words(), "cores": str(os.cpu_count())}
    return [
        row
        for view in views
        for row in study_rows(
            view,
            cluster=cluster.format(devices=view.inputs.job.cluster.n_devices),
            source="local",
            facts=facts,
        )
    ]


def machine_words() -> str:
    """The processor and its cores, in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
