"""Which of torchtitan's own models a ModelSpec is, or the config function that describes it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from string import Template
from types import MappingProxyType

from objectives.metrics import Job
from runners.launchers.base import binding_window
from search_spaces.model import ModelSpec, NormKind, QkNorm
from search_spaces.model_presets import load_model
from search_spaces.plan import Plan

CONFIG_MODULE = "meshtune_config"
CONFIG_FILE = f"{CONFIG_MODULE}.py"
CONFIG_FUNCTION = "trainer_config"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnModel:
    """A model of torchtitan's registry; `function` is its config function, where it has one."""

    module: str
    flavor: str
    function: str = ""


# By the preset of the same shape; a model under any other name is recognised by its shape.
OWN_MODELS: Mapping[str, OwnModel] = MappingProxyType(
    {
        "llama-3-8b": OwnModel(module="llama3", flavor="8B", function="llama3_8b"),
        "llama-3-70b": OwnModel(module="llama3", flavor="70B", function="llama3_70b"),
        "llama-3-405b": OwnModel(module="llama3", flavor="405B", function="llama3_405b"),
        "qwen3-8b": OwnModel(module="qwen3", flavor="8B"),
        "qwen3-32b": OwnModel(module="qwen3", flavor="32B", function="qwen3_32b"),
        "qwen3-30b-a3b": OwnModel(module="qwen3", flavor="30B-A3B", function="qwen3_30b_a3b"),
        "qwen3-235b-a22b": OwnModel(module="qwen3", flavor="235B-A22B"),
        "deepseek-v2-lite": OwnModel(module="deepseek_v3", flavor="16B", function="deepseek_v3_16b"),
        "deepseek-v2": OwnModel(module="deepseek_v3", flavor="236B"),
    }
)

HEAD = Template('''\
"""Meshtune's description of $title for torchtitan 0.3.0."""

from functools import partial

from torch import nn
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.optimizer import default_adamw
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.models.common.config_utils import decoder_vocab_size
from torchtitan.trainer import Trainer


def $function():
    """What --config names."""
    spec = model_spec()
    loss = CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(spec))
    return Trainer.Config(
        model_spec=spec,
        loss=ChunkedLossWrapper.Config(loss_fn=loss),
        optimizer=default_adamw(lr=1e-4),
        dataloader=HuggingFaceTextDataLoader.Config(dataset="c4"),
    )
''')
REGISTERED = Template('''

def model_spec():
    """A model of torchtitan's own registry that has no config function."""
    from torchtitan.models.$module import model_registry

    return model_registry("$flavor")
''')
LLAMA_LIKE = Template('''

def model_spec():
    """Grouped-query attention, rotary positions, RMS norms, gated MLP."""
    from torchtitan.distributed.pipeline_parallel import pipeline_llm
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
    from torchtitan.models.common.config_utils import get_attention_config, make_ffn_config, make_gqa_config
    from torchtitan.models.llama3 import Llama3Model, parallelize_llama
    from torchtitan.models.llama3.model import Llama3TransformerBlock
    from torchtitan.protocols.model_spec import ModelSpec

    weights = {"weight": partial(nn.init.trunc_normal_, std=0.02), "bias": nn.init.zeros_}
    norm = RMSNorm.Config(normalized_shape=$d_model, param_init={"weight": nn.init.ones_})
    rope = ComplexRoPE.Config(dim=$head_dim, max_seq_len=$seq_len, theta=500000)

    def layer():
        return Llama3TransformerBlock.Config(
            attention_norm=norm,
            ffn_norm=norm,
            attention=make_gqa_config(
                dim=$d_model,
                n_heads=$n_heads,
                n_kv_heads=$n_kv_heads,
                head_dim=$head_dim,
                fuse_qkv=True,
                wqkv_param_init=weights,
                wo_param_init=weights,
                inner_attention=get_attention_config("flex"),
                rope=rope,
            ),
            feed_forward=make_ffn_config(
                dim=$d_model, hidden_dim=$width, w1_param_init=weights, w2w3_param_init=weights
            ),
        )

    model = Llama3Model.Config(
        dim=$d_model,
        vocab_size=$vocab_size,
        enable_weight_tying=$tied,
        tok_embeddings=Embedding.Config(
            num_embeddings=$vocab_size, embedding_dim=$d_model, param_init={"weight": nn.init.normal_}
        ),
        norm=norm,
        lm_head=Linear.Config(in_features=$d_model, out_features=$vocab_size, param_init=weights),
        layers=[layer() for _ in range($n_layers)],
    )
    return ModelSpec(
        name="llama3",
        flavor="meshtune",
        model=model,
        parallelize_fn=parallelize_llama,
        pipelining_fn=pipeline_llm,
        post_optimizer_build_fn=None,
        state_dict_adapter=None,
    )
''')


