"""PyTorch's own schedules and its runtime's loader as oracles for the orders that we share.

The stages are stand-ins: a schedule only asks them how many they are and where.
"""

import csv
from types import SimpleNamespace

import pytest

from objectives.simulator.schedules import SCHEDULES, PassCosts, csv_of, program, program_of_csv, write_csv
from search_spaces.plan import Schedule

torch = pytest.importorskip("torch")
schedules = pytest.importorskip("torch.distributed.pipelining.schedules")

pytestmark = pytest.mark.torch

WRITABLE = [each for each in SCHEDULES if each not in (Schedule.DUALPIPE, Schedule.MESSAGE_DRIVEN)]
SIZES = [(2, 4), (3, 9), (4, 8), (4, 16), (8, 24)]


def stages_of(n_ranks, n_chunks):
    one = {
        "num_stages": n_ranks * n_chunks, "group_size": n_ranks, "group_rank": 0, "has_backward": True,
        "is_first": True, "is_last": False, "submod": torch.nn.Identity(), "stage_index_to_group_rank": {},
    }  # fmt: skip
    return [SimpleNamespace(**one, stage_index=n_ranks * chunk) for chunk in range(n_chunks)]


def cells(pipeline_order):
    """Torch's order by rank, without idle slots and without what is no pass."""
    rows = (pipeline_order[rank] for rank in sorted(pipeline_order))
    return [[str(each) for each in row if each is not None and each.is_compute_op] for row in rows]


def ours(made):
    return list(csv.reader(csv_of(made).splitlines()))


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_gpipe_is_torchs(p, m):
    theirs = schedules.ScheduleGPipe(stages_of(p, 1)[0], m)._get_pipeline_order()
    assert ours(program("gpipe", p, m)) == cells(theirs)


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_1f1b_is_torchs_but_for_a_slip_in_what_torch_prints_of_the_last_rank(p, m):
    theirs = cells(schedules.Schedule1F1B(stages_of(p, 1)[0], m)._get_pipeline_order())
    mine = ours(program("1f1b", p, m))
    assert mine[:-1] == theirs[:-1]
    # torch 2.13 prints the forward passes of a rank without warm-up as 1 to m; what it runs is 0 to m - 1.
    slip = [f"{p - 1}F{int(cell.split('F')[1]) - 1}" if "F" in cell else cell for cell in theirs[-1]]
    assert slip == mine[-1]
    assert theirs[-1] != mine[-1]


@pytest.mark.parametrize("v", [1, 2, 4])
@pytest.mark.parametrize(("p", "m"), [*SIZES, (4, 10), (3, 8), (4, 3)])
def test_interleaving_is_torchs_also_where_ranks_do_not_divide_micro_batches(p, m, v):
    theirs = schedules.ScheduleInterleaved1F1B(stages_of(p, v), m)
    assert ours(program("interleaved", p, m, v)) == cells(theirs.pipeline_order)


def test_interleaving_warms_up_with_everything_where_torch_does_not():
    # m = p: Megatron-LM runs all forward passes first, torch does not; memory is all that tells them apart.
    theirs = cells(schedules.ScheduleInterleaved1F1B(stages_of(4, 2), 4).pipeline_order)
    mine = ours(program("interleaved", 4, 4, 2))
    assert mine != theirs
    assert [sorted(row) for row in mine] == [sorted(row) for row in theirs]


@pytest.mark.parametrize(("p", "m"), SIZES)
def test_zb_h1_is_torchs_interleaved_zero_bubble_with_one_stage_a_rank(p, m):
    theirs = schedules.ScheduleInterleavedZeroBubble(stages_of(p, 1), m)
    assert ours(program("zb-h1", p, m)) == cells(theirs.pipeline_order)


@pytest.mark.parametrize(("p", "m"), [*SIZES, (4, 5), (4, 3), (8, 8)])
def test_zb_v_is_torchs(p, m):
    theirs = schedules.ScheduleZBVZeroBubble(stages_of(p, 2), m)
    assert ours(program("zb-v", p, m)) == cells(theirs.pipeline_order)


@pytest.mark.parametrize(("p", "m"), [*SIZES, (3, 7), (4, 9)])
def test_dual_pipe_v_is_torchs(p, m):
    theirs = schedules.ScheduleDualPipeV(stages_of(p, 2), m)
    assert ours(program("dualpipe-v", p, m)) == cells(theirs.pipeline_order)


@pytest.mark.parametrize("schedule", WRITABLE)
@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8)])
def test_torchs_runtime_loads_what_we_write_and_finds_a_way_through(schedule, p, m, tmp_path):
    costs = PassCosts(forward_s=10.0, backward_input_s=12.0, backward_weight_s=8.0)
    made = program(schedule, p, m, 2 if schedule is Schedule.INTERLEAVED else 1, costs=costs)
    write_csv(made, tmp_path / "schedule.csv")
    runtime = schedules._PipelineScheduleRuntime(stages_of(p, made.n_chunks), m)
    runtime._load_csv(str(tmp_path / "schedule.csv"), format="compute_only")
    ranks = {stage: rank for rank, held in enumerate(made.stage.tolist()) for stage in held}
    assert runtime.stage_index_to_group_rank == ranks
    assert cells(runtime.pipeline_order) == ours(made)
    if schedule is not Schedule.DUALPIPE_V:  # torch's dry run knows no pair of passes
        assert dry_run(runtime, ranks)


def dry_run(runtime, ranks):
    """Torch's own walk over passes and messages, which fails where ranks wait in a circle."""
    known = ("SEND", "RECV")
    orders = {
        rank: [each for each in row if each.is_compute_op or each.computation_type.value.startswith(known)]
        for rank, row in runtime.pipeline_order_with_comms.items()
    }
    return schedules._simulate_comms_compute(orders, ranks.__getitem__, len(ranks))


@pytest.mark.parametrize("kind", ["ScheduleInterleaved1F1B", "ScheduleZBVZeroBubble", "ScheduleDualPipeV"])
def test_we_read_what_torch_writes(kind, tmp_path):
    theirs = getattr(schedules, kind)(stages_of(4, 2), 8)
    theirs._dump_csv(str(tmp_path / "theirs.csv"), format="compute_only")
    read = program_of_csv((tmp_path / "theirs.csv").read_text())
    assert ours(read) == cells(theirs.pipeline_order)
