"""Clusters: presets are sourced and agree with published figures; a bad file is one clear sentence."""

import re
import subprocess
import sys
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.cluster import Constant, Origin
from search_spaces.cluster_presets import PRESETS, cluster_names, device_names, load_cluster, load_device
from search_spaces.documents import read_toml
from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.units import GB, MIB, TFLOPS

DOCS = Path(__file__).parents[2] / "docs" / "cluster-file.md"
REQUIRED = {
    *("frontier", "lumi", "perlmutter", "polaris", "selene", "summit", "alps", "local"),
    *("dgx-2", "dgx-a100", "dgx-h100", "dgx-h200", "dgx-b200", "gb200-nvl72", "h800-pod", "mi300x-pod"),
    *("aws-p4d", "aws-p5", "gb300-nvl72", "dgx-b300", "grand-teton", "aurora"),
    *("mi325x-pod", "mi350x-pod", "mi355x-pod"),
}

every_cluster = pytest.mark.parametrize("name", cluster_names())
every_device = pytest.mark.parametrize("name", device_names())

# Dense TFLOP/s in bf16 (V100: fp16), sold GB, GB/s of memory, watts.
# Source: stas00/ml-engineering@744d01e, compute/accelerator/README.md; vendors' datasheets.
ACCELERATORS = {
    "v100-16": (125, 16, 900, 300),
    "v100-32": (125, 32, 900, 300),
    "a100-40": (312, 40, 1555, 400),
    "a100-80": (312, 80, 2039, 400),
    "a800-80": (312, 80, 2039, 400),
    "h100-80": (989.5, 80, 3350, 700),
    "h100-96": (989.5, 96, 2400, 500),
    "h800-80": (989.5, 80, 3350, 700),
    "gh200": (989.5, 96, 4000, 900),
    "h200": (989.5, 141, 4800, 700),
    "b200": (2250, 180, 8000, 1000),
    "b300": (2250, 288, 8000, 1100),
    "gb200": (2500, 186, 8000, 1200),
    "gb300": (2500, 288, 8000, 1400),
    "mi250x-gcd": (191.5, 64, 1635, 280),
    "mi300x": (1307.4, 192, 5300, 750),
    "mi325x": (1307.4, 256, 6000, 1000),
    "mi350x": (2300, 288, 8000, 1000),
    "mi355x": (2500, 288, 8000, 1400),
    "pvc-tile": (419.4, 64, 1640, 300),
}
# Best bf16 GEMM found by MAMF, TFLOP/s: stas00/ml-engineering@744d01e, compute/accelerator/README.md.
MEASURED_GEMM = {
    "a100-40": 271.2,
    "a100-80": 271.2,
    "h100-80": 794.5,
    "h200": 794.5,
    "gh200": 828.6,
    "b200": 1745,
    "b300": 1769,
    "gb200": 1822,
    "mi300x": 668.4,
    "mi325x": 784.9,
    "mi355x": 1565,
}
# Devices a node, GB/s a device inside the node, GB/s towards one neighbour, GB/s a device on the fabric.
# Sources: stas00/ml-engineering, network/README.md; MLPerf training v5 systems; the centres' user guides.
NETWORKS = {
    "selene": (8, 300, 300, 25),
    "dgx-a100": (8, 300, 300, 25),
    "aws-p4d": (8, 300, 300, 6.25),
    "aws-p5": (8, 450, 450, 50),
    "dgx-h100": (8, 450, 450, 50),
    "dgx-h200": (8, 450, 450, 50),
    "h800-pod": (8, 200, 200, 50),
    "dgx-b200": (8, 900, 900, 50),
    "gb200-nvl72": (4, 900, 900, 50),
    "gb300-nvl72": (4, 900, 900, 100),
    "perlmutter": (4, 300, 100, 25),
    "polaris": (4, 300, 100, 12.5),
    "alps": (4, 450, 150, 25),
    "mi300x-pod": (8, 448, 64, 50),
    "mi325x-pod": (8, 448, 64, 50),
    "mi355x-pod": (8, 535.5, 76.5, 50),
    "dgx-b300": (8, 900, 900, 100),
    "grand-teton": (8, 450, 450, 50),
    "dgx-2": (16, 150, 150, 6.25),
}


def constants(spec):
    values = [getattr(spec, field.name) for field in fields(spec)]
    return [value for value in values if isinstance(value, Constant)]


def constants_of_tables(table):
    values = [value for part in [table, *table.get("tiers", [])] for value in part.values()]
    return [value for value in values if isinstance(value, dict) and "value" in value]


def cluster_file(tmp_path, change=None):
    """The documented example, one piece of its text replaced."""
    old, new = change or ("", "")
    example = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)[0]
    assert old in example
    path = tmp_path / "mine.toml"
    path.write_text(example.replace(old, new, 1))
    return str(path)


def test_every_cluster_that_was_asked_for_is_there():
    assert set(cluster_names()) >= REQUIRED


@every_cluster
def test_every_cluster_has_a_source_and_constants_with_an_origin(name):
    cluster = load_cluster(name, 1)
    held = [cluster, cluster.device, *cluster.tiers]
    assert cluster.source
    assert cluster.device.source
    assert all(constant.source for part in held for constant in constants(part))


