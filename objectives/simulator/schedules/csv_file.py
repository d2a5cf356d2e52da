"""Schedules in the CSV that PyTorch's pipelining runtime loads, and torchtitan with it.

One row a rank, one pass a cell: the stage, a letter and the micro-batch.  `0F3` forward, `0B3` whole
backward, `0I3` gradient of the input, `0W3` of the weights, `(0F3;1B2)OVERLAP_F_B` both at once; an empty
cell is idle time and says nothing.  Stages count along the whole model, as in
`_PipelineScheduleRuntime._load_csv` with format "compute_only".

Source: torch 2.13, torch/distributed/pipelining/schedules.py, `_Action`.
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np

from objectives.simulator.program import NOTHING, Op, Pass, Program, program_of
from objectives.simulator.schedules.accounting import Fault, first_fault, refuse
from objectives.simulator.timeline import clock, wire
from search_spaces.errors import InvalidSpec, check
from search_spaces.plan import Ints

Cells = list[list[tuple[int, str]]]  # of every rank's line, which cell each pass is in, and its text
LETTERS = {"F": Pass.FORWARD, "B": Pass.BACKWARD, "I": Pass.BACKWARD_INPUT, "W": Pass.BACKWARD_WEIGHT}
_OF_PASS = {kind: letter for letter, kind in LETTERS.items()}
# Nine digits stay within int64, whatever is multiplied.
_ONE = re.compile(r"(\d{1,9})([FBIW])(\d{1,9})", re.ASCII)
_PAIR = re.compile(r"\((\d{1,9})F(\d{1,9});(\d{1,9})B(\d{1,9})\)OVERLAP_F_B", re.ASCII)
_OTHERS = re.compile("SEND|RECV|SHARD|REDUCE")


def csv_of(program: Program) -> str:
    """The program as text; a rank's row ends with its last pass.

    Raises
    ------
    InvalidSpec
        The format has no words for it: two copies of the model, or an order that only arrivals decide.
    """
    check(not program.route.any(), "a schedule file holds one copy of the model",
          f"{int(program.route.max()) + 1} copies, fed from both ends",
          hint="schedule=dualpipe-v folds one copy instead")  # fmt: skip
    check(not program.by_arrival, "a schedule file holds a fixed order", "one that arrivals decide",
          hint="write schedule=1f1b")  # fmt: skip
    stage, ranks = program.stage.tolist(), zip(program.first[:-1], program.first[1:], strict=True)
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for rank, (start, end) in enumerate(ranks):
        writer.writerow([_cell(program.op(at), stage[rank]) for at in range(int(start), int(end))])
    return text.getvalue()


def write_csv(program: Program, path: Path) -> None:
    """Write the program where PyTorch's runtime finds it."""
    path.write_text(csv_of(program), encoding="utf-8")


