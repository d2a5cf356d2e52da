"""Jobs and plans that the launcher tests share, and the way to ask a launcher's own parser."""

import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from objectives.metrics import Job
from search_spaces.cluster_presets import load_cluster
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan
from search_spaces.workload import Precision, Workload

CHECKS = Path(__file__).parents[2] / "launcher_checks"


@cache
def job(
    model: str, cluster: str, n_devices: int, global_batch: int, seq_len: int, precision: str = "bf16"
) -> Job:
    return Job(
        model=load_model(model),
        cluster=load_cluster(cluster, n_devices),
        workload=Workload(seq_len=seq_len, global_batch=global_batch, precision=Precision(precision)),
    )


LLAMA_70B = job("llama-3-70b", "dgx-h100", 512, 1024, 8192)
LLAMA_8B = job("llama-3-8b", "dgx-h100", 64, 256, 8192)
LLAMA_2 = job("llama-2-7b", "dgx-h100", 64, 256, 4096)
GPT_FRONTIER = job("frontier-175b", "frontier", 1024, 1280, 2048)
GPT_SELENE = job("gpt3-175b", "selene", 1024, 1536, 2048)
DEEPSEEK_V3 = job("deepseek-v3", "h800-pod", 2048, 15360, 4096)
DEEPSEEK_V2 = job("deepseek-v2", "dgx-h100", 256, 512, 4096)
DEEPSEEK_LITE = job("deepseek-v2-lite", "dgx-h100", 64, 256, 4096)
MIXTRAL = job("mixtral-8x7b", "dgx-h100", 64, 256, 4096)
XMOE_LARGE = job("x-moe-large", "frontier", 256, 1024, 4096, "fp16")
QWEN_8B = job("qwen3-8b", "dgx-h100", 64, 256, 4096)
QWEN_MOE = job("qwen3-30b-a3b", "dgx-h100", 64, 256, 4096)
QWEN_LARGE = job("qwen3-235b-a22b", "dgx-h100", 256, 512, 4096)
NEMOTRON = job("nemotron-4-340b", "dgx-h100", 512, 512, 4096)


@dataclass(frozen=True)
class Case:
    """A plan that a launcher must take."""

    name: str
    job: Job
    words: str

    @property
    def plan(self) -> Plan:
        return Plan.parse(self.words)