@pytest.mark.parametrize("path", sorted(PRESETS.glob("[cd]*/*.toml")), ids=lambda path: path.stem)
def test_no_preset_leaves_a_constant_to_a_default(path):
    table = read_toml(path)
    written = constants_of_tables(table)
    narrow = sum(f"fp{bits}_gemm_efficiency" in table for bits in (4, 8))
    wanted = 5 + narrow if path.parent.name == "devices" else 3 + 2 * len(table["tiers"])
    assert len(written) == wanted
    assert all(constant.keys() == {"value", "origin", "source", "spread"} for constant in written)


@every_device
def test_devices_match_the_published_figures(name):
    device, (peak, _, bandwidth, power) = load_device(name), ACCELERATORS[name]
    assert device.peak_flops_per_s["fp16"] == pytest.approx(peak * TFLOPS)
    assert device.peak_flops_per_s.get("bf16", peak * TFLOPS) == pytest.approx(peak * TFLOPS)
    assert device.memory_bandwidth_bytes_per_s == bandwidth * GB
    assert device.power_w == power


@every_device
def test_memory_lies_between_the_decimal_and_the_binary_reading_of_the_size_sold(name):
    sold = ACCELERATORS[name][1]
    # The driver of a B300 shows 270 of the 288 GB; all others show a little less than sold GiB.
    least = 270 if name == "b300" else sold
    assert least * GB <= load_device(name).memory_bytes <= sold * 1024 * MIB


@every_device
def test_gemm_efficiency_is_measured_exactly_where_a_measurement_was_published(name):
    efficiency = load_device(name).gemm_efficiency
    assert (efficiency.origin is Origin.MEASURED) == (name in MEASURED_GEMM)
    if name in MEASURED_GEMM:
        assert efficiency.value == pytest.approx(MEASURED_GEMM[name] / ACCELERATORS[name][0], abs=5e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_match_the_published_figures(name):
    cluster, (per_node, inside, pair, fabric) = load_cluster(name, 1), NETWORKS[name]
    assert cluster.devices_per_node == per_node
    assert cluster.tiers[0].bandwidth_bytes_per_s == inside * GB
    assert cluster.tiers[0].pair_bandwidth_bytes_per_s == pair * GB
    assert cluster.tiers[-1].bandwidth_bytes_per_s == fabric * GB


@pytest.mark.parametrize("name", ["frontier", "lumi"])
def test_mi250x_machines_have_dies_packages_switches_and_a_fabric(name):
    # Frontier User Guide: 200 GB/s in a package, 50 to 100 between packages, four 25 GB/s cards a node.
    tiers = load_cluster(name, 8).tiers
    assert [tier.size for tier in tiers] == [2, 8, 32, None]
    assert [tier.pair_bandwidth_bytes_per_s / GB for tier in tiers] == [200, 50, 12.5, 12.5]


@pytest.mark.parametrize(
    ("name", "nodes", "per_node"),
    [
        ("frontier", 9856, 8),
        ("lumi", 2978, 8),
        ("perlmutter", 1536, 4),
        ("polaris", 560, 4),
        ("selene", 560, 8),
        ("alps", 2688, 4),
        ("summit", 4608, 6),
        ("aurora", 10624, 12),
    ],
)
def test_a_real_machine_is_as_large_as_its_centre_says(name, nodes, per_node):
    cluster = load_cluster(name, nodes * per_node)
    assert cluster.n_nodes == nodes
    with pytest.raises(InvalidSpec, match=rf"has {nodes * per_node} devices at most; got"):
        cluster.with_devices((nodes + 1) * per_node)


@every_cluster
def test_tiers_nest(name):
    cluster = load_cluster(name, 1)
    sizes = [tier.size for tier in cluster.tiers]
    assert sizes[-1] is None
    assert all(outer % inner == 0 for inner, outer in pairwise(sizes[:-1]))


@given(st.sampled_from(cluster_names()), st.integers(1, 4))
def test_another_number_of_devices_changes_nothing_else(name, nodes):
    cluster = load_cluster(name, 1)
    n_devices = min(nodes * cluster.devices_per_node, cluster.max_devices or 10**6)
    assert replace(cluster.with_devices(n_devices), n_devices=1) == cluster


def test_a_rack_of_72_need_not_divide_the_devices():
    assert load_cluster("gb200-nvl72", 512).n_nodes == 128


def test_local_is_this_machine_and_assumes_every_speed():
    cluster = load_cluster("local", 8)
    held = [cluster, cluster.device, *cluster.tiers]
    assert cluster.device.memory_bytes > 0
    assert {constant.origin for part in held for constant in constants(part)} == {Origin.ASSUMED}


def test_the_documented_example_loads_and_takes_documented_defaults(tmp_path):
    cluster = load_cluster(cluster_file(tmp_path), 64)
    assert (cluster.name, cluster.n_nodes, cluster.device.name) == ("mine", 8, "h100-80")
    assert [tier.efficiency.value for tier in cluster.tiers] == [0.8, 0.75]
    assert cluster.step_fixed_s.origin is Origin.ASSUMED


def test_the_documented_device_loads(tmp_path):
    device = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)[1]
    path = cluster_file(tmp_path, ('device = "h100-80"\n', ""))
    Path(path).write_text(Path(path).read_text() + device)
    assert load_cluster(path, 8).device.peak("bf16") == 2e14


