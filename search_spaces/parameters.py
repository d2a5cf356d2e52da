"""How many parameters a transformer has: the whole of it, and the part that one device holds.

    L  n_layers    h  d_model      V  vocab_size      a  n_heads       g  n_kv_heads    d  head_dim
    f  mlp width   E  n_experts    k  top_k           m  matrices of an MLP (2, or 3 when gated)
    t  tp          p  pp           e  ep              t_e  etp

Every formula is written once, for one rank of a sharded model; the whole model is its value at degree 1.
Sharded means: attention by heads (key-value heads are replicated once t > g), MLPs by columns of their
width, experts over ep and then etp, vocabulary by rows. Replicated on all tp ranks: norms, biases of
row-parallel outputs, routers, latent attention's down-projections, learned positions.

Degrees are whole numbers or integer arrays of any one shape, and counts come back in the same form. A
degree that does not divide rounds up: what the fullest rank holds.

Source: Megatron-LM's column- and row-parallel layers, Shoeybi et al. (2019), arXiv:1909.08053, section 3, and
Korthikanti et al. (2022), arXiv:2205.05198, section 4.
"""

from dataclasses import dataclass
from typing import Literal, TypeVar

from search_spaces.model import MlpSpec, ModelSpec, MoeSpec, NormKind, QkNorm
from search_spaces.plan import Ints

Count = TypeVar("Count", int, Ints)
LayerKind = Literal["dense", "moe"]
_NORM_VECTORS = {NormKind.RMS: 1, NormKind.LAYER: 2, NormKind.LAYER_NO_BIAS: 1, NormKind.NON_PARAMETRIC: 0}