SP = "sequence_parallel=true"
MEGATRON = [
    Case("70B cp vpp", LLAMA_70B, f"tp=8 pp=4 dp=8 cp=2 vpp=5 schedule=interleaved zero=1 {SP} "
         "overlap_dp=true overlap_pp=true recompute=selective"),
    Case("70B vpp, nothing hidden", LLAMA_70B,
         f"tp=8 pp=4 dp=16 vpp=4 schedule=interleaved {SP} recompute=full"),
    Case("70B uneven ends", LLAMA_70B, f"tp=8 pp=4 dp=16 zero=1 first_layers=19 last_layers=19 {SP} "
         "recompute=full recompute_every=2 overlap_tp=true offload_optimizer=true"),
    Case("70B lighter first", LLAMA_70B, f"tp=8 pp=4 dp=16 first_layers=17 {SP} micro_batch=2"),
    Case("70B pipeline inside", LLAMA_70B, f"tp=8 pp=4 dp=16 zero=1 rank_order=tp-cp-pp-dp {SP}"),
    Case("70B pipeline and cp inside", LLAMA_70B, f"tp=8 pp=4 dp=8 cp=2 rank_order=tp-cp-pp-dp {SP}"),
    Case("8B zero 3", LLAMA_8B, f"tp=2 dp=32 zero=3 {SP} overlap_dp=true recompute=full"),
    Case("8B zero 2", LLAMA_8B, "dp=64 zero=2 overlap_dp=true micro_batch=4"),
    Case("8B ulysses", LLAMA_8B, "tp=2 dp=8 cp=4 cp_kind=ulysses overlap_dp=true"),
    Case("8B cp all-gather", LLAMA_8B, "tp=2 dp=8 cp=4 cp_kind=all-gather zero=1"),
    Case("8B fp8", job("llama-3-8b", "dgx-h100", 64, 256, 8192, "fp8"), f"tp=4 dp=16 zero=1 {SP}"),
    Case("8B fp16", job("llama-3-8b", "dgx-h100", 64, 256, 8192, "fp16"), "tp=4 dp=16 zero=1"),
    Case("V3", DEEPSEEK_V3, "pp=16 dp=128 ep=64 first_layers=4 last_layers=1 zero=1 recompute=selective "
         "overlap_dp=true"),
    Case("V3 full recompute", DEEPSEEK_V3,
         "pp=16 dp=128 ep=64 first_layers=4 last_layers=1 zero=1 recompute=full"),
    Case("V2 Lite", DEEPSEEK_LITE, f"tp=2 dp=32 ep=8 etp=2 zero=1 {SP}"),
    Case("Mixtral", MIXTRAL, f"tp=2 pp=4 dp=8 ep=8 vpp=2 schedule=interleaved zero=1 {SP} overlap_dp=true"),
    Case("Qwen3 MoE", QWEN_MOE, "dp=64 ep=16 zero=1"),
    Case("Qwen3 MoE once to a node", QWEN_MOE, "dp=64 ep=16 zero=1 overlap_ep=true deduplicate_ep=true"),
    Case("GPT-3", GPT_SELENE, f"tp=8 pp=16 dp=8 zero=1 {SP} recompute=full recompute_every=4"),
    Case("Nemotron", NEMOTRON, f"tp=8 pp=8 dp=8 vpp=3 schedule=interleaved zero=1 {SP} overlap_pp=true"),
]  # fmt: skip
DEEPSPEED = [
    Case("GPT on Frontier", GPT_FRONTIER, "tp=4 pp=16 dp=16 zero=1 recompute=full overlap_dp=true"),
    Case("GPT zb-h1", GPT_FRONTIER, "tp=8 pp=8 dp=16 zero=1 schedule=zb-h1 micro_batch=2"),
    Case("GPT selective", GPT_FRONTIER, f"tp=8 pp=16 dp=8 {SP} recompute=selective"),
    Case("8B zero 3 offload", LLAMA_8B, "tp=2 dp=32 zero=3 offload_optimizer=true overlap_dp=true"),
    Case("8B zero 2", LLAMA_8B, "dp=64 zero=2 micro_batch=2"),
    Case("8B ulysses", LLAMA_8B, "dp=16 cp=4 cp_kind=ulysses zero=3"),
    Case("8B fp16", job("llama-3-8b", "dgx-h100", 64, 256, 8192, "fp16"), "tp=4 dp=16 zero=1"),
    Case("Mixtral", MIXTRAL, "tp=2 dp=32 ep=8 etp=2 zero=1 expert_tokens=dropped"),
    Case("8B ZeRO++", LLAMA_8B, "dp=64 zero=3 quantized_weights=true hpz=8 quantized_gradients=true"),
    Case(
        "8B in chunks",
        LLAMA_8B,
        "dp=16 cp=4 cp_kind=ulysses zero=3 recompute=full sequence_chunk=4096 "
        "offload_sequence=true offload_checkpoints=true",
    ),
    Case("padded", XMOE_LARGE, f"tp=2 dp=128 ep=64 zero=1 {SP} dispatch=padded"),
    Case("masks", XMOE_LARGE, f"tp=2 dp=128 ep=64 etp=2 zero=2 {SP} dispatch=einsum"),
]
X_MOE = [
    Case("large", XMOE_LARGE, f"tp=2 dp=128 ep=64 zero=1 micro_batch=1 {SP} overlap_dp=true "
         "dispatch=padding-free deduplicate_ep=true schedule=1f1b"),
    Case("more expert ranks than replicas", XMOE_LARGE,
         f"tp=8 dp=32 pp=1 ep=64 zero=2 {SP} dispatch=padding-free recompute=full"),
    Case("split experts", XMOE_LARGE, f"tp=2 dp=128 ep=64 etp=2 zero=1 {SP} dispatch=einsum"),
]  # fmt: skip
TORCHTITAN = [
    Case("70B vpp", LLAMA_70B, f"tp=8 pp=4 dp=16 vpp=5 schedule=interleaved zero=3 {SP} overlap_dp=true "
         "overlap_pp=true recompute=selective"),
    Case("8B async tp", LLAMA_8B, f"tp=2 dp=32 zero=2 recompute=full overlap_tp=true {SP} overlap_dp=true"),
    Case("8B uneven", LLAMA_8B, "tp=2 pp=4 dp=8 first_layers=6 last_layers=8 zero=2 overlap_dp=true"),
    Case("7B gpipe", LLAMA_2, "tp=2 pp=4 dp=8 schedule=gpipe micro_batch=2 first_layers=7 last_layers=7 "
         "overlap_dp=true"),
    Case("Qwen3 8B", QWEN_8B, f"dp=16 tp=4 zero=3 {SP} overlap_dp=true"),
    Case("8B cp", LLAMA_8B, "tp=2 dp=8 cp=4 cp_kind=all-gather zero=3 overlap_dp=true"),
    Case("Qwen3 MoE", QWEN_MOE, "dp=64 ep=8 zero=3 overlap_dp=true"),
    Case("Qwen3 235B", QWEN_LARGE, "pp=2 dp=128 ep=64 zero=2 recompute=full overlap_dp=true"),
    Case("V2", DEEPSEEK_V2, "dp=256 ep=32 zero=3 recompute=full overlap_dp=true"),
    Case("V2 Lite", DEEPSEEK_LITE, f"tp=2 dp=32 ep=1 etp=2 zero=3 {SP} overlap_dp=true"),
    Case("8B zb-v", LLAMA_8B, "tp=2 pp=4 dp=8 vpp=2 schedule=zb-v zero=2 overlap_dp=true overlap_pp=true"),
    Case("8B dualpipe-v", LLAMA_8B, "tp=2 pp=4 dp=8 vpp=2 schedule=dualpipe-v overlap_dp=true "
         "overlap_pp=true"),
    Case("8B v-half", LLAMA_8B, "tp=2 pp=4 dp=8 vpp=2 schedule=v-half overlap_dp=true overlap_pp=true"),
    Case("8B zb-h1", LLAMA_8B, "tp=2 pp=4 dp=8 schedule=zb-h1 zero=2 overlap_dp=true"),
    Case("8B long warm-up", LLAMA_8B, "tp=2 pp=4 dp=8 extra_warmup=2 overlap_dp=true"),
    Case("13B fp32", job("llama-2-13b", "dgx-h100", 64, 256, 2048, "fp32"),
         "dp=64 zero=3 overlap_dp=true"),
]  # fmt: skip
LLM_FOUNDRY = [
    Case("8B zero 3", LLAMA_8B, "tp=1 pp=1 ep=1 dp=64 zero=3 recompute=full schedule=1f1b overlap_dp=true"),
    Case("8B zero 2", LLAMA_8B, "dp=64 zero=2 micro_batch=2 overlap_dp=true"),
    Case("7B replicated", LLAMA_2, "dp=64 overlap_dp=true"),
    Case("GPT", job("gpt2", "dgx-a100", 8, 64, 1024), "dp=8 zero=3 micro_batch=4 overlap_dp=true"),
    Case("8B fp16", job("llama-3-8b", "dgx-h100", 64, 256, 8192, "fp16"), "dp=64 zero=3 overlap_dp=true"),
    Case("13B fp32", job("llama-2-13b", "dgx-h100", 64, 256, 2048, "fp32"), "dp=64 zero=3 overlap_dp=true"),
]
GPT_SUMMIT = job("gpt2-xl", "dgx-2", 32, 256, 1024, "fp16")
AXONN = [
    Case("grid, offloaded in buckets", GPT_SUMMIT, "pp=4 dp=8 zero=0 schedule=message-driven micro_batch=4 "
         "rank_order=tp-cp-pp-dp recompute=full offload_optimizer=true offload_bucket=8000000 "
         "coalesced_buckets=4"),
    Case("8B pipeline", LLAMA_8B, "ep=1 pp=8 dp=8 schedule=message-driven rank_order=tp-cp-pp-dp"),
    Case("8B rows and depth", LLAMA_8B, "tp=4 dp=16 zero=3 overlap_dp=true"),
    Case("8B rows and replicas", LLAMA_8B, "tp=4 dp=16 recompute=full"),
]  # fmt: skip
CASES = {
    "axonn": AXONN,
    "megatron-lm": MEGATRON,
    "deepspeed": DEEPSPEED,
    "x-moe": X_MOE,
    "torchtitan": TORCHTITAN,
    "llm-foundry": LLM_FOUNDRY,
}


def ask(python: str, check: str, questions: list[dict]) -> list[dict]:
    """Answers of a launcher's own parser, all in one process: its import costs seconds."""
    done = subprocess.run(
        [python, CHECKS / f"ask_{check}.py"],
        input=json.dumps(questions), capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
