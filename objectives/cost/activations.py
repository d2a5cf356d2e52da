"""Bytes that a micro-batch leaves on a device: what layers keep for the backward pass, and the loss.

    T  tokens = b s / c      b  micro_batch    c  cp      t  tp      s_p  tp with sequence parallelism, else 1
    h  d_model               q  widths of queries, keys and values together       v  of the attention's output
    f  width of an MLP       m  its matrices (2 or 3)       k  top_k

        attention    2 T (2 h / s_p + q + v)       its norm's input and output, q k v, the core's output
        core         4 T a / t                     a fused kernel's statistic of every row, fp32
        MLP          2 T (2 h / s_p + m f)         its norm's input and output, inner activations
        experts      2 k T (h + h / t_e + m f)     tokens before and after the experts, inner activations
                     padded: c times that, 4 h / t_e after; einsum: c times that and 9 T E C of masks

Entries take two bytes; with fp8, what a weight product reads takes one where the trainer keeps the cast copy.

Source: Korthikanti et al. (2022), arXiv:2205.05198, section 4; cast operands: Transformer Engine 2,
pytorch/module/layernorm_linear.py and linear.py.
"""

from dataclasses import dataclass, fields

import numpy as np

from objectives.cost import chunks
from objectives.cost.dispatch import combined_wider_bytes, mask_bytes, routed_tokens, sent_tokens
from objectives.cost.factored import factored
from objectives.cost.kernels import NARROW, entry_bytes
from objectives.cost.stages import Stages, recomputes
from objectives.cost.tokens import sequence_shards, tokens_per_device
from objectives.metrics import Job
from search_spaces.framework import framework_named
from search_spaces.model import MlpSpec
from search_spaces.plan import Dispatch, ExpertTokens, Floats, Ints, Module, Plans, Recompute

