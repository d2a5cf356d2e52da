"""A cluster written as a file is the cluster that is read back."""

import tomllib
from dataclasses import replace

import pytest

from search_spaces.cluster import Constant, Origin
from search_spaces.cluster_file import cluster_toml
from search_spaces.cluster_presets import cluster_names, load_cluster


def read_back(cluster, tmp_path):
    path = tmp_path / "machine.toml"
    path.write_text(cluster_toml(cluster), encoding="utf-8")
    return load_cluster(str(path), cluster.n_devices)


@pytest.mark.parametrize("name", cluster_names())
def test_every_cluster_is_read_back_as_it_was(name, tmp_path):
    cluster = load_cluster(name, 1)
    assert read_back(cluster, tmp_path) == cluster


def test_a_preset_accelerator_is_named_and_any_other_spelled_out(tmp_path):
    cluster = load_cluster("dgx-h100", 8)
    assert tomllib.loads(cluster_toml(cluster))["device"] == "h100-80"
    cooler = replace(cluster, device=replace(cluster.device, power_w=500.0))
    assert tomllib.loads(cluster_toml(cooler))["device"]["power_w"] == 500.0
    assert read_back(cooler, tmp_path) == cooler


def test_constants_keep_value_origin_spread_and_source(tmp_path):
    fitted = Constant(value=1.234e-7, origin=Origin.FITTED, spread=0.123, source='say "9 % of runs"')
    cluster = replace(load_cluster("dgx-h100", 8), step_fixed_s=fitted, device_hour_price=fitted)
    assert read_back(cluster, tmp_path) == cluster


@pytest.mark.parametrize(
    "source", ['"', "back\\slash", "two\nlines", "tab\t", "\x00\x1f\x7f", "é ↔ 𝛼", "'''"]
)
def test_any_text_is_a_source(source, tmp_path):
    cluster = replace(load_cluster("dgx-h100", 8), source=source)
    assert read_back(cluster, tmp_path) == cluster
