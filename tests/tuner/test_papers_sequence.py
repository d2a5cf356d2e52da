"""ZeRO++, Ulysses and FPDT beside their papers: orders first, exact laws exactly, ratios within a quarter."""

import json

import pytest

from runners.launchers.base import Options
from runners.launchers.export import export
from tuner.config import read_config
from tuner.papers import load_paper
from tuner.papers.figure import Kind
from tuner.papers.fpdt import LADDER, job, longest_k, plans
from tuner.presets import preset_path

NAMES = ("zeropp", "ulysses", "fpdt")


@pytest.fixture(scope="module")
def figures():
    return {name: load_paper(name).figures() for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [Kind.EXACT, Kind.ORDER])
def test_exact_laws_and_orders_are_reached(figures, name, kind):
    asked = [each for each in figures[name] if each.kind is kind]
    assert asked
    assert [each.what for each in asked if not each.is_reached] == []


@pytest.mark.parametrize("name", NAMES)
def test_three_quarters_of_the_ratios_are_within_a_quarter(figures, name):
    ratios = [each for each in figures[name] if each.kind is Kind.RATIO]
    assert sum(each.is_reached for each in ratios) >= 0.75 * len(ratios)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("zeropp", "gain over ZeRO-3"),
        ("zeropp", "ZeRO++ at 200 Gb/s"),
        ("ulysses", "Ulysses over Megatron-LM"),
        ("fpdt", "longest sequence"),
    ],
)
def test_what_a_system_promises_is_reached_in_every_published_case(figures, name, words):
    asked = [each for each in figures[name] if each.what.startswith(words)]
    assert len(asked) >= 2
    assert [each.what for each in asked if not each.is_reached] == []


def test_the_ladder_has_its_lengths_and_jumps():
    """Yao et al. (2024), arXiv:2408.16978: 32K with tensor parallelism, four, four and eight times longer."""
    found = {row.name: longest_k(row.name) for row in LADDER}
    assert found == {row.name: row.length_k for row in LADDER}
    assert found["TP+AC"] == 4 * found["TP"]
    assert found["TP+AC+OC"] == 4 * found["TP+AC"]
    assert found["FPDT"] == 8 * found["AC+OC+UL+ZeRO-3"]


def test_a_row_of_the_ladder_exports_with_its_flags(tmp_path):
    asked = job(4096)
    export(asked, plans(LADDER[-1]).row(0), "deepspeed", "torchrun", tmp_path / "out", Options())
    text = (tmp_path / "out" / "train.sh").read_text()
    for words in (
        "--ds-sequence-parallel-size 8",
        "--ds-sequence-parallel-fpdt\n",
        "--ds-sequence-parallel-fpdt-chunk-size 65536",
        "--ds-sequence-parallel-fpdt-offloading",
        "--checkpoint-in-cpu",
        "--use-flash-attn-v2",
    ):
        assert words in text
    config = json.loads((tmp_path / "out" / "ds_config.json").read_text())
    assert config["activation_checkpointing"] == {"cpu_checkpointing": True}


def test_all_of_zero_plus_is_written_into_the_engines_configuration(tmp_path):
    from tuner.papers import zeropp

    export(zeropp.job("18B", 1), zeropp.plans("all").row(0), "deepspeed", "both", tmp_path / "out", Options())
    written = json.loads((tmp_path / "out" / "ds_config.json").read_text())["zero_optimization"]
    assert written["stage"] == 3
    assert written["zero_quantized_weights"] is True
    assert written["zero_hpz_partition_size"] == 16
    assert written["zero_quantized_gradients"] is True


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_varies_the_knobs_of_its_system(name):
    knobs = {"zeropp": "hpz", "ulysses": "cp", "fpdt": "sequence_chunk"}
    assert len(read_config(preset_path(name)).inputs.space.narrowed[knobs[name]]) > 1
