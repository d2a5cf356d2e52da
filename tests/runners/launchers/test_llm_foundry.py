"""llm-foundry's YAML: what its own list of keys allows, and what each knob becomes in it."""

import json

import pytest
import yaml

from runners.launchers import load_launcher
from runners.launchers.base import Options, words
from runners.launchers.llm_foundry import CONFIG
from search_spaces.plan import Plan
from tests.runners.launchers.cases import CASES, LLAMA_8B, job

GPT = job("gpt2", "dgx-a100", 8, 64, 1024)
# Fields of TrainConfig, llmfoundry/utils/config_utils.py; any other is a ValueError there.
TRAIN_KEYS = {
    "model", "tokenizer", "optimizer", "scheduler", "train_loader", "device_eval_batch_size", "max_duration",
    "eval_interval", "max_seq_len", "seed", "precision", "fsdp_config", "progress_bar", "log_to_console",
    "console_log_interval", "callbacks", "algorithms", "device_train_microbatch_size",
    "global_train_batch_size", "eval_first",
}  # fmt: skip
# Fields of FSDPConfig, composer/utils/parallelism.py.
FSDP_KEYS = {
    "activation_checkpointing", "activation_checkpointing_reentrant", "activation_cpu_offload",
    "backward_prefetch", "limit_all_gathers", "mixed_precision", "sharding_strategy", "state_dict_type",
}  # fmt: skip


def written(a_job, plan, **options):
    """The YAML as any reader sees it, with the words of the command line over it, as OmegaConf does."""
    launch = load_launcher("llm-foundry").launch(a_job, Plan.parse(plan), Options(**options))
    config = yaml.safe_load(launch.files[CONFIG])
    assert config.keys().isdisjoint(word.partition("=")[0] for word in words(launch.arguments))
    return config | {
        key: yaml.safe_load(value) for key, _, value in (w.partition("=") for w in words(launch.arguments))
    }


@pytest.mark.parametrize("case", CASES["llm-foundry"], ids=lambda case: case.name)
def test_every_key_is_one_that_it_knows(case):
    config = written(case.job, case.words)
    assert config.keys() == TRAIN_KEYS
    assert config["fsdp_config"] is None or config["fsdp_config"].keys() <= FSDP_KEYS


@pytest.mark.parametrize(
    ("plan", "strategy", "recomputes"),
    [("dp=64 zero=2", "SHARD_GRAD_OP", False), ("dp=64 zero=3 recompute=full", "FULL_SHARD", True)],
)
def test_zero_stages_are_sharding_strategies(plan, strategy, recomputes):
    fsdp = written(LLAMA_8B, plan)["fsdp_config"]
    assert (fsdp["sharding_strategy"], fsdp["activation_checkpointing"]) == (strategy, recomputes)


def test_nothing_sharded_needs_no_fsdp():
    assert written(LLAMA_8B, "dp=64")["fsdp_config"] is None


def test_the_batch_and_the_steps_are_said_once():
    config = written(LLAMA_8B, "dp=64 zero=3 micro_batch=2", train_steps=12)
    assert config["global_train_batch_size"] == 256
    assert (config["device_train_microbatch_size"], config["max_duration"]) == (2, "12ba")


@pytest.mark.parametrize(
    ("precision", "name"), [("bf16", "amp_bf16"), ("fp16", "amp_fp16"), ("fp32", "fp32")]
)
def test_precision_is_composer_s(precision, name):
    assert (
        written(job("llama-3-8b", "dgx-h100", 64, 256, 8192, precision), "dp=64 zero=3")["precision"] == name
    )


def test_a_llama_is_mpt_with_rotary_positions_and_a_gated_mlp():
    model = written(LLAMA_8B, "dp=64 zero=3")["model"]
    assert (model["d_model"], model["n_layers"], model["n_heads"]) == (4096, 32, 32)
    assert (model["attn_config"]["kv_n_heads"], model["attn_config"]["rope"]) == (8, True)
    assert model["ffn_config"] == {"ffn_type": "mptglu", "ffn_hidden_size": 14336}
    assert (model["no_bias"], model["norm_type"], model["tie_word_embeddings"]) == (True, "rmsnorm", False)


def test_a_gpt_is_mpt_with_learned_positions_and_biases():
    model = written(GPT, "dp=8 zero=3")["model"]
    assert (model["learned_pos_emb"], model["attn_config"]["rope"], model["no_bias"]) == (True, False, False)
    assert (model["max_seq_len"], model["ffn_config"]["ffn_type"]) == (1024, "mptmlp")


@pytest.mark.parametrize(
    "text", ["no", "1e-4", "a: b", "- x", "#", "q\"uo'te", "ünï", "a\nb", "null", "yes: [1"]
)
def test_text_of_the_user_stays_text(text):
    config = written(LLAMA_8B, "dp=64 zero=3", data_path=text, tokenizer=text)
    assert config["train_loader"]["dataset"]["local"] == config["tokenizer"]["name"] == text


def test_a_trial_of_it_is_read_by_composer_s_reader(tmp_path):
    from runners.command import CommandRunner
    from runners.logs import load_reader

    one_node = job("llama-3-8b", "dgx-h100", 8, 64, 8192)
    runner = CommandRunner(one_node, launcher="llm-foundry", trials_folder=str(tmp_path))
    assert runner._reader == load_reader("composer").name
    assert json.dumps(runner._reader) == '"composer"'
