"""Documents become specs, or a sentence that names the key."""

import pytest

from search_spaces.cluster_presets import cluster_from_table
from search_spaces.documents import build, read_json, read_toml
from search_spaces.errors import InvalidSpec, UnknownName
from search_spaces.workload import Workload

TIERS = [
    {"name": "node", "size": 8, "bandwidth_bytes_per_s": 3e11},
    {"name": "fabric", "bandwidth_bytes_per_s": 5e10},
]
WORKLOAD = {"seq_len": 4096, "global_batch": 8}


def cluster_with(device="h100-80", tiers=TIERS, **changes):
    table = {"name": "mine", "source": "here", "device": device, "devices_per_node": 8, "tiers": tiers}
    return cluster_from_table(table | changes, "mine.toml")


def test_a_document_becomes_its_spec():
    assert build(Workload, WORKLOAD, "[workload]") == Workload(**WORKLOAD)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("key", ["step_fixed_s", "straggler_per_log2", "memory_reserve_bytes"])
def test_a_bad_constant_is_named(key, value):
    with pytest.raises(InvalidSpec, match=rf"mine\.toml: {key}\b"):
        cluster_with(**{key: value})


def test_a_bad_constant_of_a_tier_is_named_with_its_tier():
    tiers = [{**TIERS[0], "latency_s": -1.0}, TIERS[1]]
    with pytest.raises(
        InvalidSpec, match=r"mine\.toml: tiers\.0\.latency_s: a constant must be finite and not negative"
    ):
        cluster_with(tiers=tiers)


def test_what_a_spec_says_of_itself_needs_no_path():
    with pytest.raises(InvalidSpec, match=r"^\[workload\]: Workload.seq_len must be a positive"):
        build(Workload, WORKLOAD | {"seq_len": 0}, "[workload]")


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"seq_length": 1}, UnknownName, r"a key of \[workload\] .*\nhint: did you mean 'seq_len'"),
        ({"state": {"weight_byte": 2.0}}, UnknownName, r"\nhint: did you mean 'weight_bytes'"),
        ({"seq_len": "many"}, InvalidSpec, r"\[workload\]: seq_len: .*; got 'many'"),
        ({"seq_len": True}, InvalidSpec, r"\[workload\]: seq_len: .*; got True"),
        ({"train_tokens": float("inf")}, InvalidSpec, r"\[workload\]: train_tokens\b"),
        ({"seq_len": 10**20}, InvalidSpec, r"seq_len must be at most 9,223,.*; got a number of 21 digits"),
        ({"precision": "bf61"}, InvalidSpec, r"\[workload\]: precision: .*; got 'bf61'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence_with_its_key(change, error, sentence):
    with pytest.raises(error, match=sentence):
        build(Workload, WORKLOAD | change, "[workload]")


def test_a_missing_key_is_named():
    with pytest.raises(InvalidSpec, match=r"\[workload\] must have the key global_batch"):
        build(Workload, {"seq_len": 1}, "[workload]")


def test_a_misspelt_key_is_told_before_the_one_that_it_leaves_missing():
    with pytest.raises(UnknownName, match=r"got 'sequence'\.\nhint: did you mean 'seq_len'"):
        build(Workload, {"sequence": 8192, "global_batch": 8}, "[workload]")


@pytest.mark.parametrize(
    ("name", "text", "read", "sentence"),
    [
        ("a.json", "[" * 100_000, read_json, "a.json must be a JSON file; got maximum recursion"),
        ("a.json", "9" * 5_000, read_json, "a.json must be a JSON file; got Exceeds the limit"),
        ("a.toml", "x = ", read_toml, "a.toml must be a TOML file"),
        ("a.json", "{", read_json, "a.json must be a JSON file"),
        ("a.json", "[1]", read_json, "a.json must hold one JSON object; got list"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, text, read, sentence):
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidSpec, match=sentence):
        read(tmp_path / name)


@pytest.mark.parametrize("read", [read_toml, read_json])
def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path, read):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    for name in ("absent", "binary"):
        with pytest.raises(InvalidSpec, match=f"{name} must be a readable text file"):
            read(tmp_path / name)
