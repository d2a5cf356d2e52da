"""What a transformer is: the shapes that set its parameters, FLOPs and bytes.

    L  n_layers    h  d_model      V  vocab_size     a  n_heads      g  n_kv_heads    d  head_dim
    f  mlp width   E  n_experts    k  top_k          s  sequence length (in the workload, not here)

Parameter counts are in `search_spaces.parameters`; FLOPs and bytes in `objectives.cost`.
"""

from dataclasses import dataclass
from enum import StrEnum

from search_spaces.errors import check

MAX_LAYERS = 10_000  # far above any model; keeps a slip of the keyboard from filling memory


class NormKind(StrEnum):
    """Normalisation: RMS has one vector of weights, layer norm has weight and bias."""

    RMS = "rms"
    LAYER = "layer"
    LAYER_NO_BIAS = "layer_no_bias"
    NON_PARAMETRIC = "non_parametric"


class QkNorm(StrEnum):
    """Normalisation of queries and keys before the scores."""

    NONE = "none"
    PER_HEAD = "per_head"  # one head_dim vector for queries, one for keys
    FULL = "full"  # one vector over all heads of the projection


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    `q_lora_rank` is None where queries are projected in one step (V2-Lite).
    """

    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None

    def __post_init__(self) -> None:
        check(
            self.q_lora_rank is None or self.q_lora_rank > 0,
            "LatentAttention.q_lora_rank must be positive",
            self.q_lora_rank,
        )
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            check(getattr(self, name) > 0, f"LatentAttention.{name} must be positive", getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Heads, their widths, biases and the span a token may look back.

    `window` is the sliding window in tokens; every `global_every`-th layer ignores it (0: no layer does).
    With `chunked` it does not slide: the sequence is cut into pieces of so many tokens, and a token sees
    those of its own piece up to itself (Llama 4).  `sinks`: each head has a learned score that takes a share
    of the attention and points nowhere (GPT-OSS).
    With latent attention `head_dim` is qk_nope + qk_rope and `n_kv_heads` equals `n_heads`.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: QkNorm = QkNorm.NONE
    window: int | None = None
    global_every: int = 0
    chunked: bool = False
    sinks: bool = False
    latent: LatentAttention | None = None

    def __post_init__(self) -> None:
        check(self.n_heads > 0, "AttentionSpec.n_heads must be positive", self.n_heads)
        check(self.head_dim > 0, "AttentionSpec.head_dim must be positive", self.head_dim)
        check(
            0 < self.n_kv_heads <= self.n_heads and self.n_heads % self.n_kv_heads == 0,
            "AttentionSpec.n_kv_heads must divide n_heads",
            f"n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}",
        )
        check(self.window is None or self.window > 0, "AttentionSpec.window must be positive", self.window)
        check(self.global_every >= 0, "AttentionSpec.global_every must not be negative", self.global_every)
        check(
            self.window is not None or not self.chunked, "AttentionSpec.chunked needs a window", self.window
        )
        latent = self.latent
        check(
            latent is None or not self.sinks,
            "AttentionSpec with latent attention must have no sinks",
            self.sinks,
        )
        check(
            latent is None
            or (self.head_dim, self.n_kv_heads)
            == (latent.qk_nope_head_dim + latent.qk_rope_head_dim, self.n_heads),
            "AttentionSpec with latent attention needs head_dim = qk_nope + qk_rope and n_kv_heads = n_heads",
            f"head_dim={self.head_dim}, n_kv_heads={self.n_kv_heads}",
        )

    @property
    def v_head_dim(self) -> int:
        """Width of one value head."""
        return self.latent.v_head_dim if self.latent else self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpSpec:
    """A feed-forward block: 2 matrices (GELU, ReLU) or 3 (gated: SwiGLU, GeGLU)."""

    width: int
    n_matrices: int = 3
    bias: bool = False

    def __post_init__(self) -> None:
        check(self.width > 0, "MlpSpec.width must be positive", self.width)
        check(self.n_matrices in (2, 3), "MlpSpec.n_matrices must be 2 or 3", self.n_matrices)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSpec:
    """Mixture of experts: which layers have it, how many experts, how tokens find them.

    The first `n_dense_layers` layers are dense; of the rest every `layer_every`-th is an expert layer.
    `shared_width` is the summed width of the shared experts (0: none).  `expert_bias`: the routed experts'
    matrices have biases (GPT-OSS).
    `capacity_factor` None means dropless.  Experts lie in `n_groups` groups, one or more to a node, and a
    token picks only among those of its best `top_groups` (DeepSeek-V3, arXiv:2412.19437, section 2.1.2).
    """

    n_experts: int
    top_k: int
    expert_width: int
    n_matrices: int = 3
    shared_width: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    n_dense_layers: int = 0
    layer_every: int = 1
    capacity_factor: float | None = None
    n_groups: int = 1
    top_groups: int = 1

    def __post_init__(self) -> None:
        check(
            0 < self.top_k <= self.n_experts,
            "MoeSpec.top_k must be between 1 and n_experts",
            f"top_k={self.top_k}, n_experts={self.n_experts}",
        )
        check(self.expert_width > 0, "MoeSpec.expert_width must be positive", self.expert_width)
        check(self.n_matrices in (2, 3), "MoeSpec.n_matrices must be 2 or 3", self.n_matrices)
        check(
            0 < self.top_groups <= self.n_groups,
            "MoeSpec.top_groups must be between 1 and n_groups",
            f"top_groups={self.top_groups}, n_groups={self.n_groups}",
        )
        check(self.layer_every >= 1, "MoeSpec.layer_every must be at least 1", self.layer_every)
        check(self.shared_width >= 0, "MoeSpec.shared_width must not be negative", self.shared_width)
        check(
            self.capacity_factor is None or 0 < self.capacity_factor < float("inf"),
            "MoeSpec.capacity_factor must be positive and finite",
            self.capacity_factor,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSpec:
    """Token and position tables and the output head.

    `n_positions` counts the rows of a *learned* position table (0 for rotary, ALiBi, none).
    `width` is the embedding's own width where it differs from d_model (then two projections join them).
    """

    vocab_size: int
    n_positions: int = 0
    tied: bool = False
    head_bias: bool = False
    width: int | None = None

    def __post_init__(self) -> None:
        check(self.vocab_size > 0, "EmbeddingSpec.vocab_size must be positive", self.vocab_size)
        check(self.n_positions >= 0, "EmbeddingSpec.n_positions must not be negative", self.n_positions)
        check(self.width is None or self.width > 0, "EmbeddingSpec.width must be positive", self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A transformer decoder; its counts are in `search_spaces.parameters`.

    `norms_per_layer` is 2 (pre-norm), 1 (parallel block with one norm) or 4 (Gemma 2's sandwich).
    `parallel_block`: attention and MLP read the same input and add to it together (GPT-NeoX, GPT-J).
    `n_predict_layers` counts multi-token-prediction modules (DeepSeek-V3, arXiv:2412.19437, section 2.2).
    """

    name: str
    source: str
    n_layers: int
    d_model: int
    attention: AttentionSpec
    mlp: MlpSpec
    embedding: EmbeddingSpec
    moe: MoeSpec | None = None
    norm: NormKind = NormKind.RMS
    norms_per_layer: int = 2
    parallel_block: bool = False
    final_norm: bool = True
    n_predict_layers: int = 0

    def __post_init__(self) -> None:
        must = f"ModelSpec.n_layers must be positive and at most {MAX_LAYERS}"
        check(0 < self.n_layers <= MAX_LAYERS, must, self.n_layers)
        check(self.d_model > 0, "ModelSpec.d_model must be positive", self.d_model)
        for name in ("norms_per_layer", "n_predict_layers"):
            check(getattr(self, name) >= 0, f"ModelSpec.{name} must not be negative", getattr(self, name))
        if self.moe is not None:
            check(
                0 <= self.moe.n_dense_layers <= self.n_layers,
                "MoeSpec.n_dense_layers must be at most n_layers",
                f"n_layers={self.n_layers}, n_dense_layers={self.moe.n_dense_layers}",
            )

    @property
    def is_moe_layer(self) -> tuple[bool, ...]:
        """For each layer, whether its feed-forward block is a mixture of experts."""
        moe = self.moe
        if moe is None:
            return (False,) * self.n_layers
        return tuple(
            i >= moe.n_dense_layers and (i - moe.n_dense_layers + 1) % moe.layer_every == 0
            for i in range(self.n_layers)
        )

    @property
    def n_moe_layers(self) -> int:
        """How many layers are expert layers."""
        return sum(self.is_moe_layer)

    @property
    def has_capacity(self) -> bool:
        """Whether its experts take a limited number of tokens."""
        return self.moe is not None and self.moe.capacity_factor is not None

    @property
    def window_of_layer(self) -> tuple[int | None, ...]:
        """For each layer, its attention window in tokens (None: the whole sequence)."""
        attention = self.attention
        every = attention.global_every
        return tuple(
            None if attention.window is None or (every and (i + 1) % every == 0) else attention.window
            for i in range(self.n_layers)
        )
