"""Rates measured elsewhere, as a table: a machine's constants come back, what is no rate is a sentence."""

from dataclasses import replace

import pytest

from runners.probes.predictions import predicted_s
from runners.probes.rates import COLUMNS, read_rates
from search_spaces.cluster import assumed
from search_spaces.cluster_presets import load_cluster
from search_spaces.errors import InvalidSpec
from search_spaces.units import GIB, KIB, MIB
from tests.tuner.cli import meshtune
from tuner.probing import fit_rates

HEADER = ",".join(COLUMNS)
SHAPES = ((8192, 8192, 8192), (4096, 5120, 20480), (16384, 4096, 1024))
FRONTIER = load_cluster("frontier", 256)


def table(tmp_path, *rows, header=HEADER):
    path = tmp_path / "rates.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def row(**cells):
    return ",".join(str(cells.get(name, "")) for name in HEADER.split(","))


def priced(tmp_path, cluster, *cells):
    """A table of what the formulas give each case on that machine."""
    rows = []
    for each in cells:
        (result,) = read_rates(table(tmp_path, row(**each, seconds=1.0)), cluster)
        rows.append(row(**each, seconds=predicted_s(cluster, result)))
    return table(tmp_path, *rows)


def test_the_constants_of_another_machine_come_back(tmp_path):
    device = replace(FRONTIER.device, gemm_efficiency=assumed(0.5), attention_efficiency=assumed(0.2))
    tiers = [*FRONTIER.tiers]
    tiers[2] = replace(tiers[2], efficiency=assumed(0.6), latency_s=assumed(20e-6))
    truth = replace(FRONTIER, device=device, tiers=tuple(tiers))
    cells = [dict(kind="gemm", format="bf16", rows=m, columns=n, depth=k) for m, n, k in SHAPES]
    cells += [
        dict(kind="attention", format="bf16", seq_len=4096, batch=2, heads=32, width=128, passes="both")
    ]
    for n_bytes in (8 * KIB, 64 * KIB, 64 * MIB, GIB):
        cells += [dict(kind=kind, n=4, stride=8, bytes=n_bytes) for kind in ("all_to_all", "all_gather")]
        cells += [dict(kind="p2p", stride=8, bytes=n_bytes)]
    found = fit_rates(priced(tmp_path, truth, *cells), "frontier", "mine").fitted.cluster
    assert found.device.gemm_efficiency.value == pytest.approx(0.5, rel=0.01)
    assert found.device.attention_efficiency.value == pytest.approx(0.2, rel=0.01)
    assert found.tiers[2].efficiency.value == pytest.approx(0.6, rel=0.02)
    assert found.tiers[2].latency_s.value == pytest.approx(20e-6, rel=0.05)
    assert found.tiers[3] == FRONTIER.tiers[3]  # nothing was measured there


@pytest.mark.parametrize(
    ("cells", "seconds"),
    [
        (dict(kind="gemm", rows=1000, columns=1000, depth=500, tflops=100), 1e9 / 100e12),
        (dict(kind="p2p", bytes=MIB, gb_per_s=10), MIB / 10e9),
        (dict(kind="memory", kernel="copy", bytes=GIB, gb_per_s=1000), 2 * GIB / 1000e9),
        (dict(kind="all_to_all", n=8, bytes=MIB, seconds=0.25), 0.25),
    ],
)
def test_a_rate_is_as_good_as_its_seconds(tmp_path, cells, seconds):
    (result,) = read_rates(table(tmp_path, row(**cells)), FRONTIER)
    assert result.median() == pytest.approx(seconds)


def test_rows_of_one_case_are_its_repeats(tmp_path):
    cells = dict(kind="p2p", bytes=MIB)
    (result,) = read_rates(table(tmp_path, *(row(**cells, seconds=s) for s in (1.0, 2.0, 9.0))), FRONTIER)
    assert (result.median(), len(result.readings["s"])) == (2.0, 3)


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (dict(kind="gem", seconds=1), "line 2: every row must be a rate; got kind must be one of gemm"),
        (dict(kind="gemm", rows=8, columns=8, seconds=1), "depth is missing"),
        (dict(kind="p2p", bytes=8), "one of seconds, tflops and gb_per_s must be above 0; got none"),
        (dict(kind="p2p", bytes=8, seconds=1, gb_per_s=1), "got seconds and gb_per_s"),
        (dict(kind="p2p", bytes=8, tflops=1), "tflops is no rate of a p2p"),
        (dict(kind="gemm", rows=8, columns=8, depth=8, gb_per_s=1), "gb_per_s is no rate of a gemm"),
        (dict(kind="all_to_all", n=1, bytes=8, seconds=1), "n must be at least 2; got 1"),
        (dict(kind="gemm", format="int9", rows=8, columns=8, depth=8, seconds=1), "format must be one of"),
        (dict(kind="memory", kernel="dance", bytes=8, seconds=1), "kernel must be one of"),
        (dict(kind="p2p", bytes=8, seconds="inf"), "seconds must be finite"),
        (
            dict(kind="all_to_all", n=40000, stride=8, bytes=8, seconds=1),
            "are more than the 78848 of frontier",
        ),
        (
            dict(kind="gemm", rows=8, columns=8, depth=8, tflops=112000),
            "1.12e+05 TFLOP/s cannot be: mi250x-gcd is rated at 191.5 in bf16",
        ),
        (
            dict(kind="attention", seq_len=4096, batch=2, heads=32, width=128, seconds=1e-6),
            "TFLOP/s cannot be: mi250x-gcd is rated at 191.5 in bf16",
        ),
    ],
)
def test_what_is_no_rate_is_one_sentence(tmp_path, cells, sentence):
    with pytest.raises(InvalidSpec) as refusal:
        read_rates(table(tmp_path, row(**cells)), FRONTIER)
    assert sentence in str(refusal.value)


def test_calibrate_writes_the_machine_that_a_table_describes(tmp_path):
    rates = table(tmp_path, row(kind="gemm", rows=8192, columns=8192, depth=8192, tflops=90))
    out = tmp_path / "mine.toml"
    answer = meshtune("calibrate", "--from-rates", str(rates), "--cluster", "frontier", "-o", str(out))
    assert (answer.code, "rates.csv" in answer.out) == (0, True)
    assert 0.4 < load_cluster(str(out), 8).device.gemm_efficiency.value < 0.5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [([], "--from-rates must come with --cluster"), (["--from", "x.csv"], "nothing else is fitted to")],
)
def test_rates_need_their_machine_and_nothing_beside_them(tmp_path, words, sentence):
    rates = table(tmp_path, row(kind="p2p", bytes=8, seconds=1))
    answer = meshtune("calibrate", "--from-rates", str(rates), "-o", str(tmp_path / "mine.toml"), *words)
    assert (answer.code, sentence in answer.err) == (2, True)
