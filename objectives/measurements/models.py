"""The architecture columns of a row as a model."""

from objectives.measurements.cells import BadRow, Cells
from search_spaces.model import AttentionSpec, EmbeddingSpec, LatentAttention, MlpSpec, ModelSpec, MoeSpec

# Head widths and ranks of multi-head latent attention that a row may leave out: DeepSeek-V2,
# arXiv:2405.04434, section 3.1.2; V3 kept all of them.
_LATENT_DEFAULTS = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}


def model_of(cells: Cells, *, default_vocab: int | None) -> tuple[ModelSpec, list[str]]:
    """The row's model, and what it leaves open.

    Raises
    ------
    BadRow
        A width or a count that no default can stand for.
    """
    if cells.text("model_type") not in ("", "dense", "moe"):
        raise BadRow(f"model_type must be dense or moe; got {cells.text('model_type')!r}")
    notes: list[str] = []
    vocab = cells.count("vocab")
    if vocab is None:
        if default_vocab is None:
            raise BadRow("vocab is missing")
        vocab = default_vocab
        notes.append(f"vocabulary not stated: the trainer's usual {vocab}")
    attention = _attention(cells, notes)
    model = ModelSpec(
        name=cells.text("model") or "unnamed",
        source=cells.text("source_group") or "a row of measurements",
        n_layers=cells.needed("n_layers"),
        d_model=cells.needed("hidden"),
        attention=attention,
        mlp=MlpSpec(width=_mlp_width(cells), n_matrices=_matrices(cells)),
        moe=_experts(cells),
        embedding=EmbeddingSpec(
            vocab_size=vocab, n_positions=_positions(cells), tied=cells.is_set("tied_embeddings")
        ),
        n_predict_layers=cells.extra_whole("mtp_layers"),
    )
    return model, notes


def _attention(cells: Cells, notes: list[str]) -> AttentionSpec:
    n_heads = cells.needed("n_heads")
    if cells.is_set("mla"):
        stated = cells.extra.get("mla")
        if not isinstance(stated, dict):
            stated = {name: cells.extra[name] for name in _LATENT_DEFAULTS if name in cells.extra}
        if open_widths := sorted(_LATENT_DEFAULTS.keys() - stated.keys()):
            notes.append(f"latent attention: {', '.join(open_widths)} as DeepSeek-V2 has them")
        widths = {
            name: cells.extra_whole(name, stated) if name in stated else default
            for name, default in _LATENT_DEFAULTS.items()
        }
        latent = LatentAttention(**widths)
        head_dim = latent.qk_nope_head_dim + latent.qk_rope_head_dim
        return AttentionSpec(n_heads=n_heads, n_kv_heads=n_heads, head_dim=head_dim, latent=latent)
    head_dim = cells.count("head_dim") or cells.needed("hidden") // n_heads
    return AttentionSpec(n_heads=n_heads, n_kv_heads=cells.count("n_kv_heads") or n_heads, head_dim=head_dim)


def _matrices(cells: Cells) -> int:
    return 3 if cells.is_set("gated_mlp") else 2


def _mlp_width(cells: Cells) -> int:
    width = cells.count("ffn_hidden") or cells.count("moe_ffn_hidden")
    if width is None:
        raise BadRow("ffn_hidden is missing")
    return width


def _experts(cells: Cells) -> MoeSpec | None:
    n_experts = cells.whole("n_experts") or 0
    if n_experts < 2:
        if cells.text("model_type") == "moe":
            raise BadRow("n_experts is missing in a row of a mixture of experts")
        return None
    width = cells.count("moe_ffn_hidden") or cells.needed("ffn_hidden")
    return MoeSpec(
        n_experts=n_experts,
        top_k=cells.needed("top_k"),
        expert_width=width,
        n_matrices=_matrices(cells),
        shared_width=(cells.whole("n_shared_experts") or 0) * width,
        n_dense_layers=cells.whole("n_dense_layers") or 0,
        n_groups=int(cells.extra.get("n_group") or 1),
        top_groups=int(cells.extra.get("topk_group") or 1),
        capacity_factor=_capacity(str(cells.extra.get("moe_routing", ""))),
    )


def _capacity(routing: str) -> float | None:
    """Tokens dropped and padded to the mean load, or none dropped."""
    return 1.0 if "capacity" in routing else None


def _positions(cells: Cells) -> int:
    """Rows of a learned position table: as many as the sequence has tokens, where the row says so."""
    return cells.needed("seq_len") if str(cells.extra.get("pos", "")) == "learned" else 0