def own_model(model: ModelSpec) -> OwnModel | None:
    """The registry's model of exactly this shape, if there is one."""
    for name, own in OWN_MODELS.items():
        if _shape(load_model(name)) == _shape(model):
            return own
    return None


@cache
def _shape(model: ModelSpec) -> ModelSpec:
    return replace(model, name="", source="")


def model_lacks(job: Job, plan: Plan) -> list[str]:
    """Fields of a model that torchtitan's blocks do not have."""
    model = job.model
    if own_model(model):
        return []
    attention, embedding, window = model.attention, model.embedding, binding_window(model, job.workload)
    absent = {
        "moe (other than its own Qwen3 and DeepSeek-V2)": model.moe is not None,
        f"n_predict_layers={model.n_predict_layers}": model.n_predict_layers > 0,
        f"norm={model.norm}": model.norm is not NormKind.RMS,
        f"norms_per_layer={model.norms_per_layer}": model.norms_per_layer != 2,
        "parallel_block=true": model.parallel_block,
        "final_norm=false": not model.final_norm,
        f"mlp.n_matrices={model.mlp.n_matrices}": model.mlp.n_matrices != 3,
        "attention.qkv_bias, attention.out_bias, mlp.bias or embedding.head_bias": any(
            (attention.qkv_bias, attention.out_bias, model.mlp.bias, embedding.head_bias)
        ),
        f"attention.qk_norm={attention.qk_norm}": attention.qk_norm is not QkNorm.NONE,
        f"attention.window={window}": window is not None,
        "attention.latent": attention.latent is not None,
        "attention.sinks=true": attention.sinks,
        f"embedding.n_positions={embedding.n_positions}": embedding.n_positions > 0,
        f"embedding.width={embedding.width}": embedding.width not in (None, model.d_model),
        f"embedding.tied with pp={plan.pp}": embedding.tied and plan.pp > 1,
    }
    return [f"{what}: torchtitan's blocks do not have it" for what, is_absent in absent.items() if is_absent]


def config_name(model: ModelSpec) -> tuple[str, str]:
    """What `--module` and `--config` name."""
    own = own_model(model)
    return (own.module, own.function) if own and own.function else (CONFIG_MODULE, CONFIG_FUNCTION)


def config_module(job: Job) -> str | None:
    """Text of the module with the config function; None where torchtitan has its own."""
    model, own = job.model, own_model(job.model)
    if own and own.function:
        return None
    head = HEAD.substitute(title=ascii(model.name)[1:-1].replace('"', "'"), function=CONFIG_FUNCTION)
    if own:
        return head + REGISTERED.substitute(module=own.module, flavor=own.flavor)
    return head + LLAMA_LIKE.substitute(
        d_model=model.d_model,
        n_layers=model.n_layers,
        n_heads=model.attention.n_heads,
        n_kv_heads=model.attention.n_kv_heads,
        head_dim=model.attention.head_dim,
        width=model.mlp.width,
        vocab_size=model.embedding.vocab_size,
        tied=model.embedding.tied,
        seq_len=job.workload.seq_len,
    )