LAYER_KNOBS = (
    "tp", "cp", "ep", "etp", "micro_batch", "sequence_parallel", "recompute_modules", "dispatch",
    "migrate_every", "expert_tokens", "keep_received",
)  # fmt: skip
ACTIVATION_KNOBS = (
    *LAYER_KNOBS, "pp", "vpp", "folds", "first_layers", "last_layers", "recompute", "recompute_every",
    "recompute_stages", "sequence_chunk", "offload_sequence", "offload_checkpoints",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerBytes:
    """Bytes that one layer keeps of a micro-batch; every array has shape (n_plans,).

    `modules_bytes` are those of them that the plan redoes by name, and so does not keep; `received_bytes` are
    what collectives brought, which a recomputed layer keeps where the plan says so.
    """

    attention_bytes: Floats
    core_bytes: Floats
    mlp_bytes: Floats
    modules_bytes: Floats
    received_bytes: Floats

    @property
    def kept_bytes(self) -> Floats:
        """All of a layer that recomputes nothing."""
        return self.attention_bytes + self.core_bytes + self.mlp_bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageActivations:
    """Bytes of one micro-batch on given stages; every array has shape (n_stages, n_plans).

    `kept_bytes` wait for the backward pass, `transient_bytes` live while one layer is redone, `logits_bytes`
    during the loss.
    """

    kept_bytes: Floats
    transient_bytes: Floats
    logits_bytes: Floats


def stage_activations(job: Job, plans: Plans, stages: Stages) -> StageActivations:
    """Bytes of one micro-batch on each of the given stages.

        full         every r-th layer keeps its input (2 T h), and what it received with keep_received
        selective    the attention core keeps nothing, nor do the modules redone by name

    Inputs that wait on the host leave two on the device, the one in use and the one that travels; a sequence
    in chunks leaves of a layer that is redone what `objectives.cost.chunks` counts, and of the loss one
    piece.  There the loss and the layer being redone, which never meet, count as the larger of the two.

    Source
    ------
    Korthikanti et al. (2022), arXiv:2205.05198, sections 4 and 5.
    """
    n_predict = stages.is_last * job.model.n_predict_layers
    layers = stages.n_layers + n_predict
    total = _layers_bytes(job, plans, stages)
    n_layers = np.maximum(layers, 1)
    share = np.ceil(layers / plans.recompute_every) / n_layers * plans.is_recompute(Recompute.FULL)
    selective = plans.is_recompute(Recompute.SELECTIVE)
    redone = selective * total.core_bytes + ~plans.is_recompute(Recompute.FULL) * total.modules_bytes
    if plans.recompute_stages.any():
        here = recomputes(plans, stages.index)
        share, redone = share * here, redone * here
    boundary = boundary_bytes(job, plans)
    kept = (1 - share) * total.kept_bytes - redone + share * (layers * boundary + total.received_bytes)
    transient = np.where(share > 0, total.kept_bytes, redone) / n_layers
    heads = stages.is_last + n_predict
    logits = heads * logits_bytes(job, plans)
    if plans.offload_checkpoints.any() or chunks.is_chunked(plans):
        transient, logits = _on_host(job, plans, transient, logits)
        kept = kept - plans.offload_checkpoints * share * layers * boundary
    return StageActivations(
        kept_bytes=kept + _stage_input_bytes(job, plans, stages),
        transient_bytes=transient,
        logits_bytes=logits,
    )


def _on_host(job: Job, plans: Plans, transient: Floats, logits: Floats) -> tuple[Floats, Floats]:
    """A redone layer's bytes beyond those of the loss, and the loss's, where the host or chunks take some."""
    boundary, is_chunked = boundary_bytes(job, plans), plans.sequence_chunk > 0
    pieces = chunks.PIECES_OF_CHUNK * chunks.n_chunks(job, plans)
    working = np.where(is_chunked, chunks.working_bytes(job, plans, transient, boundary), transient)
    working = working + plans.offload_checkpoints * chunks.BUFFERS * boundary
    loss = np.where(is_chunked, logits / pieces, logits)
    apart = plans.offload_checkpoints | is_chunked
    return np.where(apart, np.maximum(working - loss, 0.0), transient), loss


def boundary_bytes(job: Job, plans: Plans) -> Floats:
    """One layer's input on one device: 2 T h bytes, split over tp with sequence parallelism."""
    return (
        entry_bytes(job.workload.precision)
        * tokens_per_device(job, plans)
        * job.model.d_model
        / sequence_shards(plans)
    )


def logits_bytes(job: Job, plans: Plans) -> Floats:
    """Logits of one micro-batch and their gradient on the last stage: T V / t entries."""
    per_entry = framework_named(job.workload.framework).logits_bytes_per_entry
    return tokens_per_device(job, plans) * np.ceil(job.model.embedding.vocab_size / plans.tp) * per_entry


def _stage_input_bytes(job: Job, plans: Plans, stages: Stages) -> Floats:
    """What DeepSpeed's pipeline engine keeps of a stage's input: 2 T h / t bytes a micro-batch."""
    pipelined = framework_named(job.workload.framework).keeps_stage_input & (plans.pp > 1)
    whole = entry_bytes(job.workload.precision) * tokens_per_device(job, plans) * job.model.d_model
    return np.where(pipelined, whole / plans.tp, 0.0) + np.zeros(stages.index.shape)


def _layers_bytes(job: Job, plans: Plans, stages: Stages) -> LayerBytes:
    """All layers of each stage; a prediction module holds one more, of the kind that the model ends with."""
    n_predict = stages.is_last * job.model.n_predict_layers
    n_dense, n_moe = stages.n_layers - stages.n_moe, stages.n_moe + n_predict
    dense = factored(plans, LAYER_KNOBS, lambda rows: layer_bytes(job, rows, "dense"))
    if job.model.moe is None:
        return _sum((n_dense + n_predict, dense))
    moe = factored(plans, LAYER_KNOBS, lambda rows: layer_bytes(job, rows, "moe"))
    return _sum((n_dense, dense), (n_moe, moe))


def _sum(*counted: tuple[Ints, LayerBytes]) -> LayerBytes:
    names = [field.name for field in fields(LayerBytes)]
    return LayerBytes(**{name: sum(n * getattr(layer, name) for n, layer in counted) for name in names})


def layer_bytes(job: Job, plans: Plans, kind: str) -> LayerBytes:
    """Bytes that a dense or an expert layer keeps (34 s b h without dropout's masks: 32).

    Source
    ------
    Korthikanti et al. (2022), arXiv:2205.05198, section 4, equation 1.
    """
    mlp = _mlp_bytes(job, plans, job.model.mlp) if kind == "dense" else _expert_bytes(job, plans)
    share = framework_named(job.workload.framework).memory.kept_share
    return LayerBytes(
        attention_bytes=share * _attention_bytes(job, plans),
        core_bytes=_core_bytes(job, plans),
        mlp_bytes=share * mlp,
        modules_bytes=share * _modules_bytes(job, plans, kind, mlp),
        received_bytes=_received_bytes(job, plans, kind),
    )


def _received_bytes(job: Job, plans: Plans, kind: str) -> Floats:
    """Outputs of one layer's collectives that a plan keeps, so that recomputation repeats none of them.

        each all-reduce over tp        2 T h                (gather and scatter: 2 T h (1 + 1 / s_p))
        each all-to-all over ep        2 h x the tokens sent
        each gather or reduction of an expert's tokens over etp, and over tp where they were dropped

    Source
    ------
    Singh et al. (2023), arXiv:2303.06318, communication-aware checkpointing: 2 b s h a stashed output.
    """
    if not plans.keep_received.any():
        return np.zeros(len(plans))
    moe, shards = job.model.moe, sequence_shards(plans)
    pairs = 2.0 if kind == "dense" or (moe is not None and moe.shared_width) else 1.0
    a_token = entry_bytes(job.workload.precision) * job.model.d_model
    whole = tokens_per_device(job, plans) * (plans.tp > 1)
    received = pairs * whole * (np.where(shards > 1, 1 / shards, 0.0) + 1)
    if kind == "moe":
        sent, split = sent_tokens(job, plans), plans.etp > 1
        gathers = 2.0 - plans.sends_tokens(ExpertTokens.DUPLICATED)
        received = received + 2 * sent * (plans.ep > 1) + gathers * split * routed_tokens(job, plans)
        received = received + plans.sends_tokens(ExpertTokens.DROPPED) * sent * plans.tp
    kept: Floats = plans.keep_received * a_token * received
    return kept


def _modules_bytes(job: Job, plans: Plans, kind: str, mlp: Floats) -> Floats:
    """What the modules that a plan redoes by name do not keep.

        layernorm      both norms' outputs, 2 T h / s_p each         moe_act    the experts' last inner tensor
        mlp, moe       all behind the norm's output                  mla_up_proj    q, k and v, 2 T q

    Source
    ------
    Megatron-LM core 0.19.2, megatron/core/transformer/transformer_config.py, recompute_modules.
    """
    if not plans.recompute_modules.any():
        return np.zeros(len(plans))
    entry, tokens = entry_bytes(job.workload.precision), tokens_per_device(job, plans)
    normed = operand_bytes(job) / entry * boundary_bytes(job, plans)
    freed = plans.redoes(Module.LAYERNORM) * 2 * normed
    behind = mlp - tokens * _normed_bytes(job, plans)
    if kind == "dense":
        freed += plans.redoes(Module.MLP) * behind
    elif job.model.moe is not None:
        width = np.ceil(job.model.moe.expert_width / plans.etp)
        inner = operand_bytes(job) * routed_tokens(job, plans) * width
        freed += np.where(plans.redoes(Module.MOE), behind, plans.redoes(Module.MOE_ACT) * inner)
    latent = job.model.attention.latent
    if latent is not None:
        ranks = (latent.q_lora_rank or 0) + latent.kv_lora_rank + latent.qk_rope_head_dim
        projected = np.maximum(_qkv_width(job, plans) - ranks, 0)
        freed += plans.redoes(Module.MLA_UP_PROJ) * entry * tokens * projected
    return freed


def _qkv_width(job: Job, plans: Plans) -> Floats:
    """Queries, keys and values of one token on one rank, entries."""
    attention = job.model.attention
    heads, kv_heads = np.ceil(attention.n_heads / plans.tp), np.ceil(attention.n_kv_heads / plans.tp)
    width: Floats = heads * attention.head_dim + kv_heads * (attention.head_dim + attention.v_head_dim)
    return width


def _mask_bytes(job: Job, plans: Plans) -> Floats:
    """A dropout's mask, one byte an entry: T h / s_p where the trainer drops anything."""
    drops = framework_named(job.workload.framework).dropout
    return tokens_per_device(job, plans) * job.model.d_model / sequence_shards(plans) * drops


def operand_bytes(job: Job) -> float:
    """Bytes of an entry of its input that a weight product keeps: one where it keeps the 8-bit cast."""
    narrow = job.workload.precision in NARROW
    keeps_cast = framework_named(job.workload.framework).memory.keeps_cast_operands
    return 1.0 if narrow and keeps_cast else entry_bytes(job.workload.precision)


def _normed_bytes(job: Job, plans: Plans) -> Floats:
    """Of a token, a norm's input, and its output as the products behind it keep it.

    2 h / s_p entries; gathered h / s_p + h.
    """
    shards = sequence_shards(plans)
    gathered = framework_named(job.workload.framework).memory.keeps_gathered
    output = operand_bytes(job) * (1 if gathered else 1 / shards)
    return job.model.d_model * (entry_bytes(job.workload.precision) / shards + output)


def _inner_bytes(job: Job, n_matrices: int) -> float:
    """Of a token and unit of an MLP's width: what enters its activation, and what leaves it for a product."""
    before = _inner_tensors(job, n_matrices) - 1
    return entry_bytes(job.workload.precision) * before + operand_bytes(job)


def _attention_bytes(job: Job, plans: Plans) -> Floats:
    """Projections, norm and residual around the attention core."""
    attention = job.model.attention
    heads = np.ceil(attention.n_heads / plans.tp)
    entry, value_width = entry_bytes(job.workload.precision), heads * attention.v_head_dim
    # A cast copy of the core's output lies beside the one that its own backward pass reads.
    cast = value_width * operand_bytes(job) * (operand_bytes(job) < entry)
    held = _normed_bytes(job, plans) + entry * (_qkv_width(job, plans) + value_width) + cast
    kept: Floats = tokens_per_device(job, plans) * held
    return kept + _mask_bytes(job, plans)


def _core_bytes(job: Job, plans: Plans) -> Floats:
    """Scores of an unfused core (softmax, mask and dropout: 5 a s² b / t), or a fused one's row statistics.

    Source
    ------
    Korthikanti et al. (2022), arXiv:2205.05198, section 4.1; Dao et al. (2022), arXiv:2205.14135,
    algorithm 1.
    """
    s = float(job.workload.seq_len)
    rows = plans.micro_batch / (plans.tp * plans.cp) * job.model.attention.n_heads * s
    return 4.0 * rows if job.workload.flash_attention else 5.0 * rows * s


def _inner_tensors(job: Job, n_matrices: int) -> int:
    """Tensors of an MLP's width: what enters its activation and what leaves it, a gate's output by itself."""
    keeps_gate = framework_named(job.workload.framework).memory.keeps_gate
    return n_matrices + (1 if keeps_gate and n_matrices > 2 else 0)


def _mlp_bytes(job: Job, plans: Plans, mlp: MlpSpec) -> Floats:
    """A feed-forward block every token passes: norm, inner activations, residual."""
    inner = _inner_bytes(job, mlp.n_matrices) * np.ceil(mlp.width / plans.tp)
    kept: Floats = tokens_per_device(job, plans) * (_normed_bytes(job, plans) + inner)
    return kept + _mask_bytes(job, plans)


def _expert_bytes(job: Job, plans: Plans) -> Floats:
    """Routed tokens before and after the experts, inner activations, and what every token passes beside them.

    The first product's input was gathered over etp; the second's output is scattered before it is kept.

    Source
    ------
    X-MoE, arXiv:2508.13337, table 4: 2 bytes (2 k S H + 2 k S f) without padding.
    """
    moe, h = job.model.moe, float(job.model.d_model)
    assert moe is not None
    width = np.ceil(moe.expert_width / plans.etp)
    wider = plans.is_dispatch(Dispatch.PADDED) * combined_wider_bytes(job)
    scattered = np.where(plans.sends_tokens(ExpertTokens.DUPLICATED), 1, plans.etp)
    tokens = operand_bytes(job) * h + (entry_bytes(job.workload.precision) + wider) * h / scattered
    kept: Floats = routed_tokens(job, plans) * (tokens + _inner_bytes(job, moe.n_matrices) * width)
    kept = kept + mask_bytes(job, plans)
    if moe.shared_width:
        return kept + _mlp_bytes(job, plans, MlpSpec(width=moe.shared_width, n_matrices=moe.n_matrices))
    return kept + 2 * boundary_bytes(job, plans)
