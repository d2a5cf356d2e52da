"""The verb that reads a trainer's log."""

from pathlib import Path
from typing import Annotated

import typer

from tuner.cli_flags import JsonFlag
from tuner.cli_output import show, show_json

ANSWER_IS_NO = 1

LogFile = Annotated[Path, typer.Argument(metavar="FILE", help="The log of a training run.")]
TrainerFlag = Annotated[
    str | None,
    typer.Option(
        "--trainer",
        metavar="NAME",
        help="megatron-lm, megatron-deepspeed, deepspeed, torchtitan, nanotron, hf-trainer, composer or "
        "json-lines; told by the lines if not given.",
    ),
]
BatchFlag = Annotated[
    int | None, typer.Option("--global-batch", metavar="N", help="Sequences per step that were meant to run.")
]
SeqLenFlag = Annotated[int | None, typer.Option("--seq-len", metavar="N", help="Tokens per sequence.")]
DevicesFlag = Annotated[int | None, typer.Option("--devices", metavar="N", help="Devices of the run.")]
ClusterFlag = Annotated[
    str | None,
    typer.Option("--cluster", metavar="PRESET|FILE", help="What a device can do at most; see `clusters`."),
]
PrecisionFlag = Annotated[
    str, typer.Option("--precision", metavar="NAME", help="Of the run: bf16, fp16, fp8, ...")
]
WarmupFlag = Annotated[int, typer.Option("--warmup", metavar="N", min=0, help="Steps left out at the start.")]
StatusFlag = Annotated[
    int | None,
    typer.Option("--status", metavar="N", help="Exit status of the run, for the cause of a failure."),
]


def read_log(  # noqa: PLR0913 - a verb's flags are its parameters
    file: LogFile,
    *,
    trainer: TrainerFlag = None,
    global_batch: BatchFlag = None,
    seq_len: SeqLenFlag = None,
    devices: DevicesFlag = None,
    cluster: ClusterFlag = None,
    precision: PrecisionFlag = "bf16",
    warmup: WarmupFlag = 2,
    status: StatusFlag = None,
    json: JsonFlag = False,
) -> None:
    """What a trainer's log says: step time, memory, FLOP/s and what they count, or why not to trust it."""
    from runners.logs.files import read_log_file
    from tuner.report import logs

    expected = logs.expected(
        global_batch=global_batch, seq_len=seq_len, devices=devices, cluster=cluster, precision=precision
    )
    reading = read_log_file(file, trainer, expected, warmup_steps=warmup, status=status)
    if json:
        show_json(logs.log_document(reading))
    else:
        show(*logs.log_screen(reading))
    if reading.summary.refused or reading.finding is not None:
        raise typer.Exit(ANSWER_IS_NO)
