"""Why an estimate is what it is: each part's formula with this plan's numbers, and the constants behind it.

elasticity    d ln t / d ln c, of the step and of each part, over one spread of c up and down
variance      ( ln t(c up) - ln t(c down) )^2 / 4, as in `objectives.uncertainty`
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from objectives.cost import pipeline
from objectives.cost.migration import migration_share_s
from objectives.cost.parts import PARTS
from objectives.cost.passes import PassTable, pass_table
from objectives.cost.result import Estimate, StageProfile, StepMemory, StepTime
from objectives.cost.stages import representatives, stages_of
from objectives.cost.states import (
    StateTimes,
    held_parameters,
    state_bytes,
    state_times,
    tiles_issue_s,
)
from objectives.cost.step import (
    estimate,
    idle_s,
    node_doublings,
    stage_profile,
    times_shared,
)
from objectives.cost.tokens import microbatches, tokens_per_device
from objectives.metrics import Job
from objectives.uncertainty import TIMELESS, bounds, constants, formula_spread, with_constant
from search_spaces.cluster import Constant
from search_spaces.plan import Plan, Plans

FORMULAS = "formulas"  # what of the variance no constant brings
SMALL_CHANGE = 0.01
NOTHING = 1e-9  # an elasticity below it is rounding

Terms = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one constant does to one plan: `elasticity` to the step's time, `of_part` to each part it sets."""

    name: str
    constant: Constant
    elasticity: float
    of_part: Mapping[str, float]
    variance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedPart:
    """One part: seconds or bytes, its share of the total, and the numbers for its worked formula."""

    name: str
    value: float
    share: float
    terms: Mapping[str, float]

    def worked(self, words: Callable[[str, float], str]) -> str:
        """The formula with `words` of each term's name and value; empty where it has no short form."""
        return worked(PARTS[self.name].worked, self.terms, words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One plan explained; parts that are nought are left out, effects come strongest first.

    `formula_variance` is the formulas' own part of the variance of the logarithm of the step's seconds.
    """

    time: tuple[ExplainedPart, ...]
    memory: tuple[ExplainedPart, ...]
    effects: tuple[Effect, ...]
    formula_variance: float

    def rests_on(self, part: str) -> list[Effect]:
        """The constants that a part rests on, strongest first."""
        found = [effect for effect in self.effects if part in effect.of_part]
        return sorted(found, key=lambda effect: -abs(effect.of_part[part]))

    @property
    def variance(self) -> float:
        """Variance of the logarithm of the step's seconds, the formulas' own included."""
        return self.formula_variance + sum(effect.variance for effect in self.effects)

    @property
    def variance_shares(self) -> dict[str, float]:
        """Shares of the interval's variance by what they come from: each origin, and the formulas."""
        shares = {FORMULAS: self.formula_variance}
        for effect in self.effects:
            origin = str(effect.constant.origin)
            shares[origin] = shares.get(origin, 0.0) + effect.variance
        return {name: variance / self.variance for name, variance in shares.items()}


def explain(job: Job, plan: Plan) -> Explanation:
    """Every part of one plan's estimate, its numbers, and what it rests on.

    Assumes a legal plan.  Prices the plan four times for each constant.
    """
    job, one = job.of_plan(plan), Plans.of([plan])
    priced, terms = estimate(job, one), part_terms(job, plan)
    parts = _parts(priced)
    return Explanation(
        time=_explained(parts, StepTime, terms),
        memory=_explained(parts, StepMemory, terms),
        effects=_effects(job, one, priced),
        formula_variance=float(formula_spread(priced)[0] ** 2),
    )


def _parts(priced: Estimate) -> dict[str, float]:
    time = {field.name: float(getattr(priced.time, field.name)[0]) for field in fields(StepTime)}
    return time | {field.name: float(getattr(priced.memory, field.name)[0]) for field in fields(StepMemory)}


def _explained(
    parts: Mapping[str, float], kind: type[StepTime | StepMemory], terms: Terms
) -> tuple[ExplainedPart, ...]:
    names = [field.name for field in fields(kind) if parts[field.name] > 0]
    total = sum(parts[name] for name in names)
    return tuple(
        ExplainedPart(name=name, value=parts[name], share=parts[name] / total, terms=terms) for name in names
    )


def _effects(job: Job, one: Plans, priced: Estimate) -> tuple[Effect, ...]:
    present = [name for name, value in _parts(priced).items() if value > 0]
    found = [_effect(job, one, name, constant, present) for name, constant in constants(job).items()]
    alive = [effect for effect in found if effect is not None and effect.of_part]
    return tuple(sorted(alive, key=lambda effect: (-effect.variance, -abs(effect.elasticity))))


def _effect(job: Job, one: Plans, name: str, constant: Constant, present: list[str]) -> Effect | None:
    """One constant's effect: elasticities from a small change, the variance from its spread."""
    low, high = bounds(name, replace(constant, spread=SMALL_CHANGE))
    if low.value <= 0:
        return None
    width = float(np.log(high.value / low.value))
    down, up = (estimate(with_constant(job, name, bound), one) for bound in (low, high))
    below, above = _parts(down), _parts(up)
    of_part = {
        part: float(np.log(above[part] / below[part])) / width
        for part in present
        if below[part] > 0 and above[part] > 0
    }
    return Effect(
        name=name,
        constant=constant,
        elasticity=float(np.log(up.step_s[0] / down.step_s[0])) / width,
        of_part={part: share for part, share in of_part.items() if abs(share) > NOTHING},
        variance=_variance(job, one, name, constant),
    )


def _variance(job: Job, one: Plans, name: str, constant: Constant) -> float:
    if not constant.spread or name in TIMELESS:
        return 0.0
    low_s, high_s = (
        estimate(with_constant(job, name, bound), one).step_s[0] for bound in bounds(name, constant)
    )
    return float(np.log(high_s / low_s) ** 2 / 4)


def part_terms(job: Job, plan: Plan) -> Terms:
    """The numbers of every worked formula, by the names that `objectives.cost.parts` gives them."""
    one, capped = Plans.of([plan]), job.under_cap(plan.power_cap_w)
    passes, states, profile = pass_table(capped, one), state_times(capped, one), stage_profile(job, plan)
    time = estimate(job, one).time
    m = int(microbatches(job, one)[0])
    return (
        {"m": m, "vpp": plan.vpp, "others": plan.pp - 1}
        | _pass_terms(passes)
        | _pipeline_terms(job, one, passes, m)
        | _sharing_terms(job, plan, states, m, float(time.dp_comm_s[0]))
        | _update_terms(capped, plan)
        | _end_terms(job, one, time, m * float(passes.host_s[0]) if passes.host_s is not None else 0.0)
        | _memory_terms(job, plan, profile)
    )


def _pass_terms(passes: PassTable) -> Terms:
    parts = ("compute", "recompute", "tp_comm", "cp_comm", "ep_comm", "launch")
    return {f"{part}_pass_s": float(getattr(passes, f"{part}_s")[0]) for part in parts}


def _pipeline_terms(job: Job, one: Plans, passes: PassTable, m: int) -> Terms:
    """The stage that waits, and messages between stages."""
    others, vpp = int(one.pp[0]) - 1, int(one.vpp[0])
    waiting_s = float(passes.all_stages_s[0] - passes.worst_s[0]) if others else 0.0
    send_s = float(passes.send_s[0]) if others else 0.0
    sent_s = float(pipeline.send_s(one, microbatches(job, one), passes)[0])
    return {
        "other_stage_s": waiting_s / max(others, 1),
        "filled_s": waiting_s / vpp - float(idle_s(job, one, microbatches(job, one), passes)[0]),
        "send_s": send_s,
        "shown_send_s": max(sent_s - 2 * others * send_s, 0.0) / (2 * m * vpp),
    }


def _sharing_terms(job: Job, plan: Plan, states: StateTimes, m: int, exposed_s: float) -> Terms:
    """Reductions and gathers of a step by ZeRO stage (Rajbhandari et al., arXiv:1910.02054, section 7)."""
    n_reductions, n_gathers = times_shared(job, Plans.of([plan]), np.array([m]))
    reductions, gathers = int(n_reductions[0]), int(n_gathers[0])
    reduce_s, gather_s, tie_s = (float(each[0]) for each in (states.reduce_s, states.gather_s, states.tie_s))
    hidden_s = reductions * reduce_s + gathers * gather_s + tie_s - exposed_s
    counted = {"reductions": reductions, "gathers": gathers}
    return counted | {"reduce_s": reduce_s, "gather_s": gather_s, "tie_s": tie_s, "hidden_s": hidden_s}


def _update_terms(job: Job, plan: Plan) -> Terms:
    """The optimizer on the device of the stage whose devices own the most; nothing where it is offloaded."""
    device, state = job.cluster.device, job.workload.training_state
    if plan.offload_optimizer:
        return {}
    one = Plans.of([plan])
    stages = stages_of(job, one, representatives(job, one).index)
    held = state_bytes(job, one, held_parameters(job, one, stages), stages)
    copied = plan.dp * int(stages.n_layers.max()) if plan.zero >= 1 and plan.dp > 1 else 0
    owned = held.optimizer_bytes.max() / state.optimizer_bytes
    moved = 2 * state.optimizer_bytes + state.gradient_bytes + state.weight_bytes
    rate = device.memory_bandwidth_bytes_per_s * device.memory_efficiency.value
    issue_s = float(tiles_issue_s(job, one, owned)[0])
    return {
        "updated_parameters": float(owned),
        "updated_bytes": moved,
        "memory_bytes_per_s": rate,
        "tiles_wait_s": max(issue_s - float(owned) * moved / rate, 0.0),
        "shard_copies": copied * job.trainer.shard_operations.value,
        "issue_s": device.kernel_launch_s.value,
    }


def _end_terms(job: Job, one: Plans, time: StepTime, waits_s: float) -> Terms:
    """What a step costs beside its passes, which hold the waits for what lies on the host."""
    cluster = job.cluster
    beside = time.dp_comm_s + time.optimizer_s + time.offload_s + time.fixed_s
    return {
        "step_fixed_s": cluster.step_fixed_s.value,
        "straggler_per_log2": cluster.straggler_per_log2.value,
        "doublings": float(np.ravel(node_doublings(job, one))[0]),
        "busy_s": float(time.total_s[0] - beside[0]) + waits_s,
        "migration_s": float(np.ravel(migration_share_s(job, one))[0]),
    }


def _memory_terms(job: Job, plan: Plan, profile: StageProfile) -> Terms:
    """The fullest stage's numbers."""
    stage, state = profile.peak_stage, job.workload.training_state
    held = {field.name: float(getattr(profile.memory, field.name)[stage]) for field in fields(StepMemory)}
    tokens = float(tokens_per_device(job, Plans.of([plan]))[0])
    terms = {
        "weight_bytes": state.weight_bytes,
        "gradient_bytes": state.gradient_bytes,
        "optimizer_bytes": state.optimizer_bytes,
        "weights_parameters": held["weights_bytes"] / state.weight_bytes,
        "gradients_parameters": held["gradients_bytes"] / state.gradient_bytes,
        "in_flight": float(profile.in_flight[stage]),
        "kept_bytes": float(profile.activation_bytes[stage]),
        "tokens": tokens,
        "logits_bytes_per_token": held["logits_bytes"] / tokens,
        "reserve_bytes": held["reserve_bytes"],
    }
    if not plan.offload_optimizer:  # offloaded, it leaves buffers here, which no count of parameters makes
        terms["optimizer_parameters"] = held["optimizer_bytes"] / state.optimizer_bytes
    return terms


def worked(template: str, terms: Mapping[str, float], words: Callable[[str, float], str]) -> str:
    """A template with its terms as words; summands that are nought are left out, and so are factors of one.

    Empty where a term is missing.
    """
    if not terms.keys() >= set(re.findall(r"{(\w+)}", template)):
        return ""
    pieces = re.split(r" ([+−]) ", template)
    signs, summands = ["+", *pieces[1::2]], pieces[::2]
    text = ""
    for sign, summand in zip(signs, summands, strict=True):
        names = re.findall(r"{(\w+)}", summand)
        if any(abs(terms[name]) < NOTHING for name in names):
            continue
        shown = re.sub(r"{(\w+)}", lambda found: words(found[1], terms[found[1]]), summand)
        text += f" {sign} {shown}"
    return re.sub(r" [/×] 1(?= |$)", "", text.replace(" + 1 × ", " + ").removeprefix(" + "))