def read_csv(path: Path) -> Program:
    """The program in a file; see `program_of_csv`."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # some tables begin with a mark of their encoding
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec("a schedule file must be readable text", f"{path}: {error}") from error
    return program_of_csv(text, name=path.name)


def program_of_csv(text: str, name: str = "the schedule") -> Program:
    """The program in a text: ranks are its lines, and a rank's chunks are its stages, from the first on.

    Raises
    ------
    InvalidSpec
        A cell is no pass, a stage is on two ranks or on none, ranks hold unequal numbers of stages, a pass
        is missing, doubled, impossible or before what it follows, or ranks wait for each other in a circle;
        names the rank, the pass and the line.
    """
    try:
        rows = list(csv.reader(StringIO(text)))
    except csv.Error as error:
        raise InvalidSpec(f"{name} must be comma-separated text", str(error)) from error
    while rows and not any(map(str.strip, rows[-1])):
        rows.pop()
    cells = [[(at, cell.strip()) for at, cell in enumerate(row, 1) if cell.strip()] for row in rows]
    check(bool(cells), f"{name} must hold a row of passes for every rank", "no row")
    for rank, row in enumerate(cells):
        check(
            bool(row), f"{name} must hold passes for every rank", f"none for rank {rank} in line {rank + 1}"
        )
    ranks = [[_parsed(cell, _place(name, rank, at)) for at, cell in row] for rank, row in enumerate(cells)]
    stage = _stages(name, cells, ranks)
    chunk_of = {(rank, s): c for rank, held in enumerate(stage.tolist()) for c, s in enumerate(held)}
    orders = [[_with_chunks(op, rank, chunk_of) for op in order] for rank, order in enumerate(ranks)]
    program = program_of(orders, n_microbatches=_n_microbatches(ranks, stage.size), stage=stage)
    if fault := first_fault(program):
        refuse(fault, _where(name, program, fault, cells))
    _check_order(name, program, cells)
    return program


def _check_order(name: str, program: Program, cells: Cells) -> None:
    """Refuse ranks that wait for each other in a circle, as far as the order of passes decides it."""

    def cell_name(task: int) -> tuple[str, str]:
        rank = int(program.rank[task])
        at, cell = cells[rank][task - int(program.first[rank])]
        return f"rank {rank} ({name}, line {rank + 1})", f"{cell} (cell {at})"

    clock(wire(program), np.zeros(len(program)), np.zeros(program.n_ranks), name=cell_name)


def _cell(op: Op, stages: Sequence[int]) -> str:
    stage = stages[op.chunk]
    if op.kind is Pass.FORWARD_BACKWARD:
        return f"({stage}F{op.microbatch};{stages[op.with_chunk]}B{op.with_microbatch})OVERLAP_F_B"
    return f"{stage}{_OF_PASS[op.kind]}{op.microbatch}"


def _parsed(cell: str, place: str) -> Op:
    """A cell as a pass whose chunks are still stages."""
    one, pair = _ONE.fullmatch(cell), _PAIR.fullmatch(cell.replace(" ", ""))
    if one:
        return Op(LETTERS[one[2]], int(one[3]), int(one[1]))
    if pair:
        f_stage, f_microbatch, b_stage, b_microbatch = map(int, pair.groups())
        return Op(Pass.FORWARD_BACKWARD, f_microbatch, f_stage, b_microbatch, b_stage)
    raise InvalidSpec(
        "a cell of a schedule file must be a pass such as 0F3, 0B3, 0I3, 0W3, (0F3;1B2)OVERLAP_F_B, or empty",
        f"{cell!r} in {place}",
        hint="a file of format compute_only has no messages in it" if _OTHERS.search(cell) else "",
    )


def _stages(name: str, cells: Cells, ranks: list[list[Op]]) -> Ints:
    """Stages of every rank, in order; shape (n_ranks, n_chunks)."""
    owner: dict[int, int] = {}
    for rank, (row, order) in enumerate(zip(cells, ranks, strict=True)):
        for (at, cell), op in zip(row, order, strict=True):
            for stage in {op.chunk, op.with_chunk} - {NOTHING}:
                other = owner.setdefault(stage, rank)
                words = f"stage {stage} is on rank {other}, line {other + 1}"
                check(other == rank, "a stage must live on one rank",
                      f"{cell} in {_place(name, rank, at)}, but {words}")  # fmt: skip
    n_stages, n_ranks = 1 + max(owner), len(ranks)
    lacking = min(set(range(len(owner) + 1)) - set(owner))
    if lacking < n_stages:
        last = _first_of(n_stages - 1, name, cells, ranks)
        must = f"{name} must hold the passes of every stage up to its last, {n_stages - 1}, of {last}"
        raise InvalidSpec(must, f"none of stage {lacking}: {lacking}F0 and all others are missing")
    held = [sorted(stage for stage, on in owner.items() if on == rank) for rank in range(n_ranks)]
    for rank, stages in enumerate(held):
        must = f"every rank must hold equally many of the {n_stages} stages"
        check(len(stages) * n_ranks == n_stages, must, f"{len(stages)} on rank {rank}, line {rank + 1}")
    return np.array(held, dtype=np.int64)


def _first_of(stage: int, name: str, cells: Cells, ranks: list[list[Op]]) -> str:
    """The first pass of a stage, and where it is."""
    return next(
        f"{cell} in {_place(name, rank, at)}"
        for rank, (row, order) in enumerate(zip(cells, ranks, strict=True))
        for (at, cell), op in zip(row, order, strict=True)
        if stage in (op.chunk, op.with_chunk)
    )


def _n_microbatches(orders: list[list[Op]], n_stages: int) -> int:
    """How many micro-batches the file means: one that few stages know of is a slip, not another one."""
    runs = {(op.microbatch, op.chunk) for order in orders for op in order}
    runs |= {(op.with_microbatch, op.with_chunk) for order in orders for op in order}
    n_passes, stages_of = sum(map(len, orders)), Counter(microbatch for microbatch, _ in runs)
    known = [each for each, n_known in stages_of.items() if 2 * n_known > n_stages and each < n_passes]
    return 1 + max(known, default=0)


def _with_chunks(op: Op, rank: int, chunk_of: dict[tuple[int, int], int]) -> Op:
    with_chunk = NOTHING if op.with_chunk == NOTHING else chunk_of[rank, op.with_chunk]
    return Op(op.kind, op.microbatch, chunk_of[rank, op.chunk], op.with_microbatch, with_chunk)


def _place(name: str, rank: int, cell: int) -> str:
    return f"{name}, line {rank + 1}, cell {cell} (rank {rank})"


def _where(name: str, program: Program, fault: Fault, cells: Cells) -> str:
    """File, line, and the cell of a pass that is there."""
    if fault.at < 0:
        return f"{name}, line {fault.rank + 1}: "
    at, cell = cells[fault.rank][fault.at - int(program.first[fault.rank])]
    return f"{name}, line {fault.rank + 1}, cell {at} ({cell}): "
