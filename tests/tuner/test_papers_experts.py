"""X-MoE and Piper: what must be exact is, what was published comes out in its order, and near it."""

import pytest

from tuner.papers import load_paper
from tuner.papers.figure import Kind
from tuner.papers.piper import gain
from tuner.papers.pricing import tflops
from tuner.papers.xmoe import A100, PAIRS, RUNS, SIZES, TRAINS, a100_tflops, dispatch_s, paper_job, trains


@pytest.fixture(scope="module", params=["x-moe", "piper"])
def figures(request):
    return load_paper(request.param).figures()


def test_every_exact_figure_and_every_order_is_reached(figures):
    missed = [each.what for each in figures if each.kind is not Kind.RATIO and not each.is_reached]
    assert missed == []


def test_a_missed_ratio_says_why(figures):
    assert [each.what for each in figures if not each.is_reached and not each.note] == []


def test_three_quarters_of_the_comparisons_between_systems_are_near():
    """X-MoE over Tutel, TED and DeepSpeed-MoE, on both machines, and dispatch with and without copies."""
    compared = [
        each for each in load_paper("x-moe").figures() if " over " in each.what or "gain of" in each.what
    ]
    assert len(compared) == 9
    assert sum(each.is_reached for each in compared) >= 0.75 * len(compared)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_x_moe_is_faster_than_each_baseline_on_frontier(first, second):
    ours = [tflops(paper_job(RUNS[name][0]), RUNS[name][1]) for name in (first, second)]
    assert RUNS[first][2] > RUNS[second][2]
    assert ours[0] > ours[1]


@pytest.mark.parametrize("system", TRAINS)
def test_a_system_runs_out_of_memory_where_it_was_published_to(system):
    assert tuple(trains(system, model) for model in SIZES) == TRAINS[system]


@pytest.mark.parametrize("variant", A100)
def test_where_the_host_sets_the_pace_x_moe_does_not_win(variant):
    masks, tutel, free = a100_tflops(variant)
    assert tutel > free > masks  # as published, by 2 to 4 %
    assert A100[variant][1] > A100[variant][2] > A100[variant][0]


def test_sending_once_to_a_node_pays_as_published():
    plain, once = dispatch_s()
    assert plain / once == pytest.approx(40.3 / 26.2, rel=0.25)


def test_all_to_alls_by_way_of_nodes_gain_more_the_more_nodes():
    gains = [gain(nodes) for nodes in (1, 16, 64, 256, 512)]
    assert gains == sorted(gains)
    assert gains[0] == 1.0