def test_a_plain_number_is_an_assumed_constant(tmp_path):
    path = cluster_file(tmp_path, ("devices_per_node = 8", "devices_per_node = 8\nstep_fixed_s = 0"))
    assert load_cluster(path, 8).step_fixed_s == Constant(
        value=0.0, origin=Origin.ASSUMED, source=f"given in {path}", spread=0.2
    )


THREE = '[[tiers]]\nname = "three"\nsize = 3\nbandwidth_bytes_per_s = 1e9\n'
NODE = "devices_per_node = 8"
FALSE_FILES = {
    "unknown device": ("h100-80", "h10-80", "got 'h10-80'.\nhint: did you mean 'h100-80'"),
    "device of a wrong kind": ('"h100-80"', "3", "device: .*; got 3"),
    "no device": ('device = "h100-80"', "", "must have the key device"),
    "unknown key": ("devices_per", "device_per", "'device_per_node'.\nhint: did you mean 'devices_per_node'"),
    "text for a number": (NODE, 'devices_per_node = "8"', "devices_per_node: .*integer; got '8'"),
    "no devices in a node": (
        NODE,
        "devices_per_node = 0",
        "devices_per_node must be from 1 to 10,000,000; got 0",
    ),
    "a job in a machine": (NODE, NODE + "\nn_devices = 64", "n_devices.\nhint: say how many with --devices"),
    "not a number": (NODE, NODE + "\nstep_fixed_s = nan", "step_fixed_s.*finite number"),
    "constant without origin": (NODE, NODE + "\nstep_fixed_s = {value = 1}", "the key step_fixed_s.origin"),
    "infinite bandwidth": ("450e9", "inf", "tiers.0.*bandwidth_bytes_per_s.*finite number"),
    "negative bandwidth": ("450e9", "-1.0", "tier node: bandwidth_bytes_per_s must be positive and finite"),
    "unknown key of a tier": ("450e9", "1e9\nefficency = 1", "'efficency'.\nhint: did you mean 'efficiency'"),
    "percent": ("450e9", "1e9\nefficiency = 80", "above 0 and at most 1; got 80.*\nhint: 0.8 means 80 %"),
    "inner tier without size": ("size = 8 ", "", "must have the key tiers.0.size"),
    "outer tier with size": (
        '"fabric"',
        '"fabric"\nsize = 64',
        "outermost tier, and only it, must have",
    ),
    "tiers that do not nest": (
        "[[tiers]]  ",
        THREE + "[[tiers]]  ",
        "the one inside it; got .3, 8",
    ),
    "a tier across nodes": ("size = 8 ", "size = 12 ", "must divide a node of 8, or hold whole ones"),
    "more reserve than memory": (
        NODE,
        NODE + "\nmemory_reserve_bytes = 1e12",
        "memory_reserve_bytes must be below the device's memory; got 1000000000000",
    ),
    "not TOML": (NODE, "devices_per_node = = 8", "must be a TOML file; got"),
}


@pytest.mark.parametrize(("old", "new", "sentence"), FALSE_FILES.values(), ids=FALSE_FILES)
def test_a_file_that_cannot_be_true_is_one_sentence(tmp_path, old, new, sentence):
    with pytest.raises(InvalidSpec, match=sentence):
        load_cluster(cluster_file(tmp_path, (old, new)), 8)


def test_no_tiers_is_a_sentence(tmp_path):
    path = tmp_path / "bare.toml"
    path.write_text('device = "h100-80"\ndevices_per_node = 8\n')
    with pytest.raises(InvalidSpec, match="must have the key tiers; got none"):
        load_cluster(str(path), 8)


def test_an_unknown_cluster_suggests_the_nearest():
    with pytest.raises(UnknownName, match=r"got 'dgx-h10'\.\nhint: did you mean 'dgx-h100'"):
        load_cluster("dgx-h10", 8)


def test_a_missing_file_is_a_sentence():
    with pytest.raises(InvalidSpec, match=r"nowhere\.toml must be a readable text file; got"):
        load_cluster("nowhere.toml", 8)


def test_devices_must_fill_whole_nodes():
    with pytest.raises(InvalidSpec, match=r"whole nodes of 8; got 12\.\nhint: 8 or 16 would"):
        load_cluster("dgx-h100", 12)


@pytest.mark.parametrize("n_devices", [0, -8, 8 * 10**16])
def test_there_must_be_devices(n_devices):
    with pytest.raises(InvalidSpec, match=f"n_devices must be from 1 to 10,000,000; got {n_devices}"):
        load_cluster("dgx-h100", n_devices)


def test_loading_a_cluster_imports_no_heavy_library():
    code = (
        "import sys; from search_spaces.cluster_presets import load_cluster; load_cluster('frontier', 8);"
        "print(sorted({'torch', 'ray', 'pandas', 'optuna', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
