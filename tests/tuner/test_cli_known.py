"""The verbs models, clusters, launchers, and --version."""

import re

import jsonschema
import pytest
import typer

from tests.tuner import schemas
from tests.tuner.cli import meshtune
from tuner.cli import app


@pytest.mark.parametrize(
    ("verb", "schema", "name"),
    [
        ("models", schemas.MODELS, "llama-3-70b"),
        ("clusters", schemas.CLUSTERS, "frontier"),
        ("launchers", schemas.LAUNCHERS, "megatron-lm"),
    ],
)
class TestEveryList:
    def test_the_document_has_the_documented_form(self, verb, schema, name):
        document = meshtune(verb, "--json").document
        jsonschema.validate(document, schema)
        assert name in [row["name"] for row in document[verb]]

    def test_one_of_them_is_the_same_row(self, verb, schema, name):
        rows = meshtune(verb, "--json").document[verb]
        assert meshtune(verb, name, "--json").document[verb] == [row for row in rows if row["name"] == name]

    def test_the_screen_shows_them_within_a_hundred_columns(self, verb, schema, name):
        for arguments in ([verb], [verb, name]):
            answer = meshtune(*arguments)
            assert answer.code == 0
            assert name in answer.out
            assert max(map(len, answer.out.splitlines())) <= 100


def test_a_model_is_shown_with_its_counts_and_source():
    text = meshtune("models", "llama-3-8b").out
    assert "8,030,261,248" in text
    assert "huggingface.co/meta-llama" in text


def test_a_cluster_is_shown_with_the_origin_of_each_constant():
    text = meshtune("clusters", "dgx-h100").out
    for word in ("gemm_efficiency", "measured", "assumed", "GB/s a device"):
        assert word in text


def test_version():
    answer = meshtune("--version")
    assert answer.code == 0
    assert re.fullmatch(r"meshtune \d+\.\d+\.\d+\n", answer.out)


VERBS = {
    "rank": "job set space top metric simulate json",
    "estimate": "job set space plan explain from-study most-devices storage json",
    "simulate": "job set space plan schedule-file synthesize detail jitter straggler slow-link expert-load"
    " seeds trace html json",
    "validate": "cluster all html json",
    "calibrate": "from from-study from-rates storage most-devices out cluster all budget-s devices on fresh"
    " json",
    "tune": "job set space preset name trials hours stop-below better-by parallel runner runner-option"
    " executor ray-address slurm-option sampler seed prior warm-start warm-storage metric storage json",
    "resume": "trials hours stop-below better-by parallel storage json",
    "studies": "storage json",
    "show": "storage json",
    "report": "html csv storage json",
    "explain": "html storage json",
    "export": "job set space to plan trial scheduler out option storage json",
    "read-log": "trainer global-batch seq-len devices cluster precision warmup status json",
    "models": "json",
    "clusters": "json",
    "launchers": "json",
    "papers": "write json",
}
JOB_FLAGS = {"model", "hf-config", "cluster", "devices", "global-batch", "seq-len", "precision", "framework"}


def expected_flags(names):
    return (names - {"job"}) | JOB_FLAGS if "job" in names else names


def test_the_verbs_and_their_flags_are_these():
    """A new flag has to be wanted: it is added here too."""
    commands = typer.main.get_command(app).commands
    flags = {
        verb: {name.lstrip("-") for each in command.params for name in each.opts if name.startswith("--")}
        for verb, command in commands.items()
    }
    words = {verb: set(listed.split()) for verb, listed in VERBS.items()}
    assert flags == {
        verb: (names - {"job"}) | (JOB_FLAGS if "job" in names else set()) for verb, names in words.items()
    }
