"""DeepSpeed-TED: tensor, expert and data parallelism of mixture-of-experts models together.

    t  tp     e  ep     D  replicas of what is not expert     D_exp  replicas of an expert = D / e

    state on a device, ZeRO-1        phi_ne (4 / t + 12 / (t D)) + phi_exp (4 / (t e) + 12 / (t e D_exp))
    update's fp32 gradients          4 phi_exp / (t e D_exp), at most 4 x the tile

Source: arXiv:2303.06318; DeepSpeed, utils/groups.py, moe/mappings.py, moe/sharded_moe.py.
"""

from collections.abc import Iterator

from objectives.cost.dispatch import sent_tokens
from objectives.cost.stages import rank_parameters, representatives, stages_of
from objectives.cost.states import state_bytes
from objectives.cost.step import estimate
from objectives.metrics import Job
from search_spaces.parameters import total_parameters
from search_spaces.plan import Plan, Plans
from search_spaces.units import BILLION
from tuner.config import read_config
from tuner.papers.figure import Figure, Kind, Paper, Provenance, figure_of
from tuner.presets import preset_path

SYSTEM = "ted"
ABSTRACT = "arXiv:2303.06318, abstract"
GROUPS = "DeepSpeed, utils/groups.py; state law derived"
LAYOUT = "tp=4 dp=32 ep=16 etp=4 zero=1 recompute=full micro_batch=1"
PLAIN, DROPPED = "expert_tokens=duplicated", "expert_tokens=dropped"
KEPT = f"{PLAIN} keep_received=true"
BOTH = f"{DROPPED} keep_received=true"
STEPS = ((DROPPED, PLAIN), (KEPT, PLAIN), (BOTH, DROPPED), (BOTH, KEPT))
TILE = 1_800_000  # the paper's tile, parameters


def study_job() -> Job:
    """The preset study's job: 40B parameters on 128 V100."""
    return read_config(preset_path("ted")).inputs.job


def plan(more: str) -> Plan:
    """The published layout with further knobs."""
    return Plan.parse(f"{LAYOUT} {more}")


def speed_up(more: str, over: str = PLAIN) -> float:
    """Step seconds of one variant over those of another, both on the published layout."""
    step_s = estimate(study_job(), Plans.of([plan(over), plan(more)])).step_s
    return float(step_s[0] / step_s[1])


def state_bytes_of(chosen: Plan) -> tuple[float, float]:
    """Bytes of state on a device: the cost model's, and the law of this module."""
    job, one = study_job(), Plans.of([chosen])
    stages = stages_of(job, one, representatives(job, one).index)
    held = rank_parameters(job, one, stages)
    state = state_bytes(job, one, held, stages)
    ours = (state.weights_bytes + state.gradients_bytes + state.optimizer_bytes)[0, 0]
    dense, expert = held.dense[0, 0], held.expert[0, 0]
    law = dense * (4 + 12 / chosen.dp) + expert * (4 + 12 / (chosen.dp // chosen.ep))
    return float(ours), float(law)


def update_bytes(chosen: Plan) -> float:
    """Bytes of fp32 gradients that the update holds at once."""
    job, one = study_job(), Plans.of([chosen])
    stages = stages_of(job, one, representatives(job, one).index)
    return float(state_bytes(job, one, rank_parameters(job, one, stages), stages).update_bytes[0, 0])


def figures() -> tuple[Figure, ...]:
    """Groups, state, the exchange's size, and what both optimisations bring."""
    return tuple(_figures())


def _figures() -> Iterator[Figure]:
    derived = figure_of(SYSTEM, GROUPS, Provenance.DERIVED, Kind.EXACT)
    abstract = figure_of(SYSTEM, ABSTRACT, Provenance.ABSTRACT, Kind.RATIO)
    job, both = study_job(), Plans.of([plan(PLAIN), plan(DROPPED)])
    replicas = float(both.dp[0] / both.edp[0])
    yield derived("replicas of the rest over those of an expert", "", 16.0, replicas)
    ours, law = state_bytes_of(plan(PLAIN))
    yield derived("bytes of state on a device", "", law, ours)
    sent = sent_tokens(job, both)
    yield derived("tokens sent to experts, duplicated over dropped", "", 4.0, float(sent[0] / sent[1]))
    tiled = update_bytes(plan(f"{BOTH} optimizer_tile={TILE}"))
    yield derived("bytes of fp32 gradients in a tiled update", "", 4.0 * TILE, tiled)
    size = total_parameters(job.model) / BILLION
    yield abstract("billions of parameters, 6.7B with 16 experts", "", 40.0, size)
    yield abstract(
        "speed with both communication optimisations over neither",
        "",
        1.26,
        speed_up(BOTH),
        note="four of a node's six V100, tp 4, 2,048 tokens and 1,024 sequences are assumed",
        is_headline=True,
    )
    helps = [speed_up(more, over=over) > 1 for more, over in STEPS]
    yield abstract(
        "each optimisation helps, alone and beside the other",
        "",
        float(len(STEPS)),
        float(sum(helps)),
        kind=Kind.ORDER,
    )


PAPER = Paper(
    name="ted",
    title="Tensor, expert and data parallelism for mixtures of experts",
    source="arXiv:2303.06318",
    figures=figures,
    presets=("ted",),
)
