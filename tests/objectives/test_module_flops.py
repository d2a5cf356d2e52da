"""FLOPs of real modules, counted by torch while they run, against the formulas: exactly the same."""

import pytest

from objectives.cost.flops import model_flops_per_step
from search_spaces.hf_config import load_hf_config
from search_spaces.workload import AttentionFlops, Workload

pytestmark = pytest.mark.torch
SEQ_LEN, BATCH = 24, 2
SMALL = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
EXPERTS = {"moe_intermediate_size": 48, "num_experts_per_tok": 3}
LATENT = {
    "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 12,
}  # fmt: skip
MODELS = {
    "gpt": ("GPT2Config", {
        "vocab_size": 96, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 64,
    }),
    "llama, grouped queries": ("LlamaConfig", SMALL | {"num_key_value_heads": 2}),
    "mixtral, experts": ("MixtralConfig", SMALL | {
        "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
    }),
    "qwen3, experts": ("Qwen3MoeConfig", SMALL | EXPERTS | {
        "num_key_value_heads": 2, "head_dim": 16, "num_experts": 8,
    }),
    "deepseek-v3, latent attention and shared experts": ("DeepseekV3Config", SMALL | EXPERTS | LATENT | {
        "num_key_value_heads": 4, "n_routed_experts": 8, "n_shared_experts": 2, "first_k_dense_replace": 1,
        "n_group": 2, "topk_group": 1, "num_nextn_predict_layers": 0,
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_steps_flops_are_those_torch_counts(name, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    kind, fields = MODELS[name]
    config = getattr(transformers, kind)(**fields)
    config.save_pretrained(tmp_path)
    torch.manual_seed(0)
    # Fused kernels would hide from the counter how much of the square they skip.
    eager = {f"{kernels}_implementation": "eager" for kernels in ("attn", "experts")}
    module = transformers.AutoModelForCausalLM.from_config(config, **eager)
    tokens = torch.randint(config.vocab_size, (BATCH, SEQ_LEN))
    with FlopCounterMode(display=False) as counter:
        module(input_ids=tokens, labels=tokens).loss.backward()
    workload = Workload(seq_len=SEQ_LEN, global_batch=BATCH, attention_flops=AttentionFlops.FULL)
    assert counter.get_total_flops() == model_flops_per_step(
        load_hf_config(tmp_path / "config.json"), workload
    )
