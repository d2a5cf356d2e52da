"""Places and groups of ranks, layers of chunks, and smaller twins: what needs no torch."""

import itertools

import pytest

from objectives.cost.step import estimate
from objectives.metrics import Job
from runners.torch_trial.mesh import chunk_stages, groups_of, place_of, stage_layers
from runners.torch_trial.supported import refusals
from runners.torch_trial.twin import Limits, too_large, twin
from runners.verdicts import why_illegal
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec
from search_spaces.local_cluster import local_cluster
from search_spaces.model_presets import load_model
from search_spaces.parameters import trained_parameters
from search_spaces.plan import CpKind, Plan, Plans, RankOrder, Schedule
from search_spaces.workload import Precision, Workload
from tests.runners.jobs import llama_job, tiny_job

LAYOUTS = [
    Plan(tp=tp, cp=cp, dp=dp, pp=pp, ep=ep, etp=etp, rank_order=order)
    for tp, cp, dp, pp in ((2, 1, 2, 2), (1, 2, 2, 2), (2, 2, 2, 1), (4, 1, 2, 3), (1, 1, 8, 1))
    for order in RankOrder
    for ep, etp in ((1, 1), (2, 1), (2, 2))
    if etp <= tp
]


@pytest.mark.parametrize("plan", LAYOUTS, ids=lambda plan: plan.key)
def test_every_rank_has_a_place_of_its_own(plan):
    places = [place_of(plan, rank) for rank in range(plan.world_size)]
    assert [place.rank for place in places] == list(range(plan.world_size))
    assert len({(place.tp, place.cp, place.dp, place.pp) for place in places}) == plan.world_size


@pytest.mark.parametrize("plan", LAYOUTS, ids=lambda plan: plan.key)
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("tp", lambda p: p.tp),
        ("cp", lambda p: p.cp),
        ("data", lambda p: p.dp * p.cp),
        ("pp", lambda p: p.pp),
        ("experts", lambda p: p.ep * p.etp),
        ("expert_data", lambda p: p.tp * p.cp * p.dp // (p.ep * p.etp)),
    ],
)
def test_groups_of_a_kind_have_the_degree_and_share_no_rank(plan, name, size):
    groups = [getattr(groups_of(plan, rank, 8), name) for rank in range(plan.world_size)]
    assert all(rank in group and len(group) == size(plan) for rank, group in enumerate(groups))
    assert sorted(itertools.chain.from_iterable(set(groups))) == list(range(plan.world_size))


def test_ranks_with_the_same_key_value_head_find_each_other():
    plan = Plan(tp=4)
    assert [groups_of(plan, rank, 2).kv for rank in range(4)] == [(0, 1), (0, 1), (2, 3), (2, 3)]
    assert groups_of(plan, 1, 4).kv == (1,)


@pytest.mark.parametrize(
    ("plan", "sizes"),
    [
        (Plan(pp=4), [2, 2, 2, 2]),
        (Plan(pp=2, first_layers=3), [3, 5]),
        (Plan(pp=4, first_layers=1, last_layers=1), [1, 3, 3, 1]),
        (Plan(pp=2, vpp=2, schedule=Schedule.INTERLEAVED), [2, 2, 2, 2]),
        (Plan(pp=2, vpp=2, schedule=Schedule.ZB_V, first_layers=2), [1, 3, 3, 1]),
    ],
    ids=lambda value: value.key if isinstance(value, Plan) else "",
)
def test_chunks_hold_all_layers_in_order(plan, sizes):
    layers = stage_layers(plan, 8)
    assert [len(each) for each in layers] == sizes
    assert [layer for each in layers for layer in each] == list(range(8))
    assert len(chunk_stages(plan)) == len(layers)


BIG = {
    "dense": Plan(tp=8, pp=8, dp=8, sequence_parallel=True),
    "interleaved": Plan(tp=4, pp=4, dp=32, vpp=4, sequence_parallel=True, schedule=Schedule.INTERLEAVED),
    "context": Plan(tp=4, cp=4, dp=32, cp_kind=CpKind.ULYSSES, sequence_parallel=True, zero=3),
    "uneven": Plan(tp=4, pp=4, dp=32, first_layers=17, last_layers=21, zero=1, overlap_dp=False),
}


