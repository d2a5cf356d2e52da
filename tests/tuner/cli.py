"""The command line as the tests run it: in this process, with both streams caught."""

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from tuner.cli import run

JOB = [
    "--model",
    "llama-3-8b",
    "--cluster",
    "dgx-h100",
    "--devices",
    "16",
    "--global-batch",
    "64",
    "--seq-len",
    "8192",
]
# The same job as tables of a study file.
STUDY_FILE = """
[model]
preset = "llama-3-8b"
[cluster]
preset = "dgx-h100"
devices = 16
[workload]
global_batch = 64
seq_len = 8192
"""
# A corner of the space that is priced in a moment.
NARROW = [
    word
    for knob in (
        "tp=2,4", "pp=1,2", "cp=1", "micro_batch=1,2", "zero=1", "recompute=none,full", "recompute_every=1",
        "schedule=1f1b", "vpp=1", "first_layers=0", "last_layers=0", "rank_order=tp-cp-dp-pp",
        "offload_optimizer=false",
    )
    for word in ("--set", knob)
]  # fmt: skip
PLAN = "tp=2 pp=2 dp=4 micro_batch=1 zero=1 sequence_parallel=true overlap_dp=true"


@dataclass(frozen=True)
class Answer:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict:
        """Standard output as the one JSON document that it must be."""
        return json.loads(self.out)


def meshtune(*arguments: object, columns: int | None = None) -> Answer:
    """Run one command; an error that is not expected comes through and fails the test."""
    os.environ.pop("COLUMNS", None)
    if columns:
        os.environ["COLUMNS"] = str(columns)
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([str(each) for each in arguments])
    return Answer(code, out.getvalue(), err.getvalue())


def complaint(*arguments: object, code: int = 2) -> str:
    """What a command that must fail says: one sentence and perhaps a hint, nothing on stdout."""
    answer = meshtune(*arguments)
    assert (answer.code, answer.out) == (code, "")
    lines = answer.err.strip().splitlines()
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2
    assert len(lines) == 1 or lines[1].startswith("hint: ")
    return answer.err
