"""No knob that a user turns on is lost on the way to a trainer: it is written down, or refused by name."""

import pytest

from runners.launchers import LAUNCHERS
from runners.launchers.base import Options
from runners.launchers.export import export_files
from search_spaces.errors import CannotExport
from search_spaces.knobs import OPT_IN
from search_spaces.plan import Dispatch, Plan
from tests.runners.launchers.cases import LLAMA_8B, XMOE_LARGE, job

GPT_HALF = job("gpt3-175b", "dgx-a100", 64, 256, 2048, "fp16")
DENSE, EXPERTS = "dp=64", "dp=256 ep=64 zero=1"
PIPELINE = "pp=4 dp=16 recompute=full"
# What else a plan must say for a launcher that has no neutral value of it.
SAID = {"torchtitan": "overlap_dp=true", "llm-foundry": "overlap_dp=true"}
WAYS = {"deepspeed": "dispatch=einsum", "x-moe": "dispatch=einsum"}
# A value that is not the neutral one, and a plan in which it has something to do.
ON = {
    "overlap_ep": ("true", EXPERTS),
    "deduplicate_ep": ("true", EXPERTS),
    "hierarchical_ep": ("true", EXPERTS),
    "dispatch": ("padding-free", EXPERTS),
    "migrate_every": ("100", EXPERTS),
    "expert_tokens": ("duplicated", "tp=2 dp=128 ep=64 zero=1"),
    "recompute_stages": ("1", PIPELINE),
    "recompute_modules": ("mlp", DENSE),
    "optimizer_sync": ("post-validation", PIPELINE),
    "pipeline_limit": ("8", PIPELINE),
    "extra_warmup": ("1", PIPELINE),
    "quantized_weights": ("true", f"{DENSE} zero=3"),
    "hpz": ("8", f"{DENSE} zero=3"),
    "quantized_gradients": ("true", f"{DENSE} zero=3"),
    "sequence_chunk": ("2048", f"{DENSE} recompute=full"),
    "offload_sequence": ("true", f"{DENSE} recompute=full"),
    "offload_checkpoints": ("true", f"{DENSE} recompute=full"),
    "overlap_offload": ("true", f"{DENSE} zero=3 offload_optimizer=true"),
    "power_cap_w": ("400", DENSE),
    "nodes": ("8", DENSE),
    "n_microbatches": ("2", DENSE),
    "keep_received": ("true", f"{DENSE} recompute=full"),
    "offload_bucket": ("8000000", f"{DENSE} offload_optimizer=true coalesced_buckets=4"),
    "coalesced_buckets": ("2", f"{DENSE} offload_optimizer=true"),
    "optimizer_tile": ("1000000", DENSE),
}


def written(of, launcher, plan):
    """What the trainer and the site are given, or the refusal; the plan's own name is left out."""
    try:
        files = export_files(of, plan, launcher, "both", Options())
    except CannotExport as error:
        return None, str(error)
    files.pop("plan.json")
    return {name: text.replace(plan.key, "") for name, text in files.items()}, ""


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_no_two_ways_of_sending_tokens_are_written_alike(launcher):
    tried = [written(XMOE_LARGE, launcher, Plan.parse(f"{EXPERTS} dispatch={each}")) for each in Dispatch]
    texts = [str(sorted(files.items())) for files, _ in tried if files is not None]
    assert len(set(texts)) == len(texts)
    for way, (files, refusal) in zip(Dispatch, tried, strict=True):
        assert files is not None or f"dispatch={way}" in refusal or not texts


def test_every_knob_that_is_off_by_default_is_tried():
    assert ON.keys() == OPT_IN.keys()


@pytest.mark.parametrize("knob", ON)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_knob_that_is_on_changes_what_is_written_or_is_refused_by_name(launcher, knob):
    value, off = ON[knob]
    jobs = [XMOE_LARGE] if "ep=" in off else [LLAMA_8B, GPT_HALF]
    ways = WAYS if "ep=" in off and knob != "dispatch" else {}
    off = " ".join([off, SAID.get(launcher, ""), ways.get(launcher, "")])
    n_written = 0
    for of in jobs:
        files, refusal = written(of, launcher, Plan.parse(f"{off} {knob}={value}"))
        before, why_not = written(of, launcher, Plan.parse(off))
        if files is None:
            n_refused = refusal.count("=") - why_not.count("=")
            assert f"{knob}=" in refusal or n_refused <= 0
            continue
        n_written += 1
        if knob == "nodes":  # all of the cluster's, named
            assert files == before
        elif before is not None:
            assert files != before
    assert n_written or f"{knob}=" in refusal or launcher in ("axonn", "torchtitan", "x-moe")


OF_EXPERTS = {
    "ep": 2, "etp": 2, "overlap_ep": "true", "deduplicate_ep": "true", "hierarchical_ep": "true",
    "dispatch": "padding-free", "migrate_every": 100, "expert_tokens": "dropped",
}  # fmt: skip


@pytest.mark.parametrize("knob", OF_EXPERTS)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_model_without_experts_has_nothing_to_do_for_their_knobs(launcher, knob):
    plan = Plan.parse(f"dp=64 {SAID.get(launcher, '')} {knob}={OF_EXPERTS[knob]}")
    assert f"{knob}={OF_EXPERTS[knob]}: the model has no experts" in written(LLAMA_8B, launcher, plan)[1]
