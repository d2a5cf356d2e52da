"""Whether this process is one of several that a launcher started, as torchrun and srun do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from search_spaces.errors import InvalidSpec

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A process among all: which one, of how many, which on its node, of how many there.

    `store` is the file through which they meet; empty where the environment says where to meet.
    """

    rank: int
    n_ranks: int
    local_rank: int
    n_local: int
    store: str = ""

    @property
    def leads(self) -> bool:
        """Whether it is the one that writes and prints."""
        return self.rank == 0


def place_in(environment: Mapping[str, str], out: Path) -> Place | None:
    """The place that torchrun's or srun's variables name, or None outside of them and where it is alone.

    An sbatch script's own shell is no step: only what srun starts has a step of several tasks.

    Raises
    ------
    InvalidSpec
        A variable that is no number.
    """
    if all(name in environment for name in TORCHRUN):
        rank, n_ranks, local_rank, n_local = (_number(environment, name) for name in TORCHRUN)
        place = Place(rank=rank, n_ranks=n_ranks, local_rank=local_rank, n_local=n_local)
    elif "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        place = _of_slurm(environment, out)
    else:
        return None
    return place if place.n_ranks > 1 else None


def _of_slurm(environment: Mapping[str, str], out: Path) -> Place:
    n_ranks, nodes = (
        _number(environment, "SLURM_STEP_NUM_TASKS"),
        _number(environment, "SLURM_STEP_NUM_NODES", 1),
    )
    job, step = environment.get("SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_ID", "0")
    # The output lies where every task can see it, or the file could not be found afterwards.
    store = out.absolute().with_suffix(f".{_plain(job)}-{_plain(step)}.meet")
    return Place(
        rank=_number(environment, "SLURM_PROCID"),
        n_ranks=n_ranks,
        local_rank=_number(environment, "SLURM_LOCALID", 0),
        n_local=max(1, n_ranks // nodes),
        store="" if "MASTER_ADDR" in environment else str(store),
    )


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise InvalidSpec(f"the launcher's variable {name} must be a whole number", repr(text))
    return int(text)


def _plain(word: str) -> str:
    return "".join(letter for letter in word if letter.isalnum())
