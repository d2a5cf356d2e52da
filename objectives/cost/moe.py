"""Closed forms of mixture-of-experts systems: what dispatch keeps, repeats and moves.

    S  tokens on a device        E  n_experts     k  top_k               c  capacity factor
    H  d_model                   f  expert width  n  nodes of an expert-parallel group
    G  tensor-parallel degree    b  bytes a parameter of training state

The step's own cost of experts is in `objectives.cost.layers`; these are the laws that papers publish about
dispatch kinds and rebalancing, for choosing between them.  Degrees may be numbers or columns.
"""

from enum import StrEnum

import numpy as np

from objectives.cost.kernels import entry_bytes
from search_spaces.model import ModelSpec, MoeSpec
from search_spaces.parameters import expert_parameters
from search_spaces.plan import Bools, Floats, Ints
from search_spaces.workload import Precision

SIXTEEN_BIT_BYTES = entry_bytes(Precision.BF16)
FP32_BYTES = entry_bytes(Precision.FP32)
MASK_BYTES = 2 * FP32_BYTES + 1  # two fp32 weights and one bool for every (token, expert, slot)
PIPER_STATE_BYTES = 16.0  # 16-bit weight and gradient, fp32 master and two moments


class Dispatch(StrEnum):
    """How tokens reach their experts.

    Dropless sends each (token, expert) pair once; the others pad every expert to its capacity.
    """

    DROPLESS = "dropless"
    DEEPSPEED_MOE = "deepspeed-moe"
    TUTEL = "tutel"


def expert_capacity(moe: MoeSpec, tokens: Floats, capacity_factor: float) -> Floats:
    """Slots of one expert when every expert is padded alike: C = c k S / E."""
    return capacity_factor * moe.top_k * tokens / moe.n_experts


def expert_layer_activation_bytes(
    model: ModelSpec, tokens: Floats, dispatch: Dispatch, *, capacity_factor: float = 1.0
) -> Floats:
    """Activations that one expert layer keeps: dispatched tokens, inner activations, combined tokens.

        dropless         2 k S H + 4 k S f + 2 k S H          what the mathematics needs
        deepspeed-moe    c times that + (4 + 4 + 1) S E C     padding, and masks over all slots
        tutel            c (2 k S H + 4 k S f + 4 k S H)      padding, and an fp32 combine

    Assumes 16-bit activations and two-matrix experts, as the source does.

    Returns
    -------
    shape of `tokens`, bytes

    Source
    ------
    X-MoE (2025), arXiv:2508.13337, table 4.
    """
    moe = _moe(model)
    routed = moe.top_k * tokens
    side = SIXTEEN_BIT_BYTES * routed * model.d_model
    inner = 2 * SIXTEEN_BIT_BYTES * routed * moe.expert_width
    match dispatch:
        case Dispatch.DROPLESS:
            return 2 * side + inner
        case Dispatch.DEEPSPEED_MOE:
            slots = tokens * moe.n_experts * expert_capacity(moe, tokens, capacity_factor)
            return capacity_factor * (2 * side + inner) + MASK_BYTES * slots
        case Dispatch.TUTEL:
            return capacity_factor * (side + inner + FP32_BYTES * routed * model.d_model)


def dispatch_redundancy(moe: MoeSpec, n_nodes: Ints) -> Floats:
    """Share of the token copies sent to a node that has that token already.

        R = 1 − (n / k) (1 − C(E − E/n, k) / C(E, k))

    n nodes hold E/n experts each; a token picks k experts uniformly and reaches n (1 − …) nodes.

    Returns
    -------
    shape of `n_nodes`, a fraction

    Source
    ------
    X-MoE (2025), arXiv:2508.13337: 54.8 % for 256 experts, top-8, on 4 nodes of 8 devices.
    """
    return 1 - reached_domains(moe.n_experts, moe.top_k, np.asarray(n_nodes, dtype=np.float64)) / moe.top_k


def reached_domains(experts: float, k: int, n: Floats) -> Floats:
    """Of n domains with E/n experts each, those that hold any of a token's k.

        n (1 − C(E − E/n, k) / C(E, k))

    Assumes a uniform choice.
    """
    elsewhere = experts - experts / n
    # The ratio of binomials as a product, which stays exact where they overflow.
    missed = np.ones_like(elsewhere)
    for i in range(k):
        missed *= np.maximum(elsewhere - i, 0) / (experts - i)
    reached: Floats = n * (1 - missed)
    return reached


def deduplicated_share(moe: MoeSpec, n_domains: Floats) -> Floats:
    """Token copies that are sent where each goes once to a domain, over all k of them.

        D' = D (1 − (1 − g/G)^max(G/D, 1))        domains that a token's g of G groups lie in
        share = reached domains of D' with E g/G experts, over k

    Returns
    -------
    shape of `n_domains`, a fraction

    Source
    ------
    Node-limited routing: DeepSeek-V3 (2024), arXiv:2412.19437, sections 2.1.2 and 3.2.2 (at most 4 nodes).
    """
    share = moe.top_groups / moe.n_groups
    within = n_domains * (1 - (1 - share) ** np.maximum(moe.n_groups / n_domains, 1))
    reached = reached_domains(moe.n_experts * share, moe.top_k, np.maximum(within, 1))
    fraction: Floats = np.minimum(reached / moe.top_k, 1)
    return fraction


def sharding_sequences_saves_more(moe: MoeSpec, seq_len: Ints, *, capacity_factor: float = 1.0) -> Bools:
    """Whether splitting an expert block's sequence over tp saves more than splitting its experts.

        k / f > 2 / (c S)

    Splitting the sequence saves 4 c k S H (1 − 1/G) bytes of activations; splitting one expert a device saves
    8 H f (1 − 1/G) bytes of weights and gradients.  Assumes ZeRO-1.

    Source
    ------
    X-MoE (2025), arXiv:2508.13337, sequence-sharded blocks; TED: Singh et al. (2023), arXiv:2303.06318.
    """
    saves: Bools = np.asarray(moe.top_k / moe.expert_width > 2 / (capacity_factor * np.asarray(seq_len)))
    return saves


def expert_migration_bytes(model: ModelSpec, n_devices: Ints) -> Floats:
    """Bytes a device moves when all experts of a layer change places: 16 · m E d f / G.

    Assumes 16 bytes of state a parameter.  The source takes m = 3 matrices for every model; here it is the
    model's own.

    Source
    ------
    Piper (2026), arXiv:2605.05049, expert migration.
    """
    state_bytes = PIPER_STATE_BYTES * _moe(model).n_experts * expert_parameters(model)
    moved: Floats = state_bytes / np.asarray(n_devices)
    return moved


def _moe(model: ModelSpec) -> MoeSpec:
    assert model.moe is not None, f"{model.name} has no experts"
    return model.moe