def _share(whole: int, degree: Count) -> Count:
    """Pieces of `whole` on the fullest of `degree` ranks."""
    return -(-whole // degree)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParameters:
    """Parameters of one whole layer, by how they are sharded.

    `query_heads` splits over tp; `kv_heads` over tp up to n_kv_heads; `mlp` (the dense MLP, or the shared
    experts of an expert layer) over tp; `experts` (all E) over ep and etp; `router` and `replicated`
    (norms, row-parallel biases, latent down-projections) are on every tp rank.
    """

    query_heads: int
    kv_heads: int
    mlp: int
    experts: int
    router: int
    replicated: int

    @property
    def attention(self) -> int:
        """What is sharded by heads."""
        return self.query_heads + self.kv_heads

    @property
    def total(self) -> int:
        """All of the layer."""
        return self.attention + self.mlp + self.experts + self.router + self.replicated


def layer_parameters(model: ModelSpec, kind: LayerKind = "dense") -> LayerParameters:
    """One whole layer, split by the way it is sharded."""
    attention, mlp = _attention(model), _mlp_of(model, kind)
    moe = _moe(model) if kind == "moe" else None
    return LayerParameters(
        query_heads=model.attention.n_heads * attention.per_query_head,
        kv_heads=model.attention.n_kv_heads * attention.per_kv_head,
        mlp=_mlp_per_column(model, mlp) * mlp.width if mlp else 0,
        experts=moe.n_experts * expert_parameters(model) if moe else 0,
        router=router_parameters(model) if moe else 0,
        replicated=attention.replicated + _mlp_replicated(model, mlp) + norm_parameters(model),
    )


def norm_parameters(model: ModelSpec) -> int:
    """Norms of one layer, replicated: norms_per_layer · (h, or 2h with a bias)."""
    return model.norms_per_layer * _norm(model)


def _norm(model: ModelSpec) -> int:
    return _NORM_VECTORS[model.norm] * model.d_model


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    per_query_head: int
    per_kv_head: int
    replicated: int


def _attention(model: ModelSpec) -> _Attention:
    """Query, key, value and output projections of multi-head, grouped-query or latent attention.

        2 h d per query head (query, output), 2 h d per key-value head

    Source
    ------
    Ainslie et al. (2023), arXiv:2305.13245, section 2.2 (grouped queries).
    """
    if model.attention.latent is not None:
        return _latent_attention(model)
    h, attention = model.d_model, model.attention
    d, bias = attention.head_dim, attention.head_dim * attention.qkv_bias
    full_norm = d * (attention.qk_norm is QkNorm.FULL)
    head_norms = 2 * d * (attention.qk_norm is QkNorm.PER_HEAD)
    return _Attention(
        per_query_head=2 * h * d + bias + full_norm + attention.sinks,
        per_kv_head=2 * (h * d + bias) + full_norm,
        replicated=h * attention.out_bias + head_norms,
    )


def _latent_attention(model: ModelSpec) -> _Attention:
    """Multi-head latent attention: narrow down-projections shared by all heads, up-projections per head.

        per head    r_q (d_n + d_r) + r_kv (d_n + d_v) + d_v h      (h for r_q without a query latent)
        shared      h r_q + r_q + h (r_kv + d_r) + r_kv             (bare terms: the latents' norms)

    Source
    ------
    DeepSeek-AI (2024), arXiv:2405.04434, section 2.1 and equations 37 to 47.
    """
    attention, h = model.attention, model.d_model
    latent = attention.latent
    assert latent is not None
    r_q, r_kv = latent.q_lora_rank, latent.kv_lora_rank
    d_n, d_r, d_v = latent.qk_nope_head_dim, latent.qk_rope_head_dim, latent.v_head_dim
    per_head = (r_q or h) * (d_n + d_r) + r_kv * (d_n + d_v) + d_v * h
    query_down = (h + 1 + attention.qkv_bias) * r_q if r_q else 0
    kv_down = h * (r_kv + d_r) + r_kv + (r_kv + d_r) * attention.qkv_bias
    return _Attention(
        per_query_head=per_head, per_kv_head=0, replicated=query_down + kv_down + h * attention.out_bias
    )


def attention_rank_parameters(model: ModelSpec, tp: Count) -> Count:
    """One layer's attention on one tensor-parallel rank: a/t query heads and max(1, g/t) key-value heads.

    With what is replicated of it; the layer's norms are in `norm_parameters`.
    """
    parts = _attention(model)
    query = _share(model.attention.n_heads, tp) * parts.per_query_head
    return query + _share(model.attention.n_kv_heads, tp) * parts.per_kv_head + parts.replicated


def _mlp_per_column(model: ModelSpec, mlp: MlpSpec) -> int:
    """Parameters that one of the f hidden columns brings: m h, and m − 1 biases."""
    return mlp.n_matrices * model.d_model + (mlp.n_matrices - 1) * mlp.bias


def _mlp_replicated(model: ModelSpec, mlp: MlpSpec | None) -> int:
    return model.d_model * mlp.bias if mlp else 0


def _mlp_of(model: ModelSpec, kind: LayerKind) -> MlpSpec | None:
    """The MLP that every token of such a layer passes: dense, or the shared experts as one."""
    if kind == "dense":
        return model.mlp
    moe = _moe(model)
    return MlpSpec(width=moe.shared_width, n_matrices=moe.n_matrices) if moe.shared_width else None


def _moe(model: ModelSpec) -> MoeSpec:
    assert model.moe is not None, f"{model.name} has no expert layer"
    return model.moe


def _mlp_rank_parameters(model: ModelSpec, mlp: MlpSpec, tp: Count) -> Count:
    return _share(mlp.width, tp) * _mlp_per_column(model, mlp) + _mlp_replicated(model, mlp)


def dense_mlp_rank_parameters(model: ModelSpec, tp: Count) -> Count:
    """One dense MLP on one tensor-parallel rank: m h f / t, its inner bias / t, its outer bias whole."""
    return _mlp_rank_parameters(model, model.mlp, tp)


def shared_expert_rank_parameters(model: ModelSpec, tp: Count) -> Count:
    """The shared experts of one expert layer on one tensor-parallel rank: m h f_s / t (0 without any)."""
    shared = _mlp_of(model, "moe")
    return _mlp_rank_parameters(model, shared, tp) if shared else 0 * tp


def expert_parameters(model: ModelSpec) -> int:
    """One whole routed expert: m h f, and where it has biases (m - 1) f + h."""
    moe = _moe(model)
    return _expert_per_column(model, moe) * moe.expert_width + model.d_model * moe.expert_bias


def _expert_per_column(model: ModelSpec, moe: MoeSpec) -> int:
    return moe.n_matrices * model.d_model + (moe.n_matrices - 1) * moe.expert_bias


def expert_rank_parameters(model: ModelSpec, ep: Count, etp: Count) -> Count:
    """Routed experts of one expert layer on one rank: (E / e) · m h f / t_e, the outer bias whole."""
    moe = _moe(model)
    one = _share(moe.expert_width, etp) * _expert_per_column(model, moe) + model.d_model * moe.expert_bias
    return _share(moe.n_experts, ep) * one


def router_parameters(model: ModelSpec) -> int:
    """Router of one expert layer, replicated: E h, E biases where it has them, the shared expert's gate h."""
    moe = _moe(model)
    has_gate = moe.shared_gate and moe.shared_width > 0
    return moe.n_experts * (model.d_model + moe.router_bias) + model.d_model * has_gate


def layer_rank_parameters(model: ModelSpec, tp: Count, kind: LayerKind = "dense") -> Count:
    """One layer on one tensor-parallel rank, without its routed experts (see `expert_rank_parameters`)."""
    always = attention_rank_parameters(model, tp) + norm_parameters(model)
    if kind == "dense":
        return always + dense_mlp_rank_parameters(model, tp)
    return always + shared_expert_rank_parameters(model, tp) + router_parameters(model)


def _vocabulary_rank_parameters(model: ModelSpec, tp: Count) -> Count:
    embedding = model.embedding
    return _share(embedding.vocab_size, tp) * (embedding.width or model.d_model)


def _embedding_replicated(model: ModelSpec) -> int:
    """Learned positions, and the projection to d_model where the table has a width of its own."""
    embedding = model.embedding
    return (embedding.n_positions + (embedding.width or 0)) * model.d_model


def embedding_rank_parameters(model: ModelSpec, tp: Count) -> Count:
    """Token table V h / t and learned positions s h on one rank of the first stage."""
    return _vocabulary_rank_parameters(model, tp) + _embedding_replicated(model)


def head_rank_parameters(model: ModelSpec, tp: Count, pp: Count, *, copies_positions: bool = False) -> Count:
    """Final norm and output projection on one rank of the last stage.

        V h / t + V / t with a bias + norm

    Tied weights are held once on a single stage (pp = 1) and copied to the last stage otherwise.
    `copies_positions`: Megatron-DeepSpeed ties the whole embedding module, positions included.
    """
    embedding = model.embedding
    bias = _share(embedding.vocab_size * embedding.head_bias, tp)
    projection = (embedding.width or 0) * model.d_model
    final_norm = _norm(model) * model.final_norm
    weight = _vocabulary_rank_parameters(model, tp)
    if embedding.tied:
        copied = weight + embedding.n_positions * model.d_model * copies_positions
        weight = copied * (pp > 1)
    return weight + bias + projection + final_norm


def predict_rank_parameters(model: ModelSpec, tp: Count) -> Count:
    """All multi-token-prediction modules on one tensor-parallel rank, without their routed experts.

        each: one layer + a projection 2h · h / t + three norms; embedding and head are the main model's own

    Each module has one more set of routed experts (`expert_rank_parameters`) where the model has any.

    Source
    ------
    DeepSeek-AI (2024), arXiv:2412.19437, section 2.2 and equations 21 to 23.
    """
    kind: LayerKind = "moe" if model.moe else "dense"
    h = model.d_model
    module = layer_rank_parameters(model, tp, kind) + _share(h, tp) * (2 * h) + 3 * _norm(model)
    return module * model.n_predict_layers


def _model_parameters(model: ModelSpec, n_experts: int) -> int:
    """All layers and both ends, with so many experts a layer; prediction modules left out."""
    n_moe = model.n_moe_layers
    layers = (model.n_layers - n_moe) * layer_rank_parameters(model, 1)
    if n_moe:
        layers += n_moe * (layer_rank_parameters(model, 1, "moe") + n_experts * expert_parameters(model))
    return layers + embedding_rank_parameters(model, 1) + head_rank_parameters(model, 1, 1)


def total_parameters(model: ModelSpec) -> int:
    """Parameters of the main model, tied weights once, as model cards count them (DeepSeek-V3: 671B).

    Multi-token-prediction modules are not part of it: see `predict_parameters` and `trained_parameters`.
    """
    return _model_parameters(model, model.moe.n_experts if model.moe else 0)


def active_parameters(model: ModelSpec) -> int:
    """Parameters of the main model that one token meets: what is dense, shared experts, k routed ones."""
    return _model_parameters(model, model.moe.top_k if model.moe else 0)


def parameters_without_embeddings(model: ModelSpec) -> int:
    """The total without token table, learned positions and output projection ("non-embedding")."""
    ends = embedding_rank_parameters(model, 1) + head_rank_parameters(model, 1, 1)
    return total_parameters(model) - ends + _norm(model) * model.final_norm


def predict_parameters(model: ModelSpec) -> int:
    """All multi-token-prediction modules, without the embedding and head that they share."""
    experts = model.moe.n_experts * expert_parameters(model) if model.moe else 0
    return predict_rank_parameters(model, 1) + model.n_predict_layers * experts


def trained_parameters(model: ModelSpec) -> int:
    """What the optimizer updates: the main model and its prediction modules."""
    return total_parameters(model) + predict_parameters(model)