def big_job(model="llama-3-70b"):
    workload = Workload(seq_len=8192, global_batch=1024, precision=Precision.BF16)
    return Job(model=load_model(model), cluster=load_cluster("dgx-h100", 512), workload=workload)


def as_on_this_machine(each):
    cluster = local_cluster().with_devices(each.plan.world_size)
    return Job(model=each.job.model, cluster=cluster, workload=each.job.workload)


@pytest.mark.parametrize("name", BIG)
@pytest.mark.parametrize("n_ranks", [2, 4, 8])
def test_a_twin_is_a_legal_plan_within_the_limits(name, n_ranks):
    each = twin(big_job(), BIG[name], Limits(n_ranks=n_ranks))
    assert each.plan.world_size <= n_ranks
    assert trained_parameters(each.job.model) <= 20e6
    assert why_illegal(as_on_this_machine(each), each.plan, None) is None
    assert list(refusals(each.job.model, each.job.workload, each.plan)) == []


@pytest.mark.parametrize("name", BIG)
def test_a_twin_keeps_the_kinds_of_parallelism_where_there_is_room(name):
    plan = BIG[name]
    small = twin(big_job(), plan, Limits(n_ranks=8)).plan
    assert {axis for axis in ("tp", "cp", "pp", "dp") if getattr(plan, axis) > 1} == {
        axis for axis in ("tp", "cp", "pp", "dp") if getattr(small, axis) > 1
    }
    assert (small.schedule, small.zero, small.cp_kind) == (plan.schedule, plan.zero, plan.cp_kind)


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_the_twin_of_a_mixture_of_experts_keeps_experts_on_every_rank(n_ranks):
    plan = Plan(tp=2, pp=4, dp=64, ep=8, sequence_parallel=True, zero=1)
    each = twin(big_job("mixtral-8x22b"), plan, Limits(n_ranks=n_ranks))
    assert each.job.model.n_moe_layers >= 1
    assert each.job.model.moe.n_experts % each.plan.ep == 0
    assert why_illegal(as_on_this_machine(each), each.plan, None) is None


def test_a_twin_says_in_what_it_differs():
    each = twin(big_job(), BIG["dense"], Limits(n_ranks=4))
    assert each.differs["devices"] == (4, 512)
    assert each.differs["layers"] == (2, 80)
    assert "devices 4 of 512" in each.words


@pytest.mark.parametrize(("every", "n_layers"), [(1, 4), (4, 16), (1000, 80)])
def test_a_twin_redoes_every_nth_layer_while_it_has_as_many(every, n_layers):
    plan = Plan.parse(f"pp=4 recompute=full recompute_every={every}")
    assert twin(big_job(), plan, Limits(n_ranks=8)).job.model.n_layers == n_layers


def test_a_job_within_the_limits_is_its_own_twin():
    each = twin(tiny_job(), Plan(pp=2, micro_batch=4), Limits(n_ranks=8))
    assert set(each.differs) <= {"layers"}


def test_degrees_that_cannot_be_halved_have_no_twin():
    with pytest.raises(InvalidSpec, match="must fit 2 processes"):
        twin(tiny_job(), Plan(tp=3), Limits(n_ranks=2))


def test_a_plan_is_too_large_by_processes_or_by_memory():
    plan = Plan(tp=4, pp=2, dp=8, sequence_parallel=True)
    peak = float(estimate(llama_job(), Plans.of([plan])).peak_memory_bytes[0])
    assert "64 processes" in too_large(plan, n_ranks=8, needed_bytes=peak, host_bytes=2 * peak)
    assert "GiB predicted" in too_large(plan, n_ranks=64, needed_bytes=peak, host_bytes=peak / 2)
    assert too_large(plan, n_ranks=64, needed_bytes=peak, host_bytes=2 * peak) == ""
