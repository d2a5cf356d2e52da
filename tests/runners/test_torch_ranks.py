"""What a rank can still tell when its memory has run out, in processes forked from one without torch."""

import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from objectives.outcome import Cause, OutcomeOrigin
from runners.torch_trial.ranks import At, Broken, Fate, Rank, run_ranks
from runners.torch_trial.verdict import failed
from search_spaces.plan import Plan

MIB = 1024**2


def fill_memory(rank, tell):
    """Takes all that it may, to the last small piece, and holds it while it breaks."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit = pages * resource.getpagesize() + 16 * MIB
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    pieces = []
    size = MIB
    while True:
        try:
            pieces.append(bytearray(size))
        except MemoryError:
            if size == 1:
                raise
            size //= 2


def no_memory(rank, tell):
    raise MemoryError("the body's")


def nothing(rank, tell):
    """Has nothing to do."""


def in_one_line(error):
    return Broken(kind="out of memory", message=f"told with {len(bytearray(MIB))} bytes")


def in_vain(error):
    sys.stderr = Full()
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def past_a_full_disk(error):
    sys.stderr = Full()
    raise OSError(errno.ENOSPC, "No space left on device")


class Full:
    """Where nothing can be written for lack of memory."""

    def write(self, text):
        raise MemoryError

    def flush(self):
        """Nothing to do."""


def no_room():
    resource.setrlimit(resource.RLIMIT_DATA, (MIB, MIB))


def main(folder, body, explain):
    if body == "nothing":
        os.register_at_fork(after_in_child=no_room)
    (rank,) = run_ranks(
        1, globals()[body], explain=globals()[explain], folder=Path(folder), silence_s=60
    ).ranks
    print(json.dumps([rank.status, rank.broken and rank.broken.message, "MemoryError" in rank.last_lines]))


def ended(folder, body, explain):
    code = f"from tests.runners.test_torch_ranks import main; main({str(folder)!r}, {body!r}, {explain!r})"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_rank_whose_memory_is_full_to_the_last_byte_says_so(tmp_path):
    status, told, logged = ended(tmp_path, "fill_memory", "in_one_line")
    assert (status, told, logged) == (1, f"told with {MIB} bytes", True)


def test_a_rank_without_memory_from_its_first_moment_ends_alone(tmp_path):
    """It is told as one rank's trouble, and does not clean up as if it were the trial."""
    status, told, _ = ended(tmp_path, "nothing", "in_one_line")
    assert (status, bool(told)) in {(errno.ENOMEM, False), (1, True), (0, False)}
    assert (tmp_path / "rank-0.log").exists()


@pytest.mark.parametrize(
    ("explain", "status"),
    [("in_vain", errno.ENOMEM), ("past_a_full_disk", 1)],
)
def test_a_rank_that_has_no_memory_even_to_say_so_ends_with_a_status_of_its_own(tmp_path, explain, status):
    assert ended(tmp_path, "no_memory", explain) == [status, None, False]


def test_that_status_is_out_of_memory(tmp_path):
    (log := tmp_path / "rank-1.log").touch()
    rank = Rank(number=1, pid=0, link=None, log=log, at=At(place="step 1"), status=errno.ENOMEM)
    fate = Fate(ranks=[rank], culprit=rank)
    outcome = failed(fate, Plan(dp=2), limit_s=1.0, memory_ran_out=False, origin=OutcomeOrigin.MEASURED)
    assert (outcome.cause, outcome.message) == (
        Cause.OUT_OF_MEMORY,
        "rank 1 had no memory left at step 1, not even to say more",
    )
